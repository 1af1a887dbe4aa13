"""Receding horizon: plan, execute a few actions, plan again from what is left of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsewm.planners.base import Planner, at_least
from sparsewm.planners.proposals import ProposalMode
from sparsewm.planners.protocol import Plan, PlanningError, PlanningProblem
from sparsewm.planners.seeding import generator
from sparsewm.planners.space import Space


class MPC:
    """Re-planning with a warm start and random numbers of every episode's own; it steps no environment.

    Call :meth:`plan`, take ``plan.actions[:, :execute]``, observe, and call :meth:`plan` with the problem
    built from the new observation. Each plan starts from the one before it, shifted by ``execute`` actions,
    with the problem's prior mean at the open end.

    Args:
        planner: any planner.
        execute: actions taken of each plan, 1 to the problem's horizon.

    Raises:
        ValueError: ``execute`` is below 1.
    """

    def __init__(self, planner: Planner[Any], execute: int = 1) -> None:
        at_least("execute", execute, 1)
        self.planner = planner
        self.execute = execute
        self.reset()

    def reset(self, seeds: Sequence[int] | None = None) -> None:
        """Forget the warm starts: new episodes begin.

        Args:
            seeds: one of each episode, whose candidates are then drawn from a generator of its own: what is
                planned for an episode does not depend on how many others are planned with it. None: all
                draw from the planner's generator.
        """
        self._seeds = None if seeds is None else list(seeds)
        self._generators: list[torch.Generator] = []
        self._warm: Tensor | None = None  # (E, K, H, A), shifted already

    def plan(
        self,
        problem: PlanningProblem,
        active: Tensor | None = None,
        proposals: Tensor | None = None,
        deadline: float | None = None,
        proposal_mode: ProposalMode = "seed",
    ) -> Plan:
        """Plan the episodes of the problem, warm-started where they were planned before.

        Args:
            problem: B episodes.
            active: which of the E episodes that run under this loop the B rows of the problem are: bool (E,)
                with B True, rows in order. None: all of them. Lets finished episodes drop out of the batch.
            proposals, deadline, proposal_mode: as in :meth:`Planner.plan`.

        Raises:
            PlanningError: ``execute`` exceeds the horizon, or ``active`` does not fit the problem, the seeds
                or the episodes planned so far, besides the errors of :meth:`Planner.plan`.
        """
        if self.execute > problem.horizon:
            raise PlanningError(
                f"cannot execute {self.execute} actions of {problem.horizon} planned; lower execute"
            )
        space = Space.of(problem)
        rows = torch.ones(problem.batch, dtype=torch.bool) if active is None else active
        rows = rows.to(device=space.low.device, dtype=torch.bool)
        if rows.ndim != 1 or int(rows.sum()) != problem.batch:
            raise PlanningError(
                f"active must mark the problem's {problem.batch} episodes, not {int(rows.sum())}"
            )
        before = self._warm if self._warm is not None else self._seeds
        if before is not None and len(before) != len(rows):
            raise PlanningError(
                f"{len(before)} episodes were planned or given seeds before, now {len(rows)}: "
                "pass active for those that go on, or reset() for new ones"
            )
        warm = None if self._warm is None else self._warm[rows]
        sources = self._sources(rows, space.low.device)
        plan = self.planner.plan(problem, warm, proposals, deadline, proposal_mode, sources)
        shifted = shift(plan.elites, self.execute, space.mean)
        old = space.mean.expand(len(rows), *shifted.shape[1:]) if self._warm is None else self._warm
        self._warm = old.index_put((rows.nonzero().flatten(),), shifted)
        return plan

    def _sources(self, rows: Tensor, device: torch.device) -> list[torch.Generator] | None:
        """Generators of the episodes (E,) marked, made where the first problem is."""
        if self._seeds is None:
            return None
        if not self._generators:
            self._generators = [generator(seed, "candidates", device) for seed in self._seeds]
        return [self._generators[row] for row in rows.nonzero().flatten().tolist()]


def shift(actions: Tensor, steps: int, fill: Tensor) -> Tensor:
    """Action sequences (..., H, A) moved ``steps`` earlier in time; the end is taken from ``fill`` (H, A)."""
    end = fill[fill.shape[0] - steps :].expand(*actions.shape[:-2], -1, -1)
    return torch.cat([actions[..., steps:, :], end], dim=-2)
