"""Denormal numbers, so small that processors compute them many times as slowly, count as zero meanwhile."""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from sparsewm.kernels.build import load_library

SOURCES = [Path(__file__).with_name("denormals.c")]
FLAGS = ("-O3", "-fPIC", "-fopenmp")

_TINY, _ONE = struct.unpack("<d", (1 << 40).to_bytes(8, "little"))[0], 1.0  # never computed, so never zero
for _kind in (np.float16, np.float32, np.float64):
    np.finfo(_kind)  # NumPy looks for its least numbers once, and warns where they are zero


class _Here(threading.local):
    """Of this thread: how many contexts it is in."""

    depth = 0


_here = _Here()


@contextmanager
def flushed() -> Iterator[None]:
    """Denormal numbers are zero, operands and results, on this thread and on those that torch computes with.

    At the end all have the calling thread's former setting back. Where nothing can be compiled, only helpers
    that begin meanwhile follow; processors other than x86 and Arm do as always. May be entered again, and
    decorates functions.
    """
    if _here.depth == 0:
        before = _TINY * _ONE == 0.0
        _set(True)
    _here.depth += 1
    try:
        yield
    finally:
        _here.depth -= 1
        if _here.depth == 0:
            _set(before)


def _set(on: bool) -> None:
    threads = torch.get_num_threads()
    library = _library() if threads > 1 else "one thread"
    torch.set_flush_denormal(on)
    if not isinstance(library, str):
        library.flush_threads(threads, on)


@functools.cache
def _library() -> ctypes.CDLL | str:
    return load_library("denormals", SOURCES, FLAGS, ())
