"""Simulators by name, and what is seen of their states."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsewm.config import PlanConfig
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.settings import make_env, told


def make_simulator(name: str, **options: Any) -> SimulatedGoalEnv:
    """An environment whose states can be set.

    Raises:
        UserError: unknown, or none.
    """
    env = make_env(name, **options)
    if not isinstance(env, SimulatedGoalEnv):
        raise UserError(f"the states of {name} cannot be set: choose one of sparsewm's own environments")
    return env


def instruction(env: SimulatedGoalEnv) -> str:
    """What a policy is told in an environment."""
    return told(PlanConfig.of(env.name).proposals.instruction, env) or ""


def observations(env: SimulatedGoalEnv, states: np.ndarray) -> dict[str, np.ndarray]:
    """What is seen in states (..., D): `pixels` uint8 (..., R, R, 3), `proprio` float32 (..., P)."""
    flat = states.reshape(-1, states.shape[-1])
    proprio = np.stack([env.proprio_of(state) for state in flat])
    seen = {"pixels": env.render_states(flat), "proprio": proprio}
    return {name: part.reshape(*states.shape[:-1], *part.shape[1:]) for name, part in seen.items()}
