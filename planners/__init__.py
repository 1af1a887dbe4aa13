"""Sampling and gradient planners for any batched cost over action sequences; needs PyTorch only.

>>> import torch, planners
>>> problem = planners.Quadratic(target=torch.zeros(2, 5, 3))  # 2 episodes, horizon 5, 3 numbers per action
>>> plan = planners.CEM(samples=100, elites=10, iterations=10).plan(problem)
>>> plan.actions.shape
torch.Size([2, 5, 3])
"""

from __future__ import annotations

from typing import Any

from planners.base import Planner
from planners.cem import CEM
from planners.gradient import GradientDescent
from planners.icem import ICEM
from planners.mpc import MPC
from planners.mppi import MPPI
from planners.problems import DoubleIntegrator, Quadratic
from planners.proposals import GaussianProposals, ProposalMode, ProposalSampler
from planners.protocol import Plan, PlanningError, PlanningProblem, RacingProblem, SeparableProblem

PLANNERS: dict[str, type[Planner[Any]]] = {"cem": CEM, "icem": ICEM, "mppi": MPPI, "gd": GradientDescent}
"""Planners by the name the command line knows; all take ``samples``, ``iterations`` and ``seed``."""

__all__ = [
    "CEM",
    "ICEM",
    "MPC",
    "MPPI",
    "PLANNERS",
    "DoubleIntegrator",
    "GaussianProposals",
    "GradientDescent",
    "Plan",
    "Planner",
    "PlanningError",
    "PlanningProblem",
    "ProposalMode",
    "ProposalSampler",
    "Quadratic",
    "RacingProblem",
    "SeparableProblem",
]
