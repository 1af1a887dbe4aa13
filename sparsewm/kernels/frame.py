"""What kernels of the planner's rollout offer, whatever they run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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


class RolloutKernels(Protocol):
    """Attention and normalisation, see `sparsewm.kernels.Kernels`."""

    def attend(self, queries: Tensor, frames: Sequence[Frame]) -> Tensor: ...

    def modulate(
        self, x: Tensor, added: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]: ...
