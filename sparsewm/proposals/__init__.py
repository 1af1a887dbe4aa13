"""Where candidate action sequences come from besides the planner itself: policies, some of them shipped."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsewm.config import ProposalConfig
from sparsewm.errors import UserError, suggest
from sparsewm.files import sha256_file
from sparsewm.model.checkpoint import PRETRAINED
from sparsewm.model.world_model import WorldModel
from sparsewm.planners import ProposalSampler
from sparsewm.proposals.interface import ActionInterface
from sparsewm.proposals.latent import ABOUT, KINDS, LatentProposals, check_policy, load_policy, policy_folder
from sparsewm.proposals.names import read_names
from sparsewm.registry import Registry

SAMPLERS: Registry[Callable[[ActionInterface], ProposalSampler]] = Registry(
    "sampler", "sparsewm.samplers", {"vla": "sparsewm.proposals.lerobot:shipped_policy"}
)
"""What makes a sampler from what it is told about actions and proprioception."""

VLAS = PRETRAINED / "vla"
"""Shipped policies by environment."""

NONE = "none"
"""The planner's own noise: no sampler."""

HUB_NAME = re.compile(r"(hf:)?[\w.-]+/[\w.-]+")
"""A policy on the hub; `hf:` says that no folder is meant."""


def known_names() -> list[str]:
    """What proposals may be called, besides folders, hub names and `module:callable`."""
    return [NONE, *KINDS, *SAMPLERS.names()]


def shipped_vlas() -> list[str]:
    """Environments that a VLA is shipped for."""
    found = VLAS.rglob("policy_preprocessor.json")
    return sorted(path.parent.relative_to(VLAS).as_posix() for path in found)


def policy_path(name: str, environment: str) -> str:
    """Folder or hub name of the LeRobot policy that is meant.

    Raises:
        UserError: neither a shipped policy, nor a folder, nor the form of a hub name.
    """
    if name == "vla":
        if environment in shipped_vlas():
            return str(VLAS / environment)
        raise UserError(
            f"no VLA for {environment} is shipped, there is one for {', '.join(shipped_vlas())}: give "
            "the folder of a LeRobot policy"
        )
    if name.startswith("hf:") and HUB_NAME.fullmatch(name):
        return name
    path = Path(name)
    if path.is_dir():
        return name
    if path.exists():
        raise UserError(f"policy {name} is a file: give the folder that it lies in")
    if "/" in name and (path.parent.is_dir() or not HUB_NAME.fullmatch(name)):
        hint = f", or hf:{name} for the hub" if HUB_NAME.fullmatch(name) else ""
        folders = path.parent.iterdir() if path.parent.is_dir() else ()
        near = suggest(path.name, [other.name for other in folders if other.is_dir()])
        raise UserError(f"there is no folder {name}.{near} Give the folder of a LeRobot policy{hint}")
    if HUB_NAME.fullmatch(name):
        return name
    raise UserError(
        f"unknown proposals '{name}'.{suggest(name, known_names())} Known: {', '.join(known_names())}, "
        "module:callable of your own, or the folder or hub name of a LeRobot policy"
    )


def check_proposals(
    name: str,
    environment: str,
    instruction: str | None = None,
    names: Path | None = None,
    checkpoint: str | Path | None = None,
) -> dict[str, Any]:
    """What the candidates of a sampler depend on, for the record; no policy is loaded.

    Args:
        checkpoint: folder of the world model, beside which policies that read its tokens lie.

    Raises:
        UserError: no such sampler.
    """
    if name == NONE:
        return {"proposals": name}
    if _is_sampler(name):
        _factory(name)
        return {"proposals": name}
    if (folder := policy_folder(name, environment, checkpoint)) is not None:
        return {"proposals": name, "policy": check_policy(folder) | {"about": sha256_file(folder / ABOUT)}}
    folder = Path(policy_path(name, environment))
    weights = folder / "model.safetensors"
    policy = {"weights": sha256_file(weights) if weights.is_file() else None, "instruction": instruction}
    policy["files"] = _files_hash(folder) if folder.is_dir() else None
    return {"proposals": name, "policy": policy | {"names": None if names is None else read_names(names)}}


