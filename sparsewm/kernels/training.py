"""What a training step of the predictor computes, compiled, on processors with AVX512-BF16."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsewm.kernels.build import load_library, named
from sparsewm.kernels.layers import AMX, AVX512, UNIT, WIDE, lent

SOURCES = [Path(__file__).with_name(name) for name in ("training.c", "training_attention.c", "products.c")]
TOGETHER, PANEL, TILE = 1024, 32, 12
"""Rows that a gradient of weights packs at once; columns and rows of a product that stay in registers."""

CAN_FAIL = ("attend", "attend_back", "orthogonalize")


@dataclass(frozen=True)
class Modulation:
    """What modulates a norm, and the gate of what is added before it.

    Attributes:
        shift, scale, gate: bfloat16 rows, one for every sequence or one for all. Without a gate things are
            added as they are.
        one: added to the scale.
        d_shift, d_scale, d_gate: float32, where their gradients go, a row for every sequence.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor | None = None
    one: float = 1.0
    d_shift: Tensor | None = None
    d_scale: Tensor | None = None
    d_gate: Tensor | None = None


class _Modulation(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("shift", "scale", "gate", "d_shift", "d_scale", "d_gate")),
        *((name, ctypes.c_int64) for name in ("stride", "gate_stride", "d_stride", "d_gate_stride")),
        ("one", ctypes.c_float),
    ]

    @classmethod
    def of(cls, modulation: Modulation) -> _Modulation:
        m = modulation
        parts = (m.shift, m.scale, m.gate, m.d_shift, m.d_scale, m.d_gate)
        strides = [
            0 if part is None or part.ndim == 1 else part.stride(0)
            for part in (m.shift, m.gate, m.d_shift, m.d_gate)
        ]
        return cls(*(None if part is None else part.data_ptr() for part in parts), *strides, m.one)


