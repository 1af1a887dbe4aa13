"""The command line: `sparsewm collect | train | plan | eval | bench | export | doctor`."""

from __future__ import annotations

import ast
import inspect
import io
import os
import sys
from typing import Annotated, Union

if sys.platform == "linux":  # elsewhere MuJoCo draws without a screen by itself
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


def _about(command: type) -> str | None:
    """Its docstring; from its source where Python throws docstrings away (-OO)."""
    if sys.flags.optimize < 2:
        return inspect.getdoc(command)
    tree = ast.parse(inspect.getsource(command)).body[0]
    return ast.get_docstring(tree) if isinstance(tree, ast.ClassDef) else None


Command = Union[  # noqa: UP007  (tyro reads it at run time, on Python 3.10 too)
    Annotated[Collect, subcommand("collect", description=_about(Collect))],
    Annotated[Train, subcommand("train", description=_about(Train))],
    Annotated[Plan, subcommand("plan", description=_about(Plan))],
    Annotated[Eval, subcommand("eval", description=_about(Eval))],
    Annotated[Bench, subcommand("bench", description=_about(Bench))],
    Annotated[Export, subcommand("export", description=_about(Export))],
    Annotated[Doctor, subcommand("doctor", description=_about(Doctor))],
]


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits with 2 and one sentence when the user can put something right."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # help and tables hold more than ASCII
            stream.reconfigure(errors="replace")
    keep_freed_memory()
    try:
        try:
            command: Command = tyro.cli(  # type: ignore[call-overload]
                Command,
                prog="sparsewm",
                description="Plan from pixels in a sparse DINO world model. "
                "First: sparsewm plan --env pusht --drop 0.5",
                args=arguments,
            )
            code = exit_code(command.run)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `sparsewm plan --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell says that a program ended by SIGPIPE
    sys.exit(code)
