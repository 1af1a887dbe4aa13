"""Which tokens are imagined, and which of them are compared with the goal."""

from __future__ import annotations

from collections.abc import Callable

from sparsewm.errors import UserError
from sparsewm.model.choices.base import Scene, ScoredChoice, TokenChoice, drawn
from sparsewm.model.world_model import WorldModel
from sparsewm.registry import Registry

ChoiceFactory = Callable[[WorldModel, float], TokenChoice]
"""Makes a choice for a world model from a temperature."""

_HERE = "sparsewm.model.choices"

CHOICES: Registry[ChoiceFactory] = Registry(
    "choice of tokens",
    "sparsewm.choices",
    {
        "random": f"{_HERE}.uniform:RandomPatches",
        "grid": f"{_HERE}.uniform:UniformGrid",
        "attention": f"{_HERE}.attention:Attention",
        "ranking": f"{_HERE}.ranking:Ranking",
        "motion": f"{_HERE}.motion:Motion",
        "goal": f"{_HERE}.goal:GoalDifference",
        "mixture": f"{_HERE}.mixture:Mixture",
        "merge": f"{_HERE}.merge:Merge",
        "drop_merge": f"{_HERE}.merge:DropMerge",
        "grids": f"{_HERE}.grids:Grids",
    },
)
"""Choices by the name that `tokens.choose` knows."""

ALL = "all"


def compared_by(model: WorldModel, name: str, temperature: float) -> ScoredChoice | None:
    """What picks the imagined tokens that are compared with the goal; None for `all` of them.

    Raises:
        UserError: no such choice, or one without scores.
    """
    if name == ALL:
        return None
    choice = CHOICES.get(name)(model, temperature)
    if not isinstance(choice, ScoredChoice):
        raise UserError(f"`tokens.cost` {name} has no scores of patches: give all, goal or another that has")
    return choice


__all__ = ["CHOICES", "ChoiceFactory", "Scene", "ScoredChoice", "TokenChoice", "compared_by", "drawn"]
