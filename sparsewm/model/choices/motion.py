"""Patches that change."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sparsewm.model.choices.base import Scene, ScoredChoice, patch_errors


class Motion(ScoredChoice):
    """Scores: what changed between the frames seen lately, and what the last imagination would change.

    Before anything was seen to move or imagined, all patches are alike.
    """

    imagination = True

    def scores(self, scene: Scene) -> Tensor:
        frames = [*(frame.tokens for frame, _ in scene.history), scene.start.tokens]
        scores = torch.zeros(scene.start.tokens.shape[:-1], device=scene.start.tokens.device)
        for before, after in pairwise(frames):
            scores = scores + patch_errors(self.model, before, after)
        return scores if scene.imagined is None else scores + scene.imagined
