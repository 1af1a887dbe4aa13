"""A small decoder from any subset of patch tokens to the picture, for people to look at imagination."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder.

    Attributes:
        width: of the layers over patches. layers: convolutions over patches, which fill in absent ones.
        channels: of the layers over pixels. side: of the picture, pixels.
    """

    width: int = 64
    layers: int = 3
    channels: int = 16
    side: int = 112


class Decoder(nn.Module):
    """Draws what tokens show, as a deviation from the mean picture of the data.

    Absent patches hold a learned token; convolutions over the grid of patches fill them in from their
    neighbours.

    Args:
        token_dim: D. grid: (rows, cols) of patches. config: sizes.
    """

    mean: Tensor

    def __init__(self, token_dim: int, grid: tuple[int, int], config: DecoderConfig) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        rows, cols = grid
        width, channels = config.width, config.channels
        self.pixels = math.ceil(config.side / (2 * rows))  # half-size pixels along a patch's side
        self.token_in = nn.Linear(token_dim, width)
        self.absent = nn.Parameter(torch.zeros(width))
        self.place = nn.Parameter(0.02 * torch.randn(rows * cols, width))
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.layers))
        self.spread = nn.Linear(width, channels * self.pixels**2)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        self.colour = nn.Conv2d(channels, 3, 3, padding=1)
        for parameter in self.colour.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("mean", torch.zeros(3, config.side, config.side))

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """Standardised tokens (B, M, D) of `patches` (B, M) -> pictures (B, 3, side, side), about 0 to 1."""
        rows, cols = self.grid
        here = self.token_in(tokens.to(self.token_in.weight.dtype))
        frame = self.absent.expand(len(tokens), rows * cols, -1)
        if patches.is_floating_point():
            covers = patches[..., :-2].mT.to(here.dtype)  # (B, N, M)
            total = covers.sum(-1, keepdim=True)
            frame = torch.where(total > 0, covers @ here / total.clamp_min(1e-6), frame)
        else:
            frame = frame.scatter(1, patches[..., None].expand_as(here), here)
        frame = frame + self.place
        x = frame.transpose(1, 2).unflatten(2, (rows, cols))
        for layer in self.mix:
            x = x + F.gelu(layer(x))
        fine = self.spread(x.permute(0, 2, 3, 1)).unflatten(-1, (-1, self.pixels, self.pixels))
        fine = fine.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # (B, channels, rows * pixels, ...)
        fine = F.gelu(self.smooth(F.gelu(fine)))
        side = (self.config.side, self.config.side)
        fine = F.interpolate(fine, side, mode="bilinear", align_corners=False)
        return self.mean + self.colour(fine)

    @torch.inference_mode()
    def pictures(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """Tokens (B, T, M, D) of `patches` (B, M) -> uint8 (B, T, side, side, 3)."""
        b, t = tokens.shape[:2]
        drawn = self(tokens.flatten(0, 1), patches.repeat_interleave(t, 0))
        drawn = drawn.float().clamp(0, 1).mul(255).round().to(torch.uint8)
        return drawn.permute(0, 2, 3, 1).unflatten(0, (b, t))
