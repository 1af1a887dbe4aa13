"""Windows of consecutive model frames, the training samples of a world model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sparsewm.data.dataset import Dataset
from sparsewm.data.tokens import Tokens
from sparsewm.errors import UserError

Batch = TypeVar("Batch")


def count_windows(dataset: Dataset, frames: int, frameskip: int, episodes: np.ndarray) -> np.ndarray:
    """How many windows of `frames` model frames each of the episodes holds, int64 (episodes,).

    Raises:
        UserError: no episode is long enough.
    """
    span, lengths = (frames - 1) * frameskip, dataset.lengths[episodes]
    counts: np.ndarray = -(-np.maximum(lengths - span, 0) // dataset.stride)
    if counts.sum() == 0:
        raise UserError(
            f"no episode of {dataset.path} is long enough: {frames} frames {frameskip} steps apart need "
            f"{span + 1} rows, the longest of these {len(episodes)} has "
            f"{int(lengths.max(initial=0))}; collect longer episodes or lower history, horizon or frameskip"
        )
    return counts


class WindowRows:
    """Which rows the windows of `frames` model frames inside the given episodes are made of.

    Args:
        dataset: the recorded data.
        frames: T, model frames of a window (history + horizon).
        frameskip: environment steps between two of them.
        episodes: which episodes.

    Raises:
        UserError: no episode is long enough.
    """

    def __init__(self, dataset: Dataset, frames: int, frameskip: int, episodes: np.ndarray) -> None:
        self.dataset, self.frames, self.frameskip = dataset, frames, frameskip
        counts = count_windows(dataset, frames, frameskip, episodes)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        first = np.repeat(dataset.offsets[episodes], counts)
        self.starts = first + dataset.stride * within  # first row of each window

    def __len__(self) -> int:
        return len(self.starts)

    def draw(self, rng: np.random.Generator, batch_size: int) -> np.ndarray:
        """Numbers (B,) of random windows, ascending: a pure function of the generator's state."""
        return np.sort(rng.integers(len(self.starts), size=batch_size))

    def rows(self, windows: np.ndarray, frames: int | None = None) -> np.ndarray:
        """Rows (B, T) of windows by number (B,), or of their first `frames` frames."""
        return self.starts[windows][:, None] + self.frameskip * np.arange(frames or self.frames)


class Windows(WindowRows):
    """All windows of `frames` model frames inside the given episodes.

    Args:
        dataset, tokens: the recorded data and its encoded frames. The rest as in `WindowRows`.
    """

    def __init__(
        self, dataset: Dataset, tokens: Tokens, frames: int, frameskip: int, episodes: np.ndarray
    ) -> None:
        super().__init__(dataset, frames, frameskip, episodes)
        self.tokens = tokens

    def batch(self, windows: np.ndarray, frames: int | None = None) -> dict[str, Tensor]:
        """Windows by number (B,), or their first `frames` frames.

        Returns:
            `tokens` (B, T, N, D) raw, or `standard_tokens` where they are so; `proprio` float32 (B, T, P)
            raw, `action` float32 (B, T-1, frameskip * A), and `state` float64 (B, T, D_state) where it is
            recorded.
        """
        rows = self.rows(windows, frames)
        steps = rows[:, :-1, None] + np.arange(self.frameskip)
        batch = {
            "standard_tokens" if self.tokens.standard else "tokens": self.tokens.rows(rows),
            "proprio": torch.from_numpy(self.dataset.proprio[rows]),
            "action": torch.from_numpy(self.dataset.action[steps]).flatten(2),
        }
        if self.dataset.state is not None:
            batch["state"] = torch.from_numpy(self.dataset.state[rows])
        return batch

    def sample(self, rng: np.random.Generator, batch_size: int) -> dict[str, Tensor]:
        """A random batch, with replacement, a pure function of the generator's state."""
        return self.batch(self.draw(rng, batch_size))


@contextmanager
def loaded_ahead(load: Callable[[int], Batch], stop: int) -> Iterator[Callable[[int], Batch]]:
    """Load what belongs to a step, and what belongs to the next one in a thread meanwhile.

    Args:
        load: a pure function of the step. stop: no step from this one on is loaded ahead.

    Yields:
        what takes the place of `load`: it gives and raises the same.
    """
    waiting: tuple[int, Future[Batch]] | None = None
    with ThreadPoolExecutor(1, "windows") as pool:

        def loaded(step: int) -> Batch:
            nonlocal waiting
            found = waiting[1].result() if waiting is not None and waiting[0] == step else load(step)
            waiting = (step + 1, pool.submit(load, step + 1)) if step + 1 < stop else None
            return found

        yield loaded
