"""What an ordinary vision transformer is made of, as its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Affine:
    """A linear layer: weight (out, in) and bias (out,); or a layer norm's, both (W,)."""

    weight: Tensor
    bias: Tensor | None
    eps: float = 0.0


@dataclass(frozen=True)
class VitBlock:
    """A layer of an ordinary vision transformer: x + gate * attention(norm(x)), then x + gate * MLP(norm(x)).

    Attributes:
        heads: of attention.
        norm1, qkv, out, gate1: of attention: qkv, one layer or several (together W -> 3 * heads * head_dim),
            has queries, keys and values, each head after head; out (heads * head_dim -> W); gate1 (W,), or
            None where it is 1.
        norm2, up, down, gate2: of the MLP, with a GELU (of erf) between `up` and `down`.
    """

    heads: int
    norm1: Affine
    qkv: tuple[Affine, ...]
    out: Affine
    norm2: Affine
    up: Affine
    down: Affine
    gate1: Tensor | None = None
    gate2: Tensor | None = None

    @property
    def width(self) -> int:
        """W."""
        return len(self.norm1.weight)

    @property
    def head_dim(self) -> int:
        """Numbers of a query."""
        return self.out.weight.shape[1] // self.heads

    def tensors(self) -> Iterator[Tensor]:
        """All parameters."""
        for part in (self.norm1, *self.qkv, self.out, self.norm2, self.up, self.down):
            yield part.weight
            if part.bias is not None:
                yield part.bias
        yield from (gate for gate in (self.gate1, self.gate2) if gate is not None)

    def joined(self) -> Affine:
        """`qkv` as one layer."""
        biases = [bias_of(layer) for layer in self.qkv]
        return Affine(torch.cat([layer.weight for layer in self.qkv]), torch.cat(biases))

    def modulation(self) -> Tensor:
        """(6, W): shift, scale and gate before attention, the same before the MLP."""
        ones = torch.ones_like(self.norm1.weight)
        gates = [ones if gate is None else gate for gate in (self.gate1, self.gate2)]
        pairs = zip((self.norm1, self.norm2), gates, strict=True)
        return torch.stack([part for norm, gate in pairs for part in (bias_of(norm), norm.weight, gate)])


def bias_of(layer: Affine | nn.Linear | nn.LayerNorm) -> Tensor:
    """The bias, of zeros where there is none."""
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
