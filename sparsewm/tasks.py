"""What an evaluation asks for: the start and the goal of every episode.

Tasks are drawn, a function of the seed; or frozen, read from `configs/tasks` (`scripts.freeze_tasks`).
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsewm.config import EPISODES_PER_SEED, GoalConfig, config_folder
from sparsewm.data.collect import explore
from sparsewm.envs import GoalEnv, SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.files import read_json, slug

HELD_OUT = 977_000_000
"""Seeds of held-out trajectories start here; collected data never reaches it."""

FROZEN = {"validation": (950_000_000, 100), "test": (960_000_000, 200)}
"""Frozen sets: the seed of the first task, beyond all that are drawn, and how many there are."""


def check_seed(seed: int) -> None:
    """Refuse seeds of recordings that an evaluation holds out.

    Raises:
        UserError: outside of 0 to `HELD_OUT`.
    """
    if not 0 <= seed < HELD_OUT:
        raise UserError(f"`seed` must be at least 0 and below {HELD_OUT}, got {seed}")


_ATTEMPTS = 20  # trajectories, and places in each, in which a goal that is not reached already is looked for


@dataclass(frozen=True)
class Task:
    """Start and goal of one episode.

    Attributes:
        seed: what the environment is reset with; also the seed of the agent's random numbers.
        start, goal: states (D,) of a simulator; None: as the environment draws them.
        offset: environment steps ahead at which another environment's own trajectory gives the goal.
        frozen: the seed a frozen task was drawn with, which is its name; None: it is drawn with `seed`.
        solved: moments of trajectories that were passed over before this one, because their start counts as
            success already; None where nobody counted.
    """

    seed: int
    start: np.ndarray | None = None
    goal: np.ndarray | None = None
    offset: int | None = None
    frozen: int | None = None
    solved: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of the environment's `reset`."""
        if self.start is not None:
            return {"state": self.start, "goal": self.goal}
        return {} if self.offset is None else {"goal_offset": self.offset}


def make_tasks(env: GoalEnv, episodes: int, seed: int, goal: GoalConfig) -> list[Task]:
    """Tasks of an evaluation; those drawn with two seeds have nothing in common.

    Args:
        env: its own simulator draws them. seed: of the tasks drawn and of the agent's random numbers.
        goal: `source` "random": start and goal as `env.reset` draws them; "trajectory": two moments, `offset`
            environment steps apart, of a scripted trajectory that no dataset contains, such that the first
            does not count as success already. `tasks` "validation" or "test": the first of a frozen set.

    Raises:
        UserError: no such goal was found, or no such frozen task.
    """
    first = seed * EPISODES_PER_SEED
    if goal.tasks != "drawn":
        return [replace(task, seed=first + i) for i, task in enumerate(read_tasks(env, goal, episodes))]
    return draw_tasks(env, range(first, first + episodes), goal)


def draw_tasks(env: GoalEnv, seeds: Sequence[int], goal: GoalConfig) -> list[Task]:
    """The task of every seed, from an environment's simulator; see `make_tasks`.

    Raises:
        UserError: no such goal was found.
    """
    tasks = []
    for i in seeds:
        if not isinstance(env, SimulatedGoalEnv):
            tasks.append(Task(i, offset=goal.offset if goal.source == "trajectory" else None))
        elif goal.source == "random":
            env.reset(seed=i)
            tasks.append(Task(i, env.state, env.goal.copy()))
        else:
            tasks.append(_trajectory_task(env, i, goal.offset))
    return tasks


def solved_at_start(tasks: Sequence[Task]) -> int | None:
    """Moments of trajectories that were left out because they count as success already; None: not counted."""
    counted = [task.solved for task in tasks if task.solved is not None]
    return sum(counted) if counted else None


def _trajectory_task(env: SimulatedGoalEnv, seed: int, offset: int) -> Task:
    solved = 0
    for attempt in range(_ATTEMPTS):
        states, _ = explore(env, HELD_OUT + attempt, seed, max(100, offset))
        rng = np.random.default_rng([HELD_OUT + attempt, seed, 1])
        for _ in range(_ATTEMPTS):
            first = int(rng.integers(len(states) - offset))
            start, goal = states[first], states[first + offset]
            if not env.is_success(start, goal):
                return Task(seed, start, goal, solved=solved)
            solved += 1
    raise UserError(
        f"{_ATTEMPTS} trajectories hold no goal {offset} steps ahead that is not reached already: raise "
        "`offset`"
    )


