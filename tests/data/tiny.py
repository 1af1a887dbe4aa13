"""Small datasets: a square that goes where the actions push it."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sparsewm.data import DatasetWriter, encoding, token_file

ATTRIBUTES = {"environment": "wall", "frameskip": 2, "seed": 0, "policy": "exploration", "version": 1}


def episode(length: int, seed: int = 0, resolution: int = 28) -> dict[str, np.ndarray]:
    """`length` rows; the state is the square's place in [0, 1], an action moves it by a tenth."""
    rng = np.random.default_rng([seed, 5])
    action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    action[-1] = 0
    state = np.empty((length, 2))
    state[0] = rng.uniform(0, 1, 2)
    for t in range(length - 1):
        state[t + 1] = np.clip(state[t] + 0.1 * action[t], 0, 1)
    pixels = np.full((length, resolution, resolution, 3), 30, np.uint8)
    side = resolution // 4
    for picture, (x, y) in zip(pixels, (state * (resolution - side)).round().astype(int), strict=True):
        picture[y : y + side, x : x + side] = 220
    return {"pixels": pixels, "action": action, "proprio": (60 * state).astype(np.float32), "state": state}


def write_dataset(
    path: Path, lengths: Sequence[int] = (9, 5, 12), seed: int = 0, resolution: int = 28
) -> Path:
    """A dataset file of episodes of these lengths."""
    with DatasetWriter(path, ATTRIBUTES) as writer:
        for i, length in enumerate(lengths):
            writer.append(episode(length, seed + i, resolution))
    return path


def notes_after(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let encoding claim and note so many rows at a time."""
    monkeypatch.setattr(token_file, "CLAIMED_ROWS", rows)
    monkeypatch.setattr(encoding, "NOTED_ROWS", rows)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes, here and in new processes: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
