"""What every patch encoder offers: pixels in, patch tokens out, frozen."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ASPECT_TOLERANCE = 0.02
"""Share by which a picture may be stretched in one direction before it counts as squashed."""


PART = 32
"""Pictures at most that are prepared, embedded and go through a network together on a CPU."""


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

    One of your own sets `resolution`, `patch` and `dim` and defines `encode`; `load_encoder` sets the rest
    where it is missing.

    Attributes:
        name: by which `load_encoder` loads it, e.g. ``"dinov2_vits14"``.
        resolution: (height, width) of the picture the network sees, in pixels.
        patch: side of a patch, in pixels.
        dim: size D of a token.
        hash: SHA-256 (hex) of the weights; recorded in checkpoints and checked when they are loaded.
        mean, std: of the red, green and blue of pictures, in [0, 1], that the network was trained with.
        letterbox: pictures of another aspect ratio get bars, in the colour of `mean`; else they are refused.
    """

    name: str = ""
    resolution: tuple[int, int]
    patch: int
    dim: int
    hash: str = ""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    letterbox: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of patches."""
        return (self.resolution[0] // self.patch, self.resolution[1] // self.patch)

    @property
    def tokens(self) -> int:
        """Number N of patch tokens of a frame."""
        rows, cols = self.grid
        return rows * cols

    @property
    def key(self) -> str:
        """Short name of what it computes and in which precision, for the files of encoded tokens."""
        parts = [*self.identity.values(), self.patch, self.mean, self.std]
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        height, width = self.resolution
        precision = next((str(tensor.dtype) for tensor in self.parameters()), "torch.float32")
        return f"{digest[:10]}-{height}x{width}-{precision.removeprefix('torch.')}"

    @property
    def identity(self) -> dict[str, str | bool | list[int]]:
        """What a checkpoint records: name, hash and resolution, and whether pictures are letterboxed."""
        found: dict[str, str | bool | list[int]] = {"name": self.name, "hash": self.hash}
        return found | {"resolution": list(self.resolution), "letterbox": self.letterbox}

    def freeze(self) -> PatchEncoder:
        """Evaluation mode, no gradients. Returns the encoder itself."""
        return self.eval().requires_grad_(False)

    def resize(self, resolution: tuple[int, int]) -> None:
        """See pictures of another (height, width), in pixels, from now on.

        Raises:
            UserError: the network cannot, or not at this size.
        """
        if tuple(resolution) != self.resolution:
            height, width = self.resolution
            raise UserError(
                f"encoder '{self.name}' sees pictures of {height} x {width} pixels only: leave `resolution` "
                "and `picture` out, or give letterbox=True"
            )

    def preprocess(self, pixels: Tensor | np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) pictures -> normalised float32 (B, 3, height, width) on its device.

        Raises:
            ValueError: when `pixels` is not uint8 of shape (B, H, W, 3).
            UserError: when their aspect ratio is not that of `resolution` and they are not letterboxed.
        """
        if isinstance(pixels, np.ndarray):  # torch takes no negative strides, and warns of read-only arrays
            pixels = np.require(pixels, requirements=["C", "W"])
        pixels = torch.as_tensor(pixels)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(
                f"encode() takes uint8 pictures of shape (B, H, W, 3), got {pixels.dtype} "
                f"{tuple(pixels.shape)}; stack frames along the first axis and keep values 0-255."
            )
        weights = next(chain(self.parameters(), self.buffers()), None)
        pixels = pixels if weights is None else pixels.to(weights.device)
        images = pixels.permute(0, 3, 1, 2).float().contiguous().div_(255.0)  # resized fastest like this
        picture, bars = (int(images.shape[2]), int(images.shape[3])), (0, 0, 0, 0)
        size = height, width = self.resolution
        if not same_aspect(picture, size):
            if not self.letterbox:
                fitted = fitted_resolution(picture, self.patch, size)
                remedy = f"resolution={fitted} or " if same_aspect(picture, fitted) else ""
                raise UserError(
                    f"pictures of {picture[0]} x {picture[1]} pixels would be squashed by encoder "
                    f"'{self.name}', which sees {height} x {width}: load it with {remedy}letterbox=True"
                )
            scale = min(height / picture[0], width / picture[1])
            size = max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))
            above, left = (height - size[0]) // 2, (width - size[1]) // 2
            bars = (left, width - size[1] - left, above, height - size[0] - above)
        if picture != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        mean = images.new_tensor(self.mean).view(1, 3, 1, 1)
        std = images.new_tensor(self.std).view(1, 3, 1, 1)
        images = images.sub_(mean).div_(std)
        return F.pad(images, bars) if any(bars) else images

    def in_parts(
        self,
        encode: Callable[[Tensor | np.ndarray, bool], PatchFeatures],
        pixels: Tensor | np.ndarray,
        attention: bool,
    ) -> PatchFeatures:
        """What `encode` makes of pictures (B, H, W, 3), on a CPU of some at a time."""
        most = max(PART, 4 * torch.get_num_threads())
        if pixels.ndim != 4 or len(pixels) <= most or next(self.parameters()).device.type != "cpu":
            return encode(pixels, attention)
        parts = [encode(pixels[i : i + most], attention) for i in range(0, len(pixels), most)]
        weights = [part.attention for part in parts if part.attention is not None]
        return PatchFeatures(
            torch.cat([part.patches for part in parts]),
            torch.cat([part.cls for part in parts]),
            self.grid,
            torch.cat(weights) if weights else None,
        )

    @abstractmethod
    def encode(self, pixels: Tensor | np.ndarray, attention: bool = False) -> PatchFeatures:
        """Encode uint8 frames (B, H, W, 3); `attention` also returns CLS-to-patch attention (B, N)."""


