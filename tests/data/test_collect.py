"""Recording: the same file for any number of workers and interruptions, and never half of one."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sparsewm import envs
from sparsewm.data import DatasetWriter, collect, open_dataset
from sparsewm.data.collect import demonstrate
from sparsewm.data.convert import resizer, write_hdf5
from sparsewm.errors import UserError
from tests.cli.commands import call
from tests.data.tiny import small_disk

collecting = importlib.import_module("sparsewm.data.collect")
SETTINGS: dict[str, Any] = {"episodes": 5, "steps": 4, "resolution": 16, "seed": 3}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "PART", 2)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five episodes recorded in this process, without workers or parts: what every file below must hold."""
    path = tmp_path_factory.mktemp("recorded") / "wall.h5"
    env = envs.make("wall", resolution=16)
    with DatasetWriter(path, {}) as writer:
        for i in range(5):
            writer.append(collecting.record_episode(env, 3, i, 4))
    return path


def columns(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}


def same(path: Path, other: Path) -> bool:
    a, b = columns(path), columns(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_records_the_same_file(recorded: Path, tmp_path: Path, workers: int) -> None:
    calls: list[tuple[int, int]] = []
    path = collect(
        "wall", path=tmp_path / "d.h5", workers=workers, progress=lambda *c: calls.append(c), **SETTINGS
    )
    assert same(path, recorded)
    assert calls[0] == (0, 5) and calls[-1] == (5, 5) and len(calls) == 4  # three parts
    assert [file.name for file in tmp_path.iterdir()] == ["d.h5"]
    dataset = open_dataset(path, "wall")
    assert dataset.lengths.tolist() == [5] * 5
    expected = {"environment": "wall", "frameskip": 5, "seed": 3, "steps": 4, "resolution": 16}
    assert expected.items() <= dataset.attributes.items()
    assert dataset.attributes["action_low"].tolist() == [-1, -1] and dataset.attributes[
        "action_high"
    ].tolist() == [1, 1]

    finished = path.stat().st_mtime_ns
    assert collect("wall", path=path, workers=workers, **SETTINGS) == path  # there is nothing left to do
    assert path.stat().st_mtime_ns == finished
    for change in ({"episodes": 4}, {"seed": 4}, {"steps": 5}, {"resolution": 32}, {"held": 0.5}):
        with pytest.raises(
            UserError, match=r"was recorded with other settings: delete it or give another `output`"
        ):
            collect("wall", path=path, **(SETTINGS | change))
    assert same(path, recorded)


def test_rows_are_what_the_environment_does(recorded: Path) -> None:
    """Each row's action leads to the next row; pictures and proprioception belong to the row's state."""
    data, env = columns(recorded), envs.make("wall", resolution=16)
    for first in range(0, 25, 5):
        assert not data["action"][first + 4].any()  # no action is taken in the last row
        for row in range(first, first + 5):
            env.set_state(data["state"][row])
            here = env.render_state(data["state"][row])
            assert np.array_equal(here["pixels"], data["pixels"][row])
            assert np.array_equal(here["proprio"], data["proprio"][row])
            if row < first + 4:
                env.step(data["action"][row])
                assert np.array_equal(env.state, data["state"][row + 1])
    assert len(np.unique(data["state"][::5], axis=0)) == 5  # episodes differ


KILLED = """
import importlib, os, signal, sys
from pathlib import Path

def progress(done, total):
    if done:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    collecting = importlib.import_module("sparsewm.data.collect")
    collecting.PART = 2
    settings = {"episodes": 5, "steps": 4, "resolution": 16, "seed": 3}
    collecting.collect("wall", path=Path(sys.argv[1]), workers=1, progress=progress, **settings)
"""


@pytest.mark.slow
def test_killed_recording_continues_with_the_parts_it_has(recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=root)
    assert done.returncode == -signal.SIGKILL
    parts = {part: part.stat().st_mtime_ns for part in (tmp_path / "d.h5.parts").glob("[0-9]*.h5")}
    assert parts and not path.exists()

    kept: dict[Path, int] = {}
    calls: list[int] = []

    def progress(episodes: int, total: int) -> None:
        calls.append(episodes)
        kept.update({part: part.stat().st_mtime_ns for part in parts})

    collect("wall", path=path, workers=1, progress=progress, **SETTINGS)
    assert calls[0] >= 2 and kept == parts  # finished episodes were not recorded again
    assert same(path, recorded)
    assert [file.name for file in tmp_path.iterdir()] == ["d.h5"]


class Looked(Exception):
    pass


def test_parts_of_other_settings_are_not_used(tmp_path: Path) -> None:
    env = envs.make("wall", resolution=16)
    foreign = tmp_path / "d.h5.parts" / "000000-000002.h5"
    with DatasetWriter(foreign, {"environment": "wall", "seed": 99, "steps": 4}) as writer:
        for i in range(2):
            writer.append(collecting.record_episode(env, 99, i, 4))
    broken = foreign.with_name("000002-000004.h5")
    broken.write_bytes(foreign.read_bytes()[:1000])

    def progress(done: int, total: int) -> None:
        raise Looked(done)

    with pytest.raises(Looked, match=r"^0$"):  # nothing counts as done
        collect("wall", path=tmp_path / "d.h5", progress=progress, **SETTINGS)


@pytest.mark.parametrize("side", [16, 8])
def test_a_converted_file_is_no_recording(tmp_path: Path, side: int) -> None:
    """Its episodes and pictures may be others."""
    path = collect("wall", path=tmp_path / "d.h5", workers=1, **SETTINGS)
    assert collect("wall", path=path, **SETTINGS) == path
    with closing(open_dataset(path)) as dataset:
        write_hdf5({"pixels": dataset}, tmp_path / "e.h5", np.arange(5), resizer([side]))
    with h5py.File(tmp_path / "e.h5") as file:
        assert file.attrs["resolution"] == side and file.attrs["policy"] == "exploration"
    with pytest.raises(UserError, match="was recorded with other settings"):
        collect("wall", path=tmp_path / "e.h5", **SETTINGS)
    with h5py.File(path, "r+") as file:
        pixels = file["pixels"][:, :8, :8]
        del file["pixels"]
        file["pixels"] = pixels
    with pytest.raises(UserError, match="was recorded with other settings"):
        collect("wall", path=path, **SETTINGS)


@pytest.mark.slow
def test_full_disk_while_recording(tmp_path: Path) -> None:
    with small_disk(6000), pytest.raises(UserError, match=r"disk is full while writing .*: free some space"):
        collect("wall", path=tmp_path / "d.h5", workers=1, **(SETTINGS | {"steps": 400, "episodes": 2}))
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


@pytest.mark.slow
def test_full_disk_while_joining_keeps_the_parts(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.h5"
    append = DatasetWriter.append
    meanwhile: list[str] = []

    def full(self: DatasetWriter, episode: dict[str, np.ndarray]) -> None:
        if len(self.lengths) == 3:
            meanwhile.extend(file.name for file in tmp_path.iterdir())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, episode)

    monkeypatch.setattr(DatasetWriter, "append", full)  # here; the workers have their own
    with pytest.raises(
        UserError, match=r"disk is full while writing .*d\.h5: free some space or choose another"
    ):
        collect("wall", path=path, workers=1, **SETTINGS)
    assert meanwhile == ["d.h5.parts"]  # all that a kill would leave at this moment
    assert [file.name for file in tmp_path.iterdir()] == ["d.h5.parts"]
    assert len(list((tmp_path / "d.h5.parts").iterdir())) == 3
    monkeypatch.setattr(DatasetWriter, "append", append)
    calls: list[int] = []
    collect("wall", path=path, workers=1, progress=lambda episodes, _: calls.append(episodes), **SETTINGS)
    assert calls == [5] and same(path, recorded)


@pytest.mark.parametrize("flag", ["episodes", "workers", "steps"])
def test_flags_out_of_range(tmp_path: Path, flag: str) -> None:
    with pytest.raises(UserError, match=f"^`{flag}` must be at least 1, got 0"):
        collect("wall", path=tmp_path / "d.h5", **(SETTINGS | {flag: 0}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_pictures_the_rest_is_the_same(recorded: Path, tmp_path: Path) -> None:
    path = collect("wall", path=tmp_path / "d.h5", workers=1, pictures=False, **SETTINGS)
    before, found = columns(recorded), columns(path)
    assert before.keys() - found.keys() == {"pixels"}
    assert all(np.array_equal(before[name], found[name]) for name in found)
    with pytest.raises(UserError, match="was recorded without pictures: it teaches what to do to a policy"):
        open_dataset(path, "wall")
    dataset = open_dataset(path, "wall", pictures=False)
    assert not dataset.has_pictures and dataset.rows == 25 and dataset.hash
    code, said, _ = call("inspect", path, "--output", tmp_path / "inspect")
    assert code == 0 and "\nno pictures\n" in said and "training refuses it: it was recorded without" in said
    written = path.stat().st_mtime_ns
    assert collect("wall", path=path, workers=1, pictures=False, **SETTINGS) == path
    assert path.stat().st_mtime_ns == written
    with pytest.raises(UserError, match="recorded with other settings"):
        collect("wall", path=path, workers=1, **SETTINGS)
    with pytest.raises(UserError, match="nothing looks otherwise: leave `looks` out"):
        collect("wall", path=path, workers=1, pictures=False, looks=True, **SETTINGS)


@pytest.mark.slow
def test_experts_are_recorded_up_to_the_goal(tmp_path: Path) -> None:
    """Episodes end ten steps after the goal is reached, or when their steps are spent."""
    path = collect("wall", path=tmp_path / "e.h5", workers=1, expert=demonstrate, **SETTINGS | {"steps": 60})
    dataset = open_dataset(path, "wall")
    assert dataset.attributes["policy"] == "expert" and len(set(dataset.lengths.tolist())) > 1
    ends = dataset.state[dataset.offsets + dataset.lengths - 1]
    assert (np.abs(ends - dataset.state[dataset.offsets]).max(1) > 5).all()
    rest = np.concatenate([dataset.state[end - 5 : end] for end in dataset.offsets + dataset.lengths])
    assert (np.abs(np.diff(rest.reshape(5, 5, 2), axis=1)) < 1).all()  # it stays there
    with pytest.raises(UserError, match="no expert for environment 'rope'"):
        collect("rope", path=tmp_path / "p.h5", workers=1, expert=demonstrate, **SETTINGS)
    with pytest.raises(UserError, match="leave them out with an expert"):
        collect("wall", path=tmp_path / "h.h5", workers=1, expert=demonstrate, held=0.3, **SETTINGS)
