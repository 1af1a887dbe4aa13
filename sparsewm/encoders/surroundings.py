"""What a picture looks like around each of its patches: colours and edges at four degrees of blur.

Fixed filters, nothing learned. They tell exactly where an object is and which way it is turned, which minutes
of training teach no transformer. They serve twice: as part of the embedded encoder's tokens, and as what its
transformer is asked for in training.
"""

from __future__ import annotations

from functools import lru_cache, reduce

import torch
from torch import Tensor
from torch.nn import functional as F

BLURS = ((4.0, 3, 2), (8.0, 2, 2), (16.0, 1, 7), (32.0, 1, 14))
"""Degrees of blur: deviation in pixels, points per side of a patch at which the picture is read, and the side
of the pixel blocks that are averaged first, which makes the rest cheap."""

KINDS = ((3, 1.0), (1, 0.3), (4, 0.2))
"""Channels and weight of what is read: colours, strength of edges, their direction.

A turn changes the direction of edges far more than it changes colours, hence the small weight.
"""

READINGS = tuple((channels * k * k, weight) for _, k, _ in BLURS for channels, weight in KINDS)
"""Size and weight of every part of a reading."""

PATCH = 14
"""Side of a patch in pixels that the blocks of `BLURS` divide."""


def edges(images: Tensor) -> Tensor:
    """Strength of the edges of normalised pictures (B, 3, H, W), and direction times strength: (B, 5, H, W).

    The direction is the structure tensor's, as cosine and sine of twice the angle (an edge has no sign) and
    of four times the angle (which the two bars of a T share). The strength saturates: it counts edges more
    than their contrast.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    xx, yy, xy = gx.square().sum(1), gy.square().sum(1), (gx * gy).sum(1)
    size = (xx + yy).sqrt()
    strength = size / (size + 0.45)
    cos2, sin2 = (xx - yy) / (xx + yy + 1e-6), 2 * xy / (xx + yy + 1e-6)
    length = (cos2.square() + sin2.square()).sqrt().clamp_min(1e-6)
    cos4, sin4 = (cos2.square() - sin2.square()) / length, 2 * cos2 * sin2 / length
    return torch.stack([strength, strength * cos2, strength * sin2, strength * cos4, strength * sin4], 1)


@lru_cache
def blur_weights(side: int, sigma: float, points: int, block: int, device: str) -> Tensor:
    """Gaussian weights (cells * points, side / block) of blocks of pixels, for every point of every patch."""
    places = (torch.arange(side // PATCH * points) + 0.5) * PATCH / points
    middles = (torch.arange(side // block) + 0.5) * block
    variance = sigma**2 - (block**2 - 1) / 12  # the blocks have blurred by the rest
    weights = torch.exp(-(middles - places[:, None]).square() / (2 * variance))
    weights = weights * (weights > 1e-5)  # tails so small that they slow products down
    return (weights / weights.sum(1, keepdim=True)).to(device)


def averaged(images: Tensor, side: int) -> Tensor:
    """Averages of square blocks of pixels (B, C, H, W) -> (B, C, H / side, W / side).

    Sums of strided views: `avg_pool2d` takes ten times as long for blocks of two.
    """
    rows = reduce(torch.add, (images[..., i::side, :] for i in range(side)))
    return reduce(torch.add, (rows[..., i::side] for i in range(side))) / side**2


def blurred_surroundings(images: Tensor) -> list[Tensor]:
    """What normalised float32 pictures (B, 3, H, W) look like around patches: (B, N, size) per `READINGS`."""
    channels = torch.cat([images, edges(images)], 1)
    b, _, height, width = images.shape
    rows, cols = height // PATCH, width // PATCH
    parts, pooled = list[Tensor](), {1: channels}
    for sigma, k, block in BLURS:
        if block not in pooled:
            finest = max(size for size in pooled if block % size == 0)
            pooled[block] = averaged(pooled[finest], block // finest)
        down, across = (blur_weights(n, sigma, k, block, str(images.device)) for n in (height, width))
        read = (down @ (pooled[block] @ across.T)).view(b, -1, rows, k, cols, k)
        for kind in read.split([count for count, _ in KINDS], 1):
            parts.append(kind.permute(0, 2, 4, 1, 3, 5).reshape(b, rows * cols, -1))
    return parts
