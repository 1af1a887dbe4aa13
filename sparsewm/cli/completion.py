"""What shells complete: a script with all commands and their flags, `sparsewm --completion bash`."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, Union

import tyro

from sparsewm.errors import UserError

SHELLS = ("bash", "zsh", "fish")


def print_completion(shell: str, commands: dict[str, tuple[str, str]]) -> None:
    """Print the script for a shell.

    Args:
        commands: by name, where each is and what it does.

    Raises:
        UserError: no such shell.
    """
    if shell not in SHELLS:
        raise UserError(f"scripts are written for {', '.join(SHELLS)}, not '{shell}'")
    kinds: list[Any] = []
    for name, (place, summary) in commands.items():
        module, _, attribute = place.partition(":")
        made = getattr(importlib.import_module(module), attribute)
        tree = getattr(made, "tree", made)
        kinds.append(Annotated[tree, tyro.conf.subcommand(name, description=summary)])
    every: Any = Union[tuple(kinds)]  # noqa: UP007  # made at run time
    tyro.cli(every, prog="sparsewm", args=["--tyro-write-completion", shell, "-"])
