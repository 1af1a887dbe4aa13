"""Patches in which present and goal differ."""

from __future__ import annotations

from torch import Tensor

from sparsewm.model.choices.base import Scene, ScoredChoice, patch_errors


class GoalDifference(ScoredChoice):
    """Scores: error of the present frame to the goal's, patch by patch, as in DDP-WM's mask of the cost."""

    def scores(self, scene: Scene) -> Tensor:
        return patch_errors(self.model, scene.start.tokens, scene.goal.tokens)
