"""A predictor's weights as a training step reads them, and where their gradients go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.kernels.products import Arena, Layer
from sparsewm.kernels.training import TrainingKernels
from sparsewm.model.predictor import Predictor


class Gradients:
    """Float32 gradients of a predictor's parameters, in one piece."""

    def __init__(self, predictor: Predictor) -> None:
        parameters = dict(predictor.named_parameters())
        self.sizes = [p.numel() for p in parameters.values()]
        self.flat = torch.zeros(sum(self.sizes))
        parts = self.flat.split(self.sizes)
        self.parts = {
            name: part.view(p.shape) for part, (name, p) in zip(parts, parameters.items(), strict=True)
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]


@dataclass
class BlockWeights:
    """A block's layers, and its ages in float32 (history, H, d)."""

    ages: Tensor
    qkv: Layer
    out: Layer
    up: Layer
    down: Layer


class Weights:
    """A predictor's weights as a step reads them, and where their gradients go."""

    def __init__(
        self,
        kernels: TrainingKernels,
        arena: Arena,
        predictor: Predictor,
        gradients: Gradients | None,
    ) -> None:
        self.kernels, self.gradients = kernels, gradients
        config = predictor.config
        self.depth, self.width, self.mlp = len(predictor.blocks), config.width, config.mlp
        self.history, self.heads, self.dim = config.history, config.heads, config.token_dim
        self.d = config.head_size
        self.inner = self.heads * self.d
        state = {name: p.detach() for name, p in predictor.named_parameters()}
        names = [f"blocks.{i}.modulation" for i in range(self.depth)]
        modulation = torch.cat([state[f"{name}.weight"] for name in names])
        self.d_modulation = torch.zeros(modulation.shape), torch.zeros(len(modulation))
        largest = max(
            TrainingKernels.weigh_room(*p.shape) for p in (*state.values(), modulation) if p.ndim == 2
        )
        self.room = arena.shared(largest)
        self.state = state
        self.blocks = [
            BlockWeights(
                state[f"blocks.{i}.age"][:, :, 0].float().contiguous(),
                *(self._layer(f"blocks.{i}.{name}") for name in ("qkv", "out", "up", "down")),
            )
            for i in range(self.depth)
        ]
        self.modulation = self._make(
            modulation, torch.cat([state[f"{name}.bias"] for name in names]), *self.d_modulation
        )
        self.embed = self._layer("embed_tokens", bias=False)
        self.change = self._layer("token_change")
        self.second = self._layer("embed_condition.2")
        self.norm = predictor.norm
        assert isinstance(predictor.positions, Tensor)
        positions = predictor.positions.to(torch.bfloat16)
        embedded = F.linear(positions, state["embed_positions.weight"], state["embed_positions.bias"])
        self.places = positions
        self.positions = embedded.float() + state["embed_tokens.bias"].float()
        self.d_positions = torch.zeros(embedded.shape)

    def _layer(self, name: str, bias: bool = True) -> Layer:
        d_weight = d_bias = torch.empty(0)
        if self.gradients is not None:
            d_weight, d_bias = self.gradients[f"{name}.weight"], self.gradients[f"{name}.bias"]
        return self._make(
            self.state[f"{name}.weight"],
            self.state[f"{name}.bias"] if bias else None,
            d_weight,
            d_bias if bias else None,
        )

    def _make(self, weight: Tensor, bias: Tensor | None, d_weight: Tensor, d_bias: Tensor | None) -> Layer:
        return Layer(self.kernels, self.room, weight.contiguous(), bias, d_weight, d_bias)

    def bytes_of(self, frames: int, length: int) -> int:
        """What a window's rollout keeps, about."""
        row = self.depth * (2 * (4 * self.width + 4 * self.inner + self.mlp) + 4 * (2 + self.heads))
        return frames * (length * (row + 6 * self.width + 10 * self.dim) + 12 * self.depth * self.width)

    def finish(self) -> None:
        """Gradients of what rollouts share."""
        assert self.gradients is not None
        for i, (d_weight, d_bias) in enumerate(
            zip(*(part.chunk(self.depth) for part in self.d_modulation), strict=True)
        ):
            self.gradients[f"blocks.{i}.modulation.weight"].copy_(d_weight)
            self.gradients[f"blocks.{i}.modulation.bias"].copy_(d_bias)
        self.gradients["embed_positions.weight"].add_(self.d_positions.T @ self.places.float())
        for name in ("embed_positions", "embed_tokens"):
            self.gradients[f"{name}.bias"].add_(self.d_positions.sum(0))
