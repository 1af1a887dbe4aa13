"""Memory of this process: kept for the next tensor instead of given back."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

import psutil
import torch

_CONTAINER = Path("/sys/fs/cgroup")
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


def free_memory() -> int:
    """Bytes that this process may still take: what the machine, its container and its own limits leave."""
    found = [int(psutil.virtual_memory().available)]
    try:
        import resource

        for limit, kind in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY:
                found.append(most - _resident(kind))
    except (ImportError, OSError, StopIteration):  # other than Linux
        pass
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
        most, taken = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(most - taken + _given_back())
    return max(0, min(found))


def _given_back() -> int:
    """Bytes that count as this container's and are given back when asked for: files read lately."""
    lines = (line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
    return sum(int(size) for name, size in lines if name in ("inactive_file", "slab_reclaimable"))


class PeakMemory:
    """The largest memory from here on: what tensors take on a GPU; else what of this process is resident.

    Resident memory counts libraries and weights; memory that was freed before is given back first.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is the present size
            self.before = _resident("VmRSS")
        except (OSError, StopIteration):
            self._known, self.before = False, 0

    def read(self) -> int | None:
        """Bytes at the peak; None where the system does not tell (other than Linux)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        return _resident("VmHWM") if self._known else None

    def added(self) -> int | None:
        """Bytes at the peak above those at the start."""
        peak = self.read()
        return None if peak is None else max(peak - self.before, 0)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
