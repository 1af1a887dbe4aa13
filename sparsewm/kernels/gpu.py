"""Attention and normalisation of the planner's rollout on a GPU, in Triton, which torch brings for Linux."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsewm.kernels.build import named

LARGEST_HEAD, WIDEST = 128, 8192
LARGEST_STEP = 8  # numbers of 16 bits that a GPU reads at once
LEAST = (3, 4)  # the version of Triton that takes tuples of tensors


@dataclass(frozen=True)
class Frame:
    """Keys and values of one frame, seen by `attend`.

    Attributes:
        keys, values: (B, S, L, H, d), numbers of a head side by side; expanded dimensions are
            not copied. age: (H, 1, d) contiguous, added to the keys, or None.
    """

    keys: Tensor
    values: Tensor
    age: Tensor | None = None


class GpuKernels:
    """The compiled functions, for tensors of any floating type that Triton multiplies.

    Args:
        functions: the module `gpu_functions`.
    """

    def __init__(self, functions: Any) -> None:
        self._attend, self._modulate = functions.attend, functions.modulate

    @staticmethod
    def fit(width: int, head_dim: int) -> bool:
        """Whether a predictor of these sizes can be computed: heads of up to 128 numbers."""
        return head_dim <= LARGEST_HEAD and width <= WIDEST

    def attend(self, queries: Tensor, frames: Sequence[Frame]) -> Tensor:
        """softmax(q k^T) v in one pass over queries, keys and values where they lie.

        Args:
            queries: (B, S, L, H, d), scaled already. frames: what they see.

        Returns:
            mixed values (B, S, L, H * d).
        """
        b, s, length, heads, size = queries.shape
        out = queries.new_empty(b, s, length, heads * size)
        block, seen, warps, stages = blocks(length, size, queries.element_size())
        ages = [queries if frame.age is None else frame.age for frame in frames]
        asked = queries.stride()[:4]
        strides = [step for f in frames for x in (f.keys, f.values) for step in x.stride()[:4]]
        step = math.gcd(LARGEST_STEP, *asked, *strides)
        with named("sparsewm::attend"):
            self._attend[(b * s * heads, -(-length // block))](
                queries,
                tuple(frame.keys for frame in frames),
                tuple(frame.values for frame in frames),
                tuple(ages),
                out,
                tuple(number // step for number in asked),
                tuple(number // step for number in strides),
                tuple(frame.keys.shape[2] for frame in frames),
                s,
                length,
                heads,
                FRAMES=len(frames),
                AGED=sum(1 << i for i, frame in enumerate(frames) if frame.age is not None),
                SIZE=size,
                STEP=step,
                D=max(16, power_of_two(size)),
                M=block,
                N=seen,
                num_warps=warps,
                num_stages=stages,
            )
        return out

    def modulate(
        self, x: Tensor, added: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x + gate * added, and shift + scale * its layer norm, in one pass.

        Args:
            x: (B, S or 1, L, W), contiguous; overwritten where it has all S candidates.
            added: (B, S, L, W), contiguous, with its gate (B, S, 1, W); or None.
            shift, scale: (B, S, 1, W), or (W,) for all. They and the gate are parts of contiguous rows.

        Returns:
            the sum (B, S, L, W), x itself where nothing is added; what becomes of it (B, S, L, W).
        """
        one = shift if shift.ndim == 4 else gate
        b, s = (x if one is None else one).shape[:2]
        length, width = x.shape[2:]
        shared = x.shape[1] != s
        y = x.new_empty(b, s, length, width)
        total = torch.empty_like(y) if shared and added is not None else x
        with named("sparsewm::modulate"):
            self._modulate[(b * s * length,)](
                x,
                total,
                x if added is None else added,
                x if gate is None else gate,
                shift,
                scale,
                y,
                s,
                length,
                0 if gate is None else gate.stride(1),
                shift.stride(1) if shift.ndim == 4 else 0,
                1e-5,
                ADDS=added is not None,
                SHARED=shared,
                WIDTH=width,
                W=power_of_two(width),
                num_warps=1 if width <= 512 else 4,
            )
        return total, y


def blocks(length: int, size: int, bytes_each: int) -> tuple[int, int, int, int]:
    """Queries of a program, keys at a time, warps and stages: the fastest or nearly so on an H200.

    Short frames are one block of queries; long ones are read in pieces, the next while one is multiplied. How
    much of the last block is empty decides between sizes.

    Args:
        length: of a frame. size: of a head. bytes_each: of a number.
    """
    ahead = 1 if size * bytes_each > 256 else 3  # what a program holds must fit smaller GPUs, too
    if length <= 16:
        return 16, 16, 1, 1
    if length <= 64:
        if size > 32:
            return 64, 64 if length > 32 else 32, 4, 1
        return 64, 16 if filled(length, 16) < filled(length, 32) else 32, 4, 1
    if size <= 32 and filled(length, 128) == filled(length, 64):
        return 128, 32, 4, ahead
    if size > 32 and filled(length, 32) < 0.8 * filled(length, 64):
        return 32, 16, 1, ahead
    return 64, 32, 4, ahead


def filled(length: int, block: int) -> int:
    """A length filled up with whole blocks."""
    return -(-length // block) * block


def power_of_two(number: int) -> int:
    """The least one that is no smaller."""
    return 1 << (number - 1).bit_length()


@functools.cache
def gpu_kernels() -> GpuKernels | str:
    """The functions, or in one phrase why there are none."""
    if os.environ.get("SPARSEWM_KERNELS") == "0":
        return "SPARSEWM_KERNELS=0"
    try:
        import triton
    except ImportError:
        return "Triton is not installed"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < LEAST:
        return f"Triton {triton.__version__} is too old"
    from sparsewm.kernels import gpu_functions

    return GpuKernels(gpu_functions)
