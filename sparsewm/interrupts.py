"""Interruptions that wait until what cannot be cut in two is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def finished_first() -> Iterator[Callable[[], bool]]:
    """Ctrl-C, and SIGTERM where it has a handler, take effect after what is inside; a second one at once.

    Yields:
        Whether somebody asks to stop.
    """
    asked: list[tuple[int, FrameType | None]] = []
    held: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere there are no signals
        handlers = {int(one): signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        held = {number: handler for number, handler in handlers.items() if callable(handler)}

    def wait(number: int, frame: FrameType | None) -> None:
        if asked:
            held[number](number, frame)
        asked.append((number, frame))

    for number in held:
        signal.signal(number, wait)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    if asked:
        number, frame = asked[0]
        held[number](number, frame)
