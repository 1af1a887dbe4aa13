"""The network that reads from a token of a large encoder what its patch shows."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.encoders import PatchEncoder
from sparsewm.model.latent import CELLS, token_reader

READ_PATCHES = 200_000
"""Patches that a reader is trained on, at least."""

STEPS = 2000
"""Steps of training a reader."""

_BATCH = 4096
_LR = 2e-3
_WARMUP = 50
_PART = 64


def patch_colours(pixels: np.ndarray, encoder: PatchEncoder) -> Tensor:
    """How cells of patches of pictures (K, H, W, 3) differ in colour from their mean: (K, N, `READINGS`)."""
    rows, cols = encoder.grid
    parts = [encoder.preprocess(pixels[i : i + _PART]).cpu() for i in range(0, len(pixels), _PART)]
    cells = torch.cat([F.adaptive_avg_pool2d(part, (rows * CELLS, cols * CELLS)) for part in parts])
    cells = (cells - cells.mean(0)).unflatten(2, (rows, CELLS)).unflatten(4, (cols, CELLS))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def fitted_reader(
    tokens: Tensor, pixels: np.ndarray, encoder: PatchEncoder, width: int, seed: int = 0
) -> nn.Sequential:
    """A `token_reader` trained to tell colours of patches from raw tokens (K, N, D) of pictures (K, H, W, 3).

    Its readings have unit size over these pictures.
    """
    wanted = patch_colours(pixels, encoder).flatten(0, 1)
    wanted = wanted / wanted.square().mean().sqrt().clamp_min(1e-6)
    given = tokens.flatten(0, 1)
    sample = given[:: max(1, len(given) // READ_PATCHES)].float()
    mean, scale = sample.mean(0), sample.std(0).clamp_min(1e-4)
    generator = torch.Generator().manual_seed(seed)
    network = token_reader(given.shape[-1], width)
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), _LR, weight_decay=0.01)
    with torch.enable_grad():
        for step in range(STEPS):
            rate = min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            optimizer.param_groups[0]["lr"] = _LR * rate
            picked = torch.randint(len(given), (_BATCH,), generator=generator)
            error = network((given[picked].float() - mean) / scale) - wanted[picked]
            optimizer.zero_grad()
            error.square().mean().backward()
            optimizer.step()
    first = network[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():  # raw tokens in
        first.weight /= scale
        first.bias.sub_(first.weight @ mean)
    return network.requires_grad_(False).eval()
