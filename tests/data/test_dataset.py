"""Datasets of any format: opened by path or name, checked, split."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sparsewm import registry
from sparsewm.data import FORMATS, Dataset, open_dataset
from sparsewm.data.dataset import environment_name
from sparsewm.data.frames import Frames, ReadFrames, SideBySide
from sparsewm.data.oddities import warnings
from sparsewm.errors import UserError
from sparsewm.training.inputs import name_of
from tests.data.tiny import write_dataset


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    first = open_dataset(write_dataset(tmp_path / "a.h5")).hash
    assert open_dataset(write_dataset(tmp_path / "b.h5")).hash == first
    assert open_dataset(write_dataset(tmp_path / "c.h5", seed=1)).hash != first
    assert open_dataset(write_dataset(tmp_path / "d.h5", (9, 12, 5))).hash != first
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        file["pixels"][0, 0, 0] = 255  # same states, another look
    assert open_dataset(tmp_path / "b.h5").hash != first


def test_hash_is_of_all_numbers_and_of_every_episode(tmp_path: Path) -> None:
    def change(column: str, rows: slice, factor: int) -> tuple[str, str, list[int]]:
        path = write_dataset(tmp_path / "d.h5", [5] * 40)
        with h5py.File(path, "r+") as file:
            file[column][rows] = factor * file[column][rows]
        dataset = open_dataset(path)
        return dataset.hash, dataset.earlier_hash, dataset.split()[1].tolist()

    first = change("proprio", slice(0), 1)
    turned = change("proprio", slice(200), 2)  # the state is the same
    seen = change("pixels", slice(40, 45), 0)  # one episode is black
    assert len({first[0], turned[0], seen[0]}) == 3
    assert first[1:] == turned[1:] == seen[1:]


def test_split_holds_out_whole_episodes_always_the_same(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "d.h5", [3] * 40))
    train, held_out = dataset.split()
    assert len(held_out) == 2 and sorted([*train, *held_out]) == list(range(40))
    again = open_dataset(write_dataset(tmp_path / "again.h5", [3] * 40))
    assert again.split()[1].tolist() == held_out.tolist()
    half = dataset.split(0.5)[1]
    assert len(half) == 20 and set(held_out) <= set(half)
    assert 5 < sum(half < 20) < 15  # from everywhere, for files are often ordered by task
    with pytest.raises(UserError, match=r"has 1 episode.* too few to hold some out: collect more"):
        open_dataset(write_dataset(tmp_path / "one.h5", [3])).split()


def test_only_episodes_that_are_long_enough_are_held_out(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "d.h5", [3, 9] * 10))
    for share in (0.05, 0.3, 0.8):
        train, held_out = dataset.split(share, shortest=5)
        assert (dataset.lengths[held_out] == 9).all() and len(held_out) == max(1, round(share * 10))
        assert sorted([*train, *held_out]) == list(range(20))
    with pytest.raises(UserError, match=r"20 episode\(s\), 0 of them with 10 rows or more, too few to hold"):
        dataset.split(shortest=10)


def test_statistics_are_exact(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5", [300])
    with h5py.File(path, "r+") as file:
        file["proprio"][:, 0] = 1e6 + np.arange(300) % 2  # float32 would lose the deviation
    found = open_dataset(path).statistics(np.arange(300))
    assert np.isclose(found["proprio_mean"][0], 1e6 + 0.5) and np.isclose(found["proprio_std"][0], 0.5)


def test_actions_that_were_not_taken_count_for_nothing() -> None:
    dataset = Lengths(action_low=[0.5], action_high=[2.0])
    assert dataset.action[:, 0].tolist() == [1, 1, 0, 1, 0]
    assert dataset.acting.tolist() == [True, True, False, True, False]
    found = dataset.statistics(np.arange(5))
    assert (found["action_mean"], found["action_std"]) == (1, 0)
    assert not any("outside" in sentence for sentence in warnings(dataset))


def test_what_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "d.h5").write_text("hello")
    with pytest.raises(UserError, match=r"is truncated or no HDF5 file"):
        open_dataset(tmp_path / "d.h5")
    with pytest.raises(UserError, match=r"no dataset at .*: record one with sparsewm collect, .*hdf5"):
        open_dataset(tmp_path / "missing.h5")
    with pytest.raises(UserError, match=r"is no dataset of a known format \(hdf5.*name its format"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match=r"no dataset at nonsense:x: .*formats: hdf5"):
        open_dataset("nonsense:x")
    with pytest.raises(UserError, match=r"unknown dataset format 'hdf6'\. Did you mean 'hdf5'\?"):
        open_dataset(tmp_path / "d.h5", format="hdf6")


def test_a_folder_called_by_dots_has_a_name_and_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arm" / "inside").mkdir(parents=True)
    for here, there in (("arm", "."), ("arm/inside", ".."), ("arm", "inside/..")):
        monkeypatch.chdir(tmp_path / here)
        dataset = Lengths(path=there)
        assert (dataset.path.stem, dataset.path.parent) == ("arm", tmp_path)
        assert name_of(dataset, None) == "arm"
    for said, path in ((None, "/"), ("../other", "arm.h5")):
        with pytest.raises(UserError, match=r"give `env`"):
            name_of(Lengths(path=path, attributes={"environment": said}), None)


def test_dataset_of_another_environment(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5")
    with pytest.raises(UserError, match=r"was recorded in wall, not pusht: name that environment"):
        open_dataset(path, "pusht")
    for said in (b"wall", "Wall", "sparsewm/Wall-v0", np.bytes_(b"WALL")):
        with h5py.File(path, "r+") as file:
            file.attrs["environment"] = said
        dataset = open_dataset(path, "wall")
        assert dataset.attributes["environment"] == "wall"
        dataset.close()


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("sparsewm/PointMazeLarge-v0", "pointmaze-large"),
        ("pointmaze", "pointmaze"),
        ("PushT", "pusht"),
        ("swm/PushT-v1", "swm/PushT-v1"),
        ("my robot", "my robot"),
    ],
)
def test_names_of_environments(spelled: str, name: str) -> None:
    assert environment_name(spelled) == name


class Texts(Dataset):
    """A format of one's own: a text file with one length a line."""

    def __init__(self, source: str, cameras: tuple[str, ...] = ()) -> None:
        lengths = [int(line) for line in Path(source).read_text().split()]
        rows = sum(lengths)
        pixels = ReadFrames((rows, 4, 4, 3), source, lambda rows: np.zeros((len(rows), 4, 4, 3), np.uint8))
        super().__init__(source, lengths=lengths, action=np.ones((rows, 1)), pixels=pixels)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.suffix == ".lengths"


