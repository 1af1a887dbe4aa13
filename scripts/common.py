"""What all scripts share: how they start and end, and how they say what was typed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import tyro

from sparsewm.cli.common import script_exit_code
from sparsewm.tasks import check_seed


def launch(main: Callable[[Any], None], arguments: type) -> NoReturn:
    """Read the command line and run; what a user can put right is one sentence and exit code 2.

    Args:
        main: is given the arguments. arguments: dataclass of them.
    """

    def run() -> None:
        made: Any = tyro.cli(arguments)
        check_seed(getattr(made, "seed", 0))
        main(made)

    sys.exit(script_exit_code(run))


def typed_command() -> str:
    """This command as it was typed."""
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name] if spec is not None else sys.argv[:1]
    return shlex.join(["python", *program, *sys.argv[1:]])
