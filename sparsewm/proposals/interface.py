"""What a sampler of proposals is told about where it acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class ActionInterface(Protocol):
    """Actions and proprioception of a robot or an environment; an environment class need not exist.

    Attributes:
        name: of the environment or the robot.
        action_low, action_high: bounds of an action (A,), as an array, a tensor or numbers.
        proprio_names: names of proprioception, P of them.
    """

    @property
    def name(self) -> str: ...

    @property
    def action_low(self) -> Any: ...

    @property
    def action_high(self) -> Any: ...

    @property
    def proprio_names(self) -> Sequence[str]: ...
