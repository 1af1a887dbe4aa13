"""The cross-entropy method."""

from __future__ import annotations

from torch import Tensor

from sparsewm.planners.base import Planner, at_least, lowest, within
from sparsewm.planners.space import Gaussian, Space


class CEM(Planner[Gaussian]):
    """Cross-entropy method: sample from a Gaussian, refit it to the elites, repeat.

    De Boer et al., "A Tutorial on the Cross-Entropy Method", 2005; the planner of DINO-WM.

    Args:
        candidates: action sequences scored per episode and iteration.
        elites: candidates the Gaussian is refitted to, 2 to ``candidates``.
        iterations: optimiser iterations.
        momentum: share of the old mean and std kept in each update, in [0, 1).
        min_std: floor under the sampling noise, as a fraction of the action range, in [0, 1].
        seed: seed of the random numbers.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        candidates: int = 100,
        elites: int = 10,
        iterations: int = 10,
        momentum: float = 0.0,
        min_std: float = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__(candidates, iterations, elites, seed)
        at_least("elites", elites, 2)
        within("momentum", momentum, 0.0, 0.999)
        within("min_std", min_std, 0.0, 1.0)
        self.momentum = momentum
        self.min_std = min_std

    def start(self, prior: Gaussian, space: Space) -> Gaussian:
        return prior

    def sample(self, state: Gaussian, space: Space, iteration: int, count: int) -> Tensor:
        return state.sample(space.noise(count, *space.mean.shape), space)

    def update(
        self, state: Gaussian, candidates: Tensor, costs: Tensor, space: Space, iteration: int
    ) -> Gaussian:
        elites, _ = lowest(candidates, costs, self.elites)  # (B, elites, H, A)
        return state.moved(elites.mean(dim=1), elites.std(dim=1), self.momentum, self.min_std, space)
