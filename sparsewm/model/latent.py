"""Frames in a world model's space: standardised tokens, subsets of patches, statistics of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsewm.positions import gaussian_pooling


@dataclass
class Latent:
    """One frame in the model's space.

    Attributes:
        tokens: (B, N, D) standardised patch tokens, float32.
        proprio: (B, P) standardised proprioception, float32.
        cls: (B, D) image token as the encoder gave it, or None.
        attention: (B, N) CLS-to-patch attention, or None.
        given: (B, N, E) patch tokens as the encoder gave them, where the model keeps less of them; or None.
    """

    tokens: Tensor
    proprio: Tensor
    cls: Tensor | None = None
    attention: Tensor | None = None
    given: Tensor | None = None

    def __getitem__(self, episodes: Any) -> Latent:
        optional = (self.cls, self.attention, self.given)
        picked = (None if part is None else part[episodes] for part in optional)
        return Latent(self.tokens[episodes], self.proprio[episodes], *picked)

    @staticmethod
    def cat(parts: Sequence[Latent]) -> Latent:
        """Frames one after the other, along the first axis."""

        def optional(name: str) -> Tensor | None:
            there = [part for one in parts if (part := getattr(one, name)) is not None]
            return torch.cat(there) if there else None

        return Latent(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.proprio for part in parts]),
            *(optional(name) for name in ("cls", "attention", "given")),
        )


History = Sequence[tuple[Latent, Tensor]]
"""Past frames and the actions (B, C) taken at them, oldest first."""


@dataclass(frozen=True)
class TokenSpace:
    """What a world model keeps of an encoder's tokens.

    Attributes:
        features: kept of a token, those that change where the picture does and nowhere else; 0: all.
        pool: deviation of the Gaussian by which a token is pooled with its neighbours, as a share of the
            picture's longer side; 0: every patch stands for itself.
        reader: width of the network that reads from a token what its patch shows (`token_reader`), of which
            `features` are kept; 0: features are linear in the token.
        window: side of the square of patches whose tokens the reader looks at for one patch.
    """

    features: int = 0
    pool: float = 0.0
    reader: int = 0
    window: int = 1

    def pooling(self, grid: tuple[int, int]) -> Tensor | None:
        """Weights (N, N) of the patches that each patch of a grid is pooled from; None: of itself alone."""
        return gaussian_pooling(*grid, self.pool * max(grid)) if self.pool else None

    def largest(self, token_dim: int) -> int:
        """How many features there are to be kept of tokens of D features."""
        return READINGS if self.reader else token_dim


CELLS = 2
"""Rows and columns of the cells of a patch whose colours a reader tells."""

READINGS = 3 * CELLS**2
"""What a reader gives of a patch: red, green and blue of each cell."""


class Neighbours(nn.Module):
    """A layer (..., N, W) -> (..., N, W) that sees of each patch of a grid the window around it."""

    def __init__(self, width: int, window: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.layer = nn.Conv2d(width, width, window, padding=window // 2)

    def forward(self, x: Tensor) -> Tensor:
        pictures = x.flatten(0, -3).unflatten(1, self.grid).permute(0, 3, 1, 2)
        return self.layer(pictures).permute(0, 2, 3, 1).reshape(x.shape)


def token_reader(token_dim: int, space: TokenSpace, grid: tuple[int, int]) -> nn.Sequential:
    """Network from raw tokens (..., N, D) to what their patches show (..., N, `READINGS`), without gradients.

    A large encoder's token tells the colours of its patch, but not linearly, and with much beside it; the
    tokens around tell some of them too.
    """
    width = space.reader
    inner = nn.Linear(width, width) if space.window == 1 else Neighbours(width, space.window, grid)
    layers = [nn.Linear(token_dim, width), nn.GELU(), inner, nn.GELU(), nn.Linear(width, READINGS)]
    return nn.Sequential(*layers).requires_grad_(False)


class Standardizer(nn.Module):
    """Statistics of the training data, part of every checkpoint.

    Tokens lose their mean *per patch* (what a fixed camera always sees is no information) and pass through a
    linear map that gives what is left unit size (`sparsewm.data.token_statistics`), so that an error of one
    means the same in every environment and for every encoder. The map may keep fewer features than the
    encoder gives, and what it leaves of a patch may be pooled with its neighbours' (`TokenSpace`).

    Args:
        patches: N. token_dim: D of the encoder. proprio_dim: P. action_dim: A.
        space: which features are kept, of patches that lie in a `grid`; None: all of them, as they are.
    """

    token_mean: Tensor
    token_map: Tensor
    cost_map: Tensor
    pool: Tensor | None
    proprio_mean: Tensor
    proprio_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(
        self,
        patches: int,
        token_dim: int,
        proprio_dim: int,
        action_dim: int,
        space: TokenSpace | None = None,
        grid: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        given = space.largest(token_dim) if space is not None else token_dim
        kept = (space and space.features) or given
        self.reader = token_reader(token_dim, space, grid) if space is not None and space.reader else None
        self.mapped = space is not None  # the mean is that of mapped tokens, which are smaller
        self.register_buffer("token_mean", torch.zeros(patches, kept))
        self.register_buffer("token_map", torch.eye(given)[:, :kept].contiguous())
        self.register_buffer("cost_map", torch.eye(kept))
        self.register_buffer("pool", space.pooling(grid) if space is not None else None, persistent=False)
        for name, size in (("proprio", proprio_dim), ("action", action_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def fit(self, statistics: Mapping[str, Tensor | np.ndarray]) -> None:
        """Fill in `token_mean` (N, D), `token_map`, `cost_map` (D, D), `proprio_mean` ... from the data."""
        buffers = self.state_dict()
        for name, value in statistics.items():
            buffer = buffers[name]
            value = torch.as_tensor(value, dtype=torch.float32)
            buffer.copy_(value.clamp_min(1e-4) if name.endswith("_std") else value)

    def tokens(self, patches: Tensor) -> Tensor:
        """Raw patch tokens (..., N, D) -> standardised float32 (..., N, features kept)."""
        if not self.mapped:
            return (patches.float() - self.token_mean) @ self.token_map
        patches = patches.float()
        if self.reader is not None:
            patches = self.reader(patches)
        tokens = patches @ self.token_map - self.token_mean
        return tokens if self.pool is None else self.pool @ tokens

    def token_error(self, tokens: Tensor, goal: Tensor) -> Tensor:
        """What plans are scored by: squared error (...) of standardised tokens (..., M, D) to a goal's."""
        return ((tokens - goal) @ self.cost_map).square().mean((-1, -2))

    def proprio(self, proprio: Tensor) -> Tensor:
        """Raw proprioception (..., P) -> standardised float32."""
        return (proprio.float() - self.proprio_mean) / self.proprio_std

    def actions(self, actions: Tensor) -> Tensor:
        """Actions in the environment's units (..., frameskip * A) -> standardised float32."""
        repeats = actions.shape[-1] // self.action_mean.shape[0]
        return (actions.float() - self.action_mean.repeat(repeats)) / self.action_std.repeat(repeats)

    def raw_actions(self, actions: Tensor) -> Tensor:
        """Standardised actions (..., frameskip * A) -> float32 in the environment's units."""
        repeats = actions.shape[-1] // self.action_mean.shape[0]
        return actions.float() * self.action_std.repeat(repeats) + self.action_mean.repeat(repeats)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        deviations = state_dict.pop(f"{prefix}token_std", None)
        if deviations is not None:  # a checkpoint from before there was a map
            state_dict[f"{prefix}token_map"] = torch.diag(1 / deviations)
            state_dict[f"{prefix}cost_map"] = torch.eye(len(deviations))
        super()._load_from_state_dict(state_dict, prefix, *args)


