"""Windows of consecutive model frames, the training samples of a world model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsewm.data.dataset import Dataset
from sparsewm.data.tokens import TokenCache
from sparsewm.errors import UserError


def count_windows(dataset: Dataset, frames: int, frameskip: int, episodes: np.ndarray) -> np.ndarray:
    """How many windows of `frames` model frames each of the episodes holds, int64 (episodes,).

    Raises:
        UserError: no episode is long enough.
    """
    span, lengths = (frames - 1) * frameskip, dataset.lengths[episodes]
    counts: np.ndarray = np.maximum(lengths - span, 0)
    if counts.sum() == 0:
        raise UserError(
            f"no episode of {dataset.path} is long enough: {frames} frames {frameskip} steps apart need "
            f"{span + 1} rows, the longest of these {len(episodes)} has "
            f"{int(lengths.max(initial=0))}; collect longer episodes or lower history, horizon or frameskip"
        )
    return counts


class Windows:
    """All windows of `frames` model frames inside the given episodes.

    Args:
        dataset, tokens: the recorded data and its encoded frames.
        frames: T, model frames of a window (history + horizon).
        frameskip: environment steps between two of them.
        episodes: which episodes.

    Raises:
        UserError: no episode is long enough.
    """

    def __init__(
        self, dataset: Dataset, tokens: TokenCache, frames: int, frameskip: int, episodes: np.ndarray
    ) -> None:
        self.dataset, self.tokens, self.frames, self.frameskip = dataset, tokens, frames, frameskip
        counts = count_windows(dataset, frames, frameskip, episodes)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.starts = np.repeat(dataset.offsets[episodes], counts) + within  # first row of each window

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, windows: np.ndarray) -> dict[str, Tensor]:
        """Windows by number (B,).

        Returns:
            `tokens` float16 (B, T, N, D) raw, `proprio` float32 (B, T, P) raw, `action` float32
            (B, T-1, frameskip * A), and `state` float64 (B, T, D_state) where it is recorded.
        """
        starts = self.starts[windows]
        rows = starts[:, None] + self.frameskip * np.arange(self.frames)
        steps = starts[:, None] + np.arange((self.frames - 1) * self.frameskip)
        action = self.dataset.action[steps].reshape(len(starts), self.frames - 1, -1)
        batch = {
            "tokens": self.tokens.rows(rows),
            "proprio": torch.from_numpy(self.dataset.proprio[rows]),
            "action": torch.from_numpy(action),
        }
        if self.dataset.state is not None:
            batch["state"] = torch.from_numpy(self.dataset.state[rows])
        return batch

    def sample(self, rng: np.random.Generator, batch_size: int) -> dict[str, Tensor]:
        """A random batch, with replacement, a pure function of the generator's state."""
        return self.batch(self.draw(rng, batch_size))

    def draw(self, rng: np.random.Generator, batch_size: int) -> np.ndarray:
        """Numbers (batch_size,) of the windows of a random batch, in their order."""
        return np.sort(rng.integers(len(self.starts), size=batch_size))
