"""Candidates whose true ends are known: how well does a cost order them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsewm.config import PlanConfig
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.tasks import Task

ELITES = 6
"""Candidates whose mean a search would go on from."""

NEAR = (1.3, 3.0)
"""Distances at which a task is near its goal, in units of the success thresholds."""

_SPREAD = 0.5  # of the first candidates, in units of the actions
_WALK = 12


@dataclass(frozen=True)
class Candidates:
    """Action sequences of T tasks, S drawn widely and S about the best of these, and where they lead.

    Attributes:
        starts, goals: states (T, D).
        actions: (T, 2, S, H, A), one environment action for each model step.
        ends: states (T, 2, S, K, D) that are scored: after the last model step, or after each.
        distances: true ones to the goal (T, 2, S), in units of the success thresholds.
    """

    starts: np.ndarray
    goals: np.ndarray
    actions: np.ndarray
    ends: np.ndarray
    distances: np.ndarray


def make_candidates(
    env: SimulatedGoalEnv, config: PlanConfig, tasks: Sequence[Task], count: int, rng: np.random.Generator
) -> Candidates:
    """Candidates as a search has them at first and at last, on the true simulator.

    Args:
        config: its horizon, and which frames are scored. count: S, of each kind.
    """
    low, high = env.action_space.low, env.action_space.high
    shape = (count, config.search.horizon, len(low))
    every: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for task in tasks:
        assert task.start is not None and task.goal is not None
        wide = np.clip(rng.normal(0, _SPREAD, shape), low, high)
        first = _ends(env, task.start, wide, config)
        best = wide[np.argsort(_distances(env, first, task.goal))[:ELITES]]
        near = np.clip(best.mean(0) + best.std(0) * rng.normal(0, 1, shape), low, high)
        ends = np.stack([first, _ends(env, task.start, near, config)])
        distances = np.stack([_distances(env, part, task.goal) for part in ends])
        every.append((np.stack([wide, near]), ends, distances))
    actions, ends, distances = (np.stack(parts) for parts in zip(*every, strict=True))
    starts = np.stack([task.start for task in tasks if task.start is not None])
    goals = np.stack([task.goal for task in tasks if task.goal is not None])
    return Candidates(starts, goals, actions, ends, distances)


def near_tasks(
    env: SimulatedGoalEnv, config: PlanConfig, tasks: Sequence[Task], rng: np.random.Generator
) -> list[Task]:
    """Tasks to the same goals from states a few random actions away: the end of an episode.

    Starts are `NEAR` thresholds from their goals; goals from which none is found are left out.
    """
    low, high = env.action_space.low, env.action_space.high
    shape = (1, config.search.horizon * env.frameskip, len(low))
    found = []
    for task in tasks:
        assert task.goal is not None
        state = np.array(task.goal)
        for _ in range(_WALK):
            moved = env.rollout_states(state, np.clip(rng.normal(0, _SPREAD, shape), low, high))[0, -1]
            away = float(env.shortfall(moved[None], task.goal)[0])
            if away > NEAR[1]:
                break
            state = moved
            if away > NEAR[0]:
                found.append(Task(task.seed, state, task.goal))
                break
    return found


def _ends(env: SimulatedGoalEnv, start: np.ndarray, actions: np.ndarray, config: PlanConfig) -> np.ndarray:
    skip = env.frameskip
    states = env.rollout_states(start, np.repeat(actions, skip, 1))[:, skip::skip]
    return states[:, -1:] if config.cost.frame == "last" else states


def _distances(env: SimulatedGoalEnv, ends: np.ndarray, goal: np.ndarray) -> np.ndarray:
    flat = env.shortfall(ends.reshape(-1, ends.shape[-1]), goal)
    nearest: np.ndarray = flat.reshape(ends.shape[:2]).min(1)
    return nearest


def regret(costs: np.ndarray, distances: np.ndarray) -> dict[str, list[float]]:
    """How far from the goal the candidates of lowest cost end: 0 the nearest there are, 1 the median.

    Args:
        costs, distances: (T, 2, S).

    Returns:
        `best`: of the candidate of lowest cost, `elites`: of the mean of the `ELITES` lowest; each for the
        wide candidates and for the near ones, means over tasks, none of which counts more than 3.
    """
    found: dict[str, list[float]] = {"best": [], "elites": []}
    for kind in range(costs.shape[1]):
        best: list[float] = []
        elites: list[float] = []
        for cost, distance in zip(costs[:, kind], distances[:, kind], strict=True):
            order, middle = np.argsort(cost, kind="stable"), np.median(distance)
            nearest = np.sort(distance)[:ELITES].mean()
            for kept, value, least in (
                (best, distance[order[0]], distance.min()),
                (elites, distance[order[:ELITES]].mean(), nearest),
            ):
                kept.append(min(3.0, float((value - least) / max(middle - least, 1e-9))))
        found["best"].append(round(float(np.mean(best)), 3))
        found["elites"].append(round(float(np.mean(elites)), 3))
    return found