class Shape(ctypes.Structure):
    """A rollout's sequences as attention sees them, and the frames from `begin` to `end` to compute."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("windows", "length", "heads", "d", "frames", "history", "begin", "end")
    ]


class _Result(ctypes.Structure):
    _fields_ = [
        ("bias", ctypes.c_void_p),
        ("relu", ctypes.c_int),
        ("mask", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
    ]


class TrainingKernels:
    """The compiled functions. Matrices are bfloat16 and contiguous, but for what is said to be otherwise.

    Args:
        library: of the C files here.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        arguments: dict[str, list[Any]] = {
            "enter": [pointer] * 3 + [number] * 3 + [ctypes.c_float, pointer, pointer, pointer, threads],
            "leave": [pointer] * 4 + [threads, pointer, pointer, number, number, number, threads],
            "attend": [pointer] * 5 + [threads],
            "attend_back": [pointer] * 8 + [threads],
            "add_columns": [pointer, number, number, pointer, threads],
            "pack_rows": [pointer, number, number, pointer, threads],
            "pack_columns": [pointer, number, number, pointer, threads],
            "multiply": [pointer, number, number, number, pointer, number, pointer, threads],
            "weigh": [
                pointer,
                number,
                number,
                pointer,
                number,
                number,
                number,
                pointer,
                pointer,
                pointer,
                threads,
            ],
        }
        arguments["orthogonalize"] = [pointer, number, number, number, pointer, number, threads]
        for name, kinds in arguments.items():
            function = getattr(library, name)
            function.argtypes = kinds
            function.restype = ctypes.c_int if name in CAN_FAIL else None
            setattr(self, f"_{name}", function)

    _enter: Any
    _leave: Any
    _attend: Any
    _attend_back: Any
    _add_columns: Any
    _pack_rows: Any
    _pack_columns: Any
    _multiply: Any
    _weigh: Any
    _orthogonalize: Any

    def enter(
        self,
        x: Tensor,
        added: Tensor | None,
        modulation: Modulation,
        length: int,
        epsilon: float,
        hat: Tensor,
        factors: Tensor,
        out: Tensor,
    ) -> None:
        """Add to x by a gate, and write shift + scale * the layer norm of the sum.

        Args:
            x: float32 (R, W), sequences of `length` rows. added: (R, W).
            hat: (R, W), the norm itself is written there. factors: float32 (R,), what it was multiplied by.
            out: (R, W).
        """
        with named("sparsewm::enter"):
            self._enter(
                x.data_ptr(),
                None if added is None else added.data_ptr(),
                ctypes.byref(_Modulation.of(modulation)),
                len(x) // length,
                length,
                x.shape[1],
                epsilon,
                hat.data_ptr(),
                factors.data_ptr(),
                out.data_ptr(),
                torch.get_num_threads(),
            )

    def leave(
        self,
        error: Tensor,
        hat: Tensor,
        factors: Tensor,
        dx: Tensor,
        fresh: bool,
        added: Tensor | None,
        modulation: Modulation,
        length: int,
    ) -> None:
        """The way back through `enter`.

        Args:
            error: (R, W), gradient of its output; that output is written there.
            dx: float32 (R, W), gradient of the sum, added to; `fresh`: overwritten.
            added: (R, W), what was added; its gradient is written there.
        """
        with named("sparsewm::leave"):
            self._leave(
                error.data_ptr(),
                hat.data_ptr(),
                factors.data_ptr(),
                dx.data_ptr(),
                fresh,
                None if added is None else added.data_ptr(),
                ctypes.byref(_Modulation.of(modulation)),
                len(error) // length,
                length,
                error.shape[1],
                torch.get_num_threads(),
            )

    def attend(self, qkv: Tensor, ages: Tensor, shape: Shape, mixed: Tensor, levels: Tensor) -> None:
        """Attention of some frames, each to itself and to those before it.

        Args:
            qkv: (F, B, L, 3, H, d). ages: float32 (history, H, d), added to keys.
            mixed: (F, B, L, H, d), written. levels: float32 (F, B, H, L), written: log2 of sums of weights.

        Raises:
            MemoryError: there is none left.
        """
        with named("sparsewm::attend"):
            failed = self._attend(
                qkv.data_ptr(),
                ages.data_ptr(),
                ctypes.byref(shape),
                mixed.data_ptr(),
                levels.data_ptr(),
                torch.get_num_threads(),
            )
        if failed:
            raise MemoryError("no memory for attention")

    def attend_back(
        self,
        qkv: Tensor,
        ages: Tensor,
        shape: Shape,
        levels: Tensor,
        error: Tensor,
        d_qkv: Tensor,
        pending: Tensor,
        d_ages: Tensor,
    ) -> None:
        """The way back through `attend`, frames from the last to the first.

        Args:
            levels: as `attend` gave them.
            error: (frames, B, L, H, d), gradient of what it mixed, of the frames to compute alone.
            d_qkv: (frames, B, L, 3, H, d), written.
            pending: (history, B, L, 2, H, d), kept from call to call: what is not yet complete.
            d_ages: float32 (B, history, H, d), added to.

        Raises:
            MemoryError: there is none left.
        """
        parts = (levels, error, d_qkv, pending, d_ages)
        with named("sparsewm::attend_back"):
            failed = self._attend_back(
                qkv.data_ptr(),
                ages.data_ptr(),
                ctypes.byref(shape),
                *(part.data_ptr() for part in parts),
                torch.get_num_threads(),
            )
        if failed:
            raise MemoryError("no memory for attention")

    def add_columns(self, rows: Tensor, to: Tensor) -> None:
        """Add the sums of columns (R, N) to float32 (N,)."""
        self._add_columns(rows.data_ptr(), *rows.shape, to.data_ptr(), torch.get_num_threads())

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A matrix (N, K) for products with its rows, and with its columns."""
        n, k = weight.shape
        rows = weight.new_empty(-(-n // PANEL), -(-k // 2), PANEL, 2)
        columns = weight.new_empty(-(-k // PANEL), -(-n // 2), PANEL, 2)
        for function, to in ((self._pack_rows, rows), (self._pack_columns, columns)):
            function(weight.data_ptr(), n, k, to.data_ptr(), torch.get_num_threads())
        return rows, columns

    def multiply(
        self,
        x: Tensor,
        panels: Tensor,
        out: Tensor,
        bias: Tensor | None = None,
        relu: bool = False,
        mask: Tensor | None = None,
    ) -> None:
        """Rows (R, K) times a packed matrix -> out (R, N).

        Args:
            x: three rows more may be read. bias: float32 (N,). mask: (R, N), out is 0 where it is.
        """
        result = _Result(
            None if bias is None else bias.data_ptr(),
            relu,
            None if mask is None else mask.data_ptr(),
            out.data_ptr(),
            out.shape[1],
        )
        with named("sparsewm::multiply"):
            self._multiply(
                x.data_ptr(),
                x.shape[1],
                len(x),
                x.shape[1],
                panels.data_ptr(),
                out.shape[1],
                ctypes.byref(result),
                torch.get_num_threads(),
            )

    def weigh(self, error: Tensor, x: Tensor, d_weight: Tensor, d_bias: Tensor | None, room: Tensor) -> None:
        """Add the gradient of a layer's weights: error^T x, of (R, N) and (R, K).

        Args:
            d_weight: float32 (N, K). d_bias: float32 (N,), the sums of errors are added. room: `weigh_room`.
        """
        with named("sparsewm::weigh"):
            self._weigh(
                error.data_ptr(),
                error.shape[1],
                error.shape[1],
                x.data_ptr(),
                x.shape[1],
                x.shape[1],
                len(x),
                d_weight.data_ptr(),
                None if d_bias is None else d_bias.data_ptr(),
                room.data_ptr(),
                torch.get_num_threads(),
            )

    def orthogonalize(self, matrices: Tensor, factors: Sequence[float], steps: int) -> None:
        """Newton-Schulz iterations in place: x becomes a x + (b g + c g g) x, where g is x x^T.

        Args:
            matrices: (K, R, C), multiples of 32, no row longer than 1. factors: a, b and c.

        Raises:
            MemoryError: there is none left.
        """
        numbers = (ctypes.c_float * 3)(*factors)
        with named("sparsewm::orthogonalize"):
            failed = self._orthogonalize(
                matrices.data_ptr(), *matrices.shape, ctypes.byref(numbers), steps, torch.get_num_threads()
            )
        if failed:
            raise MemoryError("no memory for the optimiser's step")

    @staticmethod
    def weigh_room(outputs: int, inputs: int) -> int:
        """Numbers of bfloat16 that `weigh` needs."""
        return TOGETHER * (outputs + TILE + inputs + PANEL)


VARIANTS = {"training_tiles": ((*WIDE, *UNIT), (*AVX512, *AMX)), "training": (WIDE, AVX512)}
"""Flags of the compiler, and what the processor must be able to do: with a matrix unit, and without."""


@functools.cache
def variant(name: str) -> TrainingKernels | str:
    """The compiled functions of `VARIANTS`, or in one phrase why there are none."""
    library = lent(load_library(name, SOURCES, *VARIANTS[name]))
    return library if isinstance(library, str) else TrainingKernels(library)


def training_kernels() -> TrainingKernels | str:
    """The faster of them, or in one phrase why there are none."""
    with_tiles = variant("training_tiles")
    return variant("training") if isinstance(with_tiles, str) else with_tiles
