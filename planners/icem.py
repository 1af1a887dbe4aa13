"""Improved CEM: noise correlated in time, and elites that live on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsewm.planners.base import Planner, at_least, lowest, within
from sparsewm.planners.space import Gaussian, Space


@dataclass(frozen=True)
class Search:
    """A Gaussian, and the elites (B, K, H, A) that join the next iteration."""

    gaussian: Gaussian
    elites: Tensor


class ICEM(Planner[Search]):
    """iCEM: CEM with coloured noise, kept elites and, on request, a shrinking population.

    Pinneri et al., "Sample-efficient Cross-Entropy Method for Real-time Planning", CoRL 2020. Kept elites
    are scored again in the next iteration, as costs of different iterations need not be comparable; the plan
    carries its elites, and :class:`planners.MPC` shifts them into the first iteration of the next plan.

    Args:
        candidates: action sequences scored per episode in the first iteration (kept elites included).
        elites: candidates the Gaussian is refitted to, 2 to ``candidates``.
        iterations: optimiser iterations.
        noise_exponent: power spectrum of the noise over time falls as 1/f^noise_exponent; 0 is white noise,
            larger is smoother.
        keep: fraction of the elites that joins the next iteration and the next plan, in [0, 1].
        decay: each iteration has this factor fewer candidates than the one before, but at least twice the
            elites (or ``candidates``); 1 keeps their number, the paper uses 1.25.
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
        noise_exponent: float = 1.0,
        keep: float = 0.3,
        decay: float = 1.0,
        momentum: float = 0.1,
        min_std: float = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__(candidates, iterations, elites, seed)
        at_least("elites", elites, 2)
        at_least("noise_exponent", noise_exponent, 0.0)
        within("keep", keep, 0.0, 1.0)
        at_least("decay", decay, 1.0)
        within("momentum", momentum, 0.0, 0.999)
        within("min_std", min_std, 0.0, 1.0)
        self.noise_exponent = noise_exponent
        self.decay = decay
        self.momentum = momentum
        self.min_std = min_std
        self.kept = round(keep * elites)

    def start(self, prior: Gaussian, space: Space) -> Search:
        return Search(prior, prior.mean[:, None][:, :0])

    def sample(self, state: Search, space: Space, iteration: int, count: int) -> Tensor:
        count = max(min(2 * self.elites, count), int(count / self.decay**iteration))
        fresh = max(count - state.elites.shape[1], 1)
        candidates = state.gaussian.sample(self._noise(space, fresh), space)
        return torch.cat([candidates, state.elites], dim=1)

    def update(
        self, state: Search, candidates: Tensor, costs: Tensor, space: Space, iteration: int
    ) -> Search:
        elites, _ = lowest(candidates, costs, self.elites)  # (B, elites, H, A)
        mean, std = elites.mean(dim=1), elites.std(dim=1)
        gaussian = state.gaussian.moved(mean, std, self.momentum, self.min_std, space)
        return Search(gaussian, elites[:, : self.kept])

    def _noise(self, space: Space, count: int) -> Tensor:
        """Unit-variance noise (B, count, H, A), coloured over time."""
        horizon, size = space.mean.shape
        # Filtering by FFT joins the end to the start: twice the horizon is drawn and half of it used.
        white = space.noise(count, size, 2 * horizon)
        return coloured(white, self.noise_exponent)[..., :horizon].transpose(-1, -2)


def coloured(white: Tensor, exponent: float) -> Tensor:
    """White unit noise (..., T) filtered to a power spectrum 1/f^exponent, still of unit variance."""
    length = white.shape[-1]
    frequency = torch.fft.rfftfreq(length, device=white.device).clamp(min=1 / length)
    gain = frequency ** (-exponent / 2)
    two_sided = torch.cat([gain, gain[1 : (length + 1) // 2]])  # negative frequencies mirror the positive
    gain = gain / two_sided.square().mean().sqrt()
    return torch.fft.irfft(torch.fft.rfft(white) * gain, n=length)
