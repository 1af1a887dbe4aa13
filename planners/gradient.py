"""Gradient descent on the actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsewm.planners.base import Planner, within
from sparsewm.planners.protocol import PlanningError, PlanningProblem
from sparsewm.planners.space import Gaussian, Space


@dataclass(frozen=True)
class Descent:
    """Where every restart stands, and Adam's two moments of its gradient: all (B, S, H, A)."""

    actions: Tensor
    first: Tensor
    second: Tensor


class GradientDescent(Planner[Descent]):
    """Adam on the actions from several starts at once; the best restart of the last iteration is the plan.

    Needs a problem whose cost is differentiable. Gradients are normalised per restart before Adam sees them,
    so a cost that changes its scale between iterations does not upset the moments; steps shrink linearly and
    actions are projected to the bounds.

    Args:
        candidates: restarts per episode: the prior mean (or warm start), and draws around it.
        iterations: optimiser iterations; the last one only scores.
        learning_rate: first step, as a fraction of half the action range, above 0 and at most 1.
        seed: seed of the random numbers.

    Raises:
        ValueError: an argument is out of range.
    """

    differentiates = True

    def __init__(
        self, candidates: int = 10, iterations: int = 30, learning_rate: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(candidates, iterations, max(candidates // 10, 1), seed)
        within("learning_rate", learning_rate, 1e-6, 1.0)
        self.learning_rate = learning_rate

    def start(self, prior: Gaussian, space: Space) -> Descent:
        actions = prior.sample(space.noise(self.candidates, *space.mean.shape), space)
        zeros = torch.zeros(())  # shaped by the first update: seeds may add restarts
        return Descent(actions, zeros, zeros)

    def sample(self, state: Descent, space: Space, iteration: int, count: int) -> Tensor:
        return state.actions

    def update(
        self, state: Descent, candidates: Tensor, costs: Tensor, space: Space, iteration: int
    ) -> Descent:
        slope = _slope(candidates, costs)
        slope = slope / slope.square().mean(dim=(2, 3), keepdim=True).sqrt().clamp(
            min=torch.finfo(slope.dtype).tiny
        )
        first = 0.9 * state.first.to(slope) + 0.1 * slope
        second = 0.99 * state.second.to(slope) + 0.01 * slope.square()
        unbiased = first / (1 - 0.9 ** (iteration + 1))
        scale = (second / (1 - 0.99 ** (iteration + 1))).sqrt() + 1e-8
        step = self.learning_rate * (1 - iteration / self.iterations) * (space.high - space.low) / 2
        return Descent(space.clamp(candidates.detach() - step * unbiased / scale), first, second)

    @staticmethod
    def _score(
        problem: PlanningProblem, candidates: Tensor, iteration: int, with_gradient: bool
    ) -> tuple[Tensor, np.ndarray]:
        try:
            return Planner._score(problem, candidates, iteration, with_gradient)
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
            raise PlanningError(
                "gradient descent needs a problem built outside torch.inference_mode(); build it under "
                "torch.no_grad() or plan with cem, icem or mppi"
            ) from error


def _slope(candidates: Tensor, costs: Tensor) -> Tensor:
    """Gradient (B, S, H, A) of the costs, zero where it is not finite."""
    slope = None
    if costs.requires_grad:
        with torch.enable_grad():
            total = costs.sum()
        (slope,) = torch.autograd.grad(total, candidates, allow_unused=True)
    if slope is None:
        raise PlanningError(
            "gradient descent needs a problem whose cost is differentiable in the actions; "
            "plan with cem, icem or mppi instead"
        )
    return torch.where(slope.isfinite(), slope, 0.0)
