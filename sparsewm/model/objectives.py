"""What imagined frames are scored by: the distance to the goal's frame, on the kept tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

from torch import Tensor

from sparsewm.errors import UserError
from sparsewm.model.distance import TemporalDistance
from sparsewm.model.world_model import WorldModel
from sparsewm.registry import Registry


class Objective(Protocol):
    """Scores frames. Draws no random numbers and keeps nothing: the same frames have the same cost.

    Frames are standardised tokens (B, S, M, D) of the patches (B, M) that were kept, and standardised
    proprioception (B, S, P); the goal's have S = 1. B episodes, S candidates. Where tokens are merged or lie
    between patches, `patches` is float (B, M, N + 2), as `sparsewm.model.latent.blend` makes it.
    """

    @property
    def key(self) -> Hashable:
        """What its results depend on besides its arguments: equal keys, equal costs."""
        ...

    def goal(self, tokens: Tensor, proprio: Tensor, patches: Tensor) -> Any:
        """What frames are compared with, computed once per subset of patches."""
        ...

    def distance(self, tokens: Tensor, proprio: Tensor, goal: Any, patches: Tensor) -> Tensor:
        """Costs float (B, S) of frames; `goal` is what `goal` returned."""
        ...


ObjectiveFactory = Callable[[WorldModel, float], Objective]
"""Makes an objective for a world model from the weight of the proprioception error."""


class TokenError:
    """Squared error of tokens plus `proprio_weight` times that of proprioception, both in deviations.

    Args:
        model: gives the scale of the tokens. proprio_weight: 0 scores by vision alone.
        tokens: whether tokens count; without them proprioception alone is scored, a yardstick.
    """

    def __init__(self, model: WorldModel, proprio_weight: float, tokens: bool = True) -> None:
        self.standardizer, self.proprio_weight, self.tokens = model.standardizer, proprio_weight, tokens

    @property
    def key(self) -> Hashable:
        return ("mse", self.proprio_weight, self.tokens)

    def goal(self, tokens: Tensor, proprio: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        return tokens, proprio

    def distance(
        self, tokens: Tensor, proprio: Tensor, goal: tuple[Tensor, Tensor], patches: Tensor
    ) -> Tensor:
        cost = self.proprio_weight * (proprio - goal[1]).square().mean(-1)
        if self.tokens:
            cost = cost + self.standardizer.token_error(tokens, goal[0])
        return cost


class TemporalError:
    """The learned number of model steps from a frame to the goal.

    Args:
        model: one that was trained with a temporal distance. proprio_weight: 0 leaves proprioception out.

    Raises:
        UserError: the model has no temporal distance.
    """

    def __init__(self, model: WorldModel, proprio_weight: float) -> None:
        if model.distance is None:
            raise UserError(
                "this world model was trained without a temporal distance: plan with `objective` mse, or add "
                "one with sparsewm train --extend CHECKPOINT --distance-steps 400"
            )
        self.network, self.blind = model.distance, proprio_weight == 0

    @property
    def key(self) -> Hashable:
        return ("temporal", self.blind)

    def goal(self, tokens: Tensor, proprio: Tensor, patches: Tensor) -> Tensor:
        return self.network.embed(tokens, None if self.blind else proprio, patches)

    def distance(self, tokens: Tensor, proprio: Tensor, goal: Tensor, patches: Tensor) -> Tensor:
        return TemporalDistance.between(self.goal(tokens, proprio, patches), goal)


OBJECTIVES: Registry[ObjectiveFactory] = Registry(
    "objective", "sparsewm.objectives", {"mse": TokenError, "temporal": TemporalError}
)
"""Objectives by the name that `cost.objective` knows."""


def objective_of(model: WorldModel, name: str, proprio_weight: float, tokens: bool = True) -> Objective:
    """The objective called `name`; without `tokens` the one that scores proprioception alone.

    Raises:
        UserError: there is no such objective, the model lacks what it needs, or nothing is left of the cost.
    """
    if tokens:
        return OBJECTIVES.get(name)(model, proprio_weight)
    if proprio_weight == 0:
        raise UserError("a goal without 'proprio' leaves nothing of the cost where no tokens are selected")
    return TokenError(model, proprio_weight, tokens=False)
