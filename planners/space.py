"""Where a search takes place: the checked action space of a problem, and Gaussians over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsewm.planners.proposals import ProposalMode
from sparsewm.planners.protocol import PlanningError, PlanningProblem
from sparsewm.planners.seeding import unit_noise


@dataclass(frozen=True)
class Space:
    """The action space of one problem, checked, on its device, and the random numbers of its search.

    Attributes:
        batch: number of episodes B.
        low, high: bounds (A,).
        mean, std: the problem's prior (H, A), defaults filled in, the mean inside the bounds.
        generators: one of every episode, or one for all.
    """

    batch: int
    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor
    generators: Sequence[torch.Generator] = ()

    @classmethod
    def of(cls, problem: PlanningProblem) -> Space:
        """Read and check a problem's attributes; raises :class:`PlanningError` naming the wrong one."""
        batch, horizon, size = problem.batch, problem.horizon, problem.action_dim
        for name, value in (("batch", batch), ("horizon", horizon), ("action_dim", size)):
            if value < 1:
                raise PlanningError(f"the problem's {name} must be at least 1, not {value}")
        low = tensor("low", problem.low, (size,), problem.device)
        high = tensor("high", problem.high, (size,), problem.device)
        if not bool((low <= high).all()):
            raise PlanningError(
                f"the problem's low must nowhere lie above high, not {low.tolist()} and {high.tolist()}"
            )
        mean = torch.zeros(horizon, size, device=low.device) + (low + high) / 2
        if problem.mean is not None:
            mean = tensor("mean", problem.mean, (horizon, size), problem.device)
        quarter = torch.where(low < high, (high - low) / 4, 1.0)  # a number without freedom stays as it is
        std = torch.zeros(horizon, size, device=low.device) + quarter
        if problem.std is not None:
            std = tensor("std", problem.std, (horizon, size), problem.device)
        if not bool((std > 0).all()):
            raise PlanningError(f"the problem's std must be positive, not {float(std.min()):g}")
        return cls(batch, low, high, mean.clamp(low, high), std)

    def clamp(self, actions: Tensor) -> Tensor:
        """Actions (..., A) cut to the bounds."""
        return actions.clamp(self.low, self.high)

    def noise(self, *shape: int) -> Tensor:
        """Unit Gaussian noise (B, *shape), each episode's from its own generator."""
        return unit_noise(self.generators, self.batch, *shape)


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian over action sequences, one per episode: mean and std, both (B, H, A)."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor, space: Space) -> Tensor:
        """Candidates (B, S, H, A) inside the bounds from unit noise of that shape; the first is the mean.

        The mean belongs among the candidates: once the search has converged nothing sampled beats it.
        """
        candidates = self.mean[:, None] + self.std[:, None] * noise
        candidates[:, 0] = self.mean
        return space.clamp(candidates)

    def moved(self, mean: Tensor, std: Tensor, momentum: float, min_std: float, space: Space) -> Gaussian:
        """The Gaussian with the new mean and std, after momentum and with the floor under the noise."""
        mean = momentum * self.mean + (1 - momentum) * mean
        std = momentum * self.std + (1 - momentum) * std
        width = space.high - space.low
        return Gaussian(mean, std.clamp(min_std * width, width))


def beginning(
    space: Space, warm_start: Tensor | None, proposals: Tensor | None, mode: ProposalMode
) -> tuple[Gaussian, Tensor]:
    """The prior of a search, and the candidates (B, K, H, A) that join its first iteration."""
    shape = (space.batch, *space.mean.shape)
    device = space.low.device
    mean, std = space.mean.expand(shape), space.std.expand(shape)
    seeds = mean[:, None][:, :0]  # none yet: (B, 0, H, A)
    if warm_start is not None:
        many = warm_start if warm_start.ndim == 4 else warm_start[:, None]
        many = space.clamp(tensor("warm_start", many, (shape[0], many.shape[1], *shape[1:]), device))
        mean, seeds = many[:, 0], many[:, 1:]
    if proposals is not None:
        if proposals.ndim != 4 or proposals.shape[1] < 1:
            raise PlanningError(f"proposals must have shape (B, K, H, A), not {tuple(proposals.shape)}")
        offered = tensor("proposals", proposals, (shape[0], proposals.shape[1], *shape[1:]), device)
        offered = space.clamp(offered)
        if mode == "replace":
            seeds = offered
        elif mode == "seed":
            seeds = torch.cat([seeds, offered], dim=1)
        else:
            # The warm start cannot be the centre too: it joins as a candidate.
            seeds = seeds if warm_start is None else many
            mean, std = offered.mean(dim=1), offered.std(dim=1, correction=0)
            std = std.maximum(0.1 * space.std)  # a few agreeing proposals must not end the search
    return Gaussian(mean, std), seeds


def tensor(name: str, value: Tensor, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """A finite float32 tensor of this shape there; raises :class:`PlanningError` that names it."""
    if tuple(value.shape) != shape:
        raise PlanningError(f"{name} must have shape {shape}, not {tuple(value.shape)}")
    value = value.detach().to(device=device, dtype=torch.float32)
    if not bool(value.isfinite().all()):
        raise PlanningError(f"{name} contains NaN or infinite values")
    return value
