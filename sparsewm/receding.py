"""Receding horizon for problems of many episodes: plan, say what to execute, keep a deadline."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparsewm.config import NO_PROPOSALS, PlanConfig
from sparsewm.planners import MPC, PLANNERS, Plan, PlanningProblem

SPARE = 0.02
"""Share of a deadline that is kept for what cannot be foreseen."""
MOST = 0.2
"""Share that is kept at most after searches that came late."""
KEPT = 0.9997
"""Of what is kept for these, how much is left a plan later."""


class ExecutableProblem(PlanningProblem, Protocol):
    """A planning problem that knows what the environment executes for a planned action."""

    def executed(self, actions: Tensor) -> Tensor:
        """Planned actions (..., H, action_dim) as environment actions (..., H, frameskip * A)."""
        ...

    def steps(self, actions: Tensor) -> Tensor:
        """How many of the planned model steps (B, H, action_dim) lead to the frame that was scored: (B,)."""
        ...


class Receding:
    """Plans problems of many episodes and says what to execute of each plan, at most up to the scored frame.

    Args:
        config: planner, its settings and its deadline.
    """

    def __init__(self, config: PlanConfig) -> None:
        search = config.search
        kind = PLANNERS.get(search.planner)
        options = {
            "candidates": search.candidates,
            "elites": search.elites,
            "iterations": search.iterations,
            "seed": config.run.seed,
        }
        wanted = inspect.signature(kind).parameters
        options = {name: value for name, value in options.items() if name in wanted}
        self.mpc = MPC(kind(**options), search.execute)
        self.mode = "seed" if config.proposals.source == NO_PROPOSALS else config.proposals.mode
        self.deadline = None if search.deadline_ms is None else search.deadline_ms / 1000
        self._afterwards = 0.0  # seconds a plan takes after the search; the slowest lately
        self._late = 0.0  # seconds by which a search missed its limit; the worst lately
        self.cold = self.deadline is not None  # a deadline asks for a warm-up first

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin episodes with these seeds of their candidates."""
        self.mpc.reset(seeds)

    def plan(
        self,
        problem: ExecutableProblem,
        active: np.ndarray,
        episodes: int,
        proposals: Tensor | None,
        started: float,
        taken: Sequence[int] | None = None,
    ) -> tuple[Plan, list[np.ndarray]]:
        """A plan of the active episodes, and the environment actions (n, frameskip * A) to execute of each.

        Args:
            active: their numbers among the `episodes`, rising. proposals: candidates (B, K, H, action_dim).
            started: when the observation came, by `time.perf_counter`.
            taken: model steps that each has executed since its last plan; `execute` when left out.
        """
        mask = torch.zeros(episodes, dtype=torch.bool)
        mask[torch.as_tensor(active)] = True
        left = None
        if self.deadline is not None:
            limit = started + (1 - SPARE) * self.deadline - self._late - self._afterwards
            left = limit - time.perf_counter()
        plan = self.mpc.plan(problem, mask, proposals, left, self.mode, taken)
        searched = time.perf_counter()
        if self.deadline is not None:
            self._late = min(max(searched - limit, KEPT * self._late), MOST * self.deadline)
        count = problem.steps(plan.actions).clamp(max=self.mpc.execute).tolist()
        self._afterwards = max(time.perf_counter() - searched, 0.9 * self._afterwards)
        actions = problem.executed(plan.actions).cpu().numpy()
        return plan, [row[:n] for row, n in zip(actions, count, strict=True)]

    def warm_up(self, problem: ExecutableProblem, proposals: Tensor | None) -> None:
        """Find out how fast this machine is, on a problem whose random numbers nobody needs."""
        self.cold = False
        self.mpc.planner.warm_up(problem, proposals, self.mode)
        assert problem.mean is not None
        started = time.perf_counter()
        problem.steps(problem.mean.expand(problem.batch, -1, -1))
        self._afterwards = time.perf_counter() - started
