"""HDF5 files come back as written, are never half a file, and bad ones are refused with what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from sparsewm.data import DatasetWriter, open_dataset
from sparsewm.errors import UserError
from tests.data.tiny import ATTRIBUTES, episode, small_disk, write_dataset


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
    with pytest.raises(UserError, match=r"cannot write .*: choose another `output`"):
        write_dataset(tmp_path / "file" / "d.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("pixels"), "lacks the column 'pixels'"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("proprio"), "lacks the column 'proprio'"),
        (lambda e: e.update(reward=np.zeros(9)), "the first episode had no column 'reward'"),
    ],
)
def test_all_episodes_have_the_same_columns(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    bad = episode(9)
    change(bad)
    with pytest.raises(ValueError, match=message), DatasetWriter(tmp_path / "d.h5", ATTRIBUTES) as writer:
        writer.append(episode(9))
        writer.append(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proprio": np.zeros((9, 3), np.float32)}, r"'proprio' has rows of \(2,\), got \(3,\)"),
        ({"reward": np.zeros(8)}, r"'reward' must have 9 rows, got the shape \(8,\)"),
        ({"reward": np.zeros(())}, r"'reward' must have 9 rows, got the shape \(\)"),
        ({"reward": np.zeros((9, 2))}, r"'reward' has rows of \(\), got \(2,\)"),
        ({"reward": np.zeros(9, np.int32)}, "'reward' is float64, got int32"),
        ({"reward": np.full(9, "text")}, "'reward' cannot be kept"),
    ],
)
def test_a_refused_episode_leaves_the_others_whole(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    good = episode(9) | {"reward": np.zeros(9)}
    with DatasetWriter(tmp_path / "d.h5", {}) as writer:
        writer.append(good)
        with pytest.raises(ValueError, match=message):
            writer.append(good | change)
        writer.append(good)
    assert open_dataset(tmp_path / "d.h5").lengths.tolist() == [9, 9]


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


def claims_petabytes(file: h5py.File) -> None:
    """No actions, and lengths that would need an array of petabytes in their place."""
    del file["action"]
    replace_column("ep_len", np.array([2**51]))(file)


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
        (remove_column("pixels"), r"lacks the column 'pixels' \(it has action, .*\)"),
        (remove_column("action"), "lacks the column 'action'"),
        (
            replace_column("action", np.zeros((ROWS, 2, 1), np.float32)),
            r"'action' must be numbers \(rows, size\), is float32 \(26, 2, 1\)",
        ),
        (replace_column("proprio", np.array([b"left"] * ROWS)), r"'proprio' must be numbers .*is \|S4"),
        (
            replace_column("pixels", np.zeros((ROWS, 3, 28, 28), np.uint8)),
            r"'pixels' must be uint8 \(rows, height, width, 3\), is uint8 \(26, 3, 28, 28\)",
        ),
        (replace_column("pixels", np.zeros((ROWS, 28, 28, 3), np.float32)), "'pixels' .* is float32"),
        (
            replace_column("pixels", np.zeros((ROWS, 0, 0, 3), np.uint8)),
            r"pictures of column 'pixels' have the shape \(26, 0, 0, 3\)",
        ),
        (replace_column("proprio", h5py.Empty("f4")), "column 'proprio' is empty"),
        (replace_column("ep_len", np.array([[9, 5, 12]])), r"'ep_len' must be int64 \(episodes,\)"),
        (replace_column("ep_len", np.array([9.0, 5.0, 12.0])), "'ep_len' must be int64 .*is float64"),
        (
            replace_column("proprio", np.zeros((20, 2), np.float32)),
            "column 'proprio': 20 rows, but the episodes need 26: it is incomplete",
        ),
        (
            replace_column("ep_len", np.array([9, 5, 13])),
            "columns 'action', 'proprio', 'state', 'pixels': 26 rows, but the episodes need 27",
        ),
        (
            replace_column("ep_len", np.array([2**62, 2**62, 2**62, 2**62, 26])),
            "26 rows, but the episodes need 18446744073709551642: it is incomplete",
        ),
        (claims_petabytes, "lacks the column 'action'.*; columns 'action'.* need 2251799813685248"),
        (replace_column("ep_len", np.array([9, 12, 5])), "ep_offset and ep_len do not fit together"),
        (replace_column("ep_len", np.array([19, -5, 12])), "episode 1 has a negative length, -5"),
        (put("action", 17, np.nan), "'action' is not finite in row 17: remove those episodes"),
        (put("state", 3, np.inf), "'state' is not finite in row 3"),
        (put("proprio", 0, np.nan), "'proprio' is not finite in row 0"),
        (put("proprio", 7, 1e30), r"'proprio' holds 1e\+30 in row 7: no number may be beyond 1e12"),
        (put("action", 7, -3e38), r"'action' holds -3e\+38 in row 7"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, damage: Callable[[h5py.File], None], message: str) -> None:
    path = write_dataset(tmp_path / "d.h5")
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(path)
    assert str(path) in str(caught.value) and str(caught.value).count("\n") == 0


def test_all_obstacles_are_named_at_once(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5")
    with h5py.File(path, "r+") as file:
        put("action", 3, np.nan)(file)
        put("proprio", 5, 1e30)(file)
        remove_column("pixels")(file)
    with pytest.raises(
        UserError, match=r"lacks the column 'pixels'.*; .*'action'.*row 3.*; .*'proprio'.*row 5"
    ):
        open_dataset(path)
    assert len(open_dataset(path, check=False).obstacles) == 3  # and it can still be described


def test_damaged_or_missing_parts_are_refused(tmp_path: Path) -> None:
    def damaged(name: str, change: Callable[[h5py.File], None], message: str) -> None:
        path = write_dataset(tmp_path / f"{name}.h5")
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(UserError, match=message):
            open_dataset(path)

    def link(file: h5py.File) -> None:
        del file["pixels"]
        file["pixels"] = h5py.ExternalLink("lost.h5", "pixels")

    def group(file: h5py.File) -> None:
        del file["pixels"]
        file.create_group("pixels")

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(file["pixels"].shape, np.uint8)
        layout[:] = h5py.VirtualSource("lost.h5", "pixels", file["pixels"].shape)
        del file["pixels"]
        file.create_virtual_dataset("pixels", layout)

    damaged("link", link, "'pixels' is a link to lost.h5, which is not there")
    damaged("group", group, "'pixels' is a group, not a column")
    damaged("virtual", virtual, "'pixels' is made of lost.h5, which is not there")


def test_damaged_pictures_are_named_when_they_are_read(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5", (40, 40))
    with h5py.File(path) as file:
        place = file["pixels"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(bytes(content))
    dataset = open_dataset(path)
    with pytest.raises(
        UserError, match=r"pictures of .*d\.h5 cannot be read in rows 26 to 30 .*damaged; copy"
    ):
        dataset.pixels[26:31]
    assert dataset.pixels[0].shape == (28, 28, 3)


@pytest.mark.slow
def test_file_that_is_open_elsewhere(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5")
    program = (
        f"import h5py, time; f = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=r"is open elsewhere .*HDF5_USE_FILE_LOCKING=FALSE"):
            open_dataset(path)
        other.kill()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_file(tmp_path: Path, kept: float) -> None:
    path = write_dataset(tmp_path / "d.h5")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"is truncated or no HDF5 file .*: copy or collect it again"):
        open_dataset(path)


def test_ragged_empty_and_one_row_episodes(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5", (9, 5, 12))
    with h5py.File(path, "r+") as file:
        lengths = np.array([9, 0, 1, 4, 0, 12, 0])
        for name, values in (("ep_len", lengths), ("ep_offset", np.cumsum(lengths) - lengths)):
            replace_column(name, values)(file)
    dataset = open_dataset(path)
    assert dataset.lengths.tolist() == lengths.tolist()
    assert dataset.last_rows.tolist() == [8, 9, 13, 25] and not dataset.action[dataset.last_rows].any()
    assert dataset.rows_of(np.array([1, 3, 2])).tolist() == [10, 11, 12, 13, 9]


def write_as_stable_worldmodel(path: Path, lengths: Sequence[int] = (9, 5, 12)) -> None:
    """A file as `World.collect(format="hdf5")` of stable-worldmodel 0.1.1 leaves it in `swm/PushT-v1`.

    Compared column by column with one made by that release: lengths of int32, proprioception and state of
    float64, step numbers from 1, chunks of one row, no compression, no attributes; the action in the last row
    of an episode is the first one again, moved there (in files of earlier releases it is NaN).
    """
    with h5py.File(path, "w", libver="latest") as file:
        parts = [episode(length, i) for i, length in enumerate(lengths)]
        for part in parts:
            part["action"][-1] = part["action"][0]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        columns["proprio"] = columns["proprio"].astype(np.float64)
        columns["goal"] = columns["pixels"]
        columns["goal_state"] = columns["state"]
        columns["reward"] = np.zeros(len(columns["action"]))
        columns["terminated"] = np.zeros(len(columns["action"]), bool)
        columns["step_idx"] = np.concatenate([np.arange(1, length + 1) for length in lengths])
        for name, values in columns.items():
            file.create_dataset(
                name, data=values, maxshape=(None, *values.shape[1:]), chunks=(1, *values.shape[1:])
            )
        file["ep_len"] = np.array(lengths, np.int32)
        file["ep_offset"] = np.cumsum(lengths, dtype=np.int64) - lengths


def test_files_of_stable_worldmodel(tmp_path: Path) -> None:
    write_as_stable_worldmodel(tmp_path / "theirs.h5")
    theirs, ours = open_dataset(tmp_path / "theirs.h5"), open_dataset(write_dataset(tmp_path / "ours.h5"))
    for name in ("lengths", "offsets", "action", "proprio", "state"):
        assert np.array_equal(getattr(theirs, name), getattr(ours, name)), name
        assert getattr(theirs, name).dtype == getattr(ours, name).dtype
    assert np.array_equal(theirs.pixels[:], ours.pixels[:]) and theirs.hash == ours.hash


def test_file_made_by_stable_worldmodel_itself() -> None:
    """Three episodes of `swm/PushT-v1`, recorded by release 0.1.1."""
    dataset = open_dataset(Path(__file__).with_name("stable-worldmodel-0.1.1.h5"))
    assert dataset.lengths.tolist() == [7, 7, 7] and dataset.pixels[:].shape == (21, 16, 16, 3)
    assert dataset.action.shape == (21, 2) and dataset.proprio.shape == (21, 4)
    assert dataset.state is not None and dataset.state.shape == (21, 7)
    assert not dataset.action[[6, 13, 20]].any() and (dataset.action[:6] != 0).all()


def test_columns_that_others_leave_out_or_add(tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    write_as_stable_worldmodel(path)
    with h5py.File(path, "r+") as file:
        for row in (8, 13, 25):
            file["action"][row] = np.nan  # none was taken
        file["observation"] = file["proprio"][:, :1]
        file["pixels.wrist"] = np.full((ROWS, 14, 28, 3), 7, np.uint8)
        file["episode_idx"] = np.repeat([4, 5, 9], [9, 5, 12])
        for name in ("proprio", "state", "ep_len", "ep_offset"):
            del file[name]
        file.attrs["environment"] = b"sparsewm/Wall-v0"
        file.attrs["action_names"] = ["left", "right"]
        file.attrs["fps"] = 12.5
    with pytest.raises(
        UserError, match=r"has several cameras, name those to show with `cameras`: pixels, wrist"
    ):
        open_dataset(path)
    dataset = open_dataset(path, "wall", ["pixels", "wrist"])
    assert dataset.lengths.tolist() == [9, 5, 12] and dataset.state is None
    assert dataset.has_proprio and dataset.proprio.shape == (ROWS, 1)
    assert dataset.action_names == ("left", "right") and dataset.fps == 12.5
    assert dataset.cameras == dataset.available_cameras == ("pixels", "wrist")
    assert dataset.pixels.shape == (ROWS, 28, 84, 3)
    picture = dataset.pixels[3]
    assert np.array_equal(picture[:, :28], episode(9)["pixels"][3]) and (picture[:, 28:] == 7).all()
    only = open_dataset(path, cameras=("wrist",))
    assert only.pixels.shape == (ROWS, 14, 28, 3) and only.cameras == ("wrist",)
    with pytest.raises(UserError, match=r"has no camera 'left': it has pixels, wrist"):
        open_dataset(path, cameras=("left",))
    dataset.close()
    only.close()
    with h5py.File(path, "r+") as file:
        del file["observation"]
    blind = open_dataset(path, cameras=("wrist",))
    assert not blind.has_proprio and blind.proprio.shape == (ROWS, 1) and not blind.proprio.any()


def test_numbers_of_episodes_and_rows_are_written(tmp_path: Path) -> None:
    """What the evaluator of stable-worldmodel draws its starts from."""
    with h5py.File(write_dataset(tmp_path / "d.h5", (3, 2))) as file:
        assert file["episode_idx"][:].tolist() == [0, 0, 0, 1, 1]
        assert file["step_idx"][:].tolist() == [0, 1, 2, 0, 1]


def test_a_broken_list_of_columns_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the fuzzer found it: the file opens, and what it holds cannot be listed."""
    path = write_dataset(tmp_path / "d.h5", [3, 4])

    def broken(file: h5py.File) -> None:
        raise RuntimeError("Link iteration failed (free block size is zero?)")

    monkeypatch.setattr(h5py.File, "__iter__", broken)
    with pytest.raises(UserError, match=r"d.h5 is damaged \(Link iteration failed .*\): copy or collect it"):
        open_dataset(path)


