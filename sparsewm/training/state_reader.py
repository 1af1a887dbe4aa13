"""Teaches a state reader, before the policy learns that is told by it."""

from __future__ import annotations

import math
from collections.abc import Callable

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
"""Frames of the training episodes that it learns from, at most."""
JUDGED = 2_000
"""Frames of the held-out episodes that it is judged on, at most."""
BATCH = 256
LR = 2e-3
NOISE = 0.05
"""Deviation added to tokens, in theirs."""
ROUND = 0.3
"""Errors beyond it weigh by their size, not its square."""


def reader_rows(dataset: Dataset, split: tuple[np.ndarray, np.ndarray], seed: int) -> tuple[np.ndarray, ...]:
    """Rows that a reader learns from, and those that it is judged on, each ascending."""
    return tuple(
        sampled_rows(dataset.rows_of(part), most, [seed, 5])
        for part, most in zip(split, (FRAMES, JUDGED), strict=True)
    )


def teach_reader(
    reader: StateReader,
    dataset: Dataset,
    columns: list[int],
    tokens: Tokens,
    rows: tuple[np.ndarray, ...],
    standardizer: Standardizer,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, float]:
    """Train a reader, in place; deterministic in `seed`. Its weights are then what bfloat16 holds of them.

    Args:
        reader: float32, on its device. dataset: with recorded states, of which `columns` are read.
        tokens: of the rows. rows: to learn from, and to be judged on. standardizer: of the world model.
        on_step: called with (steps done, loss).

    Returns:
        median errors on frames of held-out episodes by name, in the state's units (angles in radians).

    Raises:
        UserError: training diverges.
    """
    device, learned = reader.mean.device, rows[0]
    assert dataset.state is not None

    def states(some: np.ndarray) -> Tensor:
        assert dataset.state is not None
        return torch.from_numpy(dataset.state[some][:, columns]).to(device)

    reader.fit(states(learned))
    reader.train().requires_grad_(True)
    optimizer = MasterAdamW(reader, LR, steps, min(100, steps // 10 + 1))
    for step in range(steps):
        rng, generator = generators(seed, 5, step)
        some = np.sort(rng.choice(learned, BATCH))
        frames = standardizer.tokens(placed(tokens.rows(some), device)).float()
        frames = frames + NOISE * torch.randn(frames.shape, generator=generator).to(device)
        loss = F.smooth_l1_loss(reader(frames), reader.targets(states(some)), beta=ROUND)
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
        told = [
            reader(standardizer.tokens(placed(tokens.rows(some), device)))
            for some in np.array_split(rows[1], -(-len(rows[1]) // BATCH))
        ]
        away = reader.state(torch.cat(told)) - reader.state(reader.targets(states(rows[1])))
        period = 2 * math.pi / reader.symmetry
        away = torch.where(reader.turns, (away + period / 2) % period - period / 2, away)
        median = away.abs().median(0).values.tolist()
    return {name: round(float(error), 5) for name, error in zip(reader.names, median, strict=True)}
