"""Linear layers whose weights are packed for the machine's own products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS_HINT = 4096
"""Rows the packed layout is chosen for; others are correct, too."""


class PackedLinear:
    """A linear layer with an optional activation; on a CPU its weights are in the layout of the matrix unit.

    Where torch lacks oneDNN it is an ordinary linear layer.

    Args:
        weight: (out, in). bias: (out,), zero when None.
        activation: "none", "relu" or "gelu" (exact).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none") -> None:
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.weight, self.bias, self.activation = (
            weight.detach().contiguous(),
            bias.detach().contiguous(),
            activation,
        )
        self.packed: Tensor | None = None
        if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            try:
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, ROWS_HINT)
            except (AttributeError, RuntimeError):  # an operation torch keeps for its own compiler
                self.packed = None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.packed is not None:
            product = torch.ops.mkldnn._linear_pointwise
            algorithm = "none" if self.activation == "gelu" else ""
            out: Tensor = product(x, self.packed, self.bias, self.activation, [], algorithm)
            return out
        if self.activation == "relu" and x.is_cuda:
            flat = torch.ops.aten._addmm_activation(self.bias, x.flatten(0, -2), self.weight.t())
            return flat.unflatten(0, x.shape[:-1])
        out = F.linear(x, self.weight, self.bias)
        if self.activation == "gelu":
            return F.gelu(out)
        return out.relu_() if self.activation == "relu" else out

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """other (..., out) + the layer of x (..., in), of one without activation."""
        if self.packed is not None:
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, "add")
            return out
        return other + F.linear(x, self.weight, self.bias)


class FrozenLinear(nn.Linear):
    """A linear layer that, once it is frozen, multiplies on a CPU by packed weights.

    To torch it is the layer it was, of the same state, and it computes as such where weights still learn, or
    do not tell that they changed (inference tensors), on another device and in another precision.
    """

    frozen = False
    _packed: PackedLinear | None = None
    _packed_of: tuple[int, int] = (0, 0)  # where the packed weights lay, and how often they had changed

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        learns = weight.requires_grad and torch.is_grad_enabled()
        here = weight.device.type == "cpu" and weight.dtype == torch.float32
        if not self.frozen or learns or not here or weight.is_inference() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        state = (weight.data_ptr(), weight._version)
        if self._packed is None or state != self._packed_of:
            self._packed, self._packed_of = PackedLinear(weight, self.bias), state
        return self._packed(x)

    def __getstate__(self) -> dict[str, object]:
        """Copies pack their own weights."""
        return self.__dict__ | {"_packed": None}
