"""Frames of recorded episodes with goals from their future, as LeRobot's trainer reads a dataset.

Any stretch of an episode shows how to get from its first frame to its last one. A goal is drawn anew each
time a frame is read, so that an epoch never shows the same stretches as the one before, and nothing is
written. Pictures lie in memory, unless the policy encodes them on its own before training. For a dataset on
disk, with stretches cut once, see `sparsewm.data.lerobot`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.data.cameras import BOTH, CAMERA, GOAL, LUMINANCE, ROWS, grey, overlay
from sparsewm.data.dataset import Dataset
from sparsewm.data.lerobot import lerobot_features
from sparsewm.errors import UserError, needs_extra

with needs_extra("training policies of LeRobot", "vla"):
    from lerobot.utils.constants import ACTION, OBS_STATE

READ = 4096  # rows read at once


class HindsightFrames(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of episodes, each once; its goal is a later row of the episode.

    Args:
        dataset: recorded episodes.
        names: of the numbers of proprioception. instruction: the task.
        chunk: actions of a sample; behind the goal they stand still.
        longest: environment steps to the goal, at most.
        ends: share of goals that are the episode's last frame, or where that is too far the farthest one; the
            others are drawn evenly.
        batch: rows beyond a whole number of batches are left out, so that all batches have one size.
        remembered: give row numbers instead of pictures, to a policy that has encoded them already.
        together: one camera shows present and goal in one picture (`sparsewm.data.cameras.overlay`), in grey
            by `weights`.
        progress: called with the rows read and wanted.

    Attributes:
        meta: features and statistics, as LeRobot asks a dataset for them.

    Raises:
        UserError: a flag is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        names: tuple[str, ...],
        instruction: str,
        chunk: int,
        longest: int,
        ends: float = 0.5,
        batch: int = 1,
        remembered: bool = False,
        together: bool = False,
        weights: Sequence[int] = LUMINANCE,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if longest < 1:
            raise UserError(f"--longest must be at least 1, got {longest}")
        if not 0 <= ends <= 1:
            raise UserError(f"--ends must be from 0 to 1, got {ends:g}")
        self.instruction, self.chunk, self.longest, self.ends = instruction, chunk, longest, ends
        self.action, self.proprio = torch.from_numpy(dataset.action), torch.from_numpy(dataset.proprio)
        self.last = np.repeat(dataset.offsets + dataset.lengths - 1, dataset.lengths)
        self.pixels = torch.empty(0)
        if not remembered:
            self.pixels = read_pictures(dataset, dataset.rows, weights if together else None, progress)
        self.num_frames = dataset.rows // batch * batch or dataset.rows
        self.num_episodes, self.remembered, self.together = dataset.episodes, remembered, together
        self.meta = SimpleNamespace(
            features=lerobot_features(dataset, names, (BOTH,) if together else (CAMERA, GOAL)),
            stats={OBS_STATE: _statistics(dataset.proprio), ACTION: _statistics(dataset.action)},
        )

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: int) -> dict[str, Any]:
        ahead = self.ahead(index)
        action = torch.zeros(self.chunk, self.action.shape[1])
        taken = self.action[index : index + min(ahead, self.chunk)]
        action[: len(taken)] = taken
        sample = {OBS_STATE: self.proprio[index], ACTION: action, "task": self.instruction}
        if self.remembered:
            return sample | {ROWS: torch.tensor([index, index + ahead])}
        if self.together:
            return sample | {BOTH: overlay(self._picture(index), self._picture(index + ahead))}
        return sample | {CAMERA: self._picture(index), GOAL: self._picture(index + ahead)}

    def ahead(self, index: int, generator: torch.Generator | None = None) -> int:
        """Steps from a row to a goal, drawn anew."""
        farthest = min(self.longest, int(self.last[index]) - index)
        if torch.rand((), generator=generator) < self.ends:
            return farthest
        return int(torch.randint(farthest + 1, (), generator=generator))

    def _picture(self, row: int) -> Tensor:
        return self.pixels[row].float().div_(255)


def read_pictures(
    dataset: Dataset,
    rows: int,
    in_grey: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The first `rows` pictures, uint8 (rows, 3, R, R), or (rows, R, R) in grey by such weights."""
    side = dataset.pixels.shape[1]
    pixels = torch.empty(rows, *(() if in_grey else (3,)), side, side, dtype=torch.uint8)
    for first in range(0, rows, READ):
        read = slice(first, min(first + READ, rows))
        pictures = torch.from_numpy(dataset.pixels[read])
        pixels[read] = grey(pictures, in_grey) if in_grey else pictures.permute(0, 3, 1, 2)
        if progress is not None:
            progress(read.stop, rows)
    return pixels


def _statistics(column: np.ndarray) -> dict[str, np.ndarray]:
    """What LeRobot normalises by."""
    return {
        "mean": column.mean(0),
        "std": column.std(0),
        "min": column.min(0),
        "max": column.max(0),
        "count": np.array([len(column)]),
    }