# Frozen tasks: a JSON file for an environment and a kind of goal ------------------------------------------


def tasks_file(environment: str, goal: GoalConfig) -> Path:
    """Where the frozen tasks are: `pusht-25.json` for goals 25 steps ahead, `pusht-random.json`."""
    kind = "random" if goal.source == "random" else str(goal.offset)
    return config_folder() / "tasks" / f"{slug(environment)}-{kind}.json"


def read_tasks(env: GoalEnv, goal: GoalConfig, episodes: int) -> list[Task]:
    """The first frozen tasks of a set, checked.

    Args:
        goal: `tasks` names the set, `source` and `offset` the kind of goal.

    Raises:
        UserError: there are none or fewer, or the file is damaged or was edited.
    """
    found = _read_set(env.name, goal, episodes)
    assert isinstance(env, SimulatedGoalEnv)  # only such have a file
    starts, goals = (_unpacked(found[name], env.state_dim) for name in ("start", "goal"))
    seeds = range(found["first_seed"], found["first_seed"] + episodes)
    solved = found.get("solved", [None] * episodes)
    tasks = zip(seeds, starts, goals, solved, strict=False)
    return [Task(seed, start, end, frozen=seed, solved=passed) for seed, start, end, passed in tasks]


def tasks_hash(environment: str, goal: GoalConfig, episodes: int) -> str | None:
    """The recorded SHA-256 of the set that a goal takes its tasks from; None where they are drawn.

    Raises:
        UserError: there are none or fewer, or the file is damaged or was edited.
    """
    return None if goal.tasks == "drawn" else str(_read_set(environment, goal, episodes)["sha256"])


def frozen_set(environment: str, goal: GoalConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    """What a file holds of a set: the first of the consecutive seeds, states as base64 of float32, a hash.

    Where they were counted, also how many moments were passed over before each, solved at their start.
    """
    found: dict[str, Any] = {"first_seed": tasks[0].seed, "episodes": len(tasks)}
    for name, states in (("start", [task.start for task in tasks]), ("goal", [task.goal for task in tasks])):
        found[name] = b64encode(np.asarray(states, "<f4").tobytes()).decode()
    if (passed := [task.solved for task in tasks]).count(None) == 0:
        found["solved"] = passed
    return found | {"sha256": _digest(environment, goal, found)}


def _digest(environment: str, goal: GoalConfig, found: dict[str, Any]) -> str:
    kind = "random" if goal.source == "random" else goal.offset
    words = [environment, kind, *(found[name] for name in ("first_seed", "episodes", "start", "goal"))]
    words += [found["solved"]] if "solved" in found else []
    return hashlib.sha256("\0".join(map(str, words)).encode()).hexdigest()


def _read_set(environment: str, goal: GoalConfig, episodes: int) -> dict[str, Any]:
    path = tasks_file(environment, goal)
    if not path.is_file():
        there = sorted(other.stem for other in path.parent.glob("*.json"))
        raise UserError(
            f"no frozen tasks are {path.stem}: let `tasks` be drawn, or take an environment, `source` and "
            f"`offset` that has some ({', '.join(there)})"
        )
    try:
        found: dict[str, Any] = read_json(path)[goal.tasks]
        intact = found["sha256"] == _digest(environment, goal, found)
    except (KeyError, TypeError):
        intact = False
    if not intact:
        raise UserError(f"{path} was edited or is damaged: get it from the repository again")
    if episodes > found["episodes"]:
        raise UserError(
            f"the {goal.tasks} set {path.stem} holds {found['episodes']} tasks: lower `episodes` {episodes}"
        )
    return found


def _unpacked(text: str, width: int) -> np.ndarray:
    """States float64 (N, width)."""
    return np.frombuffer(b64decode(text), "<f4").reshape(-1, width).astype(np.float64)
