"""Where candidate action sequences come from besides the planner itself: policies, one of them shipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsewm.envs import GoalEnv
from sparsewm.errors import UserError, suggest
from sparsewm.files import sha256_file
from sparsewm.model.checkpoint import PRETRAINED
from sparsewm.planners import ProposalSampler
from sparsewm.proposals.names import read_names

SAMPLERS: dict[str, Callable[[GoalEnv], ProposalSampler]] = {}
"""Samplers of your own by the name `--proposals` knows; each is made from the environment."""

VLAS = PRETRAINED / "vla"
"""Shipped policies by environment."""

GAUSSIAN = "gaussian"
"""The planner's own noise: no sampler."""


def known_names() -> list[str]:
    """What `--proposals` takes besides folders and hub names."""
    return [GAUSSIAN, "vla", *SAMPLERS]


def shipped_vlas() -> list[str]:
    """Environments that a VLA is shipped for."""
    return sorted(path.parent.name for path in VLAS.glob("*/config.json"))


def policy_path(name: str, environment: str) -> str:
    """Folder or hub name of the LeRobot policy that `--proposals` means.

    Raises:
        UserError: neither a shipped policy, nor a folder, nor the form of a hub name.
    """
    if name == "vla":
        folder = VLAS / environment
        if folder.is_dir():
            return str(folder)
        raise UserError(
            f"no VLA for {environment} is shipped, there is one for {', '.join(shipped_vlas())}: give "
            "--proposals the folder of a LeRobot policy, or train one with scripts/train_vla.py"
        )
    if Path(name).is_dir() or (name.count("/") == 1 and not name.startswith((".", "/"))):
        return name
    raise UserError(
        f"unknown proposals '{name}'.{suggest(name, known_names())} Known: {', '.join(known_names())}, or "
        "the folder or hub name of a LeRobot policy"
    )


def check_proposals(
    name: str, environment: str, instruction: str | None = None, names: Path | None = None
) -> dict[str, Any]:
    """What the candidates of `--proposals NAME` depend on, for the record; loads nothing.

    Raises:
        UserError: no such sampler.
    """
    if name == GAUSSIAN or name in SAMPLERS:
        return {"proposals": name}
    weights = Path(policy_path(name, environment)) / "model.safetensors"
    policy = {"weights": sha256_file(weights) if weights.is_file() else None, "instruction": instruction}
    return {"proposals": name, "policy": policy | {"names": None if names is None else read_names(names)}}


def load_sampler(
    name: str,
    env: GoalEnv,
    device: torch.device,
    seed: int = 0,
    names: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> ProposalSampler:
    """The sampler that `--proposals NAME` means.

    Args:
        name: "vla", a name in `SAMPLERS`, or the folder or hub name of a LeRobot policy.
        env: gives proprioception names, action size and bounds. seed: of a policy's noise.
        names: YAML file that maps a policy's names to the environment's (see `sparsewm.proposals.lerobot`).
        dtype: of a SmolVLA's action expert, float32 or bfloat16.

    Raises:
        UserError: no such sampler, LeRobot is not installed, or the policy does not fit the environment.
    """
    if name in SAMPLERS:
        return SAMPLERS[name](env)
    path = policy_path(name, env.name)
    from sparsewm.proposals.lerobot import LeRobotProposals  # loads LeRobot, which takes seconds

    return LeRobotProposals(path, env, device, seed, names, dtype)
