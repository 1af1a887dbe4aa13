"""Processes that do jobs for this one: they stop when it is stopped, and end with it."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

Submit = Callable[..., Future[Any]]
"""Hands a job out: a function at the top of a module, and its arguments."""

GRACE = 10.0
"""Seconds in which a worker leaves its job, before it is ended amid what it calls."""

_stopping = threading.Event()  # set in a worker that is to leave its job
_busy = False  # whether it has one


class NoSharedMemory(OSError):
    """Processes cannot wait for each other here."""


@contextmanager
def processes(count: int, begin: Callable[..., object] | None = None, *arguments: Any) -> Iterator[Submit]:
    """Some processes; at the end they leave jobs that are not done, and those that wait are not begun.

    Args:
        count: of them. begin: called in each with `arguments`, once.

    Raises:
        BrokenProcessPool: one of them died. NoSharedMemory: there is none.
    """
    context = mp.get_context("spawn")
    told, tells = context.Pipe(duplex=False)  # its end is the word to stop: no worker's death disturbs it
    try:
        pool = ProcessPoolExecutor(count, context, _begin, (told, begin, arguments))
    except OSError as error:  # they wait for each other in /dev/shm
        raise NoSharedMemory(error.errno, error.strerror) from None

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return pool.submit(_do, function, *arguments)

    try:
        yield submit
    finally:
        tells.close()
        told.close()
        pool.shutdown(cancel_futures=True)


def _begin(told: Connection, begin: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    """Leave Ctrl-C to the parent, which a terminal tells all of, stop with it and die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    parent = mp.parent_process()
    assert parent is not None

    def obey() -> None:
        with contextlib.suppress(EOFError, OSError):
            told.recv()
        _stopping.set()
        os.kill(os.getpid(), signal.SIGTERM)
        parent.join(GRACE)
        os._exit(1)

    threading.Thread(target=obey, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _leave(number: int, frame: Any) -> None:
    if not _stopping.is_set():  # somebody else ends this process: it may be stuck where another one died
        os._exit(128 + number)
    if _busy:
        raise KeyboardInterrupt


def _do(function: Callable[..., Any], *arguments: Any) -> Any:
    global _busy
    _busy = True
    try:
        if _stopping.is_set():  # a pool hands one out before the last is done
            raise KeyboardInterrupt
        return function(*arguments)
    finally:
        _busy = False
