"""All layers in one call, of a predictor for an imagined frame or of an encoder for pictures: in bfloat16 on
processors with AVX512-BF16, with 8-bit integers in linear layers on those with AVX512-VNNI besides."""

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
from torch.nn import functional as F

from sparsewm.kernels.blocks import Affine, VitBlock, bias_of
from sparsewm.kernels.build import load_library, named

PANEL, LANES, PAIR = 32, 16, 2
"""Columns of a linear layer, and keys, that lie side by side; numbers of a key multiplied at once."""


@dataclass(frozen=True)
class Layout:
    """How a compiled function has its weights; tokens, keys and values are bfloat16.

    Attributes:
        name: of the library.
        weights: of linear layers.
        together: inputs of theirs that are multiplied at once.
        needed: what the processor must be able to do, as Linux calls it. flags: of the compiler.
        tiles: products are a matrix unit's.
    """

    name: str
    weights: torch.dtype
    together: int
    needed: tuple[str, ...]
    flags: tuple[str, ...]
    tiles: bool = False

    @staticmethod
    def fit(width: int, heads: int, head_dim: int, mlp: int, history: int) -> bool:
        """Whether a transformer of these sizes can be computed."""
        whole = all(size % PANEL == 0 for size in (width, heads * head_dim, mlp))
        return whole and head_dim % PAIR == 0 and history <= LANES

    @property
    def deep(self) -> int:
        """What a key is filled up to a multiple of, in numbers."""
        return PANEL if self.tiles else PAIR

    @property
    def keys(self) -> int:
        """What the values of a frame are filled up to a multiple of, in keys."""
        return LANES if self.tiles else PAIR


def side_by_side(rows: Tensor, count: int, together: int, dtype: torch.dtype) -> Tensor:
    """(..., K * count, I) -> (..., K, I / together, count, together): `count` rows are read at once."""
    blocks = rows.unflatten(-1, (-1, together)).unflatten(-3, (-1, count))
    return blocks.transpose(-3, -2).to(dtype).contiguous()


AVX512 = ("avx512_bf16", "avx512bw", "avx512dq", "avx512vl")
WIDE: tuple[str, ...] = ("-O3", "-fPIC", "-fopenmp", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq")
WIDE += ("-mavx512vl", "-mavx512bf16")
AMX = ("amx_tile", "amx_bf16")
VNNI: tuple[str, ...] = ("-mavx512vnni", "-DINTEGERS=1")
UNIT: tuple[str, ...] = ("-mamx-tile", "-mamx-bf16", "-DTILES=1")
LAYOUTS = (
    Layout("tiles_bf16", torch.bfloat16, 2, (*AVX512, *AMX), (*WIDE, *UNIT), tiles=True),
    Layout("layers_bf16", torch.bfloat16, 2, AVX512, WIDE),
    Layout(
        "tiles_int8",
        torch.int8,
        4,
        (*AVX512, "avx512_vnni", *AMX, "amx_int8"),
        (*WIDE, *VNNI, *UNIT, "-mamx-int8"),
        tiles=True,
    ),
    Layout("layers_int8", torch.int8, 4, (*AVX512, "avx512_vnni"), (*WIDE, *VNNI)),
)
"""The faster ones of a precision first."""
SOURCES = [Path(__file__).with_name("layers.c")]


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
                "head",
                "layers",
                "frames",
                "from_candidates",
                "modulation",
                "gelu",
                "precise",
            )
        ),
        ("epsilon", ctypes.c_float),
    ]


@dataclass(frozen=True)
class PanelLinear:
    """A linear layer, some columns at a time.

    Attributes:
        weights: (panels, inputs / together, panel, together), inputs filled up to whole tiles.
        bias: float32 (panels * panel).
        inputs: of the layer.
        offsets, units: where weights are 8-bit integers, as many: int32, where every sum begins, for zero is
            128 in its rows (0 where they are all `positive`); float32, what 1 is in a column.
    """

    weights: Tensor
    bias: Tensor
    inputs: int
    offsets: Tensor | None = None
    units: Tensor | None = None

    @classmethod
    def of(
        cls,
        layer: Affine | nn.Linear,
        layout: Layout,
        output_scale: Tensor | None = None,
        positive: bool = False,
    ) -> PanelLinear:
        """From a layer with whole panels of outputs.

        Args:
            output_scale: (N,), what the outputs are multiplied by.
            positive: its inputs are not negative.
        """
        weight = layer.weight.detach().double()
        bias = bias_of(layer).double()
        if output_scale is not None:
            weight, bias = weight * output_scale[:, None], bias * output_scale
        bias = bias.float().contiguous()
        inputs = weight.shape[1]
        if layout.tiles:
            weight = F.pad(weight, (0, -inputs % (LANES * layout.together)))
        if layout.weights != torch.int8:
            return cls(side_by_side(weight, PANEL, layout.together, layout.weights), bias, inputs)
        units = weight.abs().amax(1).clamp(min=1e-30) / 127
        weight = (weight / units[:, None]).round()
        zero = 0 if positive else 128
        offsets = (-zero * weight.sum(1)).to(torch.int32).contiguous()
        packed = side_by_side(weight, PANEL, layout.together, torch.int8)
        return cls(packed, bias, inputs, offsets, units.float().contiguous())

    def structure(self) -> _Linear:
        extra = [None if part is None else part.data_ptr() for part in (self.offsets, self.units)]
        return _Linear(self.weights.data_ptr(), self.bias.data_ptr(), *extra, self.inputs, len(self.weights))


