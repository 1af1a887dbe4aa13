"""Mean and spread of tokens, and the maps that make them ones a predictor can work with."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

WHITENING_FLOOR = 0.01
"""Variance, in units of the mean over directions, below which `token_statistics` amplifies no further."""

BLOCK_BYTES = 1 << 26
"""Memory of a block of frames in float64."""


def token_statistics(tokens: Tensor, whitening: float = 0.0) -> dict[str, Tensor]:
    """What turns raw tokens into ones a predictor can work with, and these into ones that plans use.

    Tokens of small encoders vary along very few directions, and what a squared error counts is what
    these show: the coarse place of the largest object. A predictor has to see and to learn the rest as well:
    whitening weighs the other directions up. Plans are scored without it, for what is smooth and coarse leads
    further.

    Args:
        tokens: (K, N, D) of K frames.
        whitening: 0 divides every feature by its deviation from the patch's mean; 1 makes all directions
            equally wide, down to `WHITENING_FLOOR`; between them in part.

    Returns:
        `token_mean` (N, D) and `token_map` (D, D), after which the mean square is one:
        ``(tokens - token_mean) @ token_map``; and `cost_map` (D, D) from there to tokens whose features are
        divided by their deviations.
    """
    return statistics_of(lambda: tokens.split(block_frames(tokens.shape[1] * tokens.shape[2])), whitening)


def block_frames(numbers: int) -> int:
    """Frames of so many numbers that make a block."""
    return max(1, BLOCK_BYTES // (8 * numbers))


def statistics_of(blocks: Callable[[], Iterable[Tensor]], whitening: float = 0.0) -> dict[str, Tensor]:
    """`token_statistics` of tokens that do not fit into memory.

    Args:
        blocks: gives them from the first to the last, (k, N, D) at a time, whenever it is called.
    """
    frames, total = 0, torch.zeros(())
    for block in blocks():
        total = total.to(block.device) + block.sum(0, dtype=torch.float64)
        frames += len(block)
    mean = (total / frames).float()
    patches, size = mean.shape
    products = mean.new_zeros(size, size, dtype=torch.float64)  # of the deviations, over frames and patches
    for block in blocks():
        deviations = (block.double() - mean).flatten(0, 1)
        products += deviations.T @ deviations if whitening else torch.diag(deviations.square().sum(0))
    products /= frames * patches
    scale = products.diagonal().sqrt().clamp_min(1e-4)
    plain = token_map = torch.diag(1 / scale)
    if whitening:
        variances, directions = torch.linalg.eigh(products / (scale * scale[:, None]))
        gains = (variances.clamp_min(0) + WHITENING_FLOOR).pow(-whitening / 2)
        gains = gains / (gains.square() * variances).mean().sqrt().clamp_min(1e-3)
        token_map = token_map @ (directions * gains) @ directions.T
    cost_map = torch.linalg.solve(token_map, plain)
    return {"token_mean": mean, "token_map": token_map.float(), "cost_map": cost_map.float().contiguous()}
