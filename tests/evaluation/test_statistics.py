"""Intervals, quartiles and rank correlations against values from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsewm import envs
from sparsewm.evaluation.geometry import cost_geometry
from sparsewm.evaluation.statistics import quartiles, spearman, wilson
from tests.model.tiny import tiny_encoder


@pytest.mark.parametrize(
    ("successes", "episodes", "interval"),
    [  # Wilson score intervals at 95%, as in Newcombe (1998), table I, and by the textbook formula
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0)),
        (5, 10, (0.2366, 0.7634)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson_interval(successes: int, episodes: int, interval: tuple[float, float]) -> None:
    assert wilson(successes, episodes) == pytest.approx(interval, abs=1e-4)


def test_quartiles() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == {"median": 3, "p25": 2, "p75": 4}
    assert quartiles([7.0]) == {"median": 7, "p25": 7, "p75": 7}
    assert quartiles([]) is None


def test_rank_correlation() -> None:
    a = np.array([1.0, 5.0, 2.0, 9.0])
    assert spearman(a, np.exp(a)) == pytest.approx(1) and spearman(a, -(a**3)) == pytest.approx(-1)
    # 1 - 6 * sum d^2 / (n (n^2 - 1)) with rank differences 1, 1, 0, 0
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 3, 4])) == pytest.approx(1 - 6 * 2 / 60)


def test_cost_geometry_is_reproducible_and_between_minus_one_and_one() -> None:
    env = envs.make("wall", resolution=56)
    encoder = tiny_encoder()
    first = cost_geometry(env, encoder, drops=(0.0, 0.5), states=40, seed=1)
    assert first == cost_geometry(env, encoder, drops=(0.0, 0.5), states=40, seed=1)
    assert first.keys() == {"drop_0", "drop_0.5"}
    for values in first.values():
        assert values.keys() == {"all", "near", "far"} and all(-1 <= value <= 1 for value in values.values())


class Readout:
    """An encoder whose only token is the place of Wall's red dot: token error is distance."""

    tokens = 1

    def encode(self, pixels: np.ndarray) -> object:
        red = (pixels[..., 0].astype(float) - pixels[..., 2]).clip(0)
        weights = red / red.sum((1, 2), keepdims=True)
        axis = np.arange(pixels.shape[1])
        places = np.stack([weights.sum(1) @ axis, weights.sum(2) @ axis], -1)

        class Features:
            patches = torch.as_tensor(places, dtype=torch.float32)[:, None]

        return Features


def test_cost_geometry_of_an_encoder_that_sees_the_state() -> None:
    env = envs.make("wall", resolution=56)

    def straight(states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        away: np.ndarray = np.linalg.norm(states - goal, axis=1)
        return away

    env.shortfall = straight  # type: ignore[method-assign]  # its own goes through the door
    values = cost_geometry(env, Readout(), drops=(0.0,), states=60)["drop_0"]  # type: ignore[arg-type]
    assert min(values.values()) > 0.97
