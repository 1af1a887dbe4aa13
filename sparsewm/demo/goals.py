"""Goals set by hand: what is moved in each environment, and where a click on its picture lies."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sparsewm.envs import SimulatedGoalEnv
from sparsewm.envs.table import EXTENT
from sparsewm.errors import UserError

Place = Callable[[SimulatedGoalEnv, np.ndarray, np.ndarray, float], np.ndarray]
"""(environment, state (D,), click (2,) in sides of the picture from its middle, y up, angle) -> state."""


def _dot(env: SimulatedGoalEnv, state: np.ndarray, click: np.ndarray, angle: float) -> np.ndarray:
    return (click * (1, -1) + 0.5) * env.proprio_high[0]


def _ball(env: SimulatedGoalEnv, state: np.ndarray, click: np.ndarray, angle: float) -> np.ndarray:
    extent = env._maze.extent  # type: ignore[attr-defined]
    return np.concatenate([click * extent, np.zeros(2)])


def _tee(env: SimulatedGoalEnv, state: np.ndarray, click: np.ndarray, angle: float) -> np.ndarray:
    agent, place = state[:2], (click * (1, -1) + 0.5) * env.proprio_high[0]
    return np.concatenate([agent, place, [angle], np.zeros(2)])


def _block(env: SimulatedGoalEnv, state: np.ndarray, click: np.ndarray, angle: float) -> np.ndarray:
    """The block that lies nearer moves."""
    from sparsewm.envs.blockpush import _EXTENT

    place = click * _EXTENT
    red, blue = (float(np.linalg.norm(state[i : i + 2] - place)) for i in (2, 5))
    first = 2 if red < blue else 5
    moved = state.copy()
    moved[first : first + 3] = *place, angle
    return moved


def _cloud(env: SimulatedGoalEnv, state: np.ndarray, click: np.ndarray, angle: float) -> np.ndarray:
    """All particles move and turn as one."""
    cos, sin = math.cos(angle), math.sin(angle)
    points = state[:-2].reshape(-1, 2)
    turned = (points - points.mean(0)) @ np.array([[cos, sin], [-sin, cos]]) + click * EXTENT
    return np.concatenate([turned.ravel(), state[-2:]])


PLACES: dict[str, Place] = {
    "wall": _dot,
    "pointmaze": _ball,
    "pointmaze-large": _ball,
    "pusht": _tee,
    "blockpush": _block,
    "rope": _cloud,
    "granular": _cloud,
}
"""How a goal is set in each environment."""


def goal_at(
    env: SimulatedGoalEnv, goal: np.ndarray, across: float, down: float, degrees: float
) -> np.ndarray:
    """A goal (D,) with what is to be moved at a place of the picture.

    Args:
        env: the environment. goal: the goal (D,) that is changed.
        across, down: the place, from 0 to 1. degrees: how it is turned; of particles, from how they lie.

    Raises:
        UserError: nothing can be there.
    """
    place = np.clip(np.array([across - 0.5, 0.5 - down], np.float64), -0.5, 0.5)
    state = PLACES[env.name](env, goal, place, math.radians(degrees))
    try:
        env.render_state(state)
    except ValueError:
        raise UserError("the goal cannot be there: click on free floor") from None
    return state
