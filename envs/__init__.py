"""Goal-reaching pixel environments: PushT, Wall, PointMaze (two mazes), Rope, Granular, Block Push.

    >>> from sparsewm import envs
    >>> env = envs.make("pusht", resolution=112)
    >>> observation, info = env.reset(seed=0)

They are also registered with Gymnasium, as `sparsewm/PushT-v0` and so on. `make` takes any other environment
of Gymnasium, too, if it has a picture and continuous actions.
"""

from __future__ import annotations

from sparsewm.envs.adapter import PixelGoals
from sparsewm.envs.base import GoalEnv, Observation
from sparsewm.envs.registry import ENVIRONMENTS, canonical, make, make_simulated, max_episode_steps, names
from sparsewm.envs.simulated import SimulatedGoalEnv

__all__ = [
    "ENVIRONMENTS",
    "GoalEnv",
    "Observation",
    "PixelGoals",
    "SimulatedGoalEnv",
    "canonical",
    "make",
    "make_simulated",
    "max_episode_steps",
    "names",
]
