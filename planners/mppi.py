"""Model predictive path integral control."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsewm.planners.base import Planner, at_least, within
from sparsewm.planners.space import Gaussian, Space


class MPPI(Planner[Gaussian]):
    """MPPI: the mean moves to the average of all candidates, weighted by exp(-cost / temperature).

    Williams et al., "Information Theoretic MPC for Model-Based Reinforcement Learning", ICRA 2017; the
    noise is refitted with the same weights, as in TD-MPC2 (Hansen et al., ICLR 2024). Costs are first divided
    by their spread (median minus best) in each episode, so one temperature serves costs of any scale.

    Args:
        candidates: action sequences scored per episode and iteration, at least 2.
        iterations: optimiser iterations.
        temperature: in units of the cost spread, above 0; small follows the best candidates only.
        min_std: floor under the sampling noise, as a fraction of the action range, in [0, 1].
        seed: seed of the random numbers.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        candidates: int = 100,
        iterations: int = 10,
        temperature: float = 0.2,
        min_std: float = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__(candidates, iterations, max(candidates // 10, 1), seed)
        at_least("candidates", candidates, 2)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        within("min_std", min_std, 0.0, 1.0)
        self.temperature = temperature
        self.min_std = min_std

    def start(self, prior: Gaussian, space: Space) -> Gaussian:
        return prior

    def sample(self, state: Gaussian, space: Space, iteration: int, count: int) -> Tensor:
        return state.sample(space.noise(count, *space.mean.shape), space)

    def update(
        self, state: Gaussian, candidates: Tensor, costs: Tensor, space: Space, iteration: int
    ) -> Gaussian:
        weights = path_weights(costs, self.temperature)[..., None, None]  # (B, S, 1, 1)
        mean = (weights * candidates).sum(dim=1)
        variance = (weights * (candidates - mean[:, None]).square()).sum(dim=1)
        # Bessel's correction for weighted samples: few effective candidates would shrink the noise too fast.
        effective = 1 - weights.square().sum(dim=1)
        variance = variance / effective.clamp(min=torch.finfo(variance.dtype).eps)
        return state.moved(mean, variance.sqrt(), 0.0, self.min_std, space)


def path_weights(costs: Tensor, temperature: float) -> Tensor:
    """Weights (B, S) that sum to 1, from costs (B, S); 0 where the cost is inf."""
    best = costs.min(dim=1, keepdim=True).values
    excess = costs - best
    spread = excess.masked_fill(excess.isinf(), torch.nan).nanmedian(dim=1, keepdim=True).values
    scale = (temperature * spread).clamp(min=torch.finfo(costs.dtype).tiny)
    return torch.softmax(-excess / scale, dim=1)
