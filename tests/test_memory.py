"""Freed memory is kept: without it every large tensor of a planner iteration clears its pages anew."""

from __future__ import annotations

import platform
import subprocess
import sys

from sparsewm import keep_freed_memory

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
    # Usually there is no fault to speak of; a small block that lands where a tensor had lain costs one more.
    assert faults[0] < faults[1] / 10, faults
