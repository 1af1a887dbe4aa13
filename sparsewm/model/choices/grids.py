"""Places between the patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsewm.model.choices.base import Scene, TokenChoice
from sparsewm.model.latent import blend

STEPS = (0.7548776662466927, 0.5698402909980532)
"""Of the sequence R2 (Roberts 2018): from any start on, any number of its points lie evenly."""


class Grids(TokenChoice):
    """Tokens at continuous places, between the four patches around, as GridS samples pictures.

    The places lie evenly from a random start on. Tokens and position codes are those of the places.
    """

    def choose(self, scene: Scene, kept: int, generators: Sequence[torch.Generator]) -> Tensor:
        grid = self.model.config.grid
        steps = torch.arange(kept, dtype=torch.float64)[:, None] * torch.tensor(STEPS, dtype=torch.float64)
        inner = 1 - 1 / torch.tensor(grid, dtype=torch.float64)  # from the first centre to the last
        chosen = []
        for each in generators:
            offset = torch.rand(2, generator=each, device=each.device).cpu()
            places = (((steps + offset) % 1 - 0.5) * inner + 0.5).float()
            chosen.append(blend(bilinear(places, grid), places))
        return torch.stack(chosen).to(scene.start.tokens.device)


def bilinear(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """Weights (M, N) of the patches around places (M, 2), each (y, x) from 0 to 1 across the picture."""
    weights = torch.ones(len(places), 1, 1)
    for axis, count in enumerate(grid):
        at = (places[:, axis] * count - 0.5).clamp(0, count - 1)
        near = (1 - (at[:, None] - torch.arange(count)).abs()).clamp_min(0)  # (M, count)
        weights = weights * (near[:, :, None] if axis == 0 else near[:, None])
    return weights.flatten(1)
