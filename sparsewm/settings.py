"""Typed settings, filled from the YAML files in `configs/`; command-line flags override them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from sparsewm import envs
from sparsewm.errors import UserError, suggest
from sparsewm.model.problem import Scored
from sparsewm.planners import ProposalMode
from sparsewm.precision import fastest_dtype, planning_dtype


@dataclass(frozen=True)
class PlanSettings:
    """How an environment is planned in: model steps, but environment steps in `budget` and `goal_offset`."""

    goal_source: str
    budget: int
    goal_offset: int = 25
    horizon: int = 5
    execute: int = 5
    cost: str = "mse"
    alpha: float = 1.0
    scored: Scored = "last"
    hold: bool = True
    spread: float = 1.0
    drop_last: float | None = None
    samples: int = 100
    elites: int = 10
    iterations: int = 10
    race: int = 1
    settled: float = 0.0
    candidates: int = 16
    proposal_mode: ProposalMode = "replace"


@dataclass(frozen=True)
class EnvironmentSettings:
    """One file of `configs/environments`.

    Attributes:
        episodes, steps, held: of a dataset (`sparsewm.data.collect`).
        plan: how to plan.
        instruction: what a language-conditioned policy is told.
    """

    episodes: int
    steps: int
    held: float
    plan: PlanSettings
    instruction: str


def config_folder() -> Path:
    """`configs/` as it was installed with the package."""
    return Path(__file__).parent / "configs"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not readable YAML ({error}): get it from the repository again") from None
    return content if isinstance(content, dict) else {}


def environment_settings(name: str) -> EnvironmentSettings:
    """Settings of an environment by its canonical name."""
    path = config_folder() / "environments" / f"{name}.yaml"
    content = _read(path)
    try:
        return EnvironmentSettings(
            content["collect"]["episodes"],
            content["collect"]["steps"],
            content["collect"].get("held", 0.0),
            PlanSettings(**content["plan"]),
            content["instruction"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} lacks a setting or has one too many ({error}): get it from the repository again"
        ) from None


def one_of(flag: str, name: str, known: Iterable[str]) -> None:
    """Raise a `UserError`, with the nearest known name, unless `name` is known."""
    known = list(known)
    if name not in known:
        raise UserError(f"unknown {flag} '{name}'.{suggest(name, known)} Known: {', '.join(known)}")


def at_least(smallest: float, **flags: float | None) -> None:
    """Raise a `UserError` unless every flag is left out (None) or a finite number from `smallest` up."""
    for name, value in flags.items():
        if value is not None and not smallest <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be at least {smallest:g}, got {value:g}")


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


def choose_device(name: str) -> torch.device:
    """The torch device of a `--device` flag, tried with a small product; "auto" takes a GPU if there is one.

    Raises:
        UserError: torch cannot use it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        (torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--device {name} does not work here ({reason}): choose --device cpu or auto"
        ) from None
    return device


def choose_dtype(name: str, device: torch.device, planning: bool = False) -> torch.dtype:
    """The precision of a `--dtype` flag: auto, bfloat16 or float32; of `planning` also int8."""
    known = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if planning:
        known["int8"] = torch.int8
    if name == "auto":
        return planning_dtype(device) if planning else fastest_dtype(device)
    one_of("dtype", name, ["auto", *known])
    return known[name]
