"""`sparsewm convert`: what was recorded comes back from the other format."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from sparsewm.data import Dataset, DatasetWriter, open_dataset
from sparsewm.data.frames import resized
from tests.cli.commands import call
from tests.data.tiny import ATTRIBUTES, episode, write_dataset


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes, and one that is empty."""
    path = write_dataset(tmp_path_factory.mktemp("data") / "wall.h5", (30, 5, 24))
    with h5py.File(path, "r+") as file:
        del file["ep_len"], file["ep_offset"]
        file["ep_len"] = [30, 0, 5, 24]
        file.attrs["proprio_names"] = ["x", "y"]
        file.attrs["fps"] = 10.0
        file.attrs["action_low"], file.attrs["action_high"] = np.full(2, -2.0), np.full(2, 2.0)
    return path


def test_to_hdf5(source: Path, tmp_path: Path) -> None:
    code, out, err = call("convert", source, tmp_path / "new" / "d.h5", "--episodes 3 0 --resolution 14")
    assert code == 0, err
    assert "2 episodes, 54 rows" in out and [file.name for file in (tmp_path / "new").iterdir()] == ["d.h5"]
    new, old = open_dataset(tmp_path / "new" / "d.h5", "wall"), open_dataset(source)
    rows = old.rows_of(np.array([3, 0]))
    assert new.lengths.tolist() == [24, 30]
    for name in ("action", "proprio", "state"):
        assert np.array_equal(getattr(new, name), getattr(old, name)[rows])
    assert np.array_equal(new.pixels[:], resized(old.pixels[rows], 14, 14))
    assert new.attributes["policy"] == "exploration" and new.attributes["frameskip"] == 2
    assert (new.fps, new.proprio_names, new.declared_bounds) == (10, ("x", "y"), True)
    assert new.action_high.tolist() == [2, 2]
    code, _, err = call("convert", source, tmp_path / "new" / "d.h5")
    assert code == 2 and "exists: delete it, or write to another place" in err


def test_to_lerobot(source: Path, tmp_path: Path) -> None:
    code, out, err = call("convert", source, tmp_path / "d", "--instruction", "'push it'")
    assert code == 0, err
    assert "3 episodes, 59 frames" in out and [file.name for file in tmp_path.iterdir()] == ["d"]
    read, old = LeRobotDataset("sparsewm/wall", root=tmp_path / "d"), open_dataset(source)
    assert read.num_episodes == 3 and read.fps == 10 and old.state is not None
    assert read.meta.features["observation.state"]["names"] == ["x", "y"]
    for index in range(0, 59, 7):
        frame = read[index]
        pixels = (255 * frame["observation.images.pixels"]).round().byte().permute(1, 2, 0)
        assert np.array_equal(pixels, old.pixels[index]) and frame["task"] == "push it"
        assert np.array_equal(frame["observation.state"], old.proprio[index])
        assert np.array_equal(frame["observation.environment_state"], old.state[index].astype(np.float32))
        assert np.array_equal(frame["action"], old.action[index])
    assert read.meta.episodes["length"] == [30, 5, 24]


def two_cameras(path: Path) -> Dataset:
    """A robot without proprioception or a simulator, seen by two cameras."""
    attributes = {"fps": 12.5} | {k: v for k, v in ATTRIBUTES.items() if k != "environment"}
    with DatasetWriter(path, attributes) as writer:
        for i, length in enumerate((9, 6)):
            part = episode(length, i)
            front = part.pop("pixels")
            columns = {"pixels.front": front, "pixels.wrist": front[:, :14] // 2, "action": part["action"]}
            writer.append(columns)
    return open_dataset(path, cameras=("front", "wrist"))


def test_cameras_are_kept_apart(tmp_path: Path) -> None:
    old = two_cameras(tmp_path / "a.h5")
    assert old.pixels.shape == (15, 28, 84, 3) and not old.has_proprio and old.state is None
    code, _, err = call("convert", tmp_path / "a.h5", tmp_path / "b.h5")
    assert code == 2 and "several cameras, name those to show with --cameras: front, wrist" in err
    flags = "--cameras wrist front --resolution 14"
    code, _, err = call("convert", tmp_path / "a.h5", tmp_path / "b.h5", flags)
    assert code == 0, err
    wrist = open_dataset(tmp_path / "b.h5", cameras=("wrist",))
    assert wrist.available_cameras == ("front", "wrist") and wrist.fps == 12.5
    assert np.array_equal(wrist.pixels[:], open_dataset(tmp_path / "a.h5", cameras=("wrist",)).pixels[:])
    assert open_dataset(tmp_path / "b.h5", cameras=("front",)).pixels.shape == (15, 14, 14, 3)
    code, _, err = call("convert", tmp_path / "a.h5", tmp_path / "c", "--cameras front wrist")
    assert code == 0, err
    assert "warning: LeRobot counts whole rows a second: 12.5 becomes 12" in " ".join(err.split())
    read = LeRobotDataset("sparsewm/a", root=tmp_path / "c")
    assert read.meta.camera_keys == ["observation.images.front", "observation.images.wrist"]
    assert read[3]["observation.images.wrist"].shape == (3, 14, 28) and "observation.state" not in read[3]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--fps nan", "--fps must be a number above 0, got nan"),
        ("--fps inf", "--fps must be a number above 0, got inf"),
        ("--fps=-5", "--fps must be a number above 0, got -5"),
        ("--episodes 4", "--episodes must be from 0 to 3, got 4"),
        ("--resolution 0", "--resolution must be one or two numbers from 1 up"),
        ("--resolution 1 2 3", "--resolution must be one or two numbers from 1 up"),
        ("--segments 2 --format hdf5", "--segments are written as a LeRobotDataset"),
        ("--segments 2 --episodes 0", "--segments are cut from all episodes"),
        ("--cameras left", "has no camera 'left': it has pixels"),
    ],
)
def test_what_cannot_be_converted(source: Path, tmp_path: Path, flags: str, sentence: str) -> None:
    code, out, err = call("convert", source, tmp_path / "d", flags)
    assert (code, out) == (2, "") and sentence in err
    assert list(tmp_path.iterdir()) == []


def test_rate_that_is_not_known(tmp_path: Path) -> None:
    two_cameras(tmp_path / "a.h5").close()
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file.attrs["fps"]
    code, _, err = call("convert", tmp_path / "a.h5", tmp_path / "c", "--cameras front")
    assert code == 2 and "does not say how many rows a second has: give --fps" in err
