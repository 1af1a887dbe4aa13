"""Flow matching: a network learns the way from noise to data, and walks it in few steps.

At noise level 1 there is nothing but noise, at 0 the data; in between lies the straight line, and the network
learns its slope (Lipman et al., "Flow Matching for Generative Modeling", 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.model.latent import Latent

FROM_NOISE = 0.25
"""Share of training samples at pure noise: where less is left, a chunk tells most of its own answer, and a
policy learns to overlook the goal."""


@dataclass(frozen=True)
class PolicySizes:
    """What a policy reads and writes.

    Attributes:
        token_dim: D features of a token. grid: (rows, cols) of patches. proprio_dim: P.
        action_dim: C numbers of a model step (frameskip x action size). chunk: H model steps of a proposal.
        shown: names of the recorded state's numbers that a picture shows. symmetry: of its angles.
        turned: actions are displacements, made along the axes of the first body that turns.
        free: names of numbers that are not told of the goal.
        given_dim: E features of the encoder's own tokens, by which the state is told; 0: by the model's.
        felt: for each number of `shown` the column of proprioception that is the same, -1 for none: of the
            present it is taken from there.
    """

    token_dim: int
    grid: tuple[int, int]
    proprio_dim: int
    action_dim: int
    chunk: int
    shown: tuple[str, ...] = ()
    symmetry: int = 1
    turned: bool = False
    free: tuple[str, ...] = ()
    given_dim: int = 0
    felt: tuple[int, ...] = ()

    @property
    def patches(self) -> int:
        """Number N of patches of a frame."""
        return self.grid[0] * self.grid[1]


def frames_of(batch: Mapping[str, Tensor]) -> tuple[Latent, Latent]:
    """Present and goal of a training batch as frames; of the goal the proprioception is the present's."""
    proprio = batch["proprio"]
    return (
        Latent(batch["present"], proprio, given=batch.get("given_present")),
        Latent(batch["goal"], proprio, given=batch.get("given_goal")),
    )


def random_levels(batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels (B,) for training: even between 0 and 1, a share of them 1."""
    levels = torch.rand(batch, generator=generator)
    pure = torch.rand(batch, generator=generator) < FROM_NOISE
    return torch.where(pure, 1.0, levels)


def noised(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """What lies at noise levels (B,) between data and noise (B, ...)."""
    share = levels.view(-1, *[1] * (clean.ndim - 1))
    return (1 - share) * clean + share * noise


def level_code(levels: Tensor, width: int) -> Tensor:
    """Noise levels (...) as features (..., width), float32; width is even."""
    frequencies = torch.logspace(0, 2, width // 2, base=10.0, device=levels.device)
    angles = 0.5 * math.pi * levels.float()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class FlowBlock(nn.Module):
    """Residual layer of two matrices whose norm is modulated by what is known and by the noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (..., W), condition (..., W)."""
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        y = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)
        return torch.addcmul(x, self.down(F.relu(self.up(y))), 1 + gate)
