"""A world-action model: a chunk of actions and a few tokens of the future, denoised together.

Two experts with weights of their own meet in one attention (mixture of transformers): the future expert reads
the present, the goal and noisy tokens of the frames to come, on a sparse random subset of the patches; the
action expert reads the noisy chunk. In training both noise levels are drawn by themselves, so any pair is
valid: the future may stop early and stay a noisy hint while the actions go on, or be left out altogether.
After Efficient-WAM (arXiv 2606.10040), at the scale of this project.

Shapes: B episodes, S candidates, H model steps of C numbers, K tokens of the future of D features, heads of
size d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.config import ProposalConfig
from sparsewm.errors import UserError
from sparsewm.model.latent import Latent, gather_patches, random_patches
from sparsewm.model.predictor import ConditionedBlock, Predictor, attend
from sparsewm.planners.seeding import unit_noise
from sparsewm.positions import sincos_positions
from sparsewm.proposals.flow import PolicySizes, frames_of, noised, random_levels
from sparsewm.proposals.inverse import Bodies
from sparsewm.proposals.mixture import Expert

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer: (B, heads, L, d), or (B, S, heads, L, d) where candidates differ."""


@dataclass(frozen=True)
class WamConfig:
    """Sizes of a world-action model, and what it learns."""

    width: int = 192
    """Features of a token of the future expert, a multiple of 4; the predictor's, to start from it."""
    depth: int = 4
    """Layers of both experts."""
    heads: int = 3
    """Attention heads; width / heads is their size in both experts."""
    mlp: int = 768
    """Features between the two matrices of a layer of the future expert."""
    action_width: int = 96
    """Features of a token of the action expert, an even number."""
    tokens: int = 16
    """Patches of a future frame that are imagined, another random subset each time; 0: no future at all, a
    plain flow policy."""
    frames: int = 1
    """Future frames, evenly over the chunk, its end among them."""
    seen: float = 0.5
    """Share of the patches of present and goal that a training step reads; proposals read all."""
    unseen: float = 0.3
    """Share of training steps whose actions do not see the future, so that it may be left out later."""
    future_weight: float = 0.5
    """Weight of the future's error beside the actions'."""
    from_predictor: bool = True
    """Start the future expert from the world model's predictor, where their sizes agree."""
    told: bool = False
    """Tell it how things lie to one another, too, as the inverse dynamics that reads the state is told; that
    one must lie beside the world model. Where parts of the goal are free, its tokens, which show them, are
    not read."""

    def __post_init__(self) -> None:
        if self.width % 4 or self.width % self.heads or self.action_width % 2:
            raise UserError("of a wam, width must be a multiple of 4 and of heads, action_width even")
        if min(self.depth, self.heads, self.frames) < 1 or self.tokens < 0:
            raise UserError("of a wam, depth, heads and frames must be at least 1, tokens at least 0")
        if not 0 < self.seen <= 1 or not 0 <= self.unseen <= 1:
            raise UserError("of a wam, seen and unseen are shares, seen above 0")


