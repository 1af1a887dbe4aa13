"""Candidates from elsewhere: policies, vision-language-action models, or plain noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sparsewm.planners.seeding import unit_noise

ProposalMode = Literal["replace", "seed", "prior"]
"""What a planner does with proposals: score them and take the best (``replace``), mix them into the first
iteration (``seed``), or start from a Gaussian fitted to them (``prior``)."""


@runtime_checkable
class ProposalSampler(Protocol):
    """Proposes action sequences for what is seen and wanted.

    What an action is, the caller says by what it asks for: sparsewm asks for environment actions, one per
    environment step, and makes them the problem's own (`sparsewm.proposals.candidates`).

    Where `propose` takes `generators`, it is handed one `torch.Generator` (CPU) for each episode, and draws
    from these alone: what it proposes for an episode then follows from its seed, whatever runs beside it.
    """

    def propose(
        self,
        observation: Any,
        goal: Any,
        instruction: str | Sequence[str] | None,
        samples: int,
        horizon: int,
    ) -> Tensor:
        """Candidates (B, samples, horizon, A), the likeliest first where there is an order.

        Args:
            observation: what the sampler's own model reads; B episodes.
            goal: the goal, likewise.
            instruction: text for models that take one; one for all episodes or one each.
            samples: candidates per episode S.
            horizon: actions per candidate H.
        """
        ...


class GaussianProposals:
    """Noise within bounds, blind to observation and goal: the yardstick for samplers that look.

    Args:
        low, high: bounds of the actions (A,), finite, low below high.
        batch: number of episodes B.
        mean: mean of the noise (A,); the middle of the range by default.
        std: standard deviation of the noise (A,), positive; a quarter of the range by default.
        seed: seed of the random numbers.

    Raises:
        ValueError: bounds, mean or std are out of range or differ in shape.
    """

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        batch: int = 1,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if low.ndim != 1:
            raise ValueError(f"low must have shape (A,), not {tuple(low.shape)}")
        for name, value in (("high", high), ("mean", mean), ("std", std)):
            if value is not None and value.shape != low.shape:
                raise ValueError(f"{name} must have shape {tuple(low.shape)}, not {tuple(value.shape)}")
        mean = (low + high) / 2 if mean is None else mean
        std = (high - low) / 4 if std is None else std
        if not bool((low < high).all()):
            raise ValueError(f"low must lie below high everywhere, not {low.tolist()} and {high.tolist()}")
        if not bool((std > 0).all()):
            raise ValueError(f"std must be positive, not {std.tolist()}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        self.low, self.high, self.mean, self.std, self.batch = low, high, mean, std, batch
        self._generator = torch.Generator(low.device).manual_seed(seed)

    def propose(
        self,
        observation: Any,
        goal: Any,
        instruction: str | Sequence[str] | None,
        samples: int,
        horizon: int,
        generators: Sequence[torch.Generator] = (),
    ) -> Tensor:
        """Noise (B, samples, horizon, A) cut to the bounds; of as many episodes as there are generators."""
        batch, sources = len(generators) or self.batch, generators or [self._generator]
        noise = unit_noise(sources, batch, samples, horizon, *self.low.shape).to(self.low.device)
        return (self.mean + self.std * noise).clamp(self.low, self.high)
