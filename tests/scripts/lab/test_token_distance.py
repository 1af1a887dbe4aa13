"""Token distance of rendered states: zero at the goal, redrawn with its subset, and nothing is disturbed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.lab.states import make_simulator
from scripts.lab.token_distance import TokenDistance
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.evaluation.simulator import SimulatorProblem
from sparsewm.model.latent import Standardizer
from sparsewm.planners import CEM
from tests.model.tiny import tiny_encoder

STARTS = [np.array([24.0, 30.0]), np.array([10.0, 50.0]), np.array([50.0, 12.0])]
GOALS = [np.array([44.0, 31.0]), np.array([22.0, 12.0])]


@pytest.fixture
def env() -> SimulatedGoalEnv:
    env = make_simulator("wall", resolution=56)
    env.reset(seed=0, options={"state": np.array([12.0, 13.0]), "goal": np.array([50.0, 51.0])})
    return env


def token_distance(
    env: SimulatedGoalEnv, drop: float = 0.0, alpha: float = 0.0, seed: int = 0
) -> TokenDistance:
    encoder = tiny_encoder()
    standardizer = Standardizer(encoder.tokens, encoder.dim, 2, 2)
    standardizer.fit({"proprio_mean": np.full(2, 32.0), "proprio_std": np.full(2, 16.0)})
    generator = torch.Generator().manual_seed(0)
    return TokenDistance(env, encoder, standardizer, GOALS, drop, alpha, generator)


def test_token_distance_is_zero_at_the_goal_only(env: SimulatedGoalEnv) -> None:
    cost = token_distance(env, alpha=1.0)
    states = np.stack([np.stack([goal, STARTS[0], STARTS[1]]) for goal in GOALS])
    values = cost(states)
    assert values.shape == (2, 3)
    assert float(values[:, 0].abs().max()) < 1e-6 and float(values[:, 1:].min()) > 1e-3


def test_alpha_adds_the_standardised_proprioception_error(env: SimulatedGoalEnv) -> None:
    states = np.stack([STARTS, STARTS])
    added = token_distance(env, alpha=2.0)(states) - token_distance(env)(states)
    for b in range(2):
        for s in range(3):
            expected = 2 * (((STARTS[s] - GOALS[b]) / 16) ** 2).mean()
            assert float(added[b, s]) == pytest.approx(expected, rel=1e-4)


def test_dropped_tokens_are_redrawn_per_episode_at_every_resample(env: SimulatedGoalEnv) -> None:
    cost = token_distance(env, drop=0.5)
    states = np.stack([STARTS, STARTS])
    drawn, values = [cost.patches], [cost(states)]
    assert torch.equal(cost(states), values[0])
    for _ in range(3):
        cost.resample()
        drawn.append(cost.patches)
        values.append(cost(states))
    assert {tuple(patches.shape) for patches in drawn} == {(2, 8)}
    assert len({tuple(row.tolist()) for patches in drawn for row in patches}) == 8
    assert not torch.allclose(values[0], values[1])
    assert torch.equal(token_distance(env, drop=0.5)(states), values[0])  # the seed decides


def test_planning_leaves_the_environment_as_it_is(env: SimulatedGoalEnv) -> None:
    state, goal, picture = env.state, env.goal.copy(), env.render()
    cost = token_distance(env, drop=0.5, alpha=1.0)
    CEM(candidates=6, elites=2, iterations=2).plan(SimulatorProblem(env, STARTS[:2], cost, horizon=2))
    assert np.array_equal(env.state, state) and np.array_equal(env.goal, goal)
    assert np.array_equal(env.render(), picture)
