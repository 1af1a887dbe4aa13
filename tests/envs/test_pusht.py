"""PushT: the original's bodies and motion, the T where the state says, success as the papers define it."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pymunk
import pytest
from gym_pusht.envs.pusht import PushTEnv as GymPushT

from sparsewm.envs.pusht import HIGH, LOW, OUTLINE, RADIUS, PushTEnv, clearance, rotated


@pytest.fixture
def env() -> PushTEnv:
    env = PushTEnv(resolution=112)
    env.reset(seed=0)
    return env


def pose(agent: tuple[float, float], block: tuple[float, float], angle: float) -> np.ndarray:
    return np.array([*agent, *block, angle, 0.0, 0.0])


def test_outline_is_that_of_the_original() -> None:
    body, shapes = GymPushT.add_tee(pymunk.Space(), (200.0, 150.0), 0.7)
    body.position = 200.0, 150.0
    for corner in GymPushT.get_keypoints(shapes):
        distances = np.hypot(*(rotated(OUTLINE, body.angle) + np.array([200.0, 150.0]) - corner).T)
        assert distances.min() < 1e-9 or np.isclose(
            clearance(*corner, 200.0, 150.0, body.angle), 0, atol=1e-9
        )


@pytest.mark.skipif(not hasattr(pymunk.Space, "add_collision_handler"), reason="gym-pusht is for pymunk 6")
def test_pushes_move_the_t_as_in_the_original(env: PushTEnv) -> None:
    """Over one step: the original keeps the T's last velocity for the first 0.01 s of the next."""
    original = GymPushT(obs_type="state")
    original.reset(seed=0)
    rng = np.random.default_rng(0)
    moved = 0
    for _ in range(60):
        state = env.sample_state()
        direction = rng.uniform(0, 2 * np.pi)
        away = 120.0
        while clearance(*(state[2:4] + away * _unit(direction)), *state[2:5]) > RADIUS + 1:
            away -= 0.5
        state[:2] = state[2:4] + away * _unit(direction)
        if state[:2].min() < LOW or state[:2].max() > HIGH:
            continue
        env.set_state(state)
        action = np.clip(-0.6 * _unit(direction) + rng.normal(0, 0.1, 2), -1, 1)
        env.step(action)
        original._setup()
        original.agent.position = state[:2].tolist()
        original.block.angle = state[4]
        original.block.position = state[2:4].tolist()
        original.step(np.clip(state[:2] + 100 * action, LOW, HIGH))
        np.testing.assert_allclose(env.state[:2], original.agent.position, atol=1e-9)
        np.testing.assert_allclose(env.state[2:4], original.block.position, atol=1e-6)
        assert math.remainder(env.state[4] - original.block.angle, 2 * math.pi) == pytest.approx(0, abs=1e-8)
        moved += env.distance(state, env.state)["block"] > 2
    assert moved > 10


def _unit(angle: float) -> np.ndarray:
    return np.array([math.cos(angle), math.sin(angle)])


def test_the_t_stays_where_it_is_until_it_is_pushed(env: PushTEnv) -> None:
    state = pose((100, 100), (300, 300), 0.3)
    env.set_state(state)
    for _ in range(5):
        env.step(np.array([-0.5, 0.5]))
    np.testing.assert_array_equal(env.state[2:5], state[2:5])


def test_agent_goes_to_its_target_and_stays_on_the_table(env: PushTEnv) -> None:
    env.set_state(pose((100, 400), (350, 150), 0.0))
    env.step(np.array([0.3, -0.2]))
    for _ in range(15):
        remaining = (np.array([130, 380]) - env.state[:2]) / 100
        env.step(remaining)
    np.testing.assert_allclose(env.state[:2], [130, 380], atol=0.5)
    for _ in range(30):
        env.step(np.array([-1.0, 1.0]))
    np.testing.assert_allclose(env.state[:2], [LOW, HIGH], atol=0.5)
    env.set_state(np.array([LOW + 1, 250, 350, 150, 0, -900, 0.0]))  # at full speed against the wall
    env.step(np.zeros(2))
    assert env.state[0] >= LOW


def test_walls_hold_the_t(env: PushTEnv) -> None:
    env.set_state(pose((256, 100), (256, 200), 0.0))
    for _ in range(30):
        env.step(np.array([0.0, 0.25]))
    lowest = (rotated(OUTLINE, env.state[4]) + env.state[2:4])[:, 1].max()
    assert 480 < lowest < 512


def test_random_states_are_free_and_cover_the_table(env: PushTEnv) -> None:
    states = np.array([env.sample_state() for _ in range(300)])
    for state in states:
        corners = rotated(OUTLINE, state[4]) + state[2:4]
        assert corners.min() > 7 and corners.max() < 504
        assert clearance(*state[:5]) > RADIUS
    assert (states[:, 5:] == 0).all()
    assert np.histogram(states[:, 4], 8, (0, 2 * np.pi))[0].min() > 10
    assert np.histogram2d(states[:, 2], states[:, 3], 3, [[60, 450]] * 2)[0].min() > 5


def test_success_needs_the_disc_the_t_and_the_angle(env: PushTEnv) -> None:
    goal = pose((200, 200), (300, 300), 0.1)
    angle = math.pi / 9
    for change, reached in [
        ([19.9, 0, 0, 0, 0], True),
        ([20.1, 0, 0, 0, 0], False),
        ([0, 0, 0, 20.1, 0], False),
        ([12, 0, 12, 12, 0], False),
        ([0, 0, 0, 0, angle - 0.01], True),
        ([0, 0, 0, 0, angle + 0.01], False),
        ([0, 0, 0, 0, 2 * math.pi - 0.1], True),
    ]:
        assert env.is_success(goal + np.array([*change, 50.0, -50.0]), goal) == reached, change
    distance = env.distance(goal + np.array([3, 4, 0, 12, 2 * math.pi + 0.2, 0, 0]), goal)
    assert distance == pytest.approx({"position": 13, "angle": 0.2, "agent": 5, "block": 12})


@pytest.mark.slow
def test_disc_and_t_are_drawn_where_the_state_says(env: PushTEnv) -> None:
    for _ in range(10):
        state = env.sample_state()
        picture = env.render_state(state, resolution=256)["pixels"].astype(int)
        x, y = np.meshgrid(np.arange(256) * 2 + 1, np.arange(256) * 2 + 1)
        blue = np.abs(picture - (65, 105, 225)).sum(-1) < 20
        np.testing.assert_allclose([x[blue].mean(), y[blue].mean()], state[:2], atol=1.0)
        grey = np.abs(picture - (119, 136, 153)).sum(-1) < 5
        on_t = np.array([clearance(*p, *state[2:5]) for p in zip(x.flat, y.flat, strict=True)]).reshape(
            x.shape
        )
        assert (on_t[grey] < 4).all()
        assert grey[(on_t == 0) & ~blue].mean() > 0.9


PROGRAM = """
from sparsewm import Agent, envs
env = envs.make("pusht")
observation, _ = env.reset(seed=0)
agent = Agent.from_pretrained("pusht", candidates=4, iterations=1)
agent.reset(goal=env.goal_observation())
print(len(agent.act(observation)))
"""


@pytest.mark.slow
def test_a_program_that_ends_with_its_environment_is_silent() -> None:
    """pymunk's bodies are freed before it is gone."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and "Exception" not in ended.stderr, ended.stderr
