"""A learned temporal distance between two frames, from any subset of their patch tokens.

Token error says how different two pictures are, not how long the way between them is: behind a wall the
straight way lowers it and leads nowhere. This head learns the length of the way from recorded transitions
alone. It is a quasimetric (triangle inequality by construction, not symmetric), trained as in Wang et al.,
"Optimal Goal-Reaching Reinforcement Learning via Quasimetric Learning", 2023: random pairs of frames are
pushed apart while successive frames may be at most one step apart, so ways are stitched together from
pieces of different episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.positions import sincos_at, sincos_positions


@dataclass(frozen=True)
class DistanceConfig:
    """Sizes of the temporal distance.

    Attributes:
        width: of the per-token and the joint network, a multiple of 4. heads: pooled summaries of the tokens.
        features: size E of the symmetric and of the directed part of an embedding.
    """

    width: int = 192
    heads: int = 8
    features: int = 64


class TemporalDistance(nn.Module):
    """Embeds frames so that the distance of embeddings grows with the model steps between them.

    Args:
        token_dim: D. grid: (rows, cols) of patches. proprio_dim: P. config: sizes.
    """

    def __init__(
        self, token_dim: int, grid: tuple[int, int], proprio_dim: int, config: DistanceConfig
    ) -> None:
        super().__init__()
        self.config, self.finest = config, max(grid)
        width, heads, features = config.width, config.heads, config.features
        self.token_in = nn.Linear(token_dim, width)
        self.position_in = nn.Linear(width, width)
        self.token_up = nn.Linear(width, width)
        self.score = nn.Linear(width, heads)
        self.value = nn.Linear(width, width)
        self.proprio_in = nn.Linear(proprio_dim, width)
        self.absent = nn.Parameter(torch.zeros(width))
        self.joint = nn.Sequential(
            nn.Linear(heads * width + width, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, 2 * features),
        )
        self.register_buffer("positions", sincos_positions(*grid, width), persistent=False)

    def embed(self, tokens: Tensor, proprio: Tensor | None, patches: Tensor) -> Tensor:
        """Standardised tokens (B, S, M, D) of `patches` (B, M), proprioception (B, S, P) -> (B, S, 2 E).

        Without proprioception (None) the distance is one of pictures alone.
        """
        dtype = self.token_in.weight.dtype
        if patches.is_floating_point():
            codes = sincos_at(patches[..., -2:], self.config.width, self.finest)
            place = self.position_in(codes.to(dtype))[:, None]
        else:
            place = self.position_in(self.positions.to(dtype))[patches][:, None]  # (B, 1, M, W)
        x = F.relu(self.token_in(tokens.to(dtype)) + place)
        x = F.relu(self.token_up(x))
        weights = self.score(x).float().softmax(-2).to(dtype)  # (B, S, M, heads)
        pooled = (weights.transpose(-1, -2) @ self.value(x)).flatten(-2)
        if proprio is None:
            body = self.absent.expand(*pooled.shape[:-1], -1)
        else:
            body = F.relu(self.proprio_in(proprio.to(dtype)))
        return self.joint(torch.cat([pooled, body], -1)).float()

    @staticmethod
    def between(start: Tensor, goal: Tensor) -> Tensor:
        """Distance (...) of embeddings (..., 2 E): Euclidean in one half, largest rise in the other."""
        start_place, start_height = start.chunk(2, -1)
        goal_place, goal_height = goal.chunk(2, -1)
        straight = ((start_place - goal_place).square().sum(-1) + 1e-6).sqrt()
        return straight + F.relu(goal_height - start_height).amax(-1)
