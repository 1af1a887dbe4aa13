"""The embedded default: a small vision transformer trained by this project, shipped with it.

The network is an ordinary ViT with strong two-dimensional sine-cosine positions (small learned ones are
drowned by unit-size patch embeddings, and tokens stay local). Its tokens are joined with what their
surroundings look like, past the transformer: exact where minutes of training leave it coarse. How it was
trained stands in `scripts/lab/pretrain.py`; the model card beside the weights has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.encoders.base import PatchEncoder, PatchFeatures, weights_hash, whole_patches
from sparsewm.encoders.fast import Fast
from sparsewm.encoders.surroundings import PATCH, blurred_surroundings
from sparsewm.errors import UserError
from sparsewm.kernels import FrozenLinear, Graphs
from sparsewm.positions import gaussian_pooling, sincos_positions

POOLING = (0.8, 2.0)
"""Widths, in patches, of the Gaussian averages joined to every token."""

RECORDED = 8
"""Pictures at most that a GPU is told to encode by a recorded graph."""

EMBEDDED_WEIGHTS = Path(__file__).parents[1] / "pretrained" / "encoder" / "model.safetensors"
"""The shipped weights; beside them lie earlier ones that shipped world models were trained on."""


class Block(nn.Module):
    """Pre-norm transformer block with explicit attention.

    Explicit products beat fused attention here: at a few dozen tokens a picture the fused CPU kernel is
    several times slower in bfloat16, backward above all.
    """

    def __init__(self, dim: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, mlp)
        self.down = nn.Linear(mlp, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) -> (B, L, D) and the attention weights (B, heads, L, L)."""
        b, length, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, length, dim))
        return x + self.down(F.gelu(self.up(self.norm2(x)))), weights


