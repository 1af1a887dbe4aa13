"""The network that reads from a token of a large encoder what its patch shows."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.encoders import PatchEncoder
from sparsewm.model.latent import CELLS, TokenSpace, token_reader
from sparsewm.training.report import Progress, quiet

READ_PATCHES = 1_280_000
"""Patches that a reader is trained on, where there are as many. What it misreads of other frames falls with
their number, and a world model cannot tell it."""

STEPS = 6000
"""Steps of training a reader."""

_BATCH = 4096
_LR = 2e-3
_WARMUP = 50
_PART = 64
_SAMPLE = 200_000
_SHOWN = 50


def patch_colours(pixels: np.ndarray, encoder: PatchEncoder) -> Tensor:
    """How cells of patches of pictures (K, H, W, 3) differ in colour from their mean: (K, N, `READINGS`)."""
    rows, cols = encoder.grid
    side = (rows * CELLS, cols * CELLS)
    parts = (pixels[i : i + _PART] for i in range(0, len(pixels), _PART))
    cells = torch.cat([F.adaptive_avg_pool2d(encoder.preprocess(part), side).cpu() for part in parts])
    cells = (cells - cells.mean(0)).unflatten(2, (rows, CELLS)).unflatten(4, (cols, CELLS))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def fitted_reader(
    tokens: Tensor,
    pixels: np.ndarray,
    encoder: PatchEncoder,
    space: TokenSpace,
    seed: int = 0,
    progress: Progress = quiet,
    steps: int | None = None,
) -> nn.Sequential:
    """A `token_reader` trained to tell colours of patches from raw tokens (K, N, D) of pictures (K, H, W, 3).

    Its readings have unit size over these pictures. `steps` are `STEPS` if left out.
    """
    steps = STEPS if steps is None else steps
    wanted = patch_colours(pixels, encoder)
    wanted = wanted / wanted.square().mean().sqrt().clamp_min(1e-6)
    sample = tokens[:: max(1, len(tokens) * encoder.tokens // _SAMPLE)].float().flatten(0, 1)
    mean, scale = sample.mean(0), sample.std(0).clamp_min(1e-4)
    network = token_reader(tokens.shape[-1], space, encoder.grid)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            bound = 1 / math.sqrt(weights[0].numel()) if name.endswith("weight") else 0.0
            weights.uniform_(-bound, bound, generator=generator)
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), _LR, weight_decay=0.01)
    frames = max(1, _BATCH // encoder.tokens)
    with progress("reader") as bar, torch.enable_grad():
        for step in range(steps):
            rate = min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = _LR * rate
            picked = torch.randint(len(tokens), (frames,), generator=generator)
            error = network((tokens[picked].float() - mean) / scale) - wanted[picked]
            optimizer.zero_grad()
            error.square().mean().backward()
            optimizer.step()
            if (step + 1) % _SHOWN == 0:
                bar(step + 1, steps)
    first = network[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():  # raw tokens in
        first.weight /= scale
        first.bias.sub_(first.weight @ mean)
    return network.requires_grad_(False).eval()
