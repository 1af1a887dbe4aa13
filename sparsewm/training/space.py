"""Which features of an encoder's tokens a world model is built on.

Tokens of a large encoder show much that no dynamics explains: texture, and what its attention carries from
anywhere in the picture to everywhere. The directions kept here change where the picture changes, and stay
where it stays (common spatial patterns: Ramoser et al., "Optimal spatial filtering of single trial EEG during
imagined hand movement", 2000). Or they are principal directions of what a reader tells of the patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.data.dataset import Dataset
from sparsewm.data.tokens import Tokens, sampled_rows
from sparsewm.encoders import PatchEncoder
from sparsewm.model.latent import READINGS, TokenSpace
from sparsewm.training.reader import READ_PATCHES, fitted_reader
from sparsewm.training.report import Progress, quiet

FLOOR = 0.1
"""What is added to the variance where the picture stays, as a share of its mean over directions."""

SHARPNESS = 0.5
"""Power of that ratio of variances by which plans and losses weigh a direction beyond its own variance."""

CHANGED = 0.15
"""Change of a colour channel, in its deviation over natural pictures, above which a pixel has changed."""

_FRAMES = 1024
_PAIRS = 3
_PART = 64


def space_statistics(
    space: TokenSpace,
    dataset: Dataset,
    tokens: Tokens,
    encoder: PatchEncoder,
    statistics: Mapping[str, Any],
    rows: np.ndarray,
    whitening: float,
    seed: int = 0,
    progress: Progress = quiet,
) -> dict[str, Tensor]:
    """What makes tokens of an encoder those of a space: buffers of a `Standardizer`.

    Args:
        statistics: `token_statistics` without whitening. rows: of the dataset, to take a sample of.
        whitening: 0 leaves the directions as wide as they stand out; 1 makes all of them equally wide.

    Returns:
        `token_mean` (N, K), `token_map` (D, K), `cost_map` (K, K), and the weights of a reader.
    """
    count = _FRAMES if not space.reader else max(_FRAMES, READ_PATCHES // encoder.tokens)
    picked = sampled_rows(rows, count, seed)
    found = tokens.rows(picked).cpu()
    pixels, mean = dataset.pixels[picked], statistics["token_mean"].cpu()
    return fitted_space(space, found, pixels, encoder, whitening, mean, seed, progress)


def fitted_space(
    space: TokenSpace,
    found: Tensor,
    pixels: np.ndarray,
    encoder: PatchEncoder,
    whitening: float,
    mean: Tensor | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> dict[str, Tensor]:
    """`space_statistics` of raw tokens (K, N, D) and of pictures (K, H, W, 3).

    Args:
        mean: (N, D), of the tokens of more frames than these; None: of these.
    """
    weights: dict[str, Tensor] = {}
    if space.reader:
        reader = fitted_reader(found, pixels, encoder, space, seed, progress)
        weights = {f"reader.{name}": value for name, value in reader.state_dict().items()}
        found = torch.cat([reader(part.float()) for part in found.split(_PART)])
        mean = found.mean(0)
        found = found - mean
        turned = torch.linalg.eigh(torch.einsum("knd,kne->de", found, found)).eigenvectors
        directions = turned.flip(1)[:, : space.features or READINGS]
    else:
        mean = found.float().mean(0) if mean is None else mean
        found = found.float() - mean
        if space.features:
            changed = changed_patches(pixels, encoder, np.random.default_rng(seed))
            directions, ratios = signal_directions(found, *changed)
            directions = (directions * ratios.pow(SHARPNESS / 2))[:, : space.features]
        else:
            directions = torch.diag(1 / found.square().mean((0, 1)).sqrt().clamp_min(1e-4))
    kept = found @ directions
    pool = space.pooling(encoder.grid)
    if pool is not None:
        kept = pool @ kept
    variances = kept.square().mean((0, 1)).clamp_min(1e-12)
    gains = variances.pow(-whitening / 2)
    gains = gains / (gains.square() * variances).mean().sqrt()
    plain = variances.mean().rsqrt()
    token_map = directions * gains
    result = {"token_mean": mean @ token_map, "token_map": token_map, "cost_map": torch.diag(plain / gains)}
    return {name: value.float().contiguous() for name, value in (result | weights).items()}


def changed_patches(
    pixels: np.ndarray, encoder: PatchEncoder, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random pairs of pictures (K, H, W, 3), and where they differ.

    Returns:
        numbers (P,) of the first and of the second of each pair, and bool (P, N): whether a patch of one has
        a pixel that differs from the other's.
    """
    first, second = (
        torch.from_numpy(part) for part in rng.integers(len(pixels), size=(2, _PAIRS * len(pixels)))
    )
    seen = torch.cat([encoder.preprocess(pixels[i : i + _PART]).half() for i in range(0, len(pixels), _PART)])
    changed = []
    for a, b in zip(first.split(_PART), second.split(_PART), strict=True):
        difference = (seen[a].float() - seen[b].float()).abs().amax(1)
        changed.append(F.adaptive_max_pool2d(difference, encoder.grid).flatten(1) > CHANGED)
    return first, second, torch.cat(changed).cpu()


def signal_directions(
    tokens: Tensor, first: Tensor, second: Tensor, changed: Tensor
) -> tuple[Tensor, Tensor]:
    """Directions (D, D) of tokens (K, N, D), the most telling one first.

    Their width is one over patches that have not changed between `first` and `second` (P,); they are ordered
    by how much wider they are over those that have, `changed` (P, N): the second result, ratios of variances
    (D,).
    """
    size = tokens.shape[-1]
    sums = [tokens.new_zeros(size, size, dtype=torch.float64) for _ in range(2)]
    counts = [0, 0]
    for a, b, mask in zip(first.split(_PART), second.split(_PART), changed.split(_PART), strict=True):
        difference = tokens[a] - tokens[b]
        for number, where in enumerate((mask, ~mask)):
            part = difference[where].double()
            sums[number] += part.T @ part
            counts[number] += len(part)
    moving, still = (total / max(1, count) for total, count in zip(sums, counts, strict=True))
    if not counts[1]:
        still = torch.zeros_like(moving)
    floor = FLOOR * max(float(still.trace()), 1e-3 * float(moving.trace())) / size
    root = torch.linalg.inv(torch.linalg.cholesky(still + floor * torch.eye(size, dtype=still.dtype)))
    ratios, turned = torch.linalg.eigh(root @ moving @ root.T)
    return (root.T @ turned).flip(1).float(), ratios.flip(0).clamp_min(0).float()
