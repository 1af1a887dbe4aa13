"""Worker processes leave their jobs when their parent is stopped."""

from __future__ import annotations

import time
from concurrent.futures import as_completed
from pathlib import Path

import pytest

from sparsewm.processes import processes


def takes_long(folder: Path, number: int) -> int:
    (folder / f"begun-{number}").touch()
    try:
        for _ in range(6000):
            time.sleep(0.01)
    finally:
        (folder / f"left-{number}").touch()
    return number


def square(number: int) -> int:
    return number**2


@pytest.mark.slow
def test_a_job_is_left_at_once_and_no_other_begun(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), processes(1) as submit:
        for number in range(4):
            submit(takes_long, tmp_path, number)
        until = time.monotonic() + 60
        while not any(tmp_path.iterdir()) and time.monotonic() < until:
            time.sleep(0.01)
        stopped = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - stopped < 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun-0", "left-0"]


@pytest.mark.slow
def test_all_jobs_are_done_where_nothing_stops_them() -> None:
    with processes(2) as submit:
        jobs = [submit(square, number) for number in range(5)]
        assert sorted(job.result() for job in as_completed(jobs)) == [0, 1, 4, 9, 16]