@dataclass(frozen=True)
class PanelBlock:
    """The matrices of a layer, and `ages`, added to keys in units of the queries, laid out like 16 keys."""

    qkv: PanelLinear
    out: PanelLinear
    up: PanelLinear
    down: PanelLinear
    ages: Tensor | None = None

    @classmethod
    def of(cls, block: Any, layout: Layout) -> PanelBlock:
        """From a `ConditionedBlock`."""
        scale = _query_scale(block.qkv, block.heads)
        out, up = (PanelLinear.of(layer, layout) for layer in (block.out, block.up))
        down = PanelLinear.of(block.down, layout, positive=True)  # behind a ReLU
        age = block.age.detach().float()[:, :, 0]
        age = age - age[:1]
        filled = age.new_zeros(block.heads, LANES, _up(age.shape[2], layout.deep))
        filled[:, : len(age), : age.shape[2]] = age.transpose(0, 1)
        age = side_by_side(filled, LANES, PAIR, torch.bfloat16)
        return cls(PanelLinear.of(block.qkv, layout, scale), out, up, down, age)

    @classmethod
    def of_vit(cls, block: VitBlock, layout: Layout) -> PanelBlock:
        """From a layer of a ViT."""
        qkv = block.joined()
        out, up, down = (PanelLinear.of(layer, layout) for layer in (block.out, block.up, block.down))
        return cls(PanelLinear.of(qkv, layout, _query_scale(qkv, block.heads)), out, up, down)

    def structure(self) -> _Layer:
        parts = [part.structure() for part in (self.qkv, self.out, self.up, self.down)]
        return _Layer(*parts, None if self.ages is None else self.ages.data_ptr())


