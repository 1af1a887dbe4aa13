"""Linear layers of a training step, forward and backward, by compiled products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsewm.kernels.training import TrainingKernels

SLACK = 4  # rows behind a matrix that a product may read


class Arena:
    """Memory that steps share, for new pages cost more than what is written there."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._shared = torch.empty(0, dtype=torch.bfloat16)
        self._used = self.most = 0  # bytes, now and at any time

    def shared(self, count: int) -> Tensor:
        """Room for `count` numbers of bfloat16 at least, the same every time."""
        if len(self._shared) < count:
            self._shared = torch.empty(count, dtype=torch.bfloat16)
        return self._shared

    def reset(self) -> None:
        """Everything taken is free again."""
        self._used = 0
        if len(self._memory) < self.most:
            self._memory = torch.empty(0, dtype=torch.uint8)  # gone before there is more
            self._memory = torch.empty(self.most, dtype=torch.uint8)

    def take(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """A tensor of that shape, whatever is in it."""
        size = math.prod(shape) * dtype.itemsize
        start, whole = self._used, -(-(size + SLACK * shape[-1] * dtype.itemsize) // 64) * 64
        self._used += whole
        self.most = max(self.most, self._used)
        fits = self._used <= len(self._memory)
        memory = self._memory[start:] if fits else torch.empty(whole, dtype=torch.uint8)
        return memory[:size].view(dtype).view(shape)


class Layer:
    """A linear layer by the compiled products.

    Args:
        weight: (N, K). bias: (N,) or None. d_weight, d_bias: float32, their gradients, added to.
    """

    def __init__(
        self,
        kernels: TrainingKernels,
        room: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        d_weight: Tensor,
        d_bias: Tensor | None,
    ) -> None:
        self.kernels, self.room, self.d_weight, self.d_bias = kernels, room, d_weight, d_bias
        self.rows, self.columns = kernels.pack(weight)
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor, out: Tensor, relu: bool = False) -> None:
        """(R, K) -> out (R, N)."""
        self.kernels.multiply(x, self.rows, out, self.bias, relu)

    def back(self, error: Tensor, out: Tensor, mask: Tensor | None = None) -> None:
        """(R, N) -> out (R, K), 0 where `mask` (R, K) is."""
        self.kernels.multiply(error, self.columns, out, mask=mask)

    def learn(self, error: Tensor, x: Tensor) -> None:
        """Add the gradient of weights and bias: of (R, N) and (R, K)."""
        self.kernels.weigh(error, x, self.d_weight, self.d_bias, self.room)
