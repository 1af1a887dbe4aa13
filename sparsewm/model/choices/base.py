"""The door for choices of tokens: what one is shown, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsewm.model.latent import History, Latent

if TYPE_CHECKING:
    from sparsewm.model.world_model import WorldModel

FLOOR = 0.1
"""Share of a scored choice's chances that all patches have alike: none is never kept."""

SHARPEST = 1e-6
"""Temperature in place of 0: equal scores are told apart by chance."""


@dataclass
class Scene:
    """What a choice may look at.

    Attributes:
        start, goal: present and wanted frame of B episodes.
        history: earlier frames and the actions taken at them, oldest first.
        imagined: (B, N) error between the present frame and what the planner's last mean leads to, for
            choices that ask for it; None before the first iteration.
    """

    start: Latent
    goal: Latent
    history: History = ()
    imagined: Tensor | None = None

    def __getitem__(self, episodes: slice) -> Scene:
        history = [(frame[episodes], action[episodes]) for frame, action in self.history]
        imagined = None if self.imagined is None else self.imagined[episodes]
        return Scene(self.start[episodes], self.goal[episodes], history, imagined)


class TokenChoice(ABC):
    """Says which tokens are imagined. It draws from the generators alone and keeps nothing between calls.

    Args:
        model: the world model. temperature: of scored choices.
    """

    attention: bool = False  # whether frames come with the attention of the CLS token
    imagination: bool = False  # whether `Scene.imagined` is wanted; it costs a rollout of one candidate

    def __init__(self, model: WorldModel, temperature: float = 1.0) -> None:
        self.model, self.temperature = model, temperature

    @abstractmethod
    def choose(self, scene: Scene, kept: int, generators: Sequence[torch.Generator]) -> Tensor:
        """A subset of each of the B episodes of a scene.

        Args:
            kept: M, from 1 to the number N of patches. generators: one per episode, as all that is drawn for
                an episode must not depend on the others.

        Returns:
            int64 (B, M) indices of patches, rising; or tokens that are no patches, float (B, M, N + 2) from
            `sparsewm.model.latent.blend`.
        """


class ScoredChoice(TokenChoice):
    """A choice by scores: drawn without replacement, with chances in proportion to them.

    Nine tenths of the chances go by score, a tenth is the same for all. `temperature` 0 keeps the highest
    scores, 1 draws in proportion, more comes nearer to a uniform draw.
    """

    @abstractmethod
    def scores(self, scene: Scene) -> Tensor:
        """How much each patch matters, float (B, N), not negative."""

    def choose(self, scene: Scene, kept: int, generators: Sequence[torch.Generator]) -> Tensor:
        return drawn(self.scores(scene), kept, self.temperature, generators)


def drawn(scores: Tensor, kept: int, temperature: float, generators: Sequence[torch.Generator]) -> Tensor:
    """`kept` indices (B, kept), rising, of scores (B, N): Gumbel top-k, as `ScoredChoice` says."""
    chances = (1 - FLOOR) * shares(scores) + FLOOR / scores.shape[-1]
    count = scores.shape[-1]
    noise = torch.cat([torch.rand(1, count, generator=each, device=each.device) for each in generators])
    gumbel = -(-noise.to(scores.device).log()).log()
    keys = chances.log() + max(temperature, SHARPEST) * gumbel
    return keys.topk(kept, dim=-1).indices.sort(-1).values


def shares(scores: Tensor) -> Tensor:
    """Scores (..., N) as parts of one; all alike where there are none."""
    total = scores.sum(-1, keepdim=True)
    return torch.where(total > 0, scores / total.clamp_min(1e-30), 1 / scores.shape[-1])


def patch_errors(model: WorldModel, tokens: Tensor, others: Tensor) -> Tensor:
    """Error (..., N) of each patch between frames (..., N, D), as the cost sees it."""
    return model.standardizer.token_error(tokens[..., None, :], others[..., None, :])
