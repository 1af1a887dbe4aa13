"""Frames of recorded episodes with goals from their future, as a policy of LeRobot learns from them.

Any stretch of an episode shows how to get from its first frame to its last one. A goal is drawn anew each
time a frame is read, so that an epoch never shows the same stretches as the one before, and nothing is
written. For a dataset on disk, with stretches cut once, see `sparsewm.data.lerobot`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.data.cameras import BOTH, CAMERA, GOAL, LUMINANCE, ROWS, grey, overlay
from sparsewm.data.dataset import Dataset
from sparsewm.data.lerobot import lerobot_features
from sparsewm.proposals.version import lerobot_imports
from sparsewm.training.draws import generators

with lerobot_imports("training policies of LeRobot"):
    from lerobot.utils.constants import ACTION, OBS_STATE

ENDS = 0.5  # share of goals that are an episode's last frame
READ = 4096  # rows read at once


class HindsightFrames:
    """Rows of episodes; the goal of each is a later row of its episode.

    Args:
        dataset: recorded episodes.
        names: of the numbers of proprioception. instructions: the task of each episode.
        chunk: actions of a sample; behind the goal they stand still, or go on as the last one where no goal
            is shown.
        longest: environment steps to the goal, at most; None: to the end of the episode.
        ends: share of goals that are the episode's last frame, or where that is too far the farthest one; the
            others are drawn evenly.
        goal: show the goal. Without it the goal is the episode's last frame, whatever `longest` and `ends`
            say, for the task is all that tells of it.
        together: show present and goal in one picture (`sparsewm.data.cameras.overlay`), in grey by
            `weights`; pictures then lie in memory. Otherwise a sample holds row numbers, for a policy that
            has encoded the pictures already.
        progress: called with the rows read and wanted.

    Attributes:
        features, stats: of a frame, as LeRobot describes them and normalises by them.
    """

    def __init__(
        self,
        dataset: Dataset,
        names: tuple[str, ...],
        instructions: Sequence[str],
        chunk: int,
        longest: int | None = None,
        ends: float = ENDS,
        goal: bool = True,
        together: bool = False,
        weights: Sequence[int] = LUMINANCE,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if not goal:
            longest, ends = None, 1.0
        self.chunk, self.ends, self.goal, self.together = chunk, ends, goal, together
        self.instructions = np.repeat(np.array(instructions, object), dataset.lengths)
        self.action, self.proprio = torch.from_numpy(dataset.action), torch.from_numpy(dataset.proprio)
        last = np.repeat(dataset.offsets + dataset.lengths - 1, dataset.lengths)
        farthest = last - np.arange(dataset.rows)
        self.farthest = torch.from_numpy(farthest if longest is None else np.minimum(farthest, longest))
        self.pixels = torch.empty(0)
        if together:
            self.pixels = read_pictures(dataset, dataset.rows, weights, progress)  # (N, R, R)
        cameras = (BOTH,) if together else (CAMERA, GOAL) if goal else (CAMERA,)
        self.features = lerobot_features(dataset, names, cameras)
        self.stats = {OBS_STATE: _statistics(dataset.proprio), ACTION: _statistics(dataset.action)}
        self._epoch: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.farthest)

    def batch(self, seed: int, step: int, count: int) -> dict[str, Any]:
        """What a training step reads, `count` frames or all of them: a function of seed and step.

        Every epoch shows each row once, but for those that fill no batch.

        Returns:
            proprioception (B, P), actions (B, chunk, A), the task B times, and pictures of present and goal,
            float32 (B, 3, R, R), or their row numbers (B, 2).
        """
        number, place = divmod(step, max(1, len(self) // count))
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = number, torch.from_numpy(generators(seed, 5, number)[0].permutation(len(self)))
        rows = self._epoch[1][place * count : (place + 1) * count]
        return self.sample(rows, self.ahead(rows, generators(seed, 6, step)[1]))

    def ahead(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Steps (B,) from rows to their goals, drawn anew."""
        farthest = self.farthest[rows]
        end, share = torch.rand(2, len(rows), dtype=torch.float64, generator=generator)
        return torch.where(end < self.ends, farthest, (share * (farthest + 1)).long())

    def sample(self, rows: Tensor, ahead: Tensor) -> dict[str, Any]:
        """Frames with goals so many steps ahead."""
        steps, last = torch.arange(self.chunk), (ahead - 1).clamp(min=0)[:, None]
        action = self.action[rows[:, None] + torch.minimum(steps, last)]  # (B, chunk, A)
        if self.goal:
            action = torch.where((steps < ahead[:, None])[..., None], action, 0.0)
        tasks = self.instructions[rows.numpy()].tolist()
        sample = {OBS_STATE: self.proprio[rows], ACTION: action, "task": tasks}
        if not self.together:
            return sample | {ROWS: torch.stack([rows, rows + ahead], 1)}
        return sample | {BOTH: overlay(self.pixels[rows], self.pixels[rows + ahead]).float() / 255}


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
