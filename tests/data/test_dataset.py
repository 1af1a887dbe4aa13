"""Dataset files come back as written, are never half a file, and bad ones are refused with what to do."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from sparsewm.data import DatasetWriter, open_dataset
from sparsewm.errors import UserError
from tests.data.tiny import ATTRIBUTES, episode, write_dataset


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes, here and in new processes: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_round_trip(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "new" / "d.h5", (9, 5, 12)), "wall")
    assert (dataset.episodes, dataset.rows) == (3, 26)
    assert dataset.lengths.tolist() == [9, 5, 12] and dataset.offsets.tolist() == [0, 9, 14]
    assert dataset.attributes == ATTRIBUTES
    for i, (offset, length) in enumerate(zip(dataset.offsets, dataset.lengths, strict=True)):
        rows, written = slice(offset, offset + length), episode(length, i)
        for name in ("pixels", "action", "proprio", "state"):
            read = getattr(dataset, name)[rows]
            assert read.dtype == written[name].dtype and np.array_equal(read, written[name])
    dataset.close()


def test_columns_of_ones_own_are_kept(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d.h5", ATTRIBUTES) as writer:
        writer.append(episode(4) | {"reward": np.arange(4.0)})
        writer.append(episode(3) | {"reward": np.arange(3.0)})
    open_dataset(tmp_path / "d.h5").close()
    with h5py.File(tmp_path / "d.h5") as file:
        assert file["reward"][:].tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    first = open_dataset(write_dataset(tmp_path / "a.h5")).hash
    assert open_dataset(write_dataset(tmp_path / "b.h5")).hash == first
    assert open_dataset(write_dataset(tmp_path / "c.h5", seed=1)).hash != first
    assert open_dataset(write_dataset(tmp_path / "d.h5", (9, 12, 5))).hash != first
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        file["pixels"][0, 0, 0] = 255  # same states, another look
    assert open_dataset(tmp_path / "b.h5").hash != first


def test_split_holds_out_whole_episodes_always_the_same(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "d.h5", [3] * 40))
    train, held_out = dataset.split()
    assert train.tolist() == list(range(38)) and held_out.tolist() == [38, 39]
    assert dataset.split(0.5)[1].tolist() == list(range(20, 40))
    with pytest.raises(UserError, match=r"has 1 episode.* too few to hold some out: collect more"):
        open_dataset(write_dataset(tmp_path / "one.h5", [3])).split()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("interruption", [Interrupted, KeyboardInterrupt])
def test_interrupted_writing_leaves_nothing(tmp_path: Path, interruption: type[BaseException]) -> None:
    with pytest.raises(interruption), DatasetWriter(tmp_path / "d.h5", ATTRIBUTES) as writer:
        writer.append(episode(9))
        assert not (tmp_path / "d.h5").exists()
        raise interruption
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5")
    before = path.read_bytes()
    with pytest.raises(Interrupted), DatasetWriter(path, ATTRIBUTES) as writer:
        writer.append(episode(9))
        raise Interrupted
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_full_disk_while_writing(tmp_path: Path) -> None:
    """A real one: random pictures do not compress, and the file may not grow."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    with (
        small_disk(100_000),
        pytest.raises(
            UserError, match=r"disk is full while writing .*d\.h5: free some space or choose another"
        ),
        DatasetWriter(tmp_path / "d.h5", ATTRIBUTES) as writer,
    ):
        writer.append(episode(30) | {"pixels": noise})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_reported_by_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk is full"):
        write_dataset(tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*: choose another --output"):
        write_dataset(tmp_path / "file" / "d.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("proprio"), "lacks the column 'proprio'"),
        (lambda e: e.pop("action"), "lacks the column 'action'|with 4 dimensions and 0 rows"),
        (
            lambda e: e.update(action=e["action"].astype(np.float64)),
            "'action' must be float32 with 2 dim.*float64",
        ),
        (
            lambda e: e.update(pixels=e["pixels"][..., 0]),
            r"'pixels' must be uint8 with 4 dimensions .*\(9, 28, 28\)",
        ),
        (lambda e: e.update(state=e["state"][:-1]), "'state' must be float64 with 2 dimensions and 9 rows"),
        (lambda e: e.update({k: v[:0] for k, v in e.items()}), "0 rows"),
    ],
)
def test_episode_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    bad = episode(9)
    change(bad)
    with pytest.raises(ValueError, match=message), DatasetWriter(tmp_path / "d.h5", ATTRIBUTES) as writer:
        writer.append(bad)
    assert list(tmp_path.iterdir()) == []


