"""Some patches at random, some of the goal, some of what moves: as many as each needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsewm.model.choices.base import Scene, ScoredChoice, drawn, shares
from sparsewm.model.choices.goal import GoalDifference
from sparsewm.model.choices.motion import Motion

LARGEST = 0.4
"""Share of the kept patches that either of goal difference and motion has at most."""


class Mixture(ScoredChoice):
    """Random patches, goal difference and motion, in shares that follow the scene.

    A map of scores w is spread over (sum w)^2 / sum w^2 patches. Goal difference and motion get as large a
    share of the kept patches as each is spread over, at most 0.4; the rest is random, at least a fifth.
    """

    imagination = True

    def scores(self, scene: Scene) -> Tensor:
        return self._mixed(scene, self.model.patches)

    def choose(self, scene: Scene, kept: int, generators: Sequence[torch.Generator]) -> Tensor:
        return drawn(self._mixed(scene, kept), kept, self.temperature, generators)

    def _mixed(self, scene: Scene, kept: int) -> Tensor:
        left = torch.ones(len(scene.start.tokens), 1, device=scene.start.tokens.device)
        mixed = torch.zeros_like(scene.start.tokens[..., 0])
        for part in (GoalDifference(self.model), Motion(self.model)):
            chances = shares(part.scores(scene))
            spread = 1 / chances.square().sum(-1, keepdim=True)
            share = (spread / kept).clamp_max(LARGEST)
            mixed, left = mixed + share * chances, left - share
        return mixed + left / self.model.patches
