"""What commands and scripts share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sparsewm.errors import UserError
from sparsewm.evaluation.closed_loop import HELD_OUT
from sparsewm.files import output_folder

__all__ = ["check_seed", "command_line", "exit_code", "output_folder", "progress_bar"]


def exit_code(run: Callable[[], int | None]) -> int:
    """Run a program: what it returns, or 0; 2 and one sentence where its user can put something right."""
    try:
        return run() or 0
    except UserError as error:
        sentence = " ".join(str(error).split())  # what libraries say may run over several lines
        Console(stderr=True).print(f"[bold red]error:[/] {escape(sentence)}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; finished parts are kept, run the same command to continue")
        return 130


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[..., None]]:
    """A bar with an estimate, on standard error: the value is called with (done, total, text)."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(label, total=None, text="")

        def update(done: float, total: float, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield update


def check_seed(seed: int) -> None:
    """Raise a `UserError` unless the seed is one whose data no evaluation is held out on."""
    if not 0 <= seed < HELD_OUT:
        raise UserError(f"--seed must be at least 0 and below {HELD_OUT}, got {seed}")


def command_line() -> str:
    """This command as it was typed."""
    return shlex.join(["sparsewm", *sys.argv[1:]])
