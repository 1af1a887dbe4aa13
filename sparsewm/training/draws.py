"""What a training draws at random: a function of its seed, so the rows that it will read are known before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from sparsewm.data.dataset import Dataset
from sparsewm.data.tokens import sampled_rows
from sparsewm.data.windows import WindowRows
from sparsewm.training.config import OptimConfig, TrainConfig

DISTANCE_FRAMES = 4
"""Successive frames of a window that the temporal distance is trained on."""

SHOWN_FRAMES = 6
"""Of an imagined sequence, the recorded first one included; fewer where episodes are shorter."""

_SHOWN = 4
_TRANSLATED = 1024
_VALIDATED = 64


@dataclass(frozen=True)
class Draw:
    """What is drawn for a training step.

    Attributes:
        windows: their numbers (B,). whole: whether the patches stay together.
        real: recorded frames. frames: these and the imagined ones, the first of a window that are read.
        rng, generator: for what is drawn further.
    """

    windows: np.ndarray
    whole: bool
    real: int
    frames: int
    rng: np.random.Generator
    generator: torch.Generator


def draw_step(config: OptimConfig, seed: int, step: int, windows: WindowRows, history: int) -> Draw:
    """What is drawn for a step of the predictor's training."""
    rng, generator = generators(seed, step)
    whole = config.full_every > 0 and step % config.full_every == 0
    trained = min(config.trained_groups, config.groups) or config.groups
    count = max(1, config.batch * trained // config.groups) if whole else config.batch
    numbers = windows.draw(rng, count)
    real = int(rng.integers(1, history + 1))
    frames = min(real + rollout_length(config, step), windows.frames)
    return Draw(numbers, whole, real, frames, rng, generator)


def rollout_length(config: OptimConfig, step: int) -> int:
    """Imagined frames at a step: grows linearly from 1 to `horizon` over the first `ramp` of training."""
    if config.ramp <= 0:
        return config.horizon
    return min(config.horizon, 1 + math.floor(step / (config.ramp * config.steps) * config.horizon))


def generators(*seeds: int) -> tuple[np.random.Generator, torch.Generator]:
    """NumPy's and torch's random numbers of a step."""
    rng = np.random.default_rng(seeds)
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def validation_windows(windows: WindowRows, samples: int = 256) -> list[np.ndarray]:
    """Numbers of the windows that are validated on, in batches; always the same."""
    rng = np.random.default_rng(0)
    return [windows.draw(rng, _VALIDATED) for _ in range(max(1, samples // _VALIDATED))]


def decoder_rows(rows: np.ndarray, frames: int, seed: int) -> np.ndarray:
    """Those of some rows that the decoder is trained on, ascending."""
    return sampled_rows(rows, frames, [seed, 2])


def shown_windows(
    dataset: Dataset, episodes: np.ndarray, frameskip: int, seed: int
) -> tuple[WindowRows, np.ndarray]:
    """Windows of episodes, and the numbers of those that are drawn as pictures."""
    longest = int(dataset.lengths[episodes].max() - 1) // frameskip + 1
    windows = WindowRows(dataset, min(SHOWN_FRAMES, longest), frameskip, episodes)
    return windows, windows.draw(np.random.default_rng(seed), _SHOWN)


def translated_rows(rows: np.ndarray) -> np.ndarray:
    """Those of some rows whose tokens one encoder's are compared over with another's."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, _TRANSLATED).astype(int))]


def rows_read(
    config: TrainConfig,
    dataset: Dataset,
    split: tuple[np.ndarray, np.ndarray],
    frameskip: int,
    history: int | None,
    fitted: bool = True,
    translated: bool = False,
) -> np.ndarray:
    """Rows, ascending, whose tokens a training reads.

    Args:
        config: the settings. dataset: the data. split: episodes for training, and for validation.
        frameskip: environment steps between two frames.
        history: frames of the attention window; None where no predictor is trained.
        fitted: whether statistics are taken. translated: whether tokens are compared with another encoder's.
    """
    train, held_out = split
    optim, heads, seed = config.optim, config.heads, config.run.seed
    read = np.zeros(dataset.rows, bool)
    rows = dataset.rows_of(train)
    if fitted:
        read[sampled_rows(rows)] = True
    if translated:
        read[translated_rows(rows)] = True
    if history is not None:
        frames = history + optim.horizon
        windows = WindowRows(dataset, frames, frameskip, train)
        for step in range(optim.steps):
            draw = draw_step(optim, seed, step, windows, history)
            read[windows.rows(draw.windows, draw.frames)] = True
        windows = WindowRows(dataset, frames, frameskip, held_out)
        for numbers in validation_windows(windows):
            read[windows.rows(numbers, optim.horizon + 1)] = True
    if heads.distance.steps:
        windows = WindowRows(dataset, DISTANCE_FRAMES, frameskip, train)
        for step in range(heads.distance.steps):
            rng, _ = generators(seed, 1, step)
            read[windows.rows(windows.draw(rng, heads.distance.batch))] = True
    if heads.decoder.steps:
        read[decoder_rows(rows, heads.decoder.frames, seed)] = True
        windows, numbers = shown_windows(dataset, held_out, frameskip, seed)
        read[windows.rows(numbers)] = True
    return np.flatnonzero(read)
