"""Attention and normalisation of the planner's rollout for processors with a matrix unit (AMX)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sparsewm.kernels.build import load_library, named
from sparsewm.kernels.frame import Frame

SOURCES = [Path(__file__).with_name(name) for name in ("attention.c", "norm.c")]
NEEDED = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512bw", "avx512dq", "avx512vl")
"""What a processor must be able to do, as Linux calls it."""
FLAGS: tuple[str, ...] = ("-O3", "-fPIC", "-fopenmp", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl")
FLAGS += ("-mavx512dq", "-mavx512bf16", "-mamx-tile", "-mamx-bf16")


class _Frame(ctypes.Structure):
    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("age", ctypes.c_void_p),
        ("length", ctypes.c_int64),
        ("key_stride", ctypes.c_int64 * 4),
        ("value_stride", ctypes.c_int64 * 4),
    ]


class Kernels:
    """The compiled functions.

    Args:
        library: of the C files here.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        self._attend, self._modulate = library.attend, library.modulate
        self._attend.argtypes = [pointer] * 4 + [number] * 6 + [threads]
        self._modulate.argtypes = [pointer, number, *[pointer] * 3, number, pointer, pointer, number, pointer]
        self._modulate.argtypes += [number] * 3 + [ctypes.c_float, threads]
        self._modulate.restype = None

    @staticmethod
    def fit(dtype: torch.dtype, width: int, head_dim: int) -> bool:
        """Whether a predictor of these sizes can be computed: bfloat16, heads of up to 64 numbers."""
        heads_fit = head_dim <= 64 and head_dim % 2 == 0
        return dtype == torch.bfloat16 and heads_fit and width % 16 == 0 and width <= 4096

    def attend(self, queries: Tensor, frames: Sequence[Frame]) -> Tensor:
        """softmax(q k^T) v on the matrix unit, in one pass over queries, keys and values where they lie.

        Args:
            queries: bfloat16 (B, S, L, H, d), scaled already. frames: what they see.

        Returns:
            mixed values (B, S, L, H * d).

        Raises:
            MemoryError: there is none left.
        """
        b, s, length, heads, d = queries.shape
        out = queries.new_empty(b, s, length, heads * d)
        array = (_Frame * len(frames))()
        for entry, frame in zip(array, frames, strict=True):
            entry.keys, entry.values = frame.keys.data_ptr(), frame.values.data_ptr()
            entry.age = None if frame.age is None else frame.age.data_ptr()
            entry.length = frame.keys.shape[2]
            entry.key_stride[:] = frame.keys.stride()[:4]
            entry.value_stride[:] = frame.values.stride()[:4]
        stride = (ctypes.c_int64 * 4)(*queries.stride()[:4])
        with named("sparsewm::attend"):
            failed = self._attend(
                queries.data_ptr(),
                ctypes.addressof(stride),
                out.data_ptr(),
                ctypes.addressof(array),
                len(frames),
                b,
                s,
                length,
                heads,
                d,
                torch.get_num_threads(),
            )
        if failed:
            raise MemoryError("no memory for attention: fewer candidates, or a limit by `memory_gb`")
        return out

    def modulate(
        self, x: Tensor, added: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x + gate * added, and shift + scale * its layer norm, in one pass.

        Args:
            x: bfloat16 (B, S or 1, L, W), contiguous; overwritten where it has all S candidates.
            added: (B, S, L, W), contiguous, with its gate (B, S, 1, W); or None.
            shift, scale: (B, S, 1, W), or (W,) for all. They and the gate are parts of
                contiguous rows.

        Returns:
            the sum (B, S, L, W), x itself where nothing is added; what becomes of it (B, S, L, W).
        """
        one = shift if shift.ndim == 4 else gate
        b, s = (x if one is None else one).shape[:2]
        length, width = x.shape[2:]
        y = x.new_empty(b, s, length, width)
        total = x if added is None or x.shape[1] == s else torch.empty_like(y)
        with named("sparsewm::modulate"):
            self._modulate(
                x.data_ptr(),
                b * x.shape[1],
                total.data_ptr(),
                None if added is None else added.data_ptr(),
                None if gate is None else gate.data_ptr(),
                0 if gate is None else gate.stride(0) // s,
                shift.data_ptr(),
                scale.data_ptr(),
                shift.stride(0) // s if shift.ndim == 4 else 0,
                y.data_ptr(),
                b * s,
                length,
                width,
                1e-5,
                torch.get_num_threads(),
            )
        return total, y


@functools.cache
def kernels() -> Kernels | str:
    """The compiled functions, or in one phrase why there are none."""
    library = load_library("kernels", SOURCES, FLAGS, NEEDED)
    if isinstance(library, str):
        return library
    if library.request_tiles():
        return "the system does not lend its matrix unit"
    return Kernels(library)