class ClsOnly(PatchEncoder):
    """An encoder reduced to its image token, as one patch: the yardstick of a world model without patches."""

    def __init__(self, encoder: PatchEncoder) -> None:
        super().__init__()
        self.encoder, self.name, self.hash = encoder, f"{encoder.name}:cls", encoder.hash
        self.resolution, self.patch, self.dim = encoder.resolution, encoder.patch, encoder.dim
        self.mean, self.std, self.letterbox = encoder.mean, encoder.std, encoder.letterbox

    @property
    def grid(self) -> tuple[int, int]:
        return (1, 1)

    @property
    def key(self) -> str:
        return f"{self.encoder.key}-cls"

    def encode(self, pixels: Tensor | np.ndarray, attention: bool = False) -> PatchFeatures:
        cls = self.encoder.encode(pixels).cls
        return PatchFeatures(cls[:, None], cls, self.grid)


def same_aspect(picture: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (height, width) have one aspect ratio, but for `ASPECT_TOLERANCE`."""
    ratio = picture[0] * other[1] / (picture[1] * other[0])
    return abs(math.log(ratio)) <= math.log1p(ASPECT_TOLERANCE)


def fitted_resolution(
    picture: tuple[int, int],
    patch: int,
    like: tuple[int, int] | None = None,
    longest: int | None = None,
) -> tuple[int, int]:
    """The (height, width) of whole patches at which a picture is encoded without squashing it.

    Of the sizes whose aspect ratio differs by less than `ASPECT_TOLERANCE` the one nearest in area; where
    there is none, the one nearest in aspect ratio.

    Args:
        picture: (H, W) in pixels.
        patch: side of a patch in pixels.
        like: (height, width) whose area, and so whose number of tokens, is aimed at.
        longest: length in pixels of the longer side, in place of `like`.

    Raises:
        ValueError: neither or both of `like` and `longest`, or a size that is not positive.
    """
    if (like is None) == (longest is None) or min(*picture, patch, *(like or ()), longest or 1) < 1:
        raise ValueError(
            "give the picture's (height, width), the patch, and one of `like` and `longest`, all positive"
        )
    if like is not None and same_aspect(picture, like):
        return like
    area = like[0] * like[1] if like else picture[0] * picture[1] * ((longest or 0) / max(picture)) ** 2
    most = max(1, round(3 * max(area**0.5, longest or 0) / patch))
    rows, cols = np.meshgrid(np.arange(1, most + 1), np.arange(1, most + 1), indexing="ij")
    stretch = np.abs(np.log(rows * picture[1] / (cols * picture[0])))
    growth = np.abs(np.log(rows * cols * patch**2 / area))
    allowed = growth <= np.log(2)  # a grid of half or twice as many tokens at most
    badness = np.where(stretch <= math.log1p(ASPECT_TOLERANCE), growth, 100 + 10 * stretch + growth)
    best = int(np.argmin(np.where(allowed, badness, 1e6 + badness)))
    return patch * int(rows.flat[best]), patch * int(cols.flat[best])


def whole_patches(resolution: int | tuple[int, int], patch: int, name: str) -> tuple[int, int]:
    """A (height, width), or a square's side, rounded to whole patches; UserError where that leaves none."""
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    fitted = round(height / patch) * patch, round(width / patch) * patch
    if min(fitted) < patch:
        raise UserError(
            f"a picture of {min(height, width)} pixels holds no patch of {name}: use {patch} or more"
        )
    return fitted


def weights_hash(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 of a module's parameters and buffers, or of a state dict (names, shapes, values as float32)."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
