"""Frozen vision transformers through packed weights: standard blocks and the norm after them.

Three ways: all layers in one compiled call (AVX512-BF16, with a matrix unit or without); products of oneDNN
in bfloat16, with residual and norm compiled (other sizes); and products of oneDNN in float32. Between layers
tokens are float32 in all of them, whatever products read: tokens of some encoders differ little from picture
to picture.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.kernels.blocks import Affine, VitBlock, bias_of
from sparsewm.kernels.build import load_library, named
from sparsewm.kernels.layers import AVX512, WIDE, CompiledLayers, layout_of
from sparsewm.kernels.linear import PackedLinear

ROWS = 4096
"""Tokens that go through a block together, at most: fewer reread the weights, more leave the cache."""

SHORT = 512
"""Tokens of a picture up to which explicit products beat fused attention in bfloat16."""


class PackedVit(Protocol):
    """Blocks and the norm after them, packed."""

    def __call__(self, x: Tensor) -> Tensor:
        """Tokens (B, L, W), float32 or bfloat16 -> normalised tokens (B, L, W), float32."""
        ...


def packed_vit(blocks: Sequence[VitBlock], norm: Affine) -> PackedVit:
    """Pack a stack of blocks for a CPU, in the precision of their weights (float32 or bfloat16)."""
    first = blocks[0]
    if first.up.weight.dtype == torch.float32:
        return Float32Vit(blocks, norm)
    layout = layout_of(torch.bfloat16)
    if layout is not None and CompiledLayers.takes(blocks, norm):
        return CompiledVit(CompiledLayers.of_vit(layout, blocks, norm))
    return Bfloat16Vit(blocks, norm)


class CompiledVit:
    """All layers in one call, a few pictures at a time."""

    def __init__(self, layers: CompiledLayers) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        return self.layers.encode(x.float())


class Float32Vit:
    """By oneDNN's products, each ending in bias and GELU or residual, and torch's fused attention."""

    def __init__(self, blocks: Sequence[VitBlock], norm: Affine) -> None:
        self.blocks, self.norm = [_Packed(block, fold=True) for block in blocks], norm

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self._some(part) for part in x.split(_together(x))])

    def _some(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            qkv = block.qkv(_normalized(x, block.norm1)).unflatten(-1, (3, block.heads, -1))
            x = block.out.plus(_fused(qkv), x)
            x = block.down.plus(block.up(_normalized(x, block.norm2)), x)
        return _normalized(x, self.norm)


class Bfloat16Vit:
    """By oneDNN's products in bfloat16, of tokens that stay float32 between them.

    Residual and norm are compiled where they can be.
    """

    def __init__(self, blocks: Sequence[VitBlock], norm: Affine) -> None:
        self.blocks = [_Packed(block, fold=False) for block in blocks]
        library = residual_library() if blocks[0].width % 16 == 0 else "other sizes"
        self.add = _added_by_torch if isinstance(library, str) else functools.partial(_added, library)
        self.norm = _float32(norm)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self._some(part) for part in x.split(_together(x))])

    def _some(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        added, gate = None, None
        for block in self.blocks:
            y = self.add(x, added, gate, block.norm1, torch.bfloat16)
            mixed = self._attend(block.qkv(y).unflatten(-1, (3, block.heads, -1)))
            y = self.add(x, block.out(mixed), block.gate1, block.norm2, torch.bfloat16)
            added, gate = block.down(block.up(y)), block.gate2
        return self.add(x, added, gate, self.norm, torch.float32)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Scaled queries, keys and values (B, L, 3, heads, d) -> what is read (B, L, W)."""
        if qkv.shape[1] > SHORT:
            return _fused(qkv, 1.0)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return (torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).flatten(2)


class _Packed:
    """A block's layers, packed.

    Args:
        fold: the gates become part of the weights. Otherwise the queries' 1 / sqrt(d) does, and they
            are gates in float32, one where there is none.
    """

    def __init__(self, block: VitBlock, fold: bool) -> None:
        self.heads = block.heads
        joined, scale = block.joined(), None
        if not fold:
            scale = torch.ones(len(joined.weight), dtype=torch.float64)
            scale[: len(scale) // 3] = block.head_dim**-0.5
        self.qkv = PackedLinear(_scaled(joined.weight, scale), _scaled(bias_of(joined), scale))
        self.up = PackedLinear(block.up.weight, block.up.bias, "gelu")
        scales = (block.gate1, block.gate2) if fold else (None, None)
        self.out, self.down = (
            PackedLinear(_scaled(layer.weight, scale), _scaled(bias_of(layer), scale))
            for layer, scale in zip((block.out, block.down), scales, strict=True)
        )
        self.norm1, self.norm2 = _float32(block.norm1), _float32(block.norm2)
        self.gate1, self.gate2 = (
            torch.ones(block.width) if gate is None else gate.float() for gate in (block.gate1, block.gate2)
        )


def _scaled(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """Rows times a scale, rounded once."""
    if scale is None:
        return tensor
    return (tensor.double() * scale.double().view(-1, *[1] * (tensor.ndim - 1))).to(tensor.dtype)


def _float32(norm: Affine) -> Affine:
    return Affine(norm.weight.float().contiguous(), bias_of(norm).float().contiguous(), norm.eps)


def _normalized(x: Tensor, norm: Affine) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _fused(qkv: Tensor, scale: float | None = None) -> Tensor:
    """Queries, keys and values (B, L, 3, heads, d) -> what is read (B, L, W), by torch's own attention."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def _together(x: Tensor) -> int:
    """Pictures that go through the blocks together."""
    most = max(1, max(ROWS, ROWS // 16 * torch.get_num_threads()) // x.shape[1])
    return max(1, math.ceil(len(x) / math.ceil(len(x) / most)))


def _added_by_torch(
    x: Tensor, added: Tensor | None, gate: Tensor | None, norm: Affine, dtype: torch.dtype
) -> Tensor:
    """x (B, L, W) += gate * added, and its layer norm in `dtype`."""
    if added is not None and gate is not None:
        x.addcmul_(added.float(), gate)
    return _normalized(x, norm).to(dtype)


def _added(
    library: ctypes.CDLL,
    x: Tensor,
    added: Tensor | None,
    gate: Tensor | None,
    norm: Affine,
    dtype: torch.dtype,
) -> Tensor:
    """The same in one pass."""
    y = torch.empty_like(x, dtype=dtype)
    narrow = dtype == torch.bfloat16
    assert norm.bias is not None
    with named("sparsewm::add_and_normalize"):
        library.add_and_normalize(
            x.data_ptr(),
            None if added is None else added.data_ptr(),
            None if gate is None else gate.data_ptr(),
            norm.bias.data_ptr(),
            norm.weight.data_ptr(),
            y.data_ptr() if narrow else None,
            None if narrow else y.data_ptr(),
            x.numel() // x.shape[-1],
            x.shape[-1],
            norm.eps,
            torch.get_num_threads(),
        )
    return y


@functools.cache
def residual_library() -> ctypes.CDLL | str:
    """The compiled residual and norm, or in one phrase why there is none."""
    sources = [Path(__file__).with_name("residual.c")]
    library = load_library("residual", sources, WIDE, AVX512)
    if not isinstance(library, str):
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.add_and_normalize.argtypes = [pointer] * 7 + [number] * 2 + [ctypes.c_float, ctypes.c_int]
        library.add_and_normalize.restype = None
    return library
