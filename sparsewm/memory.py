"""Memory of this process: kept for the next tensor instead of given back."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory, so that tensors of a planner iteration reuse each other's pages.

    By default it maps every large tensor afresh, and the kernel clears each of its pages on first touch. The
    process then holds its peak until it ends.
    The command line calls this; where you plan from Python, call it yourself, once and early.

    Returns:
        whether it worked: Linux with the GNU C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    settings = (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20)
    done = [mallopt(option, value) == 1 for option, value in settings]
    return all(done)
