"""Goal-reaching pixel environments: PushT, Wall, PointMaze (two mazes), Rope, Granular, Block Push.

    >>> from sparsewm import envs
    >>> env = envs.make("pusht", resolution=112)
    >>> observation, info = env.reset(seed=0)

They are also registered with Gymnasium, as `sparsewm/PushT-v0` and so on.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import gymnasium as gym

from sparsewm.envs.base import GoalEnv, Observation
from sparsewm.envs.simulated import SimulatedGoalEnv

__all__ = ["GoalEnv", "Observation", "SimulatedGoalEnv", "make", "max_episode_steps", "names"]

# name -> (Gymnasium id, class, environment steps of an episode)
_ENVIRONMENTS = {
    "pusht": ("sparsewm/PushT-v0", "sparsewm.envs.pusht:PushTEnv", 150),
    "wall": ("sparsewm/Wall-v0", "sparsewm.envs.wall:WallEnv", 100),
    "pointmaze": ("sparsewm/PointMaze-v0", "sparsewm.envs.pointmaze:PointMazeEnv", 130),
    "pointmaze-large": ("sparsewm/PointMazeLarge-v0", "sparsewm.envs.pointmaze:PointMazeLargeEnv", 600),
    "rope": ("sparsewm/Rope-v0", "sparsewm.envs.rope:RopeEnv", 20),
    "granular": ("sparsewm/Granular-v0", "sparsewm.envs.granular:GranularEnv", 20),
    "blockpush": ("sparsewm/BlockPush-v0", "sparsewm.envs.blockpush:BlockPushEnv", 150),
}

for _id, _entry_point, _steps in _ENVIRONMENTS.values():
    if _id not in gym.registry:
        gym.register(_id, entry_point=_entry_point, max_episode_steps=_steps)


def names() -> tuple[str, ...]:
    """The names `make` knows."""
    return tuple(_ENVIRONMENTS)


def max_episode_steps(name: str) -> int:
    """Environment steps of an episode of the environment called `name`."""
    return _ENVIRONMENTS[name][2]


def make(name: str, **kwargs: Any) -> GoalEnv:
    """The environment called `name` (any case, or its Gymnasium id), without wrappers or time limit.

    Keyword arguments go to the environment's class, e.g. `resolution`. Raises ValueError on an unknown name.
    """
    spelled = {key: path for key, (_, path, _) in _ENVIRONMENTS.items()}
    spelled.update({id.lower(): path for id, path, _ in _ENVIRONMENTS.values()})
    path = spelled.get(name.lower())
    if path is None:
        near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        ids = [id for id, _, _ in _ENVIRONMENTS.values()]
        raise ValueError(f"unknown environment '{name}'.{hint} Known: {', '.join([*names(), *ids])}.")
    module, cls = path.split(":")
    return getattr(importlib.import_module(module), cls)(**kwargs)
