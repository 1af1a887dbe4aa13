"""Freed memory is kept: without it every large tensor of a planner iteration clears its pages anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
@pytest.mark.parametrize("kept", [True, False])
def test_the_peak_is_that_of_the_work_alone(kept: bool) -> None:
    """Whatever was larger before, and whether or not freed memory is kept."""
    program = """
import sys, torch
from sparsewm.memory import PeakMemory, keep_freed_memory
if sys.argv[1] == "True":
    keep_freed_memory()
for megabytes in (300, 40, 120):
    peak = PeakMemory(torch.device("cpu"))
    torch.ones(megabytes, 1 << 18).sum()
    print(peak.added() / 2**20, peak.read() / 2**20)
"""
    text = subprocess.check_output([sys.executable, "-c", program, str(kept)], text=True)
    rows = [[float(word) for word in line.split()] for line in text.splitlines()]
    for (added, total), megabytes in zip(rows, (300, 40, 120), strict=True):
        assert added == pytest.approx(megabytes, abs=12)
        assert total > added + 30  # Python and torch themselves
