"""Exploration: data from which a world model can learn what pushing, crossing and bouncing do."""

from __future__ import annotations

import numpy as np
import pytest

from sparsewm import envs
from sparsewm.envs.policies import HeldActions, exploration_policy
from sparsewm.envs.pusht import CENTRE, rotated
from sparsewm.envs.wall import WallEnv


def collect(
    env: envs.SimulatedGoalEnv, episodes: int, steps: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """States (episodes, steps + 1, D) and actions (episodes, steps, A)."""
    states = np.empty((episodes, steps + 1, env.state_dim))
    actions = np.empty((episodes, steps, env.action_dim), np.float32)
    for episode in range(episodes):
        rng = np.random.default_rng([seed, episode])
        env.np_random = rng
        env.set_state(env.sample_state())
        policy = exploration_policy(env, rng)
        policy.reset(env.state)
        states[episode, 0] = env.state
        for t in range(steps):
            actions[episode, t] = policy.act(env.state)
            env.step(actions[episode, t])
            states[episode, t + 1] = env.state
    return states, actions


@pytest.mark.slow
@pytest.mark.parametrize("name", envs.names())
def test_actions_are_valid_and_repeatable(name: str) -> None:
    env = envs.make(name)
    states, actions = collect(env, 2, 40)
    assert all(env.action_space.contains(action) for action in actions.reshape(-1, env.action_dim))
    np.testing.assert_array_equal(states, collect(env, 2, 40)[0])
    assert not np.array_equal(actions, collect(env, 2, 40, seed=1)[1])


def test_unknown_environment_is_refused() -> None:
    class OtherEnv(WallEnv):
        name = "other"

    with pytest.raises(ValueError, match="no exploration policy for environment 'other'"):
        exploration_policy(OtherEnv(), np.random.default_rng(0))


class Marked:
    """Acts with 9, which no planner tries."""

    def reset(self, state: np.ndarray) -> None:
        pass

    def act(self, state: np.ndarray) -> np.ndarray:
        return np.full(2, 9, np.float32)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_held_actions_interrupt_the_policy_as_often_as_asked(share: float) -> None:
    """Whole model steps of one action, and the policy's own actions between."""
    policy, state = HeldActions(Marked(), np.random.default_rng(0), 5, 2, share), np.zeros(4)
    policy.reset(state)
    actions = np.stack([policy.act(state) for _ in range(20000)])
    held = (actions != 9).all(1)
    assert held.mean() == pytest.approx(share, abs=0.05)
    assert np.abs(actions[held]).max() <= 1 and actions[held].std() > 0.2
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (held).astype(int), [0]])))
    for first, last in edges.reshape(-1, 2)[:-1]:
        assert (last - first) % 5 == 0
        steps = actions[first:last].reshape(-1, 5, 2)
        assert (steps == steps[:, :1]).all()


def test_a_share_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="below 1"):
        HeldActions(Marked(), np.random.default_rng(0), 5, 2, 1.0)


@pytest.mark.slow
def test_pusht_pushes_the_t_about() -> None:
    states, _ = collect(envs.make("pusht"), 40, 100)
    shift = np.hypot(*(states[:, 25:, 2:4] - states[:, :-25, 2:4]).transpose(2, 0, 1))
    turn = np.degrees(np.abs((states[:, 25:, 4] - states[:, :-25, 4] + np.pi) % (2 * np.pi) - np.pi))
    assert ((shift > 20) | (turn > 20)).mean() > 0.75
    assert (turn > 20).mean() > 0.4
    touched = (states[:, 1:, 2:5] != states[:, :-1, 2:5]).any(-1)
    assert 0.3 < touched.mean() < 0.7  # pushes and free motion
    change = (states[:, 1:, 4] - states[:, :-1, 4] + np.pi) % (2 * np.pi) - np.pi
    assert 0.3 < (change[touched] > 0).mean() < 0.7  # both ways round
    steps = np.hypot(*(states[:, 1:, :2] - states[:, :-1, :2]).transpose(2, 0, 1))
    assert 8 < np.median(steps) < 20 and np.quantile(steps, 0.05) > 3 and np.quantile(steps, 0.95) < 30
    angles = np.histogram(states[..., 4] % (2 * np.pi), 8, (0, 2 * np.pi))[0]
    assert angles.min() > 0.05 * angles.sum()
    assert np.histogram2d(states[..., 2].ravel(), states[..., 3].ravel(), 4, [[60, 450]] * 2)[0].min() > 15


def test_pusht_brings_the_t_back_from_a_wall() -> None:
    env = envs.make("pusht")
    away = []
    for seed in range(12):
        env.reset(seed=seed, options={"state": np.array([256, 256, 450, 330, 0.5 * np.pi, 0, 0.0])})
        policy = exploration_policy(env, np.random.default_rng(seed))
        policy.reset(env.state)
        centre = []
        for _ in range(100):
            env.step(policy.act(env.state))
            centre.append(env.state[2:4] + rotated(np.array([CENTRE]), env.state[4])[0])
        away.append(np.hypot(*(np.array(centre) - 256).T).min())
    assert np.mean(np.array(away) < 110) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{}, {"wall_x": 20.0, "door_y": 50.0}])
def test_wall_walks_cross_the_door_and_cover_the_floor(layout: dict[str, float]) -> None:
    env = WallEnv(**layout)
    states, _ = collect(env, 80, 50)
    right = states[..., 0] > env.wall_x
    assert 0.4 < (right.any(1) & ~right.all(1)).mean() < 0.95
    cells = np.histogram2d(states[..., 0].ravel(), states[..., 1].ravel(), 4, [[0, 64]] * 2)[0]
    assert cells.min() > 20
    assert np.hypot(*(states[:, 25:] - states[:, :-25]).transpose(2, 0, 1)).mean() > 15  # momentum


@pytest.mark.slow
def test_pointmaze_forces_cover_places_and_speeds() -> None:
    states, _ = collect(envs.make("pointmaze"), 60, 100)
    speed = np.hypot(states[..., 2], states[..., 3])
    assert np.quantile(speed, 0.95) > 3 and np.quantile(speed, 0.1) < 1
    assert (speed < 0.1).mean() < 0.1  # not stuck at walls
    cells = np.histogram2d(states[..., 0].ravel(), states[..., 1].ravel(), 3, [[-1.5, 1.5]] * 2)[0]
    assert np.sort(cells.ravel())[2:].min() > 200  # all seven cells of the U


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rope", "granular"])
def test_table_pushes_move_particles_and_keep_them_from_the_border(name: str) -> None:
    env = envs.make(name)
    states, _ = collect(env, 6, 20)
    particles = states[..., :-2]
    moved = np.abs(np.diff(particles, axis=1)).max(-1) > 0.005
    assert moved.mean() > 0.8
    assert (np.abs(particles[:, -1]) > 0.45).mean() < 0.2


@pytest.mark.slow
def test_blockpush_moves_both_blocks() -> None:
    states, _ = collect(envs.make("blockpush"), 40, 100)
    moved = [np.hypot(*(states[:, 25:, i : i + 2] - states[:, :-25, i : i + 2]).T).T > 0.05 for i in (2, 5)]
    assert 0.35 < moved[0].mean() < 0.75 and 0.35 < moved[1].mean() < 0.75
    assert (moved[0] & moved[1]).mean() > 0.1
    assert (np.abs(states[:, -1, [2, 3, 5, 6]]) > 0.25).mean() < 0.1