def test_episode_of_another_size_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"'pixels' has rows of"),
        DatasetWriter(tmp_path / "d.h5", {}) as writer,
    ):
        writer.append(episode(9))
        writer.append(episode(9, resolution=56))


def replace_column(name: str, values: np.ndarray) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return change


def remove_column(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def put(name: str, row: int, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][row, 0] = value

    return change


ROWS = 26


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_column("pixels"), r"lacks the column 'pixels' \(it has action, .*\): add it, or collect"),
        (remove_column("action"), "lacks the column 'action'"),
        (remove_column("ep_len"), "lacks the column 'ep_len'"),
        (
            replace_column("action", np.zeros((ROWS, 2, 1), np.float32)),
            r"'action' of .* must be float32 \(rows, size\), is float32 \(26, 2, 1\): convert it",
        ),
        (
            replace_column("state", np.zeros((ROWS, 2), np.float32)),
            r"'state' of .* must be float64 .*: convert it",
        ),
        (
            replace_column("pixels", np.zeros((ROWS, 3, 28, 28), np.uint8)),
            r"'pixels' of .* must be uint8 \(rows, height, width, 3\), is uint8 \(26, 3, 28, 28\)",
        ),
        (replace_column("pixels", np.zeros((ROWS, 28, 28, 3), np.float32)), "'pixels' of .* is float32"),
        (replace_column("ep_len", np.array([[9, 5, 12]])), "'ep_len' of .*: convert it"),
        (replace_column("ep_len", np.array([9.0, 5.0, 12.0])), "'ep_len' of .*: convert it"),
        (
            replace_column("proprio", np.zeros((20, 2), np.float32)),
            "'proprio' of .* has 20 rows, the episodes need 26: the file is incomplete, collect or",
        ),
        (replace_column("ep_len", np.array([9, 5, 13])), "has 26 rows, the episodes need 27"),
        (
            replace_column("ep_len", np.array([9, 12, 5])),
            "ep_offset and ep_len of .* do not fit together: collect",
        ),
        (replace_column("ep_len", np.array([19, -5, 12])), "do not fit together: collect"),
        (put("action", 17, np.nan), "'action' of .* is not finite in row 17: remove that episode"),
        (put("state", 3, np.inf), "'state' of .* is not finite in row 3"),
        (put("proprio", 0, np.nan), "'proprio' of .* is not finite in row 0"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, damage: Callable[[h5py.File], None], message: str) -> None:
    path = write_dataset(tmp_path / "d.h5")
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(path)
    assert str(path) in str(caught.value)


def test_dataset_without_episodes(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5", [4])
    with h5py.File(path, "r+") as file:
        for name in list(file):
            values = file[name][:0]
            del file[name]
            file[name] = values
    with pytest.raises(UserError, match=r"collect or convert it again"):
        open_dataset(path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_file(tmp_path: Path, kept: float) -> None:
    path = write_dataset(tmp_path / "d.h5")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"is truncated or no HDF5 file .*: copy or collect it again"):
        open_dataset(path)


def test_file_that_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "d.h5").write_text("hello")
    with pytest.raises(UserError, match=r"is truncated or no HDF5 file"):
        open_dataset(tmp_path / "d.h5")
    with pytest.raises(
        UserError, match=r"no dataset at .*: record one with sparsewm collect, or give --dataset"
    ):
        open_dataset(tmp_path / "missing.h5")
    with pytest.raises(UserError, match=r"no dataset at"):
        open_dataset(tmp_path)


def test_dataset_of_another_environment(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5")
    with pytest.raises(
        UserError, match=r"was recorded in wall, not pusht: give --env wall or another --dataset"
    ):
        open_dataset(path, "pusht")
