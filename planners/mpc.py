"""Receding horizon: plan, execute a few actions, plan again from what is left of the plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsewm.planners.base import Planner, Space, at_least
from sparsewm.planners.proposals import ProposalMode
from sparsewm.planners.protocol import Plan, PlanningError, PlanningProblem


class MPC:
    """Re-planning with a warm start per episode; it steps no environment.

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
        self._warm: Tensor | None = None  # (E, K, H, A), shifted already

    def reset(self) -> None:
        """Forget the warm starts: new episodes begin."""
        self._warm = None

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
            PlanningError: ``execute`` exceeds the horizon, or ``active`` does not fit the problem or the
                episodes planned so far, besides the errors of :meth:`Planner.plan`.
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
        if self._warm is not None and len(self._warm) != len(rows):
            raise PlanningError(
                f"{len(self._warm)} episodes were planned before, now {len(rows)}: "
                "pass active for those that go on, or reset() for new ones"
            )
        warm = None if self._warm is None else self._warm[rows]
        plan = self.planner.plan(problem, warm, proposals, deadline, proposal_mode)
        shifted = shift(plan.elites, self.execute, space.mean)
        before = space.mean.expand(len(rows), *shifted.shape[1:]) if self._warm is None else self._warm
        self._warm = before.index_put((rows.nonzero().flatten(),), shifted)
        return plan


def shift(actions: Tensor, steps: int, fill: Tensor) -> Tensor:
    """Action sequences (..., H, A) moved ``steps`` earlier in time; the end is taken from ``fill`` (H, A)."""
    end = fill[fill.shape[0] - steps :].expand(*actions.shape[:-2], -1, -1)
    return torch.cat([actions[..., steps:, :], end], dim=-2)