def _up(value: int, step: int) -> int:
    """The next multiple."""
    return -(-value // step) * step


def _query_scale(qkv: Affine | nn.Linear, heads: int) -> Tensor:
    """What queries, keys and values (3 * heads * head_dim,) are multiplied by: weights are powers of two."""
    inner = qkv.weight.shape[0] // 3
    scale = torch.ones(3 * inner, dtype=torch.float64)
    scale[:inner] = (inner // heads) ** -0.5 * math.log2(math.e)
    return scale


@dataclass(frozen=True)
class LayersFrame:
    """Keys and values of one frame in all N layers, as the kernel keeps them.

    Attributes:
        keys: (N, B, S or 1, H, ceil(L / 16), d / 2, 16, 2), where d is filled up to what the layout says.
        values: (N, B, S or 1, H, L / 2, d, 2), where L is filled up to what the layout says, d to 16.
        length: L.
    """

    keys: Tensor
    values: Tensor
    length: int

    @classmethod
    def empty(cls, layout: Layout, each: tuple[int, int, int, int], length: int, d: int) -> LayersFrame:
        """Room for a frame of L tokens in `each` layer, episode, candidate and head."""
        keys = _up(length, LANES) // LANES, _up(d, layout.deep) // PAIR, LANES, PAIR
        values = _up(length, layout.keys) // PAIR, _up(d, LANES), PAIR
        rooms = [torch.empty(*each, *size, dtype=torch.bfloat16) for size in (keys, values)]
        return cls(rooms[0], rooms[1], length)

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
    """The layers of a transformer, packed: of a predictor, or by `of_vit` of an encoder.

    Args:
        layout: one that this processor has. blocks: the layers, packed in it.
        norm: the layer norm after them; its epsilon is that of all norms.
        heads, head_dim: of attention.
        modulation: of an encoder (N * 6 * W), bfloat16: shift, scale and gate, twice, of every layer.
    """

    def __init__(
        self,
        layout: Layout,
        blocks: Sequence[PanelBlock],
        norm: Affine | nn.LayerNorm,
        heads: int,
        head_dim: int,
        modulation: Tensor | None = None,
    ) -> None:
        self.layout, self.blocks, self.heads, self.head_dim = layout, blocks, heads, head_dim
        self.modulation = modulation
        library = layers_library(layout)
        if isinstance(library, str):
            raise RuntimeError(library)
        self._advance = library.advance
        self._advance.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int]
        self.norm = torch.stack([bias_of(norm), norm.weight]).detach().float().contiguous()
        self.epsilon = norm.eps
        self.mlp = len(blocks[0].up.bias)
        self._layers = (_Layer * len(blocks))(*(block.structure() for block in blocks))

    @classmethod
    def of_predictor(cls, layout: Layout, blocks: Sequence[Any], norm: nn.LayerNorm) -> CompiledLayers:
        """From `ConditionedBlock`s, and the layer norm after them."""
        packed = [PanelBlock.of(block, layout) for block in blocks]
        return cls(layout, packed, norm, blocks[0].heads, blocks[0].head_size)

    @classmethod
    def of_vit(cls, layout: Layout, blocks: Sequence[VitBlock], norm: Affine) -> CompiledLayers:
        """From the layers of a vision transformer, and the layer norm after them, for `encode`."""
        packed = [PanelBlock.of_vit(block, layout) for block in blocks]
        modulation = torch.cat([block.modulation().flatten() for block in blocks]).bfloat16().contiguous()
        return cls(layout, packed, norm, blocks[0].heads, blocks[0].head_dim, modulation)

    @staticmethod
    def takes(blocks: Sequence[VitBlock], norm: Affine) -> bool:
        """Whether `of_vit` can be given these: sizes that fit, and one epsilon for all norms."""
        first = blocks[0]
        sizes = {(block.heads, *block.out.weight.shape, len(block.up.weight)) for block in blocks}
        alike = len(sizes) == len({part.eps for x in blocks for part in (x.norm1, x.norm2, norm)}) == 1
        return alike and Layout.fit(first.width, first.heads, first.head_dim, len(first.up.weight), 1)

    def advance(
        self, x: Tensor, modulation: Tensor, past: Sequence[LayersFrame]
    ) -> tuple[Tensor, LayersFrame]:
        """One imagined frame.

        Args:
            x: embedded tokens (B, S or 1, L, W), bfloat16 like all the others.
            modulation: (B, S, N * 6 * W): shift, scale and gate, twice, of every layer.
            past: frames that are seen besides the present one, the newest first.

        Returns:
            normalized tokens (B, S, L, W), and keys and values of this frame.

        Raises:
            MemoryError: there is none left.
        """
        b, s = modulation.shape[:2]
        length = x.shape[2]
        frame = LayersFrame.empty(self.layout, (len(self.blocks), b, s, self.heads), length, self.head_dim)
        seen = [other.structure(age) for age, other in enumerate([frame, *past])]
        with named("sparsewm::advance"):
            return self._run(x, modulation.contiguous(), s, modulation.shape[2], seen), frame

    def encode(self, x: Tensor) -> Tensor:
        """Pictures through all layers of an encoder; keys and values are not kept.

        Args:
            x: embedded tokens (B, L, W), CLS token and the like included, with their positions. float32: the
                tokens between layers are float32 inside in any case, what products read is bfloat16.

        Returns:
            tokens behind the last norm (B, L, W), of the dtype of `x` (float32 or bfloat16).

        Raises:
            MemoryError: there is none left.
        """
        assert self.modulation is not None
        seen = [_Frame(None, None, x.shape[1])]
        with named("sparsewm::encode"):
            return self._run(x[:, None], self.modulation, 1, 0, seen)[:, 0]

    def _run(self, x: Tensor, modulation: Tensor, s: int, stride: int, seen: Sequence[_Frame]) -> Tensor:
        """(B, S or 1, L, W) through all layers -> (B, S, L, W).

        Args:
            stride: numbers from a candidate's modulation to the next one's.
        """
        b, own, length, width = x.shape
        x = x.contiguous()
        sizes = _Sizes(
            episodes=b,
            candidates=s,
            length=length,
            width=width,
            mlp=self.mlp,
            heads=self.heads,
            head=self.head_dim,
            layers=len(self.blocks),
            frames=len(seen),
            from_candidates=own,
            modulation=stride,
            gelu=self.modulation is not None,
            precise=x.dtype == torch.float32,
            epsilon=self.epsilon,
        )
        frames = (_Frame * len(seen))(*seen)
        out = x.new_empty(b, s, length, width)
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
        return out


def layout_of(weights: torch.dtype) -> Layout | None:
    """The fastest of a precision that this processor has; what is slower is not compiled."""
    mine = (layout for layout in LAYOUTS if layout.weights == weights)
    return next((layout for layout in mine if not isinstance(layers_library(layout), str)), None)


def lent(library: ctypes.CDLL | str) -> ctypes.CDLL | str:
    """A library, or in one phrase why not: it asks for a matrix unit, and the system does not lend it."""
    if isinstance(library, str) or not hasattr(library, "request_tiles"):
        return library
    return "the system does not lend its matrix unit" if library.request_tiles() else library


@functools.cache
def layers_library(layout: Layout) -> ctypes.CDLL | str:
    """The compiled function, or in one phrase why there is none."""
    return lent(load_library(layout.name, SOURCES, layout.flags, layout.needed))
