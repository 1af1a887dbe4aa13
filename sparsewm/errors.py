"""Errors a user can cause: one clear sentence with the remedy; the command line exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can put right; the message is one sentence that says how."""


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
