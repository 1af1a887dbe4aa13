"""Training of the temporal distance: it learns the way round, and learns the same way twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm.model.distance import DistanceConfig, TemporalDistance
from sparsewm.training.distance import DistanceTrainConfig, train_distance
from tests.model.tiny import tiny_model

POSITIONS = 24
"""Places on a horseshoe: its ends are neighbours as the crow flies, and farthest apart on foot."""


def look(place: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (..., 16, 8) and proprioception (..., 2) of places (...) on the horseshoe."""
    angle = 0.3 + (2 * torch.pi - 0.6) * place.float() / (POSITIONS - 1)
    proprio = torch.stack([angle.cos(), angle.sin()], -1)
    basis = torch.randn(2, 16 * 8, generator=torch.Generator().manual_seed(5))
    return (proprio @ basis).unflatten(-1, (16, 8)), proprio


@dataclass
class Walks:
    """Random walks on the horseshoe, one place a step, as windows of four frames."""

    def sample(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        start = torch.as_tensor(rng.integers(POSITIONS, size=(batch, 1)))
        steps = torch.as_tensor(rng.integers(-1, 2, size=(batch, 3)))
        tokens, proprio = look(torch.cat([start, start + steps.cumsum(1)], 1).clamp(0, POSITIONS - 1))
        return {"tokens": tokens, "proprio": proprio, "action": torch.zeros(batch, 3, 4)}


def trained(steps: int, seed: int = 0, reach: float = 30.0) -> TemporalDistance:
    model = tiny_model()
    model.standardizer.fit(
        {f"{name}_mean": torch.zeros(size) for name, size in (("token", (16, 8)), ("proprio", 2))}
        | {"token_map": torch.eye(8), "proprio_std": torch.ones(2)}
    )
    torch.manual_seed(seed)
    distance = TemporalDistance(8, (4, 4), 2, DistanceConfig(width=32, heads=2, features=16))
    config = DistanceTrainConfig(steps=steps, batch=32, warmup=10, smallest=4, reach=reach)
    train_distance(model, distance, Walks(), config, torch.float32, seed=seed)  # type: ignore[arg-type]
    return distance


@pytest.mark.slow
def test_it_learns_the_way_round_a_wall_from_single_steps() -> None:
    distance = trained(400)
    tokens, proprio = look(torch.arange(POSITIONS))
    kept = torch.tensor([[0, 3, 5, 6, 9, 10, 12, 15]])
    at = distance.embed(tokens[None, :, kept[0]], proprio[None], kept)[0]
    found = distance.between(at[:, None], at[None])
    steps = (torch.arange(POSITIONS)[:, None] - torch.arange(POSITIONS)).abs().float()
    straight = torch.cdist(proprio, proprio)
    assert np.corrcoef(found.flatten().numpy(), steps.flatten().numpy())[0, 1] > 0.9
    assert found[0, -1] > 2 * found[0, POSITIONS // 3], "the ends of the horseshoe are far apart"
    assert straight[0, -1] < 0.5 * straight[0, POSITIONS // 3], "though they look close"


@pytest.mark.slow
def test_ways_beyond_reach_are_not_told_apart() -> None:
    tokens, proprio = look(torch.tensor([0, POSITIONS - 1]))
    longest = {}
    for reach in (3.0, 30.0):
        start, end = trained(400, reach=reach).embed(tokens[None], proprio[None], torch.arange(16)[None])[0]
        longest[reach] = float(TemporalDistance.between(start, end))
    assert longest[30.0] > 2 * longest[3.0]


def test_the_same_seed_learns_the_same_distance() -> None:
    first, second, other = trained(6), trained(6), trained(6, seed=1)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    pairs = zip(first.parameters(), other.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
