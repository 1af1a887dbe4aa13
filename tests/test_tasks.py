"""Tasks of an evaluation: functions of their seeds, and none that is solved at the start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sparsewm import envs
from sparsewm.config import EPISODES_PER_SEED, GoalConfig
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.tasks import Task, make_tasks

RANDOM, TRAJECTORY = GoalConfig("random"), GoalConfig("trajectory")


@pytest.fixture(scope="module")
def env() -> SimulatedGoalEnv:
    return envs.make_simulated("wall", resolution=32)


def same_tasks(a: Sequence[Task], b: Sequence[Task]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(np.array_equal(x.start, y.start) and np.array_equal(x.goal, y.goal) for x, y in pairs)


@pytest.mark.parametrize("goal", [RANDOM, TRAJECTORY])
def test_tasks_are_functions_of_their_seeds(env: SimulatedGoalEnv, goal: GoalConfig) -> None:
    tasks = make_tasks(env, 4, 3, goal)
    assert [task.seed for task in tasks] == [3 * EPISODES_PER_SEED + i for i in range(4)]
    assert same_tasks(make_tasks(envs.make("wall", resolution=56), 4, 3, goal), tasks)
    assert same_tasks(make_tasks(env, 2, 3, goal), tasks[:2])
    assert len({tuple(np.r_[task.start, task.goal]) for task in tasks}) == 4


def test_two_seeds_share_no_task(env: SimulatedGoalEnv) -> None:
    found = [{task.seed for task in make_tasks(env, 60, seed, RANDOM)} for seed in (0, 1)]
    assert not found[0] & found[1]


def test_random_tasks_are_those_of_reset(env: SimulatedGoalEnv) -> None:
    task = make_tasks(env, 6, 0, RANDOM)[5]
    _, info = env.reset(seed=5)
    assert np.array_equal(task.start, info["state"]) and np.array_equal(task.goal, info["goal"])
    assert (task.start[0] < 32) != (task.goal[0] < 32)
    _, again = env.reset(seed=task.seed, options=task.options)
    assert np.array_equal(again["state"], task.start) and np.array_equal(again["goal"], task.goal)


def test_trajectory_goals_are_as_many_steps_away_as_asked(env: SimulatedGoalEnv) -> None:
    """Two units a step at most: near goals are near, and the same tasks with more steps go farther."""
    near, far = (make_tasks(env, 6, 0, GoalConfig("trajectory", offset)) for offset in (5, 40))
    reach = [max(np.abs(task.goal - task.start).max() for task in tasks) for tasks in (near, far)]
    assert 0 < reach[0] <= 10 + 1e-9 and reach[1] > 12


def test_trajectory_goals_are_not_reached_already(env: SimulatedGoalEnv) -> None:
    """A walk often stays within Wall's 4.5 units for eight steps; one step never leaves them."""
    tasks = make_tasks(env, 40, 0, GoalConfig("trajectory", 8))
    assert not any(env.is_success(task.start, task.goal) for task in tasks)
    with pytest.raises(UserError, match="not reached already: raise `offset`"):
        make_tasks(env, 1, 0, GoalConfig("trajectory", 1))
