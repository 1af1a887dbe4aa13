"""All layers of the predictor in one call per imagined frame, in float32, for processors with AVX2."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsewm.kernels.build import load_library, named

SOURCE = Path(__file__).with_name("layers.c")
NEEDED = ("avx2", "fma")
FLAGS = ("-O3", "-fPIC", "-fopenmp", "-mavx2", "-mfma")
PANEL, LANES = 16, 8
"""Columns of a linear layer, and keys, that lie side by side."""


class _Linear(ctypes.Structure):
    _fields_ = [
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("panels", ctypes.c_int64),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [(name, _Linear) for name in ("qkv", "out", "up", "down")] + [("ages", ctypes.c_void_p)]


class _Frame(ctypes.Structure):
    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("length", ctypes.c_int64),
        ("age", ctypes.c_int64),
        ("key_stride", ctypes.c_int64 * 2),
        ("value_stride", ctypes.c_int64 * 2),
        ("layer_keys", ctypes.c_int64),
        ("layer_values", ctypes.c_int64),
    ]


class _Sizes(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                "episodes",
                "candidates",
                "length",
                "width",
                "mlp",
                "heads",
                "layers",
                "frames",
                "from_candidates",
            )
        ),
        ("epsilon", ctypes.c_float),
    ]


@dataclass(frozen=True)
class PanelLinear:
    """A linear layer, 16 columns at a time.

    Attributes:
        weights: float32 (panels, inputs, 16). bias: (panels * 16).
    """

    weights: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Linear, output_scale: Tensor | None = None) -> PanelLinear:
        """From a layer with a multiple of 16 outputs, which are multiplied by `output_scale` (N,)."""
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        if output_scale is not None:
            weight, bias = weight * output_scale[:, None], bias * output_scale
        panels = weight.view(-1, PANEL, weight.shape[1]).transpose(1, 2)
        return cls(panels.float().contiguous(), bias.float().contiguous())

    def structure(self) -> _Linear:
        panels, inputs, _ = self.weights.shape
        return _Linear(self.weights.data_ptr(), self.bias.data_ptr(), inputs, panels)


@dataclass(frozen=True)
class PanelBlock:
    """The matrices of a layer, and `ages` (history, H, d), added to keys in units of the queries."""

    qkv: PanelLinear
    out: PanelLinear
    up: PanelLinear
    down: PanelLinear
    ages: Tensor

    @classmethod
    def of(cls, block: Any) -> PanelBlock:
        """From a `ConditionedBlock`."""
        width, heads = block.out.weight.shape[0], block.heads
        scale = torch.ones(3 * width, dtype=torch.float64)
        scale[:width] = (width // heads) ** -0.5 * math.log2(math.e)  # weights are powers of two
        out, up, down = (PanelLinear.of(layer) for layer in (block.out, block.up, block.down))
        age = block.age.detach().float()[:, :, 0]
        return cls(PanelLinear.of(block.qkv, scale), out, up, down, (age - age[:1]).contiguous())

    def structure(self) -> _Layer:
        parts = [part.structure() for part in (self.qkv, self.out, self.up, self.down)]
        return _Layer(*parts, self.ages.data_ptr())


@dataclass(frozen=True)
class LayersFrame:
    """Keys and values of one frame in all N layers, as the kernel keeps them.

    Attributes:
        keys: float32 (N, B, S or 1, H, ceil(L / 8), d, 8). values: (N, B, S or 1, H, L, d).
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, layers: int, b: int, s: int, heads: int, length: int, d: int) -> LayersFrame:
        blocks = -(-length // LANES)
        return cls(
            torch.empty(layers, b, s, heads, blocks, d, LANES), torch.empty(layers, b, s, heads, length, d)
        )

    @classmethod
    def of(cls, keys: Sequence[Tensor], values: Sequence[Tensor]) -> LayersFrame:
        """From recorded keys and values, (B, H, L, d) per layer, that all candidates share."""
        stacked = torch.stack(list(keys)).float()  # (N, B, H, L, d)
        layers, b, heads, length, d = stacked.shape
        padded = stacked.new_zeros(layers, b, heads, -(-length // LANES) * LANES, d)
        padded[:, :, :, :length] = stacked
        blocks = padded.view(layers, b, 1, heads, -1, LANES, d).transpose(-1, -2)
        return cls(blocks.contiguous(), torch.stack(list(values)).float()[:, :, None].contiguous())

    def structure(self, age: int) -> _Frame:
        shared = self.keys.shape[2] == 1
        strides = [(x.stride(1), 0 if shared else x.stride(2)) for x in (self.keys, self.values)]
        pairs = [(ctypes.c_int64 * 2)(*pair) for pair in strides]
        return _Frame(
            self.keys.data_ptr(),
            self.values.data_ptr(),
            self.values.shape[4],
            age,
            *pairs,
            self.keys.stride(0),
            self.values.stride(0),
        )


class CompiledLayers:
    """The layers of a predictor, packed.

    Args:
        library: of the C file here. blocks: `ConditionedBlock`s. norm: the layer norm after them.
    """

    def __init__(self, library: ctypes.CDLL, blocks: Sequence[Any], norm: nn.LayerNorm) -> None:
        self._advance = library.advance
        self._advance.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int]
        self.blocks = [PanelBlock.of(block) for block in blocks]
        self.norm = torch.stack([norm.bias, norm.weight]).detach().float().contiguous()
        self.epsilon = norm.eps
        self.heads = int(blocks[0].heads)
        self.mlp = int(blocks[0].up.weight.shape[0])
        self._layers = (_Layer * len(self.blocks))(*(block.structure() for block in self.blocks))

    @staticmethod
    def fit(width: int, heads: int, mlp: int) -> bool:
        """Whether a predictor of these sizes can be computed."""
        return width % PANEL == 0 and mlp % PANEL == 0 and (width // heads) % LANES == 0

    def advance(
        self, x: Tensor, modulation: Tensor, past: Sequence[LayersFrame]
    ) -> tuple[Tensor, LayersFrame]:
        """One imagined frame.

        Args:
            x: embedded tokens, float32 (B, S or 1, L, W).
            modulation: (B, S, N * 6 * W): shift, scale and gate, twice, of every layer.
            past: frames that are seen besides the present one, the newest first.

        Returns:
            normalized tokens (B, S, L, W), and keys and values of this frame.

        Raises:
            MemoryError: there is none left.
        """
        b, s = modulation.shape[:2]
        length, width = x.shape[2:]
        x, modulation = x.contiguous(), modulation.contiguous()
        frame = LayersFrame.empty(len(self.blocks), b, s, self.heads, length, width // self.heads)
        seen = [other.structure(age) for age, other in enumerate([frame, *past])]
        frames = (_Frame * len(seen))(*seen)
        sizes = _Sizes(
            b, s, length, width, self.mlp, self.heads, len(self.blocks), len(seen), x.shape[1], self.epsilon
        )
        out = x.new_empty(b, s, length, width)
        with named("sparsewm::advance"):
            failed = self._advance(
                x.data_ptr(),
                modulation.data_ptr(),
                self.norm.data_ptr(),
                ctypes.addressof(self._layers),
                ctypes.addressof(frames),
                ctypes.addressof(sizes),
                out.data_ptr(),
                torch.get_num_threads(),
            )
        if failed:
            raise MemoryError("no memory for a rollout: lower --samples, or give --chunk")
        return out, frame


@functools.cache
def layers_library() -> ctypes.CDLL | str:
    """The compiled function, or in one phrase why there is none."""
    return load_library("layers", [SOURCE], FLAGS, NEEDED)
