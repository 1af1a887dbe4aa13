"""Typed settings, filled from the YAML files in `configs/`; command-line flags override them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsewm import envs
from sparsewm.config import PlanConfig, environment_file
from sparsewm.data import Dataset
from sparsewm.errors import UserError
from sparsewm.trees import read_yaml


@dataclass(frozen=True)
class EnvironmentSettings:
    """One file of `configs/environments`.

    Attributes:
        episodes, steps, held: of a dataset (`sparsewm.data.collect`).
    """

    episodes: int
    steps: int
    held: float


def environment_settings(name: str) -> EnvironmentSettings:
    """Settings of an environment by its canonical name."""
    path = environment_file(name)
    content = read_yaml(path)
    try:
        return EnvironmentSettings(
            content["collect"]["episodes"],
            content["collect"]["steps"],
            content["collect"].get("held", 0.0),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} lacks a setting or has one too many ({error}): get it from the repository again"
        ) from None


def make_env(name: str, **options: Any) -> envs.GoalEnv:
    """`envs.make` for names that come from the command line.

    Raises:
        UserError: unknown name (the nearest one is suggested), impossible option, no GL.
    """
    try:
        env = envs.make(name, **options)
        env.reset(seed=0)  # draws a picture, so that a missing GL shows before any work is done
        return env
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None


def told(said: str | None, env: envs.GoalEnv) -> str | None:
    """What a policy is told of the present task: as `proposals.instruction` says, else as the environment."""
    return env.instruction if said is None else said


def instructions(env: envs.SimulatedGoalEnv, data: Dataset) -> list[str]:
    """What every recorded episode is told: the usual text of the environment, or what its task says.

    Raises:
        UserError: there are several tasks, and no states that say which; it names no remedy.
    """
    usual = PlanConfig.of(env.name).proposals.instruction
    if usual is not None:
        return [usual] * data.episodes
    states, several = data.state, env.task_of(np.zeros(env.state_dim)) is not None
    if states is None or states.shape[1] != env.state_dim:
        if several:
            found = "no states" if states is None else f"states of {states.shape[1]} numbers"
            raise UserError(f"{data.path} has {found}, and {env.name} needs {env.state_dim} to say its task")
        return [env.instruction or ""] * data.episodes
    try:
        starts = zip(data.offsets, data.lengths, strict=True)
        return [(length and env.instruction_of(states[int(first)])) or "" for first, length in starts]
    except ValueError as error:
        raise UserError(f"states of {data.path} are of no task ({error})") from None
