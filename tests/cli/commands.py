"""The command line as tests call it: as a process of its own, or quickly in this one."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sysconfig
from pathlib import Path

import pytest

from sparsewm.cli import main

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "sparsewm")


def shell(folder: Path, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the installed program in a folder; the exit code is the caller's business."""
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout)


def call(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exit,
    ):
        main([str(argument) for argument in arguments])
    code = exit.value.code
    return int(code or 0), out.getvalue(), err.getvalue()
