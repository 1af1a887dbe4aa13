"""What an evaluation asks for: the start and the goal of every episode, a function of the seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsewm.config import EPISODES_PER_SEED, GoalConfig
from sparsewm.data.collect import explore
from sparsewm.envs import GoalEnv, SimulatedGoalEnv
from sparsewm.errors import UserError

HELD_OUT = 977_000_000
"""Seeds of held-out trajectories start here; collected data never reaches it."""


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
    """

    seed: int
    start: np.ndarray | None = None
    goal: np.ndarray | None = None
    offset: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of the environment's `reset`."""
        if self.start is not None:
            return {"state": self.start, "goal": self.goal}
        return {} if self.offset is None else {"goal_offset": self.offset}


def make_tasks(env: GoalEnv, episodes: int, seed: int, goal: GoalConfig) -> list[Task]:
    """Tasks of an evaluation; those of two seeds have nothing in common.

    Args:
        env: its own simulator draws them. goal: `source` "random": start and goal as `env.reset` draws them;
            "trajectory": two moments, `offset` environment steps apart, of a scripted trajectory that no
            dataset contains, such that the first does not count as success already.

    Raises:
        UserError: no such goal was found.
    """
    tasks = []
    for i in range(seed * EPISODES_PER_SEED, seed * EPISODES_PER_SEED + episodes):
        if not isinstance(env, SimulatedGoalEnv):
            tasks.append(Task(i, offset=goal.offset if goal.source == "trajectory" else None))
        elif goal.source == "random":
            env.reset(seed=i)
            tasks.append(Task(i, env.state, env.goal.copy()))
        else:
            tasks.append(_trajectory_task(env, i, goal.offset))
    return tasks


def _trajectory_task(env: SimulatedGoalEnv, seed: int, offset: int) -> Task:
    for attempt in range(_ATTEMPTS):
        states, _ = explore(env, HELD_OUT + attempt, seed, max(100, offset))
        rng = np.random.default_rng([HELD_OUT + attempt, seed, 1])
        for _ in range(_ATTEMPTS):
            first = int(rng.integers(len(states) - offset))
            start, goal = states[first], states[first + offset]
            if not env.is_success(start, goal):
                return Task(seed, start, goal)
    raise UserError(
        f"{_ATTEMPTS} trajectories hold no goal {offset} steps ahead that is not reached already: raise "
        "`offset`"
    )
