"""Where a patch stands, as numbers that networks can work with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sincos_positions(rows: int, cols: int, dim: int, finest: int | None = None) -> Tensor:
    """Two-dimensional sine-cosine position code (rows * cols, dim) over cell centres in [0, 1].

    Wavelengths run from twice the picture to two cells, so that neighbours are told apart and the
    coarse place is linear in the lowest frequencies.

    Args:
        dim: a multiple of four.
        finest: cells across, of which two make the shortest wavelength; the larger of rows and cols when
            None. A network that was trained on one grid reads another one with its own grid's.

    Raises:
        ValueError: `dim` is no multiple of four.
    """
    if dim % 4:
        raise ValueError(f"the position code needs a dimension divisible by 4, got {dim}")
    frequencies = _frequencies(dim, finest or max(rows, cols))
    y = (torch.arange(rows) + 0.5) / rows
    x = (torch.arange(cols) + 0.5) / cols
    angle_y = 2 * math.pi * y[:, None] * frequencies  # (rows, quarter)
    angle_x = 2 * math.pi * x[:, None] * frequencies
    code_y = torch.cat([angle_y.sin(), angle_y.cos()], -1)[:, None].expand(rows, cols, -1)
    code_x = torch.cat([angle_x.sin(), angle_x.cos()], -1)[None].expand(rows, cols, -1)
    return torch.cat([code_y, code_x], -1).reshape(rows * cols, dim)


def sincos_at(places: Tensor, dim: int, finest: int) -> Tensor:
    """The same code (..., dim) of any places (..., 2), each (y, x) from 0 to 1 across the picture."""
    angles = 2 * math.pi * places[..., None] * _frequencies(dim, finest, places.device)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def _frequencies(dim: int, finest: int, device: torch.device | None = None) -> Tensor:
    return torch.logspace(math.log2(0.5), math.log2(finest / 2), dim // 4, base=2.0, device=device)


def gaussian_pooling(rows: int, cols: int, sigma: float) -> Tensor:
    """Matrix (N, N) that makes every patch a Gaussian average of its surroundings, `sigma` in patches."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    place = torch.stack([y.flatten(), x.flatten()], -1).float()
    weights = torch.exp(-torch.cdist(place, place).square() / (2 * sigma**2))
    return weights / weights.sum(1, keepdim=True)
