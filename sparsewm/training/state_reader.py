"""Teaches a state reader, before the policy learns that is told by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.data import Dataset, Tokens
from sparsewm.data.tokens import sampled_rows
from sparsewm.errors import UserError
from sparsewm.model.latent import Standardizer
from sparsewm.proposals.state_reader import StateReader
from sparsewm.training.draws import generators
from sparsewm.training.optim import MasterAdamW
from sparsewm.training.validation import placed

FRAMES = 30_000
"""Frames of a recording's training episodes that it learns from, at most."""
JUDGED = 2_000
"""Frames of a recording's held-out episodes that it is judged on, at most."""
SCALED = 1_000
"""Frames of a recording that tell the scale of tokens."""
BATCH = 256
"""Frames a step, as many of every recording."""
LR = 2e-3
NOISE = 0.05
"""Deviation added to tokens, in theirs."""
ROUND = 0.3
"""Errors beyond it weigh by their size, not its square."""


@dataclass(frozen=True)
class Lesson:
    """Frames of a recording with the states that they show.

    Args:
        states: (rows, V) what is read of the recorded states. tokens: of the rows.
        learned, judged: rows, each ascending.
    """

    states: np.ndarray
    tokens: Tokens
    learned: np.ndarray
    judged: np.ndarray


def reader_rows(
    dataset: Dataset, split: tuple[np.ndarray, np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a reader learns from, and those that it is judged on, each ascending.

    Args:
        split: episodes for training and held-out ones.
    """
    train, held_out = split
    return (
        sampled_rows(dataset.rows_of(train), FRAMES, [seed, 5]),
        sampled_rows(dataset.rows_of(held_out), JUDGED, [seed, 5]),
    )


def teach_reader(
    reader: StateReader,
    lessons: Sequence[Lesson],
    standardizer: Standardizer,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, float]:
    """Train a reader, in place; deterministic in `seed`. Its weights are then what bfloat16 holds of them.

    Args:
        reader: float32, on its device. lessons: of one or more recordings.
        standardizer: of the world model.
        on_step: called with (steps done, loss).

    Returns:
        median errors on frames of held-out episodes by name, in the state's units (angles in radians).

    Raises:
        UserError: training diverges.
    """
    device = reader.mean.device

    def frames(lesson: Lesson, rows: np.ndarray) -> Tensor:
        tokens = placed(lesson.tokens.rows(rows), device)
        return reader.scaled(tokens if reader.given else standardizer.tokens(tokens))

    def states(lesson: Lesson, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(lesson.states[rows]).to(device)

    reader.fit(torch.cat([states(lesson, lesson.learned) for lesson in lessons]))
    if reader.given:
        some = [
            lesson.tokens.rows(lesson.learned[:: len(lesson.learned) // SCALED + 1]) for lesson in lessons
        ]
        reader.fit_tokens(torch.cat([placed(part, device) for part in some]))
    reader.train().requires_grad_(True)
    optimizer = MasterAdamW(reader, LR, steps, min(100, steps // 10 + 1))
    for step in range(steps):
        rng, generator = generators(seed, 5, step)
        drawn = [(lesson, np.sort(rng.choice(lesson.learned, BATCH // len(lessons)))) for lesson in lessons]
        seen = torch.cat([frames(*some) for some in drawn])
        seen = seen + NOISE * torch.randn(seen.shape, generator=generator).to(device)
        shown = torch.cat([states(*some) for some in drawn])
        loss = F.smooth_l1_loss(reader(seen), reader.targets(shown), beta=ROUND)
        optimizer.zero_grad()
        loss.backward()
        norm, value = float(optimizer.step(step)), float(loss.detach())
        if not math.isfinite(value) or not math.isfinite(norm):
            raise UserError(f"learning to read the state diverged at step {step}: train anew")
        if on_step is not None:
            on_step(step + 1, value)
    reader.eval().requires_grad_(False)
    with torch.no_grad():
        for weight in reader.parameters():
            weight.copy_(weight.bfloat16())
        judged = [
            (lesson, some)
            for lesson in lessons
            for some in np.array_split(lesson.judged, -(-len(lesson.judged) // BATCH))
        ]
        told = torch.cat([reader(frames(*some)) for some in judged])
        shown = torch.cat([states(*some) for some in judged])
        away = reader.state(told) - reader.state(reader.targets(shown))
        period = 2 * math.pi / reader.symmetry
        away = torch.where(reader.turns, (away + period / 2) % period - period / 2, away)
        median = away.abs().median(0).values.tolist()
    return {name: round(float(error), 5) for name, error in zip(reader.names, median, strict=True)}
