"""Sampling and gradient planners for any batched cost over action sequences; needs PyTorch only.

>>> import torch
>>> from sparsewm import planners
>>> problem = planners.Quadratic(target=torch.zeros(2, 5, 3))  # 2 episodes, horizon 5, 3 numbers per action
>>> plan = planners.CEM(candidates=100, elites=10, iterations=10).plan(problem)
>>> plan.actions.shape
torch.Size([2, 5, 3])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsewm.planners.base import Planner
from sparsewm.planners.cem import CEM
from sparsewm.planners.gradient import GradientDescent
from sparsewm.planners.icem import ICEM
from sparsewm.planners.mpc import MPC
from sparsewm.planners.mppi import MPPI
from sparsewm.planners.problems import DoubleIntegrator, Quadratic
from sparsewm.planners.proposals import GaussianProposals, ProposalMode, ProposalSampler
from sparsewm.planners.protocol import Plan, PlanningError, PlanningProblem
from sparsewm.planners.seeding import generator
from sparsewm.planners.space import Gaussian, Space
from sparsewm.registry import Registry

PLANNERS: Registry[Callable[..., Planner[Any]]] = Registry(
    "planner",
    "sparsewm.planners",
    {
        "cem": "sparsewm.planners.cem:CEM",
        "icem": "sparsewm.planners.icem:ICEM",
        "mppi": "sparsewm.planners.mppi:MPPI",
        "gd": "sparsewm.planners.gradient:GradientDescent",
    },
)
"""Planners by name; all take ``candidates``, ``iterations`` and ``seed``."""

__all__ = [
    "CEM",
    "ICEM",
    "MPC",
    "MPPI",
    "PLANNERS",
    "DoubleIntegrator",
    "Gaussian",
    "GaussianProposals",
    "GradientDescent",
    "Plan",
    "Planner",
    "PlanningError",
    "PlanningProblem",
    "ProposalMode",
    "ProposalSampler",
    "Quadratic",
    "Space",
    "generator",
]
