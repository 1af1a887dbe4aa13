"""Attention as kernels are asked for it, and what it is by torch's operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsewm.kernels import Frame, GpuKernels
from sparsewm.model import rollout


def reference(queries: Tensor, frames: list[Frame]) -> Tensor:
    keys, values = [], []
    for frame in frames:
        age = 0 if frame.age is None else frame.age.float().transpose(0, 1)
        keys.append((frame.keys.float() + age).transpose(2, 3))
        values.append(frame.values.float().transpose(2, 3))
    weights = torch.softmax(queries.float().transpose(2, 3) @ torch.cat(keys, 3).mT, -1)
    return (weights @ torch.cat(values, 3)).transpose(2, 3).flatten(3)


def queries_and_frames(
    size: int,
    length: int,
    own: int,
    shared: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, list[Frame]]:
    """What attention is asked in a rollout: frames of each candidate's own, then recorded ones for all."""
    generator = torch.Generator().manual_seed(size * length + own)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    b, s, heads = 2, 3, 2
    ages = 0.5 * random(own + shared, heads, 1, size)
    frames = []
    for age in range(own):
        qkv = random(b, s, length, 3, heads, size)
        frames.append(Frame(qkv[:, :, :, 1], qkv[:, :, :, 2], ages[age] if age else None))
    queries = qkv[:, :, :, 0] * size**-0.5
    for age in range(own, own + shared):  # of another length, in another layout, one for all candidates
        keys, values = (random(b, heads, length + 3, size).transpose(1, 2)[:, None] for _ in range(2))
        frames.append(Frame(*(x.expand(-1, s, -1, -1, -1) for x in (keys, values)), ages[age]))
    return queries, frames


class ByTorch(GpuKernels):
    """The compiled functions by torch's operations: what is built around them runs on any processor."""

    def __init__(self) -> None:
        pass

    def attend(self, queries: Tensor, frames: Sequence[Frame]) -> Tensor:
        return reference(queries, [*frames]).to(queries.dtype)

    def modulate(
        self, x: Tensor, added: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        return rollout.modulate(x, added, gate, shift, scale)