class ViT(PatchEncoder):
    """Small vision transformer.

    Args:
        resolution: (height, width) of the input in pixels, multiples of `patch`, or the side of a square.
        patch: side of a patch in pixels.
        width, depth, heads: transformer width, blocks, attention heads.
        dim: features of the transformer's tokens, and of the image token.
        maps: (F, R) from what the surroundings look like to R features, and (dim, C) from the transformer's
            tokens to the other C = dim - R. None: all are the transformer's.

    Raises:
        ValueError: `maps` of other sizes, or patches of another side than `PATCH` with them.
    """

    positions: Tensor
    pools: Tensor
    reading_map: Tensor
    context_map: Tensor

    def __init__(
        self,
        resolution: int | tuple[int, int] = 112,
        patch: int = 14,
        width: int = 192,
        depth: int = 5,
        heads: int = 3,
        dim: int = 64,
        maps: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name = "embedded"
        self.patch, self.width, self.heads, self.dim = patch, width, heads, dim
        self.joined = maps is not None
        if maps is not None:
            if patch != PATCH or sum(given.shape[1] for given in maps) != dim:
                raise ValueError(f"maps need patches of {PATCH} pixels, and {dim} columns in all")
            for name, given in zip(("reading_map", "context_map"), maps, strict=True):
                self.register_buffer(name, given)
        self.embed = FrozenLinear(3 * patch * patch, width)
        self.cls = nn.Parameter(torch.randn(width) * 0.02)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("positions", None, persistent=False)
        self.register_buffer("pools", None, persistent=False)
        self.finest = max(whole_patches(resolution, patch, self.name)) // patch
        self.resize(whole_patches(resolution, patch, self.name))
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.fast = Fast()
        self.mix = FrozenLinear(len(POOLING) * width, width)
        self.project = FrozenLinear(width, dim)
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in (block.qkv, block.out, block.up, block.down):
                nn.init.trunc_normal_(layer.weight, std=width**-0.5)
                nn.init.zeros_(layer.bias)
            for layer in (block.out, block.down):
                with torch.no_grad():
                    layer.weight.mul_((2 * depth) ** -0.5)

    def resize(self, resolution: tuple[int, int]) -> None:
        """See pictures of another (height, width), rounded to whole patches.

        Positions are a formula of the place: they spread over the picture as those of the first size did.
        """
        self.resolution = whole_patches(resolution, self.patch, self.name)
        place = self.embed.weight
        self.positions = sincos_positions(*self.grid, self.width, self.finest).to(place)
        pools = [gaussian_pooling(*self.grid, sigma) for sigma in POOLING]
        self.pools = torch.cat(pools).to(place)  # (len(POOLING) * N, N)
        self.graphs = Graphs()  # of few pictures on a GPU, which waits for Python otherwise

    def freeze(self) -> ViT:
        for part in self.modules():
            if isinstance(part, FrozenLinear):
                part.frozen = True
        super().freeze()
        return self

    def maps(self) -> dict[str, Tensor]:
        """The maps by their names in the state dict; none where tokens are the transformer's."""
        return {"reading_map": self.reading_map, "context_map": self.context_map} if self.joined else {}

    def patchify(self, images: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> embedded patches with positions (B, N, width)."""
        rows, cols = self.grid
        x = images.view(images.shape[0], 3, rows, self.patch, cols, self.patch)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(images.shape[0], rows * cols, -1)
        return self.embed(x) + self.positions.to(x.dtype)

    def transform(self, patches: Tensor, attention: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embedded patches (B, N, width) -> its own tokens (B, N, D), CLS (B, D), attention (B, N) or None.

        After the blocks every token is joined with Gaussian averages of its surroundings, a few patches
        wide, before the last two layers: a token so knows about objects that have left its patch.
        """
        x, weights = self.with_cls(patches), None
        for block in self.blocks:
            x, weights = block(x)
        own, cls = self._read(self.norm(x))
        return own, cls, weights.mean(1)[:, 0, 1:] if attention and weights is not None else None

    def with_cls(self, patches: Tensor) -> Tensor:
        """Embedded patches (B, N, width) -> what the first block sees (B, 1 + N, width)."""
        return torch.cat([self.cls.to(patches.dtype).expand(len(patches), 1, -1), patches], 1)

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the last block and its norm give (B, 1 + N, width) -> tokens (B, N, D) and CLS (B, D)."""
        b, n = len(x), x.shape[1] - 1
        around = (self.pools.to(x.dtype) @ x[:, 1:]).view(b, len(POOLING), n, -1)
        around = around.permute(0, 2, 1, 3).flatten(2)
        whole = x[:, :1].repeat(1, 1, len(POOLING))
        x = torch.cat([whole, around], 1)
        x = self.project(F.gelu(self.mix(x)))
        return x[:, 1:], x[:, 0]

    def _readings(self, images: Tensor) -> Tensor:
        """What normalised float32 pictures (B, 3, H, W) look like, as features (B, N, R) of the tokens.

        In float32 whatever the transformer computes in: a small object far off changes little. A few pictures
        at a time stay in the processor's cache.
        """
        reading_map = self.reading_map.float()
        parts = (torch.cat(blurred_surroundings(part), -1) @ reading_map for part in images.split(8))
        return torch.cat(list(parts))

    def encode(self, pixels: Tensor | np.ndarray, attention: bool = False) -> PatchFeatures:
        return self.in_parts(self._encode, pixels, attention)

    def _encode(self, pixels: Tensor | np.ndarray, attention: bool) -> PatchFeatures:
        images = self.preprocess(pixels)
        if not images.is_cuda or attention or len(images) > RECORDED or torch.is_grad_enabled():
            patches, cls, weights = self._features(images, attention)
            return PatchFeatures(patches, cls, self.grid, weights)

        def both(inputs: Sequence[Tensor]) -> Tensor:
            patches, cls, _ = self._features(inputs[0], False)
            return torch.cat([patches, cls[:, None].to(patches.dtype)], 1)

        whole = self.graphs.run(self.embed.weight.data_ptr(), both, [images])
        return PatchFeatures(whole[:, :-1], whole[:, -1], self.grid)

    def _features(self, images: Tensor, attention: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (B, N, D), CLS (B, D), attention (B, N) or None of normalised pictures (B, 3, H, W)."""
        dtype = self.embed.weight.dtype
        read = None if attention else self.fast(self, images.to(dtype))
        if read is None:
            patches, cls, weights = self.transform(self.patchify(images.to(dtype)), attention)
        else:
            (patches, cls), weights = self._read(read.to(dtype)), None
        if self.joined:
            patches = torch.cat([self._readings(images), patches.float() @ self.context_map.float()], -1)
        return patches, cls, weights


def load_embedded(
    weights: str | Path | None = None, expected_hash: str | None = None, joined: bool = True
) -> ViT:
    """The shipped encoder, or another file written by `scripts/pretrain_encoder.py`.

    Args:
        weights: a file; None: the shipped one.
        expected_hash: of the shipped one with or without its maps, where a checkpoint asks for it.
        joined: with the maps in the file; without them, as it was before, if false.

    Raises:
        UserError: file missing, truncated, or of another architecture.
    """
    if weights is None and expected_hash is not None:
        for with_maps in (True, False):
            encoder = _load(EMBEDDED_WEIGHTS, with_maps)
            if encoder.hash == expected_hash:
                return encoder
    return _load(Path(weights) if weights is not None else EMBEDDED_WEIGHTS, joined)


def _load(path: Path, joined: bool) -> ViT:
    """The encoder in a file, with its maps or without."""
    if not path.is_file():
        raise UserError(f"no encoder weights at {path}: give `weights` the path of a .safetensors file")
    try:
        state = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}): fetch or copy it again"
        ) from None
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if "embed.weight" not in state or "project.weight" not in state or depth == 0:
        raise UserError(f"{path} holds no embedded encoder: train one with scripts/pretrain_encoder.py")
    found = [state.pop(name) for name in ("reading_map", "context_map") if name in state]
    maps = (found[0], found[1]) if joined and len(found) == 2 else None
    width, pixels = state["embed.weight"].shape
    patch, dim = round((pixels / 3) ** 0.5), state["project.weight"].shape[0]
    try:
        encoder = ViT(patch=patch, width=width, depth=depth, heads=max(1, width // 64), dim=dim, maps=maps)
        encoder.load_state_dict(state | encoder.maps())
    except (RuntimeError, ValueError):
        raise UserError(
            f"{path} has tensors that do not fit the embedded encoder: train one with "
            "scripts/pretrain_encoder.py"
        ) from None
    encoder.hash = weights_hash(encoder)
    encoder.freeze()
    return encoder


def random_twin(encoder: ViT, seed: int = 0) -> ViT:
    """The same network with untrained weights: the control of every encoder gate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = encoder.width, len(encoder.blocks), encoder.heads, encoder.dim
        twin = ViT(encoder.resolution, encoder.patch, *sizes)
    twin.name, twin.hash = "random", weights_hash(twin)
    twin.freeze()
    return twin
