"""The published recipe in plain torch: what training and networks are compared with.

Written from the description of DINO-WM (Zhou et al. 2024, arXiv 2411.04983), whose predictor Sparse
Imagination takes over: a vision transformer over a window of three frames; proprioception and action,
embedded in ten numbers each, are joined to every token; attention is dense, with later frames masked; only
recorded frames are fed in training, one step ahead; AdamW, batches of 32, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsewm.model.world_model import WorldModel

BATCH, LEARNING_RATE = 32, 5e-4


@dataclass(frozen=True)
class RecipeConfig:
    """Sizes of the published network.

    Attributes:
        token_dim, patches, proprio_dim, action_dim: of its frames, as in `PredictorConfig`.
        history: frames of its window.
        width: None, as published: a token and both embeddings side by side. Another one is reached by linear
            layers on both ends, for tokens of fewer features than the network they came from.
        depth, heads, head_dim, mlp: the transformer. embedded: numbers of an embedding.
        dropout: in training.
    """

    token_dim: int
    patches: int
    proprio_dim: int
    action_dim: int
    history: int = 3
    width: int | None = None
    depth: int = 6
    heads: int = 16
    head_dim: int = 64
    mlp: int = 2048
    embedded: int = 10
    dropout: float = 0.1

    @property
    def joined(self) -> int:
        """Features of a token with both embeddings."""
        return self.token_dim + 2 * self.embedded

    @property
    def inside(self) -> int:
        """Features of a token inside the transformer."""
        return self.joined if self.width is None else self.width

    @classmethod
    def like(cls, model: WorldModel) -> RecipeConfig:
        """Of the sizes of a model; of its width, too, where that exceeds a token's."""
        config = model.config
        return cls(
            config.token_dim,
            model.patches,
            config.proprio_dim,
            config.action_dim,
            config.history,
            config.width if config.width > config.token_dim else None,
            config.depth,
            config.heads,
            config.head_size,
            config.mlp,
        )


class _Layer(nn.Module):
    """A pre-norm layer whose score matrix is materialised."""

    def __init__(self, config: RecipeConfig) -> None:
        super().__init__()
        width, inner = config.inside, config.heads * config.head_dim
        self.heads, self.scale = config.heads, config.head_dim**-0.5
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.mlp),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.mlp, width),
            nn.Dropout(config.dropout),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (B, L, W); hidden (L, L), true where a query does not see a key."""
        b, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) * self.scale).masked_fill(hidden, -torch.inf)
        mixed = self.dropout(scores.softmax(-1)) @ v
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(b, length, -1)))
        return x + self.mlp(x)


class PlainPredictor(nn.Module):
    """The published network: the window of frames that follows a window of frames."""

    def __init__(self, config: RecipeConfig) -> None:
        super().__init__()
        self.config = config
        width, joined = config.inside, config.joined
        self.embed_proprio = nn.Linear(config.proprio_dim, config.embedded)
        self.embed_action = nn.Linear(config.action_dim, config.embedded)
        given = config.width is not None
        self.enter = nn.Linear(joined, width) if given else nn.Identity()
        self.leave = nn.Linear(width, joined) if given else nn.Identity()
        self.places = nn.Parameter(torch.randn(config.history, config.patches, width))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)

    def joined(self, tokens: Tensor, proprio: Tensor, action: Tensor) -> Tensor:
        """Frames (B, T, M, D), (B, T, P) and the actions (B, T, C) taken at them -> (B, T, M, joined)."""
        given = torch.cat([self.embed_proprio(proprio), self.embed_action(action)], -1)
        return torch.cat([tokens, given[:, :, None].expand(-1, -1, tokens.shape[2], -1)], -1)

    def forward(self, frames: Tensor, patches: Tensor) -> Tensor:
        """Joined frames (B, T, M, joined) of patches (B, M) or (M,) -> those after them; T <= history."""
        b, t, kept, _ = frames.shape
        places = self.places[:t, patches]  # (T, B, M, W) or (T, M, W)
        x = self.enter(frames) + (places.transpose(0, 1) if places.ndim == 4 else places)
        frame = torch.arange(t, device=x.device).repeat_interleave(kept)
        hidden = frame[None] > frame[:, None]
        x = x.flatten(1, 2)
        for layer in self.layers:
            x = layer(x, hidden)
        return self.leave(self.norm(x)).view(b, t, kept, -1)

    def loss(self, tokens: Tensor, proprio: Tensor, action: Tensor) -> Tensor:
        """Squared error one step ahead of every frame, from recorded ones.

        Args:
            tokens: (B, T, N, D), standardised, of history + 1 frames, like proprio (B, T, P).
            action: (B, T - 1, C) standardised.
        """
        patches = torch.arange(self.config.patches, device=tokens.device)
        frames = self.joined(tokens[:, :-1], proprio[:, :-1], action)
        told = self.config.embedded  # the action's numbers come last, and are not predicted
        with torch.no_grad():
            wanted = torch.cat(
                [
                    tokens[:, 1:],
                    self.embed_proprio(proprio[:, 1:])[:, :, None].expand(*tokens[:, 1:].shape[:3], -1),
                ],
                -1,
            )
        return (self(frames, patches)[..., :-told].float() - wanted.float()).square().mean()

    def imagine(self, tokens: Tensor, proprio: Tensor, actions: Tensor, patches: Tensor) -> Tensor:
        """Imagined tokens (B, H, M, D), every frame from a window computed anew.

        Args:
            tokens: (B, M, D) of patches (B, M). proprio: (B, P). actions: (B, H, C) standardised.
        """
        config = self.config
        frames = self.joined(tokens[:, None], proprio[:, None], actions[:, :1])
        for step in range(1, actions.shape[1] + 1):
            following = self(frames[:, -config.history :], patches)[:, -1:]
            if step < actions.shape[1]:
                action = self.embed_action(actions[:, step : step + 1])[:, :, None]
                told = action.expand(-1, -1, tokens.shape[1], -1)
                following = torch.cat([following[..., : -config.embedded], told], -1)
            frames = torch.cat([frames, following], 1)
        return frames[:, 1:, :, : config.token_dim]


class PlainTraining:
    """Training steps of the recipe.

    Args:
        config: sizes. device: where it learns. seed: of its weights.
        autocast: multiply in bfloat16 where torch thinks it safe; weights stay float32.
        memory: bytes that score matrices may take on a CPU. A batch is computed in parts to fit, whose
            gradients add up: at the papers' sizes 32 windows at once take 17 GB, and are no faster.
    """

    def __init__(
        self,
        config: RecipeConfig,
        device: torch.device,
        seed: int,
        autocast: bool = False,
        memory: float = 4e9,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = PlainPredictor(config)
        self.network.to(device).train()
        self.device, self.autocast = device, autocast
        self.optimizer = torch.optim.AdamW(self.network.parameters(), LEARNING_RATE)
        scores = config.depth * config.heads * (config.history * config.patches) ** 2
        self.most = max(1, int(memory / (16 * scores))) if device.type == "cpu" else None

    def step(self, tokens: Tensor, proprio: Tensor, action: Tensor) -> float:
        """One step on a batch, as `PlainPredictor.loss` takes it; the loss."""
        self.optimizer.zero_grad()
        count, total = len(tokens), 0.0
        parts = 1 if self.most is None else -(-count // self.most)
        for part in zip(*(x.chunk(parts) for x in (tokens, proprio, action)), strict=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                loss = self.network.loss(*part) * (len(part[0]) / count)
            loss.backward()
            total += float(loss.detach())
        self.optimizer.step()
        return total
