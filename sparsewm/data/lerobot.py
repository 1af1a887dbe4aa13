"""Writes datasets of LeRobot: whole episodes, or goal-reaching segments of them for policies to imitate.

Any stretch of an episode demonstrates how to get from its first frame to its last one (hindsight). A
segment becomes an episode of LeRobot's: every frame has the present picture, that of the segment's last frame
as the goal, proprioception, the action taken there and an instruction. The last frame has a zero action, so
that chunks which reach beyond it are filled up with standing still.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsewm.data.cameras import CAMERA, GOAL
from sparsewm.data.convert import Progress, Resize
from sparsewm.data.dataset import Dataset
from sparsewm.errors import UserError, needs_extra
from sparsewm.files import check_unwritten, disk_errors, temporary_folder

with needs_extra("datasets of LeRobot", "vla"):
    from datasets import disable_progress_bars, enable_progress_bars
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGES, OBS_STATE

Frame = dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """Rows `first` to `last` of a dataset, both included; the last one shows the goal."""

    first: int
    last: int


def segments(dataset: Dataset, count: int, shortest: int, longest: int, seed: int = 0) -> list[Segment]:
    """Random segments of every episode, in the order of the file.

    Args:
        dataset: recorded episodes. count: segments of each.
        shortest, longest: environment steps from the first frame to the goal; an episode of fewer steps than
            `shortest` is one segment. seed: of the choice.

    Raises:
        UserError: lengths out of range.
    """
    if not 1 <= shortest <= longest:
        raise UserError(f"`shortest` must be from 1 to `longest` {longest}, got {shortest}")
    if count < 1:
        raise UserError(f"`segments` must be at least 1, got {count}")
    rng = np.random.default_rng(seed)
    chosen = []
    for offset, length in zip(dataset.offsets.tolist(), dataset.lengths.tolist(), strict=True):
        steps = length - 1
        if steps < 1:
            continue
        for _ in range(count if steps > shortest else 1):
            wanted = int(rng.integers(min(shortest, steps), min(longest, steps) + 1))
            first = offset + int(rng.integers(steps - wanted + 1))
            chosen.append(Segment(first, first + wanted))
    if not chosen:
        raise UserError(f"{dataset.path} holds no step: collect longer episodes")
    return chosen


def write_lerobot(
    views: Mapping[str, Dataset],
    folder: Path,
    episodes: np.ndarray,
    instructions: Sequence[str],
    fps: int,
    size: Resize = np.asarray,
    progress: Progress | None = None,
) -> None:
    """Write whole episodes as a LeRobotDataset, pictures lossless; the folder appears when complete.

    Args:
        views: the same dataset seen by each camera to write, by the camera's name.
        folder: must not exist. episodes: their numbers, of none that is empty.
        instructions: the task of every recorded episode, in words. fps: rows a second.
        size: brings pictures (n, H, W, 3) to the size they are written in.
        progress: called with the episodes done and wanted.

    Raises:
        UserError: the folder exists or cannot be written, or LeRobot reads other data than were recorded.
    """
    dataset = next(iter(views.values()))
    names = dataset.proprio_names if dataset.has_proprio else ()
    shapes = {f"{OBS_IMAGES}.{name}": size(view.pixels[:1]).shape[1:] for name, view in views.items()}
    features = lerobot_features(dataset, names, shapes)
    numbers = {ACTION: dataset.action} | ({OBS_STATE: dataset.proprio} if names else {})
    if dataset.state is not None:
        state = numbers[OBS_ENV_STATE] = dataset.state.astype(np.float32)  # as LeRobot has it
        axes = [f"state_{i}" for i in range(state.shape[1])]
        features[OBS_ENV_STATE] = {"dtype": "float32", "shape": (len(axes),), "names": axes}

    def frames(episode: int) -> Iterator[Frame]:
        first, stop = dataset.offsets[episode], dataset.offsets[episode] + dataset.lengths[episode]
        for start in range(first, stop, 64):
            rows = slice(start, min(start + 64, stop))
            pixels = {f"{OBS_IMAGES}.{name}": size(view.pixels[rows]) for name, view in views.items()}
            columns = pixels | {name: values[rows] for name, values in numbers.items()}
            for i in range(rows.stop - rows.start):
                yield {name: values[i] for name, values in columns.items()}

    def shown(row: int) -> Frame:
        return {f"{OBS_IMAGES}.{name}": size(view.pixels[row : row + 1])[0] for name, view in views.items()}

    with _new_dataset(dataset, folder, fps, features) as (written, root):
        texts = [instructions[episode] for episode in episodes]
        _write(written, map(frames, episodes.tolist()), texts, progress)
        rows = dataset.rows_of(episodes)
        ends = np.cumsum(dataset.lengths[episodes])
        wanted = {name: values[rows] for name, values in numbers.items()}
        if not _reads_back(dataset, root, ends, wanted, lambda index: shown(int(rows[index]))):
            raise _reads_otherwise(folder, dataset)


def export_lerobot(
    dataset: Dataset,
    chosen: list[Segment],
    folder: Path,
    names: tuple[str, ...],
    instructions: Sequence[str],
    fps: int,
    progress: Progress | None = None,
) -> None:
    """Write segments as a LeRobotDataset, pictures lossless; the folder appears when complete and checked.

    Args:
        dataset: recorded episodes. chosen: their segments. folder: must not exist.
        names: of the numbers of proprioception. instructions: the task of every recorded episode, in words.
        fps: environment steps per second.
        progress: called with the segments done and wanted.

    Raises:
        UserError: the folder exists or cannot be written, or LeRobot reads other data than were recorded.
    """
    with _new_dataset(dataset, folder, fps, lerobot_features(dataset, names)) as (written, root):
        frames = (_frames(dataset, segment) for segment in chosen)
        firsts = np.searchsorted(dataset.offsets, [segment.first for segment in chosen], "right") - 1
        _write(written, frames, [instructions[episode] for episode in firsts], progress)
        check_lerobot(dataset, chosen, root)


@contextmanager
def _new_dataset(
    dataset: Dataset, folder: Path, fps: int, features: dict[str, dict[str, Any]]
) -> Iterator[tuple[LeRobotDataset, Path]]:
    """An empty LeRobotDataset in a place of its own, which becomes `folder` if all goes well."""
    if folder.exists():
        raise UserError(f"{folder} exists: delete it, or write to another place")
    check_unwritten(folder)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as place:
            root = place / "dataset"
            yield LeRobotDataset.create(repo_id(dataset), fps, features, root=root, use_videos=False), root
            os.replace(root, folder)


def _write(
    written: LeRobotDataset,
    episodes: Iterable[Iterable[Frame]],
    texts: Sequence[str],
    progress: Progress | None,
) -> None:
    disable_progress_bars()  # one for every episode
    try:
        for done, (frames, text) in enumerate(zip(episodes, texts, strict=True), 1):
            for frame in frames:
                written.add_frame(frame | {"task": text})
            written.save_episode()
            if progress is not None:
                progress(done, len(texts))
        written.finalize()
    finally:
        enable_progress_bars()
    shutil.rmtree(written.root / "images", ignore_errors=True)  # LeRobot's scratch


def lerobot_features(
    dataset: Dataset,
    names: Sequence[str],
    cameras: Sequence[str] | Mapping[str, tuple[int, ...]] = (CAMERA, GOAL),
) -> dict[str, dict[str, Any]]:
    """What a frame holds, as LeRobot describes it.

    Args:
        names: of the numbers of proprioception; without any there is none.
        cameras: names of pictures, or (H, W, 3) by name where they are not the dataset's.
    """
    if not isinstance(cameras, Mapping):
        cameras = dict.fromkeys(cameras, dataset.pixels.shape[1:])
    axes = ["height", "width", "channels"]
    features: dict[str, dict[str, Any]] = {
        name: {"dtype": "image", "shape": tuple(shape), "names": axes} for name, shape in cameras.items()
    }
    if names:
        features[OBS_STATE] = {"dtype": "float32", "shape": (len(names),), "names": list(names)}
    actions = list(dataset.action_names)
    features[ACTION] = {"dtype": "float32", "shape": (len(actions),), "names": actions}
    return features


def repo_id(dataset: Dataset) -> str:
    """What LeRobot calls the dataset."""
    name = str(dataset.attributes.get("environment", dataset.path.stem))
    return f"sparsewm/{re.sub('[^A-Za-z0-9._-]+', '-', name).strip('-.') or 'dataset'}"


def check_lerobot(dataset: Dataset, chosen: list[Segment], folder: Path, frames: int = 64) -> None:
    """Read a LeRobotDataset back with LeRobot and compare it with what was recorded.

    Ends of episodes, actions and proprioception are all compared, pictures and goals of `frames` frames.

    Raises:
        UserError: something differs.
    """
    ends = np.cumsum([segment.last - segment.first + 1 for segment in chosen])
    rows = np.concatenate([np.arange(segment.first, segment.last + 1) for segment in chosen])
    actions = dataset.action[rows].copy()
    actions[ends - 1] = 0

    def shown(index: int) -> Frame:
        goal = chosen[int(np.searchsorted(ends, index, "right"))].last
        return {CAMERA: dataset.pixels[rows[index]], GOAL: dataset.pixels[goal]}

    numbers = {ACTION: actions, OBS_STATE: dataset.proprio[rows]}
    if not _reads_back(dataset, folder, ends, numbers, shown, frames):
        raise _reads_otherwise(folder, dataset)


def _reads_back(
    dataset: Dataset,
    root: Path,
    ends: np.ndarray,
    numbers: Mapping[str, np.ndarray],
    shown: Callable[[int], Frame],
    frames: int = 64,
) -> bool:
    """Whether LeRobot reads these ends of episodes and columns, and at `frames` frames these pictures."""
    read = LeRobotDataset(repo_id(dataset), root=root)
    table = read.hf_dataset.select_columns(list(numbers)).with_format("numpy")[:]
    good = np.array_equal(read.meta.episodes["dataset_to_index"], ends) and len(read) == ends[-1]
    for name, values in numbers.items():
        good = good and np.array_equal(np.asarray(table[name]).reshape(values.shape), values)
    for index in np.unique(np.linspace(0, ends[-1] - 1, frames).astype(int)).tolist() if good else []:
        frame = read[index]
        for name, pixels in shown(index).items():
            picture = (255 * frame[name]).round().byte().permute(1, 2, 0).numpy()
            good = good and np.array_equal(picture, pixels)
    return good


def _reads_otherwise(folder: Path, dataset: Dataset) -> UserError:
    return UserError(f"LeRobot reads {folder} otherwise than {dataset.path}: please report this as a bug")


def _frames(dataset: Dataset, segment: Segment) -> list[dict[str, np.ndarray]]:
    """Rows of a segment as LeRobot takes them."""
    rows = slice(segment.first, segment.last + 1)
    pixels, action = dataset.pixels[rows], dataset.action[rows].copy()
    action[-1] = 0
    return [
        {CAMERA: picture, GOAL: pixels[-1], OBS_STATE: proprio, ACTION: step}
        for picture, proprio, step in zip(pixels, dataset.proprio[rows], action, strict=True)
    ]
