"""The command line as tests call it: as a process of its own, or quickly in this one."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

from sparsewm.cli import main

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "sparsewm")


def words(arguments: tuple[object, ...]) -> list[str]:
    """Arguments as a shell passes them: strings are split into words, a path or a number is one word."""
    lists = (shlex.split(item) if isinstance(item, str) else [str(item)] for item in arguments)
    return [word for part in lists for word in part]


def shell(folder: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program in a folder, with environment variables; any exit code will do."""
    command = [PROGRAM, *words(arguments)]
    return subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True)


def call(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exit,
    ):
        main(words(arguments))
    code = exit.value.code
    return int(code or 0), out.getvalue(), err.getvalue()