def test_rows_that_are_claimed_and_not_there_take_no_memory(tmp_path: Path) -> None:
    """As the fuzzer found it: no actions, and another column of as many rows as it likes."""
    path = write_dataset(tmp_path / "data.h5")
    with h5py.File(path, "r+") as file:
        del file["action"], file["proprio"]
        file.create_dataset("proprio", (10**11, 2), np.float32, chunks=(1000, 2))
    with pytest.raises(UserError, match=r"lacks the column 'action'.*100000000000 rows.*copy or collect it"):
        open_dataset(path)


@pytest.mark.parametrize("chunks", [(1000, 2), None])
def test_a_column_that_is_mostly_not_there_is_not_read(
    tmp_path: Path, chunks: tuple[int, int] | None
) -> None:
    """As the fuzzer found it: HDF5 makes zeros of what was never written."""
    path = write_dataset(tmp_path / "data.h5")
    with h5py.File(path, "r+") as file:
        del file["action"]
        file.create_dataset("action", (10**7, 2), np.float32, chunks=chunks)
    with pytest.raises(UserError, match=r"'action' \(10000000, 2\) claims 80 MB, most of which is not in"):
        open_dataset(path)


def test_a_chunk_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    """As the fuzzer found it: HDF5 takes memory for a chunk before it looks what is in it."""
    path = write_dataset(tmp_path / "data.h5")
    with h5py.File(path, "r+") as file:
        del file["state"]
        file.create_dataset("state", (26, 2), np.float64, maxshape=(None, None), chunks=(10**5, 2000))
    with pytest.raises(UserError, match=r"'state' lies in chunks of 1.6 GB: write smaller ones"):
        open_dataset(path)