class WorldActionModel(nn.Module):
    """Proposes chunks, and imagines what a few patches will look like on the way.

    Args:
        sizes: of what it reads and writes. config: of the network.

    Attributes:
        sees_goal: whether it reads the goal's tokens. imagines: whether it has a future at all.
        frames: of it that it learns from. kept: patches of each.
    """

    kind: ClassVar[str] = "wam"
    positions: Tensor

    def __init__(self, sizes: PolicySizes, config: WamConfig) -> None:
        super().__init__()
        self.sizes, self.config = sizes, config
        self.sees_goal = not (config.told and sizes.free)
        self.kept = min(config.tokens, sizes.patches)
        self.imagines = self.kept > 0
        self.frames = config.frames if self.imagines else 0
        width, narrow, head = config.width, config.action_width, config.width // config.heads
        self.future = Expert(width, config.mlp, config.depth, config.heads, head)
        self.action = Expert(narrow, 4 * narrow, config.depth, config.heads, head)
        self.embed_tokens = nn.Linear(sizes.token_dim, width)
        self.embed_positions = nn.Linear(width, width)
        self.embed_proprio = nn.Linear(sizes.proprio_dim, width)
        self.frame = nn.Parameter(0.1 * torch.randn(2 + self.frames, width))  # present, goal, future ones
        self.embed_actions = nn.Linear(sizes.action_dim, narrow)
        self.place = nn.Parameter(0.1 * torch.randn(sizes.chunk, narrow))
        self.to_actions = nn.Linear(narrow, sizes.action_dim)
        self.to_tokens = nn.Linear(width, sizes.token_dim)
        for layer in (self.to_actions, self.to_tokens):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if config.told:
            self.bodies = Bodies(sizes)
            self.bodies_in = self.bodies.layers(width)
        self.register_buffer("positions", sincos_positions(*sizes.grid, width), persistent=False)

    reads_tokens: ClassVar[bool] = True

    @property
    def reads_states(self) -> bool:
        """Whether it learns from recorded states, too."""
        return self.config.told

    @property
    def learned(self) -> list[nn.Module]:
        """Parts that have learned before the rest does."""
        return [self.bodies.reader] if self.config.told else []

    @torch.no_grad()
    def begin(self, predictor: Predictor) -> bool:
        """Take over what a trained predictor knows of tokens; whether its sizes agree.

        What modulates its norms are actions, here noise levels: only the modulation's constant part is taken.
        """
        mine, theirs = self.config, predictor.config
        ours = (mine.width, mine.heads, mine.width // mine.heads, mine.mlp, mine.depth)
        if ours != (theirs.width, theirs.heads, theirs.head_size, theirs.mlp, theirs.depth):
            return False
        names = ("embed_tokens", "embed_positions", "embed_proprio")
        pairs = [(getattr(self, name), getattr(predictor, name)) for name in names]
        for layer, block in zip(self.future.each(), predictor.blocks, strict=True):
            assert isinstance(block, ConditionedBlock)
            pairs += [(getattr(layer, name), getattr(block, name)) for name in ("qkv", "out", "up", "down")]
            layer.modulation.bias.copy_(block.modulation.bias)
        for to, source in pairs:
            to.weight.copy_(source.weight)
            to.bias.copy_(source.bias)
        return True

    def read(
        self,
        present: Tensor,
        proprio: Tensor,
        goal: Tensor,
        patches: Tensor | None = None,
        states: tuple[Tensor, Tensor] | None = None,
    ) -> Cache:
        """Keys and values of what is seen, for all candidates: the present, the goal, proprioception.

        Args:
            present, goal: standardised tokens (B, N, D). proprio: (B, P).
            patches: (B, M) that are read; None: all. states: (B, V) now and at the goal, where it is told.
        """
        dtype = self.embed_tokens.weight.dtype
        places = self.embed_positions(self.positions.to(dtype)).expand(len(present), -1, -1)
        frames = [present, goal] if self.sees_goal else [present]
        if patches is not None:
            frames, places = [gather_patches(x, patches) for x in frames], gather_patches(places, patches)
        seen = [self.embed_tokens(x.to(dtype)) + places + self.frame[i] for i, x in enumerate(frames)]
        seen.append(self.embed_proprio(proprio.to(dtype))[:, None])
        if states is not None:
            seen.append(self.bodies_in(self.bodies(*states).to(dtype))[:, None])
        x = torch.cat(seen, 1)[:, None]
        condition = self.future.condition(torch.zeros(len(x), 1, device=x.device))
        cache: Cache = []
        for number, layer in enumerate(self.future.each(), 1):
            q, k, v, parts = layer.read(x, condition)
            cache.append((k[:, 0], v[:, 0]))
            if number < len(self.future.each()):
                x = layer.write(x, attend(q, [k], [v]), parts)
        return cache

    def velocity(
        self,
        cache: Cache,
        chunk: Tensor,
        levels: Tensor,
        future: Tensor | None = None,
        future_levels: Tensor | None = None,
        patches: Tensor | None = None,
        *,
        sees: bool = True,
        fixed: Cache | None = None,
    ) -> tuple[Tensor, Tensor | None, Cache]:
        """Slopes at a noisy chunk and a noisy future.

        Args:
            cache: of `read`. chunk: (B, S, H, C) at noise levels (B, S).
            future: (B, S, frames * K, D), frame by frame, of `patches` (B, K), at `future_levels` (B, S);
                None: none.
            sees: whether the actions see it. fixed: keys and values of a finished future in its place.

        Returns:
            slopes of the chunk and of the future, float32, and the future's keys and values.
        """
        dtype = self.embed_tokens.weight.dtype
        x = self.embed_actions(chunk.to(dtype)) + self.place
        condition = self.action.condition(levels)
        y = None
        if future is not None:
            assert future_levels is not None and patches is not None
            places = self.embed_positions(self.positions.to(dtype))[patches]  # (B, K, W)
            places = (places[:, None] + self.frame[2:, None]).flatten(1, 2)
            y = self.embed_tokens(future.to(dtype)) + places[:, None]
            future_condition = self.future.condition(future_levels)
        kept: Cache = []
        for number, (layer, other) in enumerate(zip(self.action.each(), self.future.each(), strict=True)):
            q, k, v, parts = layer.read(x, condition)
            keys, values = [cache[number][0], k], [cache[number][1], v]
            if y is not None:
                their_q, their_k, their_v, their_parts = other.read(y, future_condition)
                kept.append((their_k, their_v))
                mixed = attend(their_q, [*keys, their_k], [*values, their_v])
                y = other.write(y, mixed, their_parts)
            told = fixed if y is None else kept if sees else None
            if told is not None:
                keys, values = [*keys, told[number][0]], [*values, told[number][1]]
            x = layer.write(x, attend(q, keys, values), parts)
        slope = self.to_actions(F.layer_norm(x, x.shape[-1:])).float()
        if y is None:
            return slope, None, kept
        return slope, self.to_tokens(F.layer_norm(y, y.shape[-1:])).float(), kept

    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Errors of both slopes; noise levels of actions and future are drawn by themselves.

        Args:
            batch: as for the inverse dynamics, and `future` (B, frames, N, D). generator: on a CPU.
        """
        states = None
        if self.config.told:
            now = self.bodies.blurred(batch["state"], 1.0, generator, felt=True)
            wanted = self.bodies.blurred(batch["wanted"], 1.0, generator)
            batch = batch | {"action": self.bodies.turned(batch["action"], now, -1)}
            states = now, wanted
        action, device = batch["action"], batch["action"].device
        count, patches = len(action), self.sizes.patches
        seen = max(1, round(self.config.seen * patches))
        read = random_patches(count, patches, seen, generator).to(device) if seen < patches else None
        cache = self.read(batch["present"], batch["proprio"], batch["goal"], read, states)
        noise = torch.randn(action.shape, generator=generator).to(device)
        levels = random_levels(count, generator).to(device)
        chunk, weight = noised(action, noise, levels)[:, None], batch["weight"]
        future = future_levels = kept = target = None
        if self.imagines:
            kept = random_patches(count, patches, self.kept, generator).to(device)
            clean = gather_patches(batch["future"], kept).flatten(1, 2)
            future_noise = torch.randn(clean.shape, generator=generator).to(device)
            future_levels = random_levels(count, generator).to(device)
            future = noised(clean, future_noise, future_levels)[:, None]
            future_levels, target = future_levels[:, None], future_noise - clean
        sees = bool(torch.rand((), generator=generator) >= self.config.unseen)
        slope, other, _ = self.velocity(cache, chunk, levels[:, None], future, future_levels, kept, sees=sees)
        error = (weight * (slope[:, 0] - (noise - action)).square()).sum() / weight.sum().clamp(min=1)
        if other is None or target is None:
            return {"loss": error}
        missed = (other[:, 0] - target).square().mean()
        return {"loss": error + self.config.future_weight * missed, "action": error, "future": missed}

    @torch.no_grad()
    def propose(
        self,
        present: Latent,
        goal: Latent,
        samples: int,
        generators: Sequence[torch.Generator],
        how: ProposalConfig,
    ) -> Tensor:
        """Standardised chunks (B, samples, H, C), float32; those that are ranked best come first.

        Noise and patches come from generators of every row, or from one.
        """
        cache, states = self._seen(present, goal)
        chunks, imagined, patches = self.denoise(cache, samples * how.ranked, generators, how)
        if states is not None:
            chunks = self.bodies.turned(chunks, states[0][:, None], 1)
        if how.ranked == 1 or imagined is None or patches is None:
            return chunks
        wanted = gather_patches(goal.tokens, patches)[:, None]  # (B, 1, K, D)
        missed = (imagined[:, :, -1] - wanted).square().mean((2, 3))
        best = missed.argsort(1)[:, :samples]
        return chunks[torch.arange(len(best), device=best.device)[:, None], best]

    def _seen(self, present: Latent, goal: Latent) -> tuple[Cache, tuple[Tensor, Tensor] | None]:
        """What is read of two frames, and the states that they show, where it is told."""
        states = (self.bodies.told(present, felt=True), self.bodies.told(goal)) if self.config.told else None
        return self.read(present.tokens, present.proprio, goal.tokens, None, states), states

    def denoise(
        self, cache: Cache, samples: int, generators: Sequence[torch.Generator], how: ProposalConfig
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Chunks from noise, every candidate with a future of its own.

        A future of fewer steps than the actions takes as large ones, the first; then it is finished, and its
        keys and values are computed once for what is left. One of more steps begins before the actions do.

        Returns:
            chunks (B, samples, H, C); what the futures would be without their noise, (B, samples, frames, K,
            D), and their patches (B, K), None without a future.
        """
        sizes, device, batch = self.sizes, cache[0][0].device, len(cache[0][0])
        steps = how.action_steps if how.future_steps is None else how.future_steps
        steps = steps if self.imagines else 0
        chunk = unit_noise(generators, batch, samples, sizes.chunk, sizes.action_dim).to(device)
        patches = future = clean = fixed = None
        if steps:
            rows = batch // len(generators)
            drawn = [random_patches(rows, sizes.patches, self.kept, one) for one in generators]
            patches = torch.cat(drawn).to(device)
            shape = samples, self.frames * self.kept, sizes.token_dim
            future = unit_noise(generators, batch, *shape).to(device)
        done, stride, level = 0, 1 / max(steps, how.action_steps), 1.0
        levels = torch.ones(batch, samples, device=device)
        for step in range(how.action_steps - max(how.action_steps, steps), how.action_steps):
            mine = levels * (1 - max(step, 0) / how.action_steps)
            if future is None or fixed is not None:
                slope, _, _ = self.velocity(cache, chunk, mine, fixed=fixed)
            else:
                slope, other, kept = self.velocity(cache, chunk, mine, future, levels * level, patches)
                assert other is not None
                clean = future - level * other
                if done == steps:
                    fixed = kept
                else:
                    done, level, future = done + 1, level - stride, future - stride * other
            if step >= 0:
                chunk = chunk - slope / how.action_steps
        return chunk, None if clean is None else clean.unflatten(2, (self.frames, self.kept)), patches

    @torch.no_grad()
    def tell(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, float]:
        """`future`: error of what is imagined in one step from pure noise, actions unknown, as a share of the
        error of copying the present."""
        if not self.imagines:
            return {}
        cache, _ = self._seen(*frames_of(batch))
        patches = random_patches(len(batch["goal"]), self.sizes.patches, self.kept, generator)
        patches = patches.to(batch["goal"].device)
        truth = gather_patches(batch["future"], patches)  # (B, frames, K, D)
        noise = [
            torch.randn(part.shape, generator=generator).to(part.device) for part in (truth, batch["action"])
        ]
        one = torch.ones(len(truth), 1, device=truth.device)
        future = noise[0].flatten(1, 2)[:, None]
        _, slope, _ = self.velocity(cache, noise[1][:, None], one, future, one, patches)
        assert slope is not None
        imagined = (future - slope)[:, 0].view_as(truth)
        copied = gather_patches(batch["present"], patches)[:, None]
        size = (copied - truth).square().mean().clamp(min=1e-9)
        return {"future": float((imagined - truth).square().mean() / size)}
