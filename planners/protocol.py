"""The seam between planners and what they optimise: a problem goes in, a plan comes out.

Shapes: B episodes planned at once, S candidates each, H steps of horizon, A numbers per action.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class PlanningError(ValueError):
    """A plan cannot be made from what was passed; the message is one sentence that says why."""


@runtime_checkable
class PlanningProblem(Protocol):
    """What a planner optimises: a batch of episodes, each with its own cost over action sequences.

    A planner knows nothing else: no tokens, no images, no environments. World models, simulators and
    the analytic problems of :mod:`planners.problems` implement these same members. Rows of the batch are
    independent, and so are the candidates of a row: the cost of one must not depend on the others.
    """

    @property
    def batch(self) -> int:
        """Number of episodes B."""
        ...

    @property
    def horizon(self) -> int:
        """Number of actions H in a plan."""
        ...

    @property
    def action_dim(self) -> int:
        """Numbers per action A."""
        ...

    @property
    def low(self) -> Tensor:
        """Smallest actions (A,), finite, in the units of the actions."""
        ...

    @property
    def high(self) -> Tensor:
        """Largest actions (A,), finite, everywhere above ``low``."""
        ...

    @property
    def mean(self) -> Tensor | None:
        """Mean (H, A) of the first sampling distribution; None: the middle of the range."""
        ...

    @property
    def std(self) -> Tensor | None:
        """Standard deviation (H, A) of the first sampling distribution; None: a quarter of the range."""
        ...

    @property
    def device(self) -> torch.device | str:
        """Where ``cost`` wants its actions; random numbers are drawn there too."""
        ...

    def cost(self, actions: Tensor) -> Tensor:
        """Cost (B, S) of candidates (B, S, H, A), float32; lower is better; not finite means impossible."""
        ...

    def resample(self, iteration: int) -> None:
        """Called once before each iteration: the place to draw a new random token subset.

        Costs before and after a call need not be comparable.
        """
        ...


@dataclass
class Plan:
    """What a planner found.

    Attributes:
        actions: the plan of each episode (B, H, A), inside the bounds.
        cost: its cost (B,), as scored in the last iteration.
        elites: the best candidates of the last iteration (B, K, H, A), best first; ``elites[:, 0]`` is
            ``actions``. Shifted in time they warm-start the next plan. K depends on the planner.
        history: one entry per iteration with the floats ``best``, ``elite`` (mean over the elites) and
            ``mean`` (over all finite candidates), each averaged over the episodes. Where the problem
            redraws its tokens, entries are not comparable with one another.
        seconds_per_iteration: wall-clock seconds of each iteration, device work included.
    """

    actions: Tensor
    cost: Tensor
    elites: Tensor
    history: list[dict[str, float]] = field(default_factory=list)
    seconds_per_iteration: list[float] = field(default_factory=list)
