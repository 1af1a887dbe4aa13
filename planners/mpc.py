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
    built from the new observation. Each plan starts from the one before it, shifted by the actions taken of
    it, with the problem's prior mean at the open end.

    Args:
        planner: any planner.
        execute: actions taken of each plan where nobody says otherwise, 1 to the problem's horizon.

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
        self._elites: Tensor | None = None  # (E, K, H, A) of each episode's last plan
        self._planned: set[int] = set()  # episodes that have one

    def plan(
        self,
        problem: PlanningProblem,
        active: Tensor | None = None,
        proposals: Tensor | None = None,
        deadline: float | None = None,
        proposal_mode: ProposalMode = "seed",
        taken: Sequence[int] | None = None,
    ) -> Plan:
        """Plan the episodes of the problem, warm-started where they were planned before.

        Args:
            problem: B episodes.
            active: which of the E episodes that run under this loop the B rows of the problem are: bool (E,)
                with B True, rows in order. None: all of them. Lets finished episodes drop out of the batch.
            proposals, deadline, proposal_mode: as in :meth:`Planner.plan`.
            taken: how many actions of each row's last plan were executed since; ``execute`` when left out.

        Raises:
            PlanningError: ``execute`` exceeds the horizon, or ``active`` does not fit the problem, the seeds
                or the episodes planned so far, or ``taken`` the rows, besides the errors of
                :meth:`Planner.plan`.
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
        before = self._elites if self._elites is not None else self._seeds
        if before is not None and len(before) != len(rows):
            raise PlanningError(
                f"{len(before)} episodes were planned or given seeds before, now {len(rows)}: "
                "pass active for those that go on, or reset() for new ones"
            )
        numbers = rows.nonzero().flatten().tolist()
        steps = [self.execute] * problem.batch if taken is None else [int(count) for count in taken]
        if len(steps) != problem.batch or min(steps) < 0:
            raise PlanningError(
                f"taken must be a number of actions for each of {problem.batch} episodes, got {steps}"
            )
        warm = self._warm_start(numbers, steps, space)
        sources = self._sources(numbers, space.low.device)
        plan = self.planner.plan(problem, warm, proposals, deadline, proposal_mode, sources)
        if self._elites is None:
            self._elites = plan.elites.new_zeros(len(rows), *plan.elites.shape[1:])
        self._elites = self._elites.index_put((rows.nonzero().flatten(),), plan.elites)
        self._planned.update(numbers)
        return plan

    def _warm_start(self, numbers: Sequence[int], steps: Sequence[int], space: Space) -> Tensor | None:
        """Where the searches of these episodes begin, (B, K, H, A); None: none was planned before."""
        if self._elites is None:
            return None
        prior = space.mean.expand(self._elites.shape[1:])
        starts = [
            shift(self._elites[number], min(count, len(space.mean)), space.mean)
            if number in self._planned
            else prior
            for number, count in zip(numbers, steps, strict=True)
        ]
        return torch.stack(starts)

    def _sources(self, numbers: Sequence[int], device: torch.device) -> list[torch.Generator] | None:
        """Generators of these episodes, made where the first problem is."""
        if self._seeds is None:
            return None
        if not self._generators:
            self._generators = [generator(seed, "candidates", device) for seed in self._seeds]
        return [self._generators[number] for number in numbers]


def shift(actions: Tensor, steps: int, fill: Tensor) -> Tensor:
    """Action sequences (..., H, A) moved ``steps`` earlier in time; the end is taken from ``fill`` (H, A)."""
    end = fill[fill.shape[0] - steps :].expand(*actions.shape[:-2], -1, -1)
    return torch.cat([actions[..., steps:, :], end], dim=-2)
