"""Worker processes leave their jobs when their parent is stopped."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
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


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


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
def test_the_death_of_one_ends_the_others(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(BrokenProcessPool), processes(3) as submit:
        submit(takes_long, tmp_path, 0)
        lost = submit(dies)
        submit(square, 2)  # Python waits for the processes there were before the last job
        lost.result()
    assert time.monotonic() - begun < 50


@pytest.mark.slow
def test_all_jobs_are_done_where_nothing_stops_them() -> None:
    with processes(2) as submit:
        jobs = [submit(square, number) for number in range(5)]
        assert sorted(job.result() for job in as_completed(jobs)) == [0, 1, 4, 9, 16]
