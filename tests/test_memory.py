"""Freed memory is kept: without it every large tensor of a planner iteration clears its pages anew."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sparsewm import keep_freed_memory, memory

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


def test_files_read_lately_do_not_fill_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    available = psutil.virtual_memory().available
    (tmp_path / "memory.max").write_text(f"{available // 2}\n")
    (tmp_path / "memory.current").write_text(f"{available // 2 - 1000}\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\nslab_reclaimable 40\nactive_file 7\n")
    assert memory.free_memory() == 1340
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory() > available // 4
