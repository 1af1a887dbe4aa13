"""How training tells what it does: nothing by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Progress = Callable[[str], AbstractContextManager[Callable[..., None]]]
"""A bar by its label: the value of the context is called with (done, total, text)."""

Say = Callable[[str], Any]
"""Takes a sentence."""


@contextmanager
def quiet(label: str) -> Iterator[Callable[..., None]]:
    """No bar."""
    yield lambda *_: None


def silent(sentence: str) -> None:
    """No sentence."""