def test_names_and_errors_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dataset(tmp_path / "data.h5")
    with h5py.File(path, "r+") as file:
        file.id.links.create_soft(b"\x86no text", b"/nowhere")
    found = open_dataset(path)
    assert found.rows == 26 and "proprio" in found.columns()
    found.close()

    def refuse(group: h5py.Group, name: str) -> None:
        raise UnicodeDecodeError("utf-8", b"\x86", 0, 1, "invalid start byte")  # what HDF5 said of it

    monkeypatch.setattr(h5py.Group, "__getitem__", refuse)
    with pytest.raises(UserError, match=r"data.h5 is damaged .*copy or collect it again"):
        open_dataset(path)


def test_attributes_that_are_no_numbers_or_texts_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 crashes on damaged ones of some types, such as lists of any length."""
    path = write_dataset(tmp_path / "d.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs["environment"]
        numbers, one = h5py.h5t.vlen_create(h5py.h5t.NATIVE_INT64), h5py.h5s.create(h5py.h5s.SCALAR)
        h5py.h5a.create(file.id, b"environment", numbers, one)
    read: list[str] = []
    plain = h5py.AttributeManager.__getitem__

    def noted(attributes: h5py.AttributeManager, name: str) -> object:
        read.append(name)
        return plain(attributes, name)

    monkeypatch.setattr(h5py.AttributeManager, "__getitem__", noted)
    dataset = open_dataset(path)
    assert "environment" not in dataset.attributes and "environment" not in read
    assert dataset.attributes["frameskip"] == ATTRIBUTES["frameskip"] and "frameskip" in read
    dataset.close()
