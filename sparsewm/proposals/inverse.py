"""Inverse dynamics: from what is seen and what is wanted to the actions between, an amortised planner.

Learned from recorded transitions whose goals are later frames of the same episode (hindsight). Between two
frames there is often more than one way, and the mean of two ways is none; so the head is a flow: from
different noise come different chunks, without a number of modes to choose, and in few steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.config import ProposalConfig
from sparsewm.errors import UserError
from sparsewm.model.latent import Latent
from sparsewm.positions import sincos_positions
from sparsewm.proposals.flow import FlowBlock, PolicySizes, level_code, noised, random_levels


@dataclass(frozen=True)
class InverseConfig:
    """Sizes of the inverse dynamics."""

    width: int = 256
    """Features of all layers, a multiple of 4."""
    heads: int = 8
    """Pooled summaries of the patches."""
    depth: int = 3
    """Layers of the head that makes chunks."""

    def __post_init__(self) -> None:
        if self.width % 4 or min(self.width, self.heads, self.depth) < 1:
            raise UserError("of inverse dynamics, width must be a multiple of 4, heads and depth at least 1")


class InverseDynamics(nn.Module):
    """Chunks of actions that lead from a frame to a goal.

    Every patch of the present is read together with the same patch of the goal; attention pools the patches.
    Proprioception of the goal is not read: a goal may be a picture alone.

    Args:
        sizes: of what it reads and writes. config: of the network.
    """

    kind: ClassVar[str] = "inverse"

    def __init__(self, sizes: PolicySizes, config: InverseConfig) -> None:
        super().__init__()
        self.sizes, self.config = sizes, config
        width, numbers = config.width, sizes.chunk * sizes.action_dim
        self.pair_in = nn.Linear(2 * sizes.token_dim, width)
        self.position_in = nn.Linear(width, width)
        self.pair_up = nn.Linear(width, width)
        self.score = nn.Linear(width, config.heads)
        self.value = nn.Linear(width, width)
        self.proprio_in = nn.Linear(sizes.proprio_dim, width)
        self.joint = nn.Sequential(
            nn.Linear((config.heads + 1) * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.chunk_in = nn.Linear(numbers, width)
        self.level_in = nn.Linear(width, width)
        self.blocks = nn.ModuleList(FlowBlock(width) for _ in range(config.depth))
        self.out = nn.Linear(width, numbers)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("positions", sincos_positions(*sizes.grid, width), persistent=False)

    positions: Tensor

    def read(self, present: Tensor, proprio: Tensor, goal: Tensor) -> Tensor:
        """What is known (B, W): standardised tokens (B, N, D) now and at the goal, proprioception (B, P)."""
        dtype = self.pair_in.weight.dtype
        x = self.pair_in(torch.cat([present, goal], -1).to(dtype)) + self.position_in(
            self.positions.to(dtype)
        )
        x = F.relu(self.pair_up(F.relu(x)))
        weights = self.score(x).float().softmax(1).to(dtype)  # (B, N, heads)
        pooled = (weights.mT @ self.value(x)).flatten(1)
        return self.joint(torch.cat([pooled, F.relu(self.proprio_in(proprio.to(dtype)))], -1))

    def velocity(self, chunk: Tensor, levels: Tensor, known: Tensor) -> Tensor:
        """Slope, float32, at a noisy chunk (B, ..., H * C) of noise levels (B, ...), for what is known."""
        dtype = known.dtype
        code = level_code(levels, self.config.width).to(dtype)
        condition = F.silu(known.view(len(known), *[1] * (levels.ndim - 1), -1) + self.level_in(code))
        x = self.chunk_in(chunk.to(dtype))
        for block in self.blocks:
            x = block(x, condition)
        return self.out(F.layer_norm(x, x.shape[-1:])).float()

    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Error of the slope.

        Args:
            batch: standardised `present` and `goal` (B, N, D), `proprio` (B, P), `action` (B, H, C), and
                `weight` (B, H, C), 0 where nobody knows what to do. generator: of noise and levels, on a CPU.
        """
        clean, weight = batch["action"].flatten(1), batch["weight"].flatten(1)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        levels = random_levels(len(clean), generator).to(clean.device)
        known = self.read(batch["present"], batch["proprio"], batch["goal"])
        slope = self.velocity(noised(clean, noise, levels), levels, known)
        error = (weight * (slope - (noise - clean)).square()).sum() / weight.sum().clamp(min=1)
        return {"loss": error}

    @torch.no_grad()
    def propose(
        self,
        present: Latent,
        goal: Latent,
        samples: int,
        generator: torch.Generator,
        how: ProposalConfig,
    ) -> Tensor:
        """Standardised chunks (B, samples, H, C), float32; the first starts at the middle of the noise."""
        known = self.read(present.tokens, present.proprio, goal.tokens)
        sizes = self.sizes
        shape = (len(known), samples, sizes.chunk * sizes.action_dim)
        chunk = torch.randn(shape, generator=generator).to(known.device)
        chunk[:, 0] = 0
        for step in range(how.action_steps):
            levels = torch.full(shape[:2], 1 - step / how.action_steps, device=known.device)
            chunk = chunk - self.velocity(chunk, levels, known) / how.action_steps
        return chunk.unflatten(2, (sizes.chunk, sizes.action_dim))
