"""Rope, Granular and Block Push: pushes move what they meet, nothing is lost, goals are possible."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sparsewm import envs
from sparsewm.envs.blockpush import BLOCK, RADIUS, STEP, TARGETS, BlockPushEnv
from sparsewm.envs.granular import GRAINS
from sparsewm.envs.rope import LENGTH
from sparsewm.envs.table import REACH, TableEnv, chamfer

TABLES = ["rope", "granular"]


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest) -> TableEnv:
    env = envs.make(request.param)
    env.reset(seed=0)
    assert isinstance(env, TableEnv)
    return env


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TABLES, "blockpush"])
def test_a_thousand_random_actions_leave_everything_on_the_table(name: str) -> None:
    env = envs.make(name, resolution=48)
    env.action_space.seed(0)
    env.reset(seed=0)
    started = time.process_time()
    for i in range(1000):
        if i % 100 == 0:
            env.reset()
        env.step(env.action_space.sample())
        env.set_state(env.state)  # it is a state one may set: finite, on the table, bodies whole and apart
    assert (time.process_time() - started) / 1000 < 0.2  # seconds a step, with its picture


def test_a_push_moves_what_it_meets_and_nothing_else(table: TableEnv) -> None:
    before = table.state
    middle = before[:-2].reshape(-1, 2).mean(0)
    start, end = middle - [0.05, 0.0], middle + np.array([0.1, 0.0])
    table.step(np.concatenate([start, end]) / REACH)
    moved = (table.state - before)[:-2].reshape(-1, 2)
    assert np.abs(moved).max() > 0.03
    np.testing.assert_allclose(table.state[-2:], end, atol=0.01)  # the pusher got there
    table.set_state(before)
    corner = np.where(middle > 0, -1.0, 1.0)
    table.step(np.concatenate([corner, corner * (1.0, 0.7)]))
    np.testing.assert_allclose(table.state[:-2], before[:-2], atol=1e-3)


def test_a_pusher_lowered_onto_particles_moves_them_aside(table: TableEnv) -> None:
    particle = table.state[:2]
    table.step(np.concatenate([particle, particle]) / REACH)
    away = np.hypot(*(table.state[:-2].reshape(-1, 2) - particle).T)
    assert away.min() > 0.005


def test_the_table_is_at_rest_between_pushes(table: TableEnv) -> None:
    table.step(np.array([-0.6, -0.6, 0.6, 0.6]))
    rested = table.state
    corner = np.where(rested[:-2].reshape(-1, 2).mean(0) > 0, -1.0, 1.0)
    for _ in range(3):
        table.step(np.concatenate([corner, corner]))
    np.testing.assert_allclose(table.state[:-2], rested[:-2], atol=0.01)


def test_goals_are_the_same_things_elsewhere(table: TableEnv) -> None:
    for seed in range(8):
        table.reset(seed=seed)
        goal, start = table.goal[:-2].reshape(-1, 2), table.state[:-2].reshape(-1, 2)
        table.set_state(table.goal)
        assert not table.is_success(table.goal, np.concatenate([start.ravel(), np.zeros(2)]))
        if table.name == "rope":
            np.testing.assert_allclose(np.hypot(*np.diff(goal, axis=0).T), LENGTH, atol=1e-6)
        else:
            assert 0.55 < goal.std(0).mean() / start.std(0).mean() < 0.95


def test_chamfer_distance() -> None:
    cloud = np.array([0.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(chamfer(np.array([cloud, cloud[[2, 3, 0, 1]], cloud + 0.1]), cloud)[:2], 0)
    np.testing.assert_allclose(chamfer(np.array([[0.0, 0.0, 0.0, 0.0]]), cloud), [(0 + (0 + 1) / 2) / 2])


def test_a_ropes_shortfall_takes_points_to_their_places_from_either_end() -> None:
    env = envs.make("rope")
    goal = env.sample_goal()
    turned = np.concatenate([goal[:-2].reshape(-1, 2)[::-1].ravel(), goal[-2:]])
    aside = goal + np.concatenate([np.tile([0.03, 0.04], len(goal) // 2 - 1), np.zeros(2)])
    states = np.stack([goal, turned, aside])
    np.testing.assert_allclose(env.shortfall(states, goal) * env.threshold, [0, 0, 0.05], atol=1e-9)
    states = np.stack([env.sample_state() for _ in range(10)])
    assert (chamfer(states[:, :-2], goal[:-2]) <= env.shortfall(states, goal) * env.threshold).all()


def test_impossible_particles_are_refused() -> None:
    rope, granular = envs.make("rope"), envs.make("granular")
    stretched = rope.state
    stretched[:-2:2] *= 1.1
    with pytest.raises(ValueError, match="one to the next"):
        rope.set_state(stretched)
    heap = granular.state
    heap[2:4] = heap[:2]
    with pytest.raises(ValueError, match="from each other"):
        granular.set_state(heap)
    assert len(granular.state) == 2 * GRAINS + 2


@pytest.fixture
def blocks() -> BlockPushEnv:
    env = BlockPushEnv()
    env.set_state(np.array([-0.2, 0.0, 0.0, 0.0, 0.0, 0.2, -0.2, 0.5]))
    return env


def test_the_effector_moves_by_its_action_and_pushes_the_block_before_it(blocks: BlockPushEnv) -> None:
    blocks.step(np.array([1.0, 0.5]))
    np.testing.assert_allclose(blocks.state[:2], [-0.2 + STEP, 0.5 * STEP])
    blocks.set_state(np.array([-0.2, 0.0, *blocks.state[2:]]))
    for _ in range(8):
        blocks.step(np.array([1.0, 0.0]))
    x, y, red_x, red_y, _, *blue = blocks.state
    assert abs(x - (-0.2 + 8 * STEP)) < 0.01 and abs(y) < 1e-3
    assert abs(red_x - (x + RADIUS + BLOCK)) < 0.01 and abs(red_y) < 0.01
    assert blue == [0.2, -0.2, 0.5]


def test_a_push_off_centre_turns_the_block(blocks: BlockPushEnv) -> None:
    blocks.set_state(np.array([-0.1, 0.025, *blocks.state[2:]]))
    for _ in range(5):
        blocks.step(np.array([1.0, 0.0]))
    assert 0.2 < 2 * np.pi - blocks.state[4] < 2.0  # clockwise


def test_one_block_pushes_the_other(blocks: BlockPushEnv) -> None:
    blocks.set_state(np.array([-0.2, 0.0, -0.1, 0.0, 0.0, 0.0, 0.0, 0.0]))
    for _ in range(8):
        blocks.step(np.array([1.0, 0.0]))
    assert blocks.state[5] > 0.05


def test_blockpush_goals_lie_on_the_targets_and_need_both_blocks() -> None:
    env = BlockPushEnv()
    for seed in range(20):
        env.reset(seed=seed)
        np.testing.assert_array_equal(env.goal[[2, 3]], TARGETS[0])
        np.testing.assert_array_equal(env.goal[[5, 6]], TARGETS[1])
        assert min(env.distance(env.state, env.goal).values()) > 0.05
        half = env.goal.copy()
        half[5:7] = env.state[5:7]
        assert not env.is_success(half, env.goal)