def _files_hash(folder: Path) -> str:
    """SHA-256 (hex) of what a policy's folder holds: weights, settings, processors and their statistics."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\0".encode())
    return digest.hexdigest()


def load_sampler(
    name: str,
    interface: ActionInterface,
    device: torch.device,
    seed: int = 0,
    names: Path | None = None,
    dtype: torch.dtype = torch.float32,
    model: WorldModel | None = None,
    how: ProposalConfig | None = None,
) -> ProposalSampler:
    """The sampler called `name`.

    Args:
        name: "vla" (the shipped policy), a kind of policy that lies beside the world model or the folder of
            one, a registered or installed one, `module:callable`, or the folder or hub name of a LeRobot
            policy.
        interface: what the sampler is told: names of proprioception, action size and bounds.
        seed: of a policy's noise.
        names: YAML file that maps a policy's names to the interface's (see `sparsewm.proposals.lerobot`).
        dtype: of a SmolVLA's action expert or of a policy that reads tokens, float32 or bfloat16.
        model: world model whose tokens such a policy reads. how: it draws its candidates.

    Raises:
        UserError: no such sampler, LeRobot is not installed, the policy does not fit the interface, or a
            setting is given that it does not read.
    """
    if name == NONE:
        raise UserError(f"'{name}' stands for the planner's own candidates, no sampler makes them")
    _check_read(name, names, how or ProposalConfig())
    if _is_sampler(name):
        sampler = _factory(name)(interface)
        if not isinstance(sampler, ProposalSampler):
            raise UserError(
                f"sampler '{name}' makes {type(sampler).__name__}, which has no method propose: see "
                "docs/howto/proposals.md"
            )
        return sampler
    if reads_tokens(name):
        if model is None:
            raise UserError(f"proposals '{name}' are made of a world model's tokens: give the `model`")
        folder = policy_folder(name, model.environment, model.folder)
        assert folder is not None
        return LatentProposals(load_policy(folder, model, dtype), model, interface, how, seed)
    path = policy_path(name, interface.name)
    from sparsewm.proposals.lerobot import LeRobotProposals  # loads LeRobot, which takes seconds

    return LeRobotProposals(path, interface, device, seed, names, dtype)


def reads_tokens(name: str) -> bool:
    """Whether a name means a policy that reads a world model's tokens."""
    return name not in SAMPLERS and (name in KINDS or (Path(name) / ABOUT).is_file())


def _check_read(name: str, names: Path | None, how: ProposalConfig) -> None:
    """Refuse settings that are not at their defaults and that these proposals do not read."""
    for setting in () if reads_tokens(name) else ("action_steps", "future_steps", "ranked"):
        if getattr(how, setting) != getattr(ProposalConfig, setting):
            kinds = " and ".join(KINDS)
            raise UserError(f"`{setting}` is of {kinds}, which denoise: leave it out for proposals '{name}'")
    if names is not None and (reads_tokens(name) or _is_sampler(name)):
        raise UserError(f"`names` is of LeRobot's policies: leave it out for proposals '{name}'")


def _factory(name: str) -> Callable[[ActionInterface], ProposalSampler]:
    factory = SAMPLERS.get(name)
    if not callable(factory):
        raise UserError(
            f"sampler '{name}' is no callable: give a class or a function, see docs/howto/proposals.md"
        )
    return factory


def _is_sampler(name: str) -> bool:
    """Whether a name means a sampler, and not a policy of LeRobot."""
    if name in SAMPLERS:
        return name != "vla"  # which takes a device, a seed and names like other policies
    return ":" in name and not name.startswith("hf:") and not Path(name).is_dir()
