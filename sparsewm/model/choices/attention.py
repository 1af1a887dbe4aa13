"""Patches that the encoder's image token attends to."""

from __future__ import annotations

from torch import Tensor

from sparsewm.errors import UserError
from sparsewm.model.choices.base import Scene, ScoredChoice


class Attention(ScoredChoice):
    """Scores: attention of the CLS token to the patches of the present frame. It knows of no goal."""

    attention = True

    def scores(self, scene: Scene) -> Tensor:
        """Attention (B, N).

        Raises:
            UserError: the encoder gives none.
        """
        if scene.start.attention is None:
            raise UserError(
                f"encoder '{self.model.encoder.name}' gives no attention to patches: give `choose` random"
            )
        return scene.start.attention.float()
