"""Choices that look at nothing: a random subset, a shifted grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsewm.model.choices.base import Scene, TokenChoice
from sparsewm.model.latent import random_patches


class RandomPatches(TokenChoice):
    """A uniformly random subset: sparse imagination as published."""

    def choose(self, scene: Scene, kept: int, generators: Sequence[torch.Generator]) -> Tensor:
        drawn = [random_patches(1, self.model.patches, kept, each) for each in generators]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)


class UniformGrid(TokenChoice):
    """A regular grid at a random offset: every second patch at half, every fourth at a quarter.

    In between, the finer grid is filled as ordered dithering does (Bayer 1973), so that any number of patches
    lies as evenly as it can.
    """

    def choose(self, scene: Scene, kept: int, generators: Sequence[torch.Generator]) -> Tensor:
        rows, cols = self.model.config.grid
        ranks = bayer(max(rows, cols))
        chosen = []
        for each in generators:
            down, right = torch.randint(len(ranks), (2,), generator=each, device=each.device).tolist()
            shifted = ranks.roll((down, right), (0, 1))[:rows, :cols].flatten()
            chosen.append(shifted.argsort()[:kept].sort().values)
        return torch.stack(chosen).to(scene.start.tokens.device)


def bayer(side: int) -> Tensor:
    """Order in which cells are filled, int64 (S, S); S is the first power of two that is at least `side`."""
    ranks = torch.zeros(1, 1, dtype=torch.int64)
    while len(ranks) < side:
        ranks = torch.cat(
            [torch.cat([4 * ranks, 4 * ranks + 2], 1), torch.cat([4 * ranks + 3, 4 * ranks + 1], 1)]
        )
    return ranks
