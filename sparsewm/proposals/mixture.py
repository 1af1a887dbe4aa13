"""Layers of the experts of a mixture of transformers: weights of their own around an attention in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.proposals.flow import level_code


class Expert(nn.Module):
    """Layers of one expert; attention is computed outside, over the keys of all.

    Args:
        width, mlp, depth, heads: sizes. head_size: of the attention that experts share.
    """

    def __init__(self, width: int, mlp: int, depth: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, mlp, depth, heads, head_size) for _ in range(depth))
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.width = width

    def each(self) -> list[Layer]:
        """The layers, one after the other."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def condition(self, levels: Tensor) -> Tensor:
        """Noise levels (B, S) -> what modulates the norms, (B, S, 1, width)."""
        code = level_code(levels, self.width).to(next(self.level.parameters()).dtype)
        condition: Tensor = self.level(code)[:, :, None]
        return condition


class Layer(nn.Module):
    """A transformer layer whose norms are modulated, in two halves around an attention."""

    def __init__(self, width: int, mlp: int, depth: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_size
        self.qkv, self.out = nn.Linear(width, 3 * inner), nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, mlp), nn.Linear(mlp, width)
        self.modulation = nn.Linear(width, 6 * width)
        for layer in (self.qkv, self.out, self.up, self.down):
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            for layer in (self.out, self.down):
                layer.weight.mul_((2 * depth) ** -0.5)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def read(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]:
        """x (B, S, L, width) -> scaled queries, keys, values (B, S, heads, L, d), and the modulation."""
        parts = self.modulation(condition).chunk(6, -1)
        y = torch.addcmul(parts[0], F.layer_norm(x, x.shape[-1:]), 1 + parts[1])
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        return q * q.shape[-1] ** -0.5, k, v, parts

    def write(self, x: Tensor, mixed: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """x after the attention's (B, S, heads, L, d) and the layer's own matrices."""
        _, _, gate1, shift2, scale2, gate2 = parts
        x = torch.addcmul(x, self.out(mixed.transpose(2, 3).flatten(3)), 1 + gate1)
        y = torch.addcmul(shift2, F.layer_norm(x, x.shape[-1:]), 1 + scale2)
        return torch.addcmul(x, self.down(torch.relu(self.up(y))), 1 + gate2)
