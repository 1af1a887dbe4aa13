"""Patches that the others do not tell of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.model.choices.base import Scene, ScoredChoice

RIDGE = 1e-2
"""Penalty on coefficients, as a share of the mean square of a token's numbers."""


class Ranking(ScoredChoice):
    """Scores: how badly a patch's token is reconstructed from those around it, in the present frame and goal.

    As LTRP (Luo et al. 2024) ranks patches by what a reconstruction loses without them, but nothing is
    trained: the reconstruction is ridge regression of a token on its eight neighbours, one coefficient for
    each, fitted to the two frames themselves. Beyond the edge tokens are zero, the mean of the data.
    """

    def scores(self, scene: Scene) -> Tensor:
        frames = torch.stack([scene.start.tokens, scene.goal.tokens], 1)  # (B, 2, N, D)
        around = neighbours(frames, self.model.config.grid)  # (B, 2, N, 8, D)
        x, y = around.transpose(-1, -2).flatten(1, 3), frames.flatten(1)[..., None]  # rows: numbers of tokens
        products = x.mT @ x / x.shape[1]
        scale = products.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None].clamp_min(1e-12)
        penalty = RIDGE * scale * torch.eye(8, device=x.device)
        coefficients = torch.linalg.solve(products + penalty, x.mT @ y / x.shape[1])  # (B, 8, 1)
        left = frames - (around * coefficients[:, None, None]).sum(-2)
        return left.square().mean(-1).sum(1)


def neighbours(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The tokens around each of (..., N, D): (..., N, 8, D)."""
    rows, cols = grid
    padded = F.pad(tokens.unflatten(-2, grid), (0, 0, 1, 1, 1, 1))
    places = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    parts = [padded[..., i : i + rows, j : j + cols, :].flatten(-3, -2) for i, j in places]
    return torch.stack(parts, -2)
