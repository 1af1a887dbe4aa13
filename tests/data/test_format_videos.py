"""Folders of videos with a table, and videos by frame number."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from sparsewm.data import open_dataset
from sparsewm.data.videos import Video
from sparsewm.errors import UserError
from tests.data.tiny import write_dataset


def levels(count: int, first: int = 20) -> np.ndarray:
    """One grey a frame, far enough apart that a lossy video keeps them apart."""
    return (first + 7 * np.arange(count)) % 240


def write_video(
    path: Path, grey: np.ndarray, fps: int = 10, side: tuple[int, int] = (32, 48), key: int = 4
) -> Path:
    """A video with one grey a frame, a key frame every `key`; side is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps, options={"g": str(key), "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *side, "yuv420p"
        for value in grey:
            picture = np.full((*side, 3), value, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def write_table(path: Path, lengths: tuple[int, ...], **more: object) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = sum(lengths)
    columns: dict[str, object] = {
        "file": [f"run_{i + 1}.mp4" for i, length in enumerate(lengths) for _ in range(length)],
        "frame": [t for length in lengths for t in range(length)],
        "a0": rng.uniform(-1, 1, rows),
        "a1": rng.uniform(-1, 1, rows),
        "p0": rng.uniform(-1, 1, rows),
        **more,
    }
    table = pyarrow.table({name: values for name, values in columns.items() if values is not None})
    write = pyarrow.csv.write_csv if path.suffix == ".csv" else pyarrow.parquet.write_table
    path.parent.mkdir(parents=True, exist_ok=True)
    write(table, path)
    return {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}


def make(folder: Path, lengths: tuple[int, ...] = (9, 6), suffix: str = ".csv", **more: object) -> Path:
    for i, length in enumerate(lengths):
        write_video(folder / f"run_{i + 1}.mp4", levels(length, 20 + 40 * i))
    write_table(folder / f"actions{suffix}", lengths, **more)
    return folder


def test_frames_by_number_in_any_order(tmp_path: Path) -> None:
    grey = levels(30)
    video = Video(write_video(tmp_path / "v.mp4", grey, key=7))
    assert (video.frames, video.fps, video.height, video.width) == (30, 10.0, 32, 48)
    for rows in ([0], [29], [3, 4, 5], [5], [2, 11, 28], list(range(30)), [0, 29]):
        found = video.read(np.array(rows))
        assert found.shape == (len(rows), 32, 48, 3) and np.abs(found.mean((1, 2, 3)) - grey[rows]).max() < 3
    assert np.allclose(video.times, np.arange(30) / 10)
    with pytest.raises(UserError, match=r"has 30 frames, frame 30 is asked for"):
        video.read(np.array([30]))


def test_reading_in_order_decodes_every_frame_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(make(tmp_path, (40, 30)))
    started = []
    frame = Video._frame
    monkeypatch.setattr(
        Video, "_frame", lambda self, number: (started.append(self._decoded is None), frame(self, number))[1]
    )
    for first in range(0, dataset.rows, 16):
        dataset.pixels[first : first + 16]
    assert len(started) == 70 and sum(started) == 2  # each file from its start, on and on


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_folder_comes_back_as_written(tmp_path: Path, suffix: str) -> None:
    folder = make(tmp_path / "demos", (9, 6), suffix)
    table = write_table(folder / f"actions{suffix}", (9, 6))
    dataset = open_dataset(folder)
    assert dataset.lengths.tolist() == [9, 6] and dataset.fps == 10 and dataset.cameras == ("camera",)
    assert (dataset.action_names, dataset.proprio_names) == (("a0", "a1"), ("p0",))
    expected = np.stack([table["a0"], table["a1"]], 1).astype(np.float32)
    expected[[8, 14]] = 0
    assert np.array_equal(dataset.action, expected)
    assert np.array_equal(dataset.proprio[:, 0], table["p0"].astype(np.float32)) and dataset.state is None
    grey = np.concatenate([levels(9, 20), levels(6, 60)])
    assert np.abs(dataset.pixels[:].mean((1, 2, 3)) - grey).max() < 3
    assert np.array_equal(dataset.pixels[[3, 12]], dataset.pixels[:][[3, 12]])


def test_the_hash_is_that_of_a_copy_and_not_of_another_video(tmp_path: Path) -> None:
    make(tmp_path / "one", suffix=".parquet")
    shutil.copytree(tmp_path / "one", tmp_path / "copy", copy_function=shutil.copyfile)
    first = open_dataset(tmp_path / "one").hash
    assert open_dataset(tmp_path / "copy").hash == first
    write_video(tmp_path / "copy" / "run_2.mp4", levels(6, 100))
    assert open_dataset(tmp_path / "copy").hash != first


def test_rows_in_any_order_episodes_by_number_and_columns_of_other_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "demos", (9, 6))
    rng = np.random.default_rng(1)
    order = rng.permutation(15)
    write_table(
        folder / "actions.csv",
        (9, 6),
        file=None,
        episode=np.repeat([3, 7], [9, 6]),
        a0=None,
        a1=None,
        steer=np.arange(15.0),
    )
    table = pyarrow.csv.read_csv(folder / "actions.csv")
    pyarrow.csv.write_csv(table.take(order), folder / "actions.csv")
    dataset = open_dataset(f"{folder}?action=steer&proprio=p0")
    assert dataset.action_names == ("steer",)
    assert dataset.action[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 0]


@pytest.mark.parametrize("names", [("run_1", "run_2", "run_10"), ("take 1", "take 2", "take 10")])
def test_episodes_in_words_belong_to_their_videos(tmp_path: Path, names: tuple[str, ...]) -> None:
    """As text, `run_10` is before `run_2`."""
    lengths = (4, 4, 4)
    for i, number in enumerate((1, 2, 10)):
        write_video(tmp_path / f"run_{number}.mp4", levels(4, 20 + 60 * i))
    episode = np.repeat(names, 4).tolist()
    write_table(tmp_path / "actions.csv", lengths, file=None, episode=episode, a0=np.repeat([1, 2, 10], 4))
    dataset = open_dataset(tmp_path)
    assert dataset.action[dataset.offsets, 0].tolist() == [1, 2, 10]
    assert np.allclose(dataset.pixels[dataset.offsets].mean((1, 2, 3)), [20, 80, 140], atol=3)


def test_an_episode_without_a_name_is_refused(tmp_path: Path) -> None:
    make(tmp_path, suffix=".parquet", file=None, episode=[*9 * ["a"], *5 * ["b"], None])
    with pytest.raises(UserError, match=r"column 'episode' of .* has empty rows: fill them in"):
        open_dataset(tmp_path)


def test_the_last_frame_needs_no_row(tmp_path: Path) -> None:
    for i, length in enumerate((9, 6)):
        write_video(tmp_path / f"run_{i + 1}.mp4", levels(length))
    write_table(tmp_path / "actions.csv", (8, 5), p0=None)
    dataset = open_dataset(tmp_path)
    assert dataset.lengths.tolist() == [9, 6] and not dataset.has_proprio
    assert dataset.action[[8, 14]].tolist() == [[0, 0], [0, 0]] and dataset.action[7].any()


def test_two_cameras_side_by_side(tmp_path: Path) -> None:
    for name, first in (("front", 20), ("wrist", 90)):
        write_video(
            tmp_path / name / "run_1.mp4", levels(9, first), side=(32, 48) if name == "front" else (64, 64)
        )
    write_table(tmp_path / "actions.csv", (9,))
    dataset = open_dataset(tmp_path, cameras=("front", "wrist"))
    assert dataset.cameras == ("front", "wrist") and dataset.pixels.shape == (9, 32, 80, 3)
    one = open_dataset(tmp_path, cameras=("wrist",))
    assert one.pixels.shape == (9, 64, 64, 3) and one.available_cameras == ("front", "wrist")
    assert np.abs(one.pixels[4].mean() - levels(9, 90)[4]) < 3
    with pytest.raises(UserError, match=r"several cameras, name those to show with `cameras`: front, wrist"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match=r"no camera 'side': it has front, wrist"):
        open_dataset(tmp_path, cameras=("side",))


def cut(folder: Path) -> None:
    video = folder / "run_2.mp4"
    video.write_bytes(video.read_bytes()[:600])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing video": (lambda f: (f / "run_2.mp4").unlink(), r"names the video run_2.mp4, which is not in"),
    "cut video": (cut, r"run_2.mp4 is cut off or no video .*: copy it again"),
    "shorter video": (lambda f: write_video(f / "run_2.mp4", levels(4)), r"has 4 frames, .* has 6 rows"),
    "other size": (
        lambda f: write_video(f / "run_2.mp4", levels(6), side=(32, 32)),
        r"has pictures of 32 x 32, run_1.mp4 of 32 x 48",
    ),
    "other rate": (
        lambda f: write_video(f / "run_2.mp4", levels(6), fps=30),
        r"10 to 30 frames a second: give fps",
    ),
    "no actions": (
        lambda f: write_table(f / "actions.csv", (9, 6), a0=None, a1=None),
        r"no column of actions",
    ),
    "text": (
        lambda f: write_table(f / "actions.csv", (9, 6), a0=["x"] * 15),
        r"column 'a0' .* must be numbers",
    ),
    "gap": (
        lambda f: write_table(f / "actions.csv", (9, 6), frame=[*range(9), 0, 1, 2, 3, 4, 6]),
        r"gap",
    ),
    "not finite": (
        lambda f: write_table(f / "actions.csv", (9, 6), a0=[np.nan] + [0.0] * 14),
        r"'action' is not finite in row 0",
    ),
    "two tables": (
        lambda f: ((f / "actions.csv").rename(f / "a.csv"), write_table(f / "b.csv", (9, 6))),
        r"needs one table, .* it has a.csv, b.csv",
    ),
    "broken table": (lambda f: (f / "actions.csv").write_text("a,b\n1\n"), r"is damaged or no table"),
    "names of bytes": (
        lambda f: (f / "actions.csv").write_bytes(b"file,frame,a\xab\nrun_1.mp4,0,1\n"),
        r"is damaged or no table",
    ),
    "one name twice": (
        lambda f: (f / "actions.csv").write_text("file,frame,a0, a0\nrun_1.mp4,0,1,2\n"),
        r"has two columns 'a0': give each a name",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_folders_are_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    break_it, said = BAD[kind]
    break_it(make(tmp_path))
    with pytest.raises(UserError, match=said):
        open_dataset(tmp_path, format="video")


def test_damage_inside_a_video_is_said_when_it_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path)
    dataset = open_dataset(folder)
    (folder / "run_2.mp4").unlink()
    dataset.close()
    with pytest.raises(UserError, match=r"no video at .*run_2.mp4"):
        dataset.pixels[:]


def test_options_are_checked(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=r"no option 'actoin'. Did you mean 'action'\?"):
        open_dataset(f"{tmp_path}?actoin=a0")
    with pytest.raises(UserError, match=r"fps must be a number, got 'ten'"):
        open_dataset(f"{tmp_path}?fps=ten")
    assert open_dataset(f"{tmp_path}?fps=5").fps == 5
    seen: list[tuple[int, int]] = []
    open_dataset(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("module", "format", "what"),
    [
        ("av", "video", "videos"),
        ("pyarrow.csv", "video", "videos with tables"),
        ("zarr", "diffusion_policy", "datasets of Diffusion Policy"),
        ("minari", "minari", "datasets of Minari"),
        ("lerobot.utils.constants", "lerobot", "datasets of LeRobot"),
    ],
)
def test_missing_libraries_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, format: str, what: str
) -> None:
    """And formats that do without them are still found."""
    make(tmp_path / "demos")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "sparsewm.data.videos", raising=False)
    with pytest.raises(UserError, match=rf"{what} need packages .*: pip install 'sparsewm\[data\]'"):
        open_dataset(tmp_path / "demos", format=format)
    assert open_dataset(write_dataset(tmp_path / "d.h5")).episodes == 3
