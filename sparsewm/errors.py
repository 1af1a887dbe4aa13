"""Errors a user can cause: one clear sentence with the remedy; programs exit with 2."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class UserError(Exception):
    """Something the user can put right; the message is one sentence that says how."""


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


def suggest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the known name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.4)
    return f" Did you mean '{near[0]}'?" if near else ""


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Turn a failing import into a `UserError` that says how to install what `what` needs."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{what} need packages that are not installed ({error}): pip install 'sparsewm[{extra}]'"
        ) from None
