"""Some of the campaign's broken inputs, kills and shortages, in seconds; `scripts.trust` runs all of them."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import pytest

from scripts.trust import damage, hostile, kills, samples, starved, supply
from scripts.trust.common import Process, command

if sys.platform != "linux":
    pytest.skip("limits and forks of Linux", allow_module_level=True)

READERS = {reader.name: reader for reader in hostile.readers()}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and a world model."""
    folder = tmp_path_factory.mktemp("sample")
    samples.hdf5(folder)
    samples.checkpoint(folder)
    return folder


def test_there_are_enough_inputs(tmp_path: Path) -> None:
    samples.hdf5(tmp_path)
    samples.checkpoint(tmp_path)
    samples.plan_yaml(tmp_path)
    count = sum(
        len(list(hostile.cases(READERS[name], tmp_path, 12)))
        for name in ("hdf5", "checkpoint", "plan settings")
    )
    assert count > 300


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "place", "names"),
    [
        (
            "hdf5",
            "wall.h5",
            [
                "half of it",
                "weights that run",
                "action a link to itself",
                "action of 1e13 rows",
                "state a bomb of 4 GB",
                "pictures of 30000 x 30000",
                "names that are no UTF-8",
            ],
        ),
        (
            "checkpoint",
            "model",
            [
                "settings that run",
                "settings in each other",
                "width of 10000000",
                "depth of 1000000000",
                "grid of [1000000, 1000000]",
                "an encoder that is code",
                "pictures of [1000000, 1000000]",
            ],
        ),
    ],
)
def test_broken_inputs(sample: Path, reader: str, place: str, names: list[str]) -> None:
    known = {case.name: case for case in [*damage.FILE, *damage.HDF5, *damage.CHECKPOINT]}
    for name in names:
        verdict, outcome = hostile.one(READERS[reader], place, known[name], sample, name)
        assert verdict in ("refused", "read"), f"{name}: {verdict} {outcome.err[-600:]}"
        assert verdict == "refused" or known[name].may_pass


def test_a_reader_that_runs_something_is_noticed(sample: Path) -> None:
    import pickle

    case = damage.Case("it runs", lambda path, rng: path.write_bytes(pickle.dumps(damage.Evil())))

    def work() -> int:
        pickle.loads(Path("wall.h5").read_bytes())
        return 2

    trusting = hostile.Reader("trusting", samples.hdf5, work)
    assert "was run" in hostile.one(trusting, "wall.h5", case, sample, "it runs")[0]


@pytest.mark.slow
def test_a_conversion_that_is_killed(sample: Path, tmp_path: Path) -> None:
    (job,) = (job for job in kills.jobs() if job.name == "convert")
    place = kills.Place(tmp_path, sample)
    outcome = place.start(job).wait()
    assert outcome.code == 0, outcome.err
    truth = kills.made(place.folder, job.results)
    until = time.monotonic() + 200
    found = kills.killed(job, tmp_path, sample, truth, outcome.seconds, 6, until)
    assert found["wrong"] == [] and found["kills"] >= 1


def test_a_difference_is_noticed(sample: Path, tmp_path: Path) -> None:
    (job,) = (job for job in kills.jobs() if job.name == "convert")
    found = kills.killed(job, tmp_path, sample, {"out.h5": b"other"}, 0.1, 1, time.monotonic() + 200)
    assert {one["what"] for one in found["wrong"]} == {"differs"}


@pytest.mark.slow
def test_a_machine_without_files_or_memory(sample: Path, tmp_path: Path) -> None:
    lacks = {lack.name: lack for lack in starved.lacks(False)}
    for name, typed in (
        ("files of 2000 bytes at most", "convert"),
        ("room for any byte", "convert"),
        ("room for what is printed", "inspect"),
        ("more than 64 descriptors", "convert"),
    ):
        lack = lacks[name]
        place = kills.Place(tmp_path, sample)
        (place.folder / "out").mkdir()
        work = starved._watched(command(shlex.split(starved.COMMANDS[typed])), lack.back)
        outcome = Process(work, place.folder, tmp_path / "log", lack.before, lack.environment).wait()
        assert starved.judged(lack, outcome) in ("works", "says so"), f"{name}: {outcome}"


@pytest.mark.slow
def test_nothing_runs_what_a_file_says(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    found = [line for place in ("sparsewm", "planners", "envs") for line in supply.calls(root / place)]
    assert [line for line in found if line.partition(":")[0] not in supply.ALLOWED] == []
    (tmp_path / "bad.py").write_text("import torch\ntorch.load('x')\neval('1')\n")
    assert [line.rpartition(" ")[2] for line in supply.calls(tmp_path)] == ["torch.load", "eval"]


def test_kernels_are_the_users_own() -> None:
    assert supply.cache()["good"]


def test_times_do_not_count() -> None:
    one = {"step": 3, "seconds_per_plan": 1.0, "rows": [{"seconds": 2, "x": 1}]}
    assert kills.timeless(one) == {"step": 3, "rows": [{"x": 1}]}
