"""Freed memory is kept: without it every large tensor of a planner iteration clears its pages anew.

And no plan waits for a collection of all objects of the process.
"""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import time

import pytest

from sparsewm import keep_freed_memory
from sparsewm.memory import without_long_collections

COUNT = """
import resource, sys, torch, sparsewm
if sys.argv[1] == "keep":
    assert sparsewm.keep_freed_memory()
def work():
    for _ in range(20):
        torch.ones(16, 1 << 20).add(1)  # 64 MB: above 32 MB the C library always maps afresh
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_large_tensors_reuse_the_pages_of_freed_ones() -> None:
    if platform.libc_ver()[0] != "glibc":
        assert not keep_freed_memory()  # says that it cannot
        return
    faults = [
        int(subprocess.check_output([sys.executable, "-c", COUNT, mode], text=True).split()[-1])
        for mode in ("keep", "as usual")
    ]
    assert faults[0] < 200 and faults[0] < faults[1] / 10, faults


def collection() -> float:
    """Seconds of a full garbage collection."""
    started = time.perf_counter()
    gc.collect()
    return time.perf_counter() - started


def test_collections_leave_out_what_lived_before() -> None:
    kept = [[i] for i in range(500_000)]
    long = min(collection() for _ in range(3))
    before = gc.get_freeze_count()
    with pytest.raises(KeyError), without_long_collections():
        assert min(collection() for _ in range(3)) < long / 10
        loop: list[object] = []
        loop.append(loop)
        del loop
        assert gc.collect() > 0  # what was made since is still collected
        raise KeyError
    assert gc.get_freeze_count() <= before and len(kept) == 500_000
