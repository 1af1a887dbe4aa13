"""Datasets of LeRobot: goal-reaching segments of recorded episodes, for policies to imitate.

Any stretch of an episode demonstrates how to get from its first frame to its last one (hindsight). A
segment becomes an episode of LeRobot's: every frame has the present picture, that of the segment's last frame
as the goal, proprioception, the action taken there and an instruction. The last frame has a zero action, so
that chunks which reach beyond it are filled up with standing still.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsewm.data.cameras import CAMERA, GOAL
from sparsewm.data.dataset import Dataset
from sparsewm.errors import UserError, needs_extra
from sparsewm.files import disk_errors

with needs_extra("datasets of LeRobot", "vla"):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.utils.constants import ACTION, OBS_STATE


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
        raise UserError(f"--shortest must be from 1 to --longest {longest}, got {shortest}")
    if count < 1:
        raise UserError(f"--segments must be at least 1, got {count}")
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


def export_lerobot(
    dataset: Dataset,
    chosen: list[Segment],
    folder: Path,
    names: tuple[str, ...],
    instruction: str,
    fps: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write segments as a LeRobotDataset, pictures lossless; the folder appears when complete and checked.

    Args:
        dataset: recorded episodes. chosen: their segments. folder: must not exist.
        names: of the numbers of proprioception. instruction: the task. fps: environment steps per second.
        progress: called with the segments done and wanted.

    Raises:
        UserError: the folder exists or cannot be written, or LeRobot reads other data than were recorded.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: delete it or give another --output")
    features = lerobot_features(dataset, names)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            root = place / "dataset"
            written = LeRobotDataset.create(repo_id(dataset), fps, features, root=root, use_videos=False)
            for done, segment in enumerate(chosen):
                for frame in _frames(dataset, segment):
                    written.add_frame(frame | {"task": instruction})
                written.save_episode()
                if progress is not None:
                    progress(done + 1, len(chosen))
            written.finalize()
            shutil.rmtree(root / "images", ignore_errors=True)  # LeRobot's scratch
            check_lerobot(dataset, chosen, root)
            os.replace(root, folder)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def lerobot_features(
    dataset: Dataset, names: tuple[str, ...], cameras: tuple[str, ...] = (CAMERA, GOAL)
) -> dict[str, dict[str, Any]]:
    """What a frame holds, as LeRobot describes it; `names` are those of the numbers of proprioception."""
    side, size = dataset.pixels.shape[1], dataset.action.shape[1]
    picture = {"dtype": "image", "shape": (side, side, 3), "names": ["height", "width", "channels"]}
    return {
        **dict.fromkeys(cameras, picture),
        OBS_STATE: {"dtype": "float32", "shape": (len(names),), "names": list(names)},
        ACTION: {"dtype": "float32", "shape": (size,), "names": [f"action_{i}" for i in range(size)]},
    }


def repo_id(dataset: Dataset) -> str:
    """What LeRobot calls the dataset."""
    return f"sparsewm/{dataset.attributes['environment']}"


def check_lerobot(dataset: Dataset, chosen: list[Segment], folder: Path, frames: int = 64) -> None:
    """Read a LeRobotDataset back with LeRobot and compare it with what was recorded.

    Ends of episodes, actions and proprioception are all compared, pictures and goals of `frames` frames.

    Raises:
        UserError: something differs.
    """
    read = LeRobotDataset(repo_id(dataset), root=folder)
    ends = np.cumsum([segment.last - segment.first + 1 for segment in chosen])
    table = read.hf_dataset.select_columns([ACTION, OBS_STATE]).with_format("numpy")[:]
    good = np.array_equal(read.meta.episodes["dataset_to_index"], ends) and len(read) == ends[-1]
    rows = np.concatenate([np.arange(segment.first, segment.last + 1) for segment in chosen])
    actions = dataset.action[rows].copy()
    actions[ends - 1] = 0
    good = good and np.array_equal(table[ACTION], actions)
    good = good and np.array_equal(table[OBS_STATE], dataset.proprio[rows])
    for index in np.unique(np.linspace(0, len(rows) - 1, frames).astype(int)).tolist():
        goal = chosen[int(np.searchsorted(ends, index, "right"))].last
        for name, row in ((CAMERA, rows[index]), (GOAL, goal)):
            if good:
                shown = (255 * read[index][name]).round().byte().permute(1, 2, 0).numpy()
                good = np.array_equal(shown, dataset.pixels[row])
    if not good:
        raise UserError(f"LeRobot reads {folder} otherwise than {dataset.path}: please report this as a bug")


def _frames(dataset: Dataset, segment: Segment) -> list[dict[str, np.ndarray]]:
    """Rows of a segment as LeRobot takes them."""
    rows = slice(segment.first, segment.last + 1)
    pixels, action = dataset.pixels[rows], dataset.action[rows].copy()
    action[-1] = 0
    return [
        {CAMERA: picture, GOAL: pixels[-1], OBS_STATE: proprio, ACTION: step}
        for picture, proprio, step in zip(pixels, dataset.proprio[rows], action, strict=True)
    ]
