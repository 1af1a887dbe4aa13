"""The LeRobot that policies are run with: installed, and of a version whose insides are known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from sparsewm.errors import UserError, needs_extra

FIRST, BEFORE = "0.4.4", "0.5"
"""Versions of LeRobot: from the first, before the second, as pyproject.toml has them."""


@contextmanager
def lerobot_imports(what: str = "policies of LeRobot") -> Iterator[None]:
    """Import LeRobot in this context.

    The action expert is computed anew from LeRobot's weights (`sparsewm.proposals.expert`), so another
    version might run and mean something else.

    Raises:
        UserError: LeRobot is not installed, or of another version.
    """
    try:
        found = version("lerobot")
    except PackageNotFoundError:
        found = FIRST  # none: importing it says so
    if not _numbers(FIRST) <= _numbers(found) < _numbers(BEFORE):
        raise UserError(
            f"{what} need lerobot >={FIRST},<{BEFORE}, installed is {found}: pip install 'sparsewm[vla]'"
        )
    with needs_extra(what, "vla"):
        yield


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