def linear_fit(x: Tensor, y: Tensor, ridge: float = 1e-4) -> Tensor:
    """Matrix (D, E) that best turns rows of x (K, D) into rows of y (K, E), at a small price on its size."""
    penalty = ridge * x.square().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(x.T @ x / len(x) + penalty, x.T @ y / len(x))


def gather_patches(tokens: Tensor, patches: Tensor) -> Tensor:
    """Tokens (B, ..., N, D) at patch indices (B, M), or blended (`blend`) -> (B, ..., M, D)."""
    if patches.is_floating_point():
        weights = patches[..., :-2]
        return weights.view(len(weights), *[1] * (tokens.ndim - 3), *weights.shape[1:]) @ tokens
    index = patches.view(patches.shape[0], *([1] * (tokens.ndim - 3)), patches.shape[1], 1)
    return tokens.gather(-2, index.expand(*tokens.shape[:-2], -1, tokens.shape[-1]))


def blend(weights: Tensor, places: Tensor) -> Tensor:
    """Tokens that are no patches, in the place of their indices, float (..., M, N + 2).

    Args:
        weights: (..., M, N) of the patches that each is a mean of. places: (..., M, 2), where each stands,
            (y, x) from 0 to 1 across the picture.
    """
    return torch.cat([weights, places], -1)


def patch_places(rows: int, cols: int) -> Tensor:
    """Centres (N, 2) of the patches, (y, x) from 0 to 1 across the picture."""
    y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)


def nearest_patches(patches: Tensor) -> Tensor:
    """Indices (B, M) of patches; of blended tokens those of the largest weights."""
    return patches[..., :-2].argmax(-1) if patches.is_floating_point() else patches


def random_patches(episodes: int, patches: int, kept: int, generator: torch.Generator) -> Tensor:
    """A uniformly random subset of `kept` of `patches` indices for each episode, (B, kept), sorted."""
    noise = torch.rand(episodes, patches, generator=generator, device=generator.device)
    return noise.argsort(1)[:, :kept].sort(1).values


def random_groups(
    episodes: int, patches: int, groups: int, smallest: int, generator: torch.Generator
) -> list[Tensor]:
    """Split the patches of every episode at random into groups of random sizes (sizes shared by the batch).

    Returns:
        `groups` index tensors (B, M_g), disjoint, together all patches; each M_g >= `smallest`.
    """
    if groups == 1:
        return [torch.arange(patches).expand(episodes, -1)]
    order = torch.rand(episodes, patches, generator=generator).argsort(1)
    free = patches - groups * smallest
    if free < 0:
        raise ValueError(f"{groups} groups of at least {smallest} patches do not fit into {patches} patches")
    cuts = torch.randint(free + 1, (groups - 1,), generator=generator).sort().values.tolist()
    sizes = [b - a + smallest for a, b in zip([0, *cuts], [*cuts, free], strict=True)]
    return list(order.split(sizes, 1))
