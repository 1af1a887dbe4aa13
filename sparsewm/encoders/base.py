"""What every patch encoder offers: pixels in, patch tokens out, frozen."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class PatchFeatures:
    """Features of a batch of frames.

    Attributes:
        patches: (B, N, D) one token per patch, row by row.
        cls: (B, D) image token.
        grid: (rows, cols) with rows * cols = N.
        attention: (B, N) attention of the CLS token to each patch in the last block, averaged over
            heads, or None when it was not asked for.
    """

    patches: Tensor
    cls: Tensor
    grid: tuple[int, int]
    attention: Tensor | None = None


class PatchEncoder(nn.Module, ABC):
    """A frozen image encoder.

    Attributes:
        name: registry name, e.g. ``"dinov2_vits14"``.
        resolution: side of the square picture the network sees, in pixels.
        patch: side of a patch, in pixels.
        dim: size D of a token.
        hash: SHA-256 (hex) of the weights; recorded in checkpoints and checked when they are loaded.
    """

    name: str
    resolution: int
    patch: int
    dim: int
    hash: str

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of patches."""
        return (self.resolution // self.patch, self.resolution // self.patch)

    @property
    def tokens(self) -> int:
        """Number N of patch tokens of a frame."""
        rows, cols = self.grid
        return rows * cols

    @property
    def key(self) -> str:
        """Short name of what it computes, for the files of encoded tokens."""
        return self.hash[:10]

    def freeze(self) -> PatchEncoder:
        """Evaluation mode, no gradients. Returns the encoder itself."""
        return self.eval().requires_grad_(False)

    def preprocess(self, pixels: Tensor | np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) pictures of any size -> normalised float32 (B, 3, R, R) on its device.

        Raises:
            ValueError: when `pixels` is not uint8 of shape (B, H, W, 3).
        """
        pixels = torch.as_tensor(pixels)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(
                f"encode() takes uint8 pictures of shape (B, H, W, 3), got {pixels.dtype} "
                f"{tuple(pixels.shape)}; stack frames along the first axis and keep values 0-255."
            )
        images = pixels.to(next(self.parameters()).device).permute(0, 3, 1, 2).float().div_(255.0)
        side = (self.resolution, self.resolution)
        if images.shape[-2:] != side:
            images = F.interpolate(images, side, mode="bilinear", antialias=True, align_corners=False)
        mean = images.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
        std = images.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
        return images.sub_(mean).div_(std)

    @abstractmethod
    def encode(self, pixels: Tensor | np.ndarray, attention: bool = False) -> PatchFeatures:
        """Encode uint8 frames (B, H, W, 3); `attention` also returns CLS-to-patch attention (B, N)."""


class ClsOnly(PatchEncoder):
    """An encoder reduced to its image token, as one patch: the yardstick of a world model without patches."""

    def __init__(self, encoder: PatchEncoder) -> None:
        super().__init__()
        self.encoder, self.name, self.hash = encoder, f"{encoder.name}:cls", encoder.hash
        self.resolution = self.patch = encoder.resolution
        self.dim = encoder.dim

    @property
    def key(self) -> str:
        return f"{super().key}-cls"

    def encode(self, pixels: Tensor | np.ndarray, attention: bool = False) -> PatchFeatures:
        cls = self.encoder.encode(pixels).cls
        return PatchFeatures(cls[:, None], cls, self.grid)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers (names, shapes and values as float32)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
