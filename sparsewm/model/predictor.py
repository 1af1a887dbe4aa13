"""The predictor: a frame-causal transformer over any subset of patch tokens, with a key-value cache.

One call advances one frame: the tokens of the present frame attend to each other and to the cached keys
and values of up to `history - 1` earlier frames, and come out as the tokens of the next frame. Training
and planning run this same code: training differentiates through a sequence of such calls, planning runs them
for many candidates that share one history.

Shapes: B episodes, S candidates, M kept patches, L = M + 1 (the proprioception token comes last),
D token features, P proprioception features, C action features of a model step, W width, H heads of size d.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.positions import sincos_at, sincos_positions


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of the predictor.

    Attributes:
        token_dim: D. grid: (rows, cols) of patches. proprio_dim: P. action_dim: C (frameskip x action size).
        history: frames of the attention window, the present one included.
        width, depth, heads, mlp: the transformer.
        head_dim: size of a head; None: width / heads.
    """

    token_dim: int
    grid: tuple[int, int]
    proprio_dim: int
    action_dim: int
    history: int = 3
    width: int = 192
    depth: int = 4
    heads: int = 3
    mlp: int = 768
    head_dim: int | None = None

    def __post_init__(self) -> None:
        if self.width % 4 or (self.head_dim is None and self.width % self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of 4, and without `head_dim` of heads {self.heads}"
            )
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim must be at least 1, got {self.head_dim}")
        if self.history < 1:
            raise ValueError(f"history must be at least 1 frame, got {self.history}")

    @property
    def head_size(self) -> int:
        """Numbers of a head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim


@dataclass
class FrameCache:
    """Keys and values of one frame, per layer: (B, H, L, d), or (B, S, H, L, d) when candidates differ."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def attend(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Softmax attention over several frames' keys, some shared by all candidates.

    Args:
        q: (B, S, H, L, d) queries, already scaled.
        keys, values: one entry per frame: (B, H, L', d) when shared by the S candidates, else
            (B, S, H, L', d). Shared entries are multiplied once for all candidates and never copied.

    Returns:
        (B, S, H, L, d).
    """
    b, s, h, length, d = q.shape
    if q.is_cuda:
        wide_k = torch.cat([k if k.ndim == 5 else k[:, None].expand(-1, s, -1, -1, -1) for k in keys], 3)
        wide_v = torch.cat([v if v.ndim == 5 else v[:, None].expand(-1, s, -1, -1, -1) for v in values], 3)
        flat = (q.flatten(0, 1), wide_k.flatten(0, 1), wide_v.flatten(0, 1))
        return F.scaled_dot_product_attention(*flat, scale=1.0).view(b, s, h, length, d)
    across = q.transpose(1, 2).reshape(b, h, s * length, d)
    logits = []
    for k in keys:
        if k.ndim == 4:
            shared = across @ k.transpose(-1, -2)  # (B, H, S * L, L')
            logits.append(shared.view(b, h, s, length, -1).transpose(1, 2))
        else:
            logits.append(q @ k.transpose(-1, -2))
    weights = torch.softmax(torch.cat(logits, -1), -1)
    out: Tensor | None = None
    for part, v in zip(weights.split([k.shape[-2] for k in keys], -1), values, strict=True):
        if v.ndim == 4:
            mixed = part.transpose(1, 2).reshape(b, h, s * length, -1) @ v
            mixed = mixed.view(b, h, s, length, d).transpose(1, 2)
        else:
            mixed = part @ v
        out = mixed if out is None else out + mixed
    assert out is not None
    return out


def attend_own(q: Tensor, keys: list[Tensor], values: list[Tensor], ages: Tensor) -> Tensor:
    """`attend` where every candidate has keys of its own, all frames of one size: fewer, larger products.

    Args:
        q: (B, S, H, L, d). keys, values: one entry per frame, (B, S, H, L, d), keys without their age.
        ages: (frames, H, 1, d), what `attend` expects to be in the keys: here it meets the queries.

    Returns:
        (B, S, H, L, d).
    """
    length = q.shape[3]
    clock = q @ ages.squeeze(2).permute(1, 2, 0)  # (B, S, H, L, frames)
    logits = q @ torch.cat(keys, 3).mT + clock.repeat_interleave(length, -1)
    return torch.softmax(logits, -1) @ torch.cat(values, 3)


class ConditionedBlock(nn.Module):
    """Transformer block whose norms are modulated by the action (adaptive layer norm, Peebles & Xie 2023)."""

    FUSED: ClassVar[dict[str, int]] = {"qkv": 3, "out": 1, "up": 1, "down": 1, "modulation": 6}
    """Matrices, and how many layers' each one stacks."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        w = config.width
        self.heads, self.head_size = config.heads, config.head_size
        inner = self.heads * self.head_size
        self.qkv = nn.Linear(w, 3 * inner)
        self.out = nn.Linear(inner, w)
        self.up = nn.Linear(w, config.mlp)
        self.down = nn.Linear(config.mlp, w)
        self.modulation = nn.Linear(w, 6 * w)
        self.age = nn.Parameter(torch.zeros(config.history, config.heads, 1, self.head_size))
        for layer in (self.qkv, self.out, self.up, self.down):
            nn.init.trunc_normal_(layer.weight, std=w**-0.5)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.out.weight.mul_((2 * config.depth) ** -0.5)
            self.down.weight.mul_((2 * config.depth) ** -0.5)
        nn.init.normal_(self.age, std=0.3)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Tensor, condition: Tensor, past_keys: list[Tensor], past_values: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, S, L, W), condition (B, S, 1, W), past oldest first -> x, keys, values of this frame."""
        w = x.shape[-1]
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, -1)
        q, k, v = self.read(x, shift1, scale1)
        q = q * q.shape[-1] ** -0.5
        # An added vector says how old a key's frame is, so cached keys stay valid while the window slides.
        frames = [*past_keys, k]
        ages, frame_values = self.age[: len(frames)].flip(0), [*past_values, v]
        if q.is_cuda or any(key.ndim == 4 for key in frames):
            keys = [key + age for key, age in zip(frames, ages, strict=True)]
            mixed = attend(q, keys, frame_values)
        else:
            mixed = attend_own(q, frames, frame_values, ages)
        mixed = mixed.transpose(2, 3).flatten(3)
        x = torch.addcmul(x, self.out(mixed), 1 + gate1)
        y = torch.addcmul(shift2, F.layer_norm(x, (w,)), 1 + scale2)
        return torch.addcmul(x, self.down(torch.relu(self.up(y))), 1 + gate2), k, v

    def read(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Queries, keys and values (3, B, S, heads, L, d) of x (B, S, L, W)."""
        b, s, length, w = x.shape
        y = torch.addcmul(shift, F.layer_norm(x, (w,)), 1 + scale)
        return self.qkv(y).view(b, s, length, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)

    def remember(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of this frame alone, as `forward` has them."""
        shift, scale = self.modulation(condition).chunk(6, -1)[:2]
        _, k, v = self.read(x, shift, scale)
        return k, v


class Predictor(nn.Module):
    """Next-frame predictor over standardised tokens and proprioception."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        w = config.width
        self.embed_tokens = nn.Linear(config.token_dim, w)
        self.embed_positions = nn.Linear(w, w)
        self.embed_proprio = nn.Linear(config.proprio_dim, w)
        self.embed_condition = nn.Sequential(
            nn.Linear(config.action_dim + config.proprio_dim, w), nn.SiLU(), nn.Linear(w, w), nn.SiLU()
        )
        self.blocks = nn.ModuleList(ConditionedBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(w)
        self.token_change = nn.Linear(w, config.token_dim)
        self.proprio_change = nn.Linear(w, config.proprio_dim)
        self.register_buffer("positions", sincos_positions(*config.grid, w), persistent=False)
        for layer in (self.token_change, self.proprio_change):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def hidden_matrices(self) -> dict[str, int]:
        """Names of the matrices inside the blocks, and how many layers' each one stacks."""
        return {
            f"blocks.{block}.{name}.weight": layers
            for block in range(self.config.depth)
            for name, layers in ConditionedBlock.FUSED.items()
        }

    def positions_of(self, patches: Tensor) -> Tensor:
        """Embedded coordinates (B, M, W) of patch indices (B, M): computed once for a whole rollout.

        Blended tokens (`sparsewm.model.latent.blend`) have those of their own places.
        """
        if patches.is_floating_point():
            codes = sincos_at(patches[..., -2:], self.config.width, max(self.config.grid))
            return self.embed_positions(codes.to(self.embed_positions.weight.dtype))
        return self.embed_positions(self.positions.to(self.embed_positions.weight.dtype))[patches]

    def forward(
        self, tokens: Tensor, proprio: Tensor, action: Tensor, positions: Tensor, past: list[FrameCache]
    ) -> tuple[Tensor, Tensor, FrameCache]:
        """Advance one frame.

        Args:
            tokens: (B, S, M, D) standardised tokens of the kept patches (float32); S may be 1 while `action`
                has more candidates, the first imagined step then shares their embedding.
            proprio: (B, S, P). action: (B, S, C).
            positions: (B, M, W) from `positions_of`.
            past: caches of earlier frames, oldest first; only the last `history - 1` are used.

        Returns:
            tokens and proprio of the next frame (float32), and this frame's cache.
        """
        x, condition, past = self._embed(tokens, proprio, action, positions, past)
        cache = FrameCache()
        for layer, block in enumerate(self.blocks):
            x, k, v = block(x, condition, *_of_layer(past, layer))
            cache.keys.append(k)
            cache.values.append(v)
        x = self.norm(x)
        next_tokens = tokens + self.token_change(x[:, :, :-1]).float()
        next_proprio = proprio + self.proprio_change(x[:, :, -1]).float()
        return next_tokens, next_proprio, cache

    def remember(self, tokens: Tensor, proprio: Tensor, actions: Tensor, patches: Tensor) -> list[FrameCache]:
        """The caches of `forward` alone: of frames whose future is known nothing else is needed.

        Args:
            tokens: (B, F, M, D) of the kept patches, oldest frame first. proprio: (B, F, P).
            actions: (B, F, C) taken at them. patches: (B, M).

        Returns:
            caches shared by all candidates, (B, H, L, d) per layer.
        """
        caches: list[FrameCache] = []
        positions = self.positions_of(patches)
        for frame in range(tokens.shape[1]):
            here = slice(frame, frame + 1)
            x, condition, past = self._embed(
                tokens[:, here], proprio[:, here], actions[:, here], positions, caches
            )
            cache = FrameCache()
            for layer, block in enumerate(self.blocks):
                assert isinstance(block, ConditionedBlock)
                if layer == len(self.blocks) - 1:
                    k, v = block.remember(x, condition)
                else:
                    x, k, v = block(x, condition, *_of_layer(past, layer))
                cache.keys.append(k[:, 0])
                cache.values.append(v[:, 0])
            caches.append(cache)
        return caches

    def _embed(
        self, tokens: Tensor, proprio: Tensor, action: Tensor, positions: Tensor, past: list[FrameCache]
    ) -> tuple[Tensor, Tensor, list[FrameCache]]:
        """What the blocks take: x (B, S, M + 1, W), condition (B, S, 1, W), and the frames still in sight."""
        dtype = self.embed_tokens.weight.dtype
        s = action.shape[1]
        condition = self.embed_condition(torch.cat([action, proprio.expand(-1, s, -1)], -1).to(dtype))[
            :, :, None
        ]
        x = torch.cat(
            [
                self.embed_tokens(tokens.to(dtype)) + positions[:, None],
                self.embed_proprio(proprio.to(dtype))[:, :, None],
            ],
            2,
        )
        return x.expand(-1, s, -1, -1), condition, past[max(0, len(past) - self.config.history + 1) :]


def _of_layer(past: list[FrameCache], layer: int) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values that a layer has of earlier frames."""
    return [frame.keys[layer] for frame in past], [frame.values[layer] for frame in past]