class Lengths(Dataset):
    """Five rows of one action, and whatever else is given."""

    def __init__(self, path: str = "test", **given: Any) -> None:
        super().__init__(path, lengths=[3, 2], action=np.ones(5), pixels=numbered(5), **given)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return False


def test_formats_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.lengths"
    path.write_text("3 2")
    assert type(open_dataset(path, format=f"{__name__}:Texts")).__name__ == "Texts"
    plugin = EntryPoint("lengths", f"{__name__}:Texts", FORMATS.group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [plugin] if group == FORMATS.group else [])
    for source in (path, f"lengths:{path}"):
        dataset = open_dataset(source)
        assert type(dataset).__name__ == "Texts" and dataset.rows == 5
    assert dataset.action[:, 0].tolist() == [1, 1, 0, 1, 0]  # none in an episode's last row
    assert dataset.action_names == ("action_0",) and not dataset.declared_bounds


@pytest.mark.parametrize("low", [[-np.inf], [np.nan], "left", [[-2.0]], [3.0], None])
def test_bounds_that_bound_nothing_are_not_declared(low: Any) -> None:
    dataset = Lengths(action_low=low, action_high=[2.0])
    assert not dataset.declared_bounds and (dataset.action_low, dataset.action_high) == (1, 1)
    assert Lengths(action_low=[-2.0], action_high=[2.0]).action_low.tolist() == [-2]


@pytest.mark.parametrize("said", [2, 2.0, np.float32(2), np.array([2]), np.array([[2.0]])])
def test_a_frameskip_and_a_rate_are_read_in_any_spelling(said: Any) -> None:
    dataset = Lengths(attributes={"frameskip": said}, fps=said)
    assert dataset.obstacles == [] and (dataset.attributes["frameskip"], dataset.fps) == (2, 2.0)
    assert type(dataset.attributes["frameskip"]) is int and type(dataset.fps) is float


@pytest.mark.parametrize("said", [0, -2, np.nan, np.inf, "two", np.array([2, 2]), True])
def test_a_frameskip_and_a_rate_that_are_none_are_obstacles(said: Any) -> None:
    dataset = Lengths(attributes={"frameskip": said}, fps=said)
    assert dataset.fps is None and len(dataset.obstacles) == 2
    with pytest.raises(UserError, match=r"fps must be a number above 0.*; frameskip must be a whole number"):
        dataset.check()
    assert Lengths(attributes={"frameskip": 2.5}).obstacles != []


def test_only_sound_columns_are_turned_into_relative_actions(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5")
    for scale in ("inf", "nan", "0"):
        with pytest.raises(UserError, match=r"relative must be a number above 0"):
            open_dataset(f"{path}?relative={scale}")
    with h5py.File(path, "r+") as file:
        proprio = file["proprio"][:20]
        del file["proprio"]
        file["proprio"] = proprio
    with pytest.raises(UserError, match=r"'proprio': 20 rows, but the episodes need 26"):
        open_dataset(f"{path}?relative=auto")
    assert open_dataset(f"{path}?relative=auto", check=False).obstacles


def test_columns_are_numbers() -> None:
    assert Lengths(proprio=np.arange(5)).proprio.shape == (5, 1)
    assert not Lengths(proprio=np.zeros((5, 0))).has_proprio
    with pytest.raises(
        UserError, match=r"column 'state' of .* must be numbers \(rows, size\), is <U1 \(5,\)"
    ):
        Lengths(state=np.array(list("abcde")))


def numbered(rows: int, height: int = 2, width: int = 2) -> Frames:
    """Pictures that are filled with the number of their row."""

    def read(rows: np.ndarray) -> np.ndarray:
        assert (np.diff(rows) > 0).all()
        return np.broadcast_to(rows[:, None, None, None], (len(rows), height, width, 3)).astype(np.uint8)

    return ReadFrames((rows, height, width, 3), "test", read)


def test_frames_behave_like_an_array() -> None:
    frames, array = numbered(9), np.arange(9)
    for rows in (
        4,
        -1,
        slice(2, 5),
        slice(None),
        slice(None, None, -2),
        slice(3, 3),
        np.array([5, 1, 5]),
        np.array([[0, 1], [2, -3]]),
        [7, 8],
        array > 6,
        np.int64(3),
        np.zeros(0, int),
    ):
        assert np.array_equal(frames[rows][..., 0, 0, 0], array[rows])
    with pytest.raises(IndexError, match="rows must be from 0 to 8"):
        frames[9]


def test_cameras_side_by_side() -> None:
    frames = SideBySide([numbered(9), numbered(9, 4, 2)])
    assert frames.shape == (9, 2, 3, 3)  # the second is halved in both directions
    assert (frames[[5, 2]] == np.array([5, 2])[:, None, None, None]).all()
