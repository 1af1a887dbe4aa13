"""Small policies that read tokens, and what they learn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsewm.config import ProposalConfig
from sparsewm.model.latent import Latent
from sparsewm.model.world_model import WorldModel
from sparsewm.proposals.flow import PolicySizes
from sparsewm.proposals.inverse import InverseConfig, InverseDynamics
from sparsewm.proposals.wam import WamConfig, WorldActionModel

CHUNK = 2
HOW = ProposalConfig(action_steps=4)


def sizes_of(model: WorldModel) -> PolicySizes:
    config = model.config
    return PolicySizes(config.token_dim, config.grid, config.proprio_dim, config.action_dim, CHUNK)


def inverse(model: WorldModel, seed: int = 0) -> InverseDynamics:
    """Random weights everywhere, so that nothing is hidden behind a zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = InverseDynamics(sizes_of(model), InverseConfig(width=32, heads=2, depth=2))
        return stirred(made)


def wam(model: WorldModel, seed: int = 0, **changes: Any) -> WorldActionModel:
    """Likewise, with two future frames of three patches."""
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "mlp": 48, "action_width": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = WamConfig(**sizes | {"tokens": 3, "frames": 2} | changes)
        return stirred(WorldActionModel(sizes_of(model), config))


def stirred(policy: Any) -> Any:
    """Every parameter moved at random, to what a file in bfloat16 holds."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            parameter.copy_(parameter.bfloat16().float())
    return policy.eval().requires_grad_(False)


SIZES = PolicySizes(4, (2, 2), 2, 2, CHUNK)


def forked(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Stretches where the goal says how far to go and nothing says which way: left or right, half and half.

    The last feature of the goal's tokens is how far; the future is the present, moved by that.
    """
    present = torch.randn(count, 4, 4, generator=generator)
    far = 0.5 + torch.rand(count, generator=generator)
    side = torch.where(torch.rand(count, generator=generator) < 0.5, 1.0, -1.0)
    goal = present.clone()
    goal[..., -1] = far[:, None]
    future = present.clone()
    future[..., 0] += (side * far)[:, None]
    action = torch.zeros(count, CHUNK, 2)
    action[..., 0] = (side * far)[:, None]
    found = {"present": present, "goal": goal, "proprio": torch.zeros(count, 2), "action": action}
    return found | {"weight": torch.ones_like(action), "future": future[:, None]}


def taught(policy: Any, steps: int, lr: float = 3e-3) -> Any:
    """Trained on `forked`."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(policy.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        policy.loss(forked(128, generator), generator)["loss"].backward()
        optimizer.step()
    return policy.eval().requires_grad_(False)


def frames_of(batch: dict[str, Tensor]) -> tuple[Latent, Latent]:
    """Present and goal as frames."""
    return Latent(batch["present"], batch["proprio"]), Latent(batch["goal"], batch["proprio"])
