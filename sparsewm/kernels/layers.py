"""All layers of the predictor in one call per imagined frame: in bfloat16 on processors with AVX512-BF16, with
8-bit integers in linear layers on those with AVX512-VNNI besides."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsewm.kernels.build import load_library, named


@dataclass(frozen=True)
class Layout:
    """How a compiled function has its numbers.

    Attributes:
        name: of the library. source: of its C file. needed: what the processor must be able to do, as Linux
            calls it. flags: of the compiler.
        dtype: of tokens, keys and values.
        weights: of linear layers.
        panel, lanes: columns of a linear layer, and keys, that lie side by side.
        together: numbers of a key, or values of as many keys, that are multiplied at once.
        padding: a head's values are filled up to a multiple of it.
    """

    name: str
    source: str
    needed: tuple[str, ...]
    flags: tuple[str, ...]
    dtype: torch.dtype
    weights: torch.dtype
    panel: int
    lanes: int
    together: int
    padding: int

    @property
    def sources(self) -> list[Path]:
        """The C file and its headers."""
        return [Path(__file__).with_name(name) for name in (self.source, "layers.h", "numbers.h")]

    def fit(self, width: int, heads: int, mlp: int, history: int) -> bool:
        """Whether a predictor of these sizes can be computed."""
        size = self.lanes if self.together == 1 else self.together
        whole = width % self.panel == 0 and mlp % self.panel == 0 and width // heads % size == 0
        return whole and (self.together == 1 or history <= self.lanes)


def side_by_side(rows: Tensor, count: int, together: int, dtype: torch.dtype) -> Tensor:
    """(..., K * count, I) -> (..., K, I / together, count, together): `count` rows are read at once."""
    blocks = rows.unflatten(-1, (-1, together)).unflatten(-3, (-1, count))
    return blocks.transpose(-3, -2).to(dtype).contiguous()


WIDE = (
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-mfma",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mavx512bf16",
)
AVX512 = ("avx512_bf16", "avx512bw", "avx512dq", "avx512vl")
BFLOAT16 = Layout(
    "layers_bf16", "layers_avx512.c", AVX512, WIDE, torch.bfloat16, torch.bfloat16, 32, 16, 2, 16
)
INT8 = replace(
    BFLOAT16,
    name="layers_int8",
    needed=(*AVX512, "avx512_vnni"),
    flags=(*WIDE, "-mavx512vnni", "-DINTEGERS=1"),
    weights=torch.int8,
)
LAYOUTS = {layout.weights: layout for layout in (BFLOAT16, INT8)}
"""By the precision a planner asks for."""


class _Linear(ctypes.Structure):
    _fields_ = [
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("units", ctypes.c_void_p),
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
    """A linear layer, some columns at a time.

    Attributes:
        weights: (panels, inputs / together, panel, together).
        bias: float32 (panels * panel).
        offsets, units: where weights are 8-bit integers, as many: int32, where every sum begins, for zero is
            128 in its rows (0 where they are all `positive`); float32, what 1 is in a column.
    """

    weights: Tensor
    bias: Tensor
    offsets: Tensor | None = None
    units: Tensor | None = None

    @classmethod
    def of(
        cls, layer: nn.Linear, layout: Layout, output_scale: Tensor | None = None, positive: bool = False
    ) -> PanelLinear:
        """From a layer with whole panels of outputs, which are multiplied by `output_scale` (N,)."""
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        if output_scale is not None:
            weight, bias = weight * output_scale[:, None], bias * output_scale
        bias = bias.float().contiguous()
        if layout.weights != torch.int8:
            return cls(side_by_side(weight, layout.panel, layout.together, layout.weights), bias)
        units = weight.abs().amax(1).clamp(min=1e-30) / 127
        weight = (weight / units[:, None]).round()
        zero = 0 if positive else 128
        offsets = (-zero * weight.sum(1)).to(torch.int32).contiguous()
        return cls(
            side_by_side(weight, layout.panel, 4, torch.int8), bias, offsets, units.float().contiguous()
        )

    def structure(self) -> _Linear:
        panels, inputs, _, together = self.weights.shape
        extra = [None if part is None else part.data_ptr() for part in (self.offsets, self.units)]
        return _Linear(self.weights.data_ptr(), self.bias.data_ptr(), *extra, inputs * together, panels)


@dataclass(frozen=True)
class PanelBlock:
    """The matrices of a layer, and `ages`, added to keys in units of the queries.

    Ages are (history, H, d) in float32; where keys are multiplied in pairs they are laid out like 16 keys.
    """

    qkv: PanelLinear
    out: PanelLinear
    up: PanelLinear
    down: PanelLinear
    ages: Tensor

    @classmethod
    def of(cls, block: Any, layout: Layout) -> PanelBlock:
        """From a `ConditionedBlock`."""
        width, heads = block.out.weight.shape[0], block.heads
        scale = torch.ones(3 * width, dtype=torch.float64)
        scale[:width] = (width // heads) ** -0.5 * math.log2(math.e)  # weights are powers of two
        out, up = (PanelLinear.of(layer, layout) for layer in (block.out, block.up))
        down = PanelLinear.of(block.down, layout, positive=True)  # behind a ReLU
        age = block.age.detach().float()[:, :, 0]
        age = age - age[:1]
        if layout.together > 1:
            filled = age.new_zeros(heads, layout.lanes, age.shape[2])
            filled[:, : len(age)] = age.transpose(0, 1)
            age = side_by_side(filled, layout.lanes, layout.together, layout.dtype)
        return cls(PanelLinear.of(block.qkv, layout, scale), out, up, down, age.contiguous())

    def structure(self) -> _Layer:
        parts = [part.structure() for part in (self.qkv, self.out, self.up, self.down)]
        return _Layer(*parts, self.ages.data_ptr())


@dataclass(frozen=True)
class LayersFrame:
    """Keys and values of one frame in all N layers, as the kernel keeps them.

    Attributes:
        keys: (N, B, S or 1, H, ceil(L / lanes), d / together, lanes, together).
        values: (N, B, S or 1, H, ceil(L / together), padded d, together).
        length: L.
    """

    keys: Tensor
    values: Tensor
    length: int

    @classmethod
    def empty(cls, layout: Layout, each: tuple[int, int, int, int], length: int, d: int) -> LayersFrame:
        """Room for a frame of L tokens in `each` layer, episode, candidate and head."""
        lanes, together, padded = layout.lanes, layout.together, -(-d // layout.padding) * layout.padding
        return cls(
            torch.empty(*each, -(-length // lanes), d // together, lanes, together, dtype=layout.dtype),
            torch.empty(*each, -(-length // together), padded, together, dtype=layout.dtype),
            length,
        )

    def structure(self, age: int) -> _Frame:
        shared = self.keys.shape[2] == 1
        strides = [(x.stride(1), 0 if shared else x.stride(2)) for x in (self.keys, self.values)]
        pairs = [(ctypes.c_int64 * 2)(*pair) for pair in strides]
        return _Frame(
            self.keys.data_ptr(),
            self.values.data_ptr(),
            self.length,
            age,
            *pairs,
            self.keys.stride(0),
            self.values.stride(0),
        )


class CompiledLayers:
    """The layers of a predictor, packed.

    Args:
        library: of the layout's C file. blocks: `ConditionedBlock`s. norm: the layer norm after them.
    """

    def __init__(
        self, library: ctypes.CDLL, layout: Layout, blocks: Sequence[Any], norm: nn.LayerNorm
    ) -> None:
        self.layout = layout
        self._advance = library.advance
        self._advance.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int]
        self.blocks = [PanelBlock.of(block, layout) for block in blocks]
        self.norm = torch.stack([norm.bias, norm.weight]).detach().to(layout.dtype).contiguous()
        self.epsilon = norm.eps
        self.heads = int(blocks[0].heads)
        self.mlp = int(blocks[0].up.weight.shape[0])
        self._layers = (_Layer * len(self.blocks))(*(block.structure() for block in self.blocks))

    def advance(
        self, x: Tensor, modulation: Tensor, past: Sequence[LayersFrame]
    ) -> tuple[Tensor, LayersFrame]:
        """One imagined frame.

        Args:
            x: embedded tokens (B, S or 1, L, W), of the layout's dtype like all the others.
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
        each = len(self.blocks), b, s, self.heads
        frame = LayersFrame.empty(self.layout, each, length, width // self.heads)
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
            raise MemoryError("no memory for a rollout: fewer candidates, or a limit by `memory_gb`")
        return out, frame


@functools.cache
def layers_library(layout: Layout) -> ctypes.CDLL | str:
    """The compiled function, or in one phrase why there is none."""
    return load_library(layout.name, layout.sources, layout.flags, layout.needed)
