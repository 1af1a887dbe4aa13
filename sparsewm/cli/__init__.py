"""The command line: `sparsewm collect | train | plan | eval | bench | export | doctor`."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Union

os.environ.setdefault("MUJOCO_GL", "egl")

import tyro
from tyro.conf import subcommand

from sparsewm.cli.bench import Bench
from sparsewm.cli.collect import Collect
from sparsewm.cli.common import exit_code
from sparsewm.cli.doctor import Doctor
from sparsewm.cli.evaluate import Eval
from sparsewm.cli.export import Export
from sparsewm.cli.plan import Plan
from sparsewm.cli.train import Train
from sparsewm.memory import keep_freed_memory

Command = Union[  # noqa: UP007  (tyro reads it at run time, on Python 3.10 too)
    Annotated[Collect, subcommand("collect", description=Collect.__doc__)],
    Annotated[Train, subcommand("train", description=Train.__doc__)],
    Annotated[Plan, subcommand("plan", description=Plan.__doc__)],
    Annotated[Eval, subcommand("eval", description=Eval.__doc__)],
    Annotated[Bench, subcommand("bench", description=Bench.__doc__)],
    Annotated[Export, subcommand("export", description=Export.__doc__)],
    Annotated[Doctor, subcommand("doctor", description=Doctor.__doc__)],
]


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits with 2 and one sentence when the user can put something right."""
    keep_freed_memory()
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["train"]:  # what its flags stand for depends on an environment and a preset
        sys.exit(exit_code(lambda: Train.parse(words[1:]).run_command()))
    command: Command = tyro.cli(  # type: ignore[call-overload]
        Command,
        prog="sparsewm",
        description="Plan from pixels in a sparse DINO world model. "
        "First: sparsewm plan --env pusht --drop 0.5",
        args=arguments,
    )
    sys.exit(exit_code(command.run))
