"""Errors a user can cause: one clear sentence with the remedy; the command line exits with 2."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can put right; the message is one sentence that says how."""


def suggest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the known name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.4)
    return f" Did you mean '{near[0]}'?" if near else ""


_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
_MACHINE |= {errno.ENOMEM}


def machine_fault(error: BaseException) -> UserError | None:
    """What a machine that has run out of something is to be told; None for an error of another kind."""
    if isinstance(error, OSError) and error.errno in _MACHINE:
        where = "" if error.filename is None else f" at {error.filename}"
        return UserError(f"this machine refuses to go on ({error.strerror}{where}): give it what is short")
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (
            "can't allocate memory" in text or text == "could not create a primitive"
        )  # oneDNN's words for it
    ):
        reason = f" ({text.rpartition('DefaultCPUAllocator: ')[2]})" if text else ""
        return UserError(f"this machine has too little memory{reason}: take less data, or smaller settings")
    return None


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Turn a failing import into a `UserError` that says how to install what `what` needs."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{what} need packages that are not installed ({error}): pip install 'sparsewm[{extra}]'"
        ) from None
