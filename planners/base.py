"""The planning loop, once. CEM, iCEM, MPPI and gradient descent are leaves that fill in three methods."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from sparsewm.planners.proposals import ProposalMode
from sparsewm.planners.protocol import Plan, PlanningError, PlanningProblem, RacingProblem, SeparableProblem

State = TypeVar("State")

SLOWER = 1.1
"""How much longer an iteration may take than the slowest lately, where a deadline is kept."""


@dataclass(frozen=True)
class Space:
    """The action space of one problem, checked, on its device.

    Attributes:
        batch: number of episodes B.
        low, high: bounds (A,).
        mean, std: the problem's prior (H, A), defaults filled in, the mean inside the bounds.
    """

    batch: int
    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, problem: PlanningProblem) -> Space:
        """Read and check a problem's attributes; raises :class:`PlanningError` naming the wrong one."""
        batch, horizon, size = problem.batch, problem.horizon, problem.action_dim
        for name, value in (("batch", batch), ("horizon", horizon), ("action_dim", size)):
            if value < 1:
                raise PlanningError(f"the problem's {name} must be at least 1, not {value}")
        low = _tensor("low", problem.low, (size,), problem.device)
        high = _tensor("high", problem.high, (size,), problem.device)
        if not bool((low < high).all()):
            raise PlanningError(
                f"the problem's low must lie below high everywhere, not {low.tolist()} and {high.tolist()}"
            )
        mean = torch.zeros(horizon, size, device=low.device) + (low + high) / 2
        if problem.mean is not None:
            mean = _tensor("mean", problem.mean, (horizon, size), problem.device)
        std = torch.zeros(horizon, size, device=low.device) + (high - low) / 4
        if problem.std is not None:
            std = _tensor("std", problem.std, (horizon, size), problem.device)
        if not bool((std > 0).all()):
            raise PlanningError(f"the problem's std must be positive, not {float(std.min()):g}")
        return cls(batch, low, high, mean.clamp(low, high), std)

    def clamp(self, actions: Tensor) -> Tensor:
        """Actions (..., A) cut to the bounds."""
        return actions.clamp(self.low, self.high)


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


class Planner(ABC, Generic[State]):
    """Minimises a :class:`PlanningProblem` over action sequences, all episodes at once.

    A planner owns its random numbers: two planners with the same arguments give the same sequence of
    plans. Subclasses say how a search starts, which candidates it scores, and what it learns from the costs.

    Args:
        samples: candidates per episode and iteration, at least 1.
        iterations: optimiser iterations, at least 1.
        elites: candidates reported as elite in the history (and fitted to by CEM), 1 to ``samples``.
        seed: seed of the random numbers, not negative.
        race: candidates drawn for every one that is scored; a problem's ``rough_cost`` says which are worth
            it. 1: all that are drawn.
        settled: an episode whose elites lie closer together than this, in deviations of the problem's prior
            and over all numbers of an action sequence, is not searched on. 0: every iteration is made.

    Raises:
        ValueError: an argument is out of range; the message says which and its value.
    """

    differentiates: bool = False  # whether the costs need a gradient with respect to the candidates
    kept: int = 1  # how many candidates Plan.elites holds

    def __init__(
        self, samples: int, iterations: int, elites: int, seed: int, race: int = 1, settled: float = 0.0
    ) -> None:
        at_least("samples", samples, 1)
        at_least("iterations", iterations, 1)
        at_least("seed", seed, 0)
        if not 1 <= elites <= samples:
            raise ValueError(f"elites must lie between 1 and samples={samples}, not {elites}")
        at_least("race", race, 1)
        at_least("settled", settled, 0.0)
        if settled:
            at_least("elites of a search that stops once they agree", elites, 2)
        self.race = race
        self.settled = settled
        self.samples = samples
        self.iterations = iterations
        self.elites = elites
        self.seed = seed
        self._generator: torch.Generator | None = None
        self._pace = 0.0  # seconds per candidate of a slow iteration lately

    @abstractmethod
    def start(self, prior: Gaussian, space: Space) -> State:
        """State of a new search around the prior."""

    @abstractmethod
    def sample(self, state: State, space: Space, iteration: int, samples: int) -> Tensor:
        """About `samples` candidates (B, S, H, A) for this iteration, inside the bounds; the mean first."""

    @abstractmethod
    def update(self, state: State, candidates: Tensor, costs: Tensor, space: Space, iteration: int) -> State:
        """State after seeing the costs (B, S) of the candidates; a cost of inf marks a failed candidate."""

    def plan(
        self,
        problem: PlanningProblem,
        warm_start: Tensor | None = None,
        proposals: Tensor | None = None,
        deadline: float | None = None,
        proposal_mode: ProposalMode = "seed",
    ) -> Plan:
        """Plan every episode of the problem.

        The plan is the best candidate of an episode's *last* iteration: a problem that redraws its tokens
        makes costs of different iterations incomparable. Costs that are not finite count as the worst.

        Args:
            problem: what to minimise.
            warm_start: action sequences (B, H, A) to search around, the noise still the problem's own. Or
                (B, K, H, A): the first is searched around, the others join the first iteration.
            proposals: candidates (B, K, H, A) from elsewhere, see ``proposal_mode``.
            deadline: seconds this call may take. An iteration that would end later if it took a tenth longer
                than the slowest lately, in this plan and in those before it, is not started; the first always
                is. Where that is too slow for three iterations, fewer candidates are drawn (gradient descent
                excepted).
            proposal_mode: "seed" mixes the proposals into the first iteration; "prior" starts from a Gaussian
                fitted to them (its std at least a tenth of the problem's); "replace" scores them once and
                takes the best, without any search.

        Returns:
            The plan, on the problem's device.

        Raises:
            PlanningError: the problem, warm start or proposals have a wrong shape or contain NaN, all
                candidates of an episode have a cost that is not finite, or the planner races in a problem
                without a ``rough_cost``.
        """
        started = time.perf_counter()
        space = Space.of(problem)
        if proposal_mode not in get_args(ProposalMode):
            modes = ", ".join(get_args(ProposalMode))
            raise PlanningError(f"proposal_mode must be one of {modes}, not {proposal_mode!r}")
        prior, seeds = _first(space, warm_start, proposals, proposal_mode)
        replaced = proposals is not None and proposal_mode == "replace"
        iterations = 1 if replaced else self.iterations
        limit = math.inf if deadline is None else deadline
        affordable = self._affordable(limit)
        if self.race > 1 and not isinstance(problem, RacingProblem):
            raise PlanningError(
                "race needs a problem with a rough_cost, which this one has not: leave it at 1"
            )
        history: list[dict[str, float]] = []
        seconds: list[float] = []
        count = self.samples  # of the last iteration's candidates
        found: tuple[Tensor, Tensor] | None = None  # elites (B, K, H, A) and their costs (B, K)
        rows = torch.arange(space.batch, device=space.low.device)  # the episodes that are searched on
        # Only gradient descent has to leave the caller's inference mode.
        inference = torch.is_inference_mode_enabled() and not self.differentiates
        with torch.inference_mode(inference), torch.no_grad():
            state = self.start(prior, space)
            for iteration in range(iterations):
                if seconds and time.perf_counter() - started + SLOWER * self._pace * count > limit:
                    break
                last = iteration + 1 == iterations
                _synchronize(space.low.device)
                begun = time.perf_counter()
                problem.resample(iteration)
                if replaced:
                    candidates = seeds
                else:
                    candidates = self._candidates(problem, state, space, iteration)
                    if affordable < self.samples:
                        candidates = candidates[:, :affordable]
                    if iteration == 0 and seeds.shape[1]:
                        candidates = _mix(candidates, seeds)
                costs, known = self._score(problem, candidates, iteration, self.differentiates and not last)
                best = lowest(candidates.detach(), costs.detach(), max(self.kept, 1))
                if found is None:
                    found = best
                else:
                    for whole, part in zip(found, best, strict=True):
                        whole[rows] = part
                history.append(_summary(known, self.elites))
                going = rows
                if not last:
                    going = self._unsettled(candidates, costs, space)
                    if len(going):
                        state = self.update(state, candidates, costs, space, iteration)
                    if 0 < len(going) < len(rows) and isinstance(problem, SeparableProblem):
                        problem, state = problem.select(going), _select(state, going)
                        space, rows = replace(space, batch=len(going)), rows[going]
                _synchronize(space.low.device)
                seconds.append(time.perf_counter() - begun)
                count = candidates.shape[1]
                self._pace = max(seconds[-1] / count, 0.9 * self._pace)
                if not len(going):
                    break
        assert found is not None
        elites, best_costs = found
        return Plan(elites[:, 0].clone(), best_costs[:, 0].clone(), elites, history, seconds)

    def _candidates(self, problem: PlanningProblem, state: State, space: Space, iteration: int) -> Tensor:
        """Candidates (B, S, H, A) to score: as drawn, or the most promising of more.

        The first that is drawn, the mean of a search, is always among them, and first.
        """
        drawn = self.sample(state, space, iteration, self.race * self.samples)
        if self.race == 1:
            return drawn
        assert isinstance(problem, RacingProblem)
        costs = torch.nan_to_num(problem.rough_cost(drawn).float(), nan=torch.inf)
        costs[:, 0] = torch.finfo(costs.dtype).min
        scored = max(drawn.shape[1] // self.race, min(2 * self.elites, self.samples))
        return lowest(drawn, costs, scored)[0]

    def _unsettled(self, candidates: Tensor, costs: Tensor, space: Space) -> Tensor:
        """Episodes whose elites still differ, as row numbers."""
        if not self.settled:
            return torch.arange(len(costs), device=costs.device)
        elites, _ = lowest(candidates.detach(), costs.detach(), self.elites)
        spread = (elites.std(dim=1, correction=0) / space.std).mean(dim=(1, 2))
        return (spread >= self.settled).nonzero().flatten()

    def _affordable(self, limit: float) -> int:
        """Candidates of which, at the pace of earlier calls, three iterations fit into `limit` seconds."""
        if self.differentiates or not self._pace or math.isinf(limit):
            return self.samples
        return min(self.samples, max(self.elites, 2, int(limit / ((2 + SLOWER) * self._pace))))

    def noise(self, space: Space, samples: int) -> Tensor:
        """Unit Gaussian noise (B, samples, H, A) from the planner's own generator."""
        shape = (space.batch, samples, *space.mean.shape)
        return torch.randn(shape, generator=self._random(space.low.device), device=space.low.device)

    def _random(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    @staticmethod
    def _score(
        problem: PlanningProblem, candidates: Tensor, iteration: int, with_gradient: bool
    ) -> tuple[Tensor, np.ndarray]:
        """Costs (B, S) in float32, inf where they are not finite; and a copy on the CPU.

        What is asked of the copy needs no kernels of its own on a GPU, nor waits for it again.
        """
        with torch.set_grad_enabled(with_gradient):
            costs = problem.cost(candidates.requires_grad_(with_gradient))
            if costs.shape != candidates.shape[:2]:
                shape = tuple(candidates.shape[:2])
                raise PlanningError(f"the problem's cost must have shape {shape}, not {tuple(costs.shape)}")
            costs = costs.float()
            known = costs.detach().cpu().numpy()
            finite = np.isfinite(known)
            if finite.all():
                return costs, known
            failed = (~finite.any(axis=1)).nonzero()[0].tolist()
            if failed:
                raise PlanningError(
                    f"every candidate of episode(s) {failed} has a cost that is not finite in iteration "
                    f"{iteration}; check the observation, the goal and the model's weights, or try float32"
                )
            return torch.where(costs.isfinite(), costs, torch.inf), np.where(finite, known, np.inf)


def lowest(candidates: Tensor, costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` candidates (B, count, H, A) of lowest cost and their costs, best first.

    Where fewer have a finite cost, the worst of those is repeated: a failed candidate is never an elite.
    """
    values, order = costs.topk(min(count, costs.shape[1]), dim=1, largest=False)
    usable = values.isfinite().sum(dim=1, keepdim=True) - 1  # (B, 1)
    ranks = torch.arange(count, device=costs.device).minimum(usable)  # (B, count)
    picks = order.gather(1, ranks)
    chosen = candidates.gather(1, picks[..., None, None].expand(-1, -1, *candidates.shape[2:]))
    return chosen, values.gather(1, ranks)


def at_least(name: str, value: float, smallest: float) -> None:
    """Raise ValueError unless ``value >= smallest``."""
    if not value >= smallest:
        raise ValueError(f"{name} must be at least {smallest}, not {value}")


def within(name: str, value: float, smallest: float, largest: float) -> None:
    """Raise ValueError unless ``smallest <= value <= largest``."""
    if not smallest <= value <= largest:
        raise ValueError(f"{name} must lie between {smallest} and {largest}, not {value}")


def _select(state: Any, rows: Tensor) -> Any:
    """A search's state, a dataclass of tensors (B, ...), of some of its episodes."""
    if is_dataclass(state) and not isinstance(state, type):
        parts = {field.name: _select(getattr(state, field.name), rows) for field in fields(state)}
        return replace(state, **parts)
    return state[rows]


def _first(
    space: Space, warm_start: Tensor | None, proposals: Tensor | None, mode: ProposalMode
) -> tuple[Gaussian, Tensor]:
    """The prior of a search, and the candidates (B, K, H, A) that join its first iteration."""
    shape = (space.batch, *space.mean.shape)
    device = space.low.device
    mean, std = space.mean.expand(shape), space.std.expand(shape)
    seeds = mean[:, None][:, :0]  # none yet: (B, 0, H, A)
    if warm_start is not None:
        many = warm_start if warm_start.ndim == 4 else warm_start[:, None]
        many = space.clamp(_tensor("warm_start", many, (shape[0], many.shape[1], *shape[1:]), device))
        mean, seeds = many[:, 0], many[:, 1:]
    if proposals is not None:
        if proposals.ndim != 4 or proposals.shape[1] < 1:
            raise PlanningError(f"proposals must have shape (B, K, H, A), not {tuple(proposals.shape)}")
        offered = _tensor("proposals", proposals, (shape[0], proposals.shape[1], *shape[1:]), device)
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


def _mix(candidates: Tensor, seeds: Tensor) -> Tensor:
    """Seeds in the place of the last candidates; the first, the mean, stays."""
    room = max(candidates.shape[1] - seeds.shape[1], 1)
    return torch.cat([candidates[:, :room], seeds], dim=1)


def _summary(costs: np.ndarray, elites: int) -> dict[str, float]:
    """What a plan's history tells of an iteration's costs (B, S), inf where a candidate failed."""
    ordered = np.sort(costs, axis=1).astype(np.float64)
    ordered[np.isinf(ordered)] = np.nan
    parts = (ordered[:, 0], np.nanmean(ordered[:, :elites], axis=1), np.nanmean(ordered, axis=1))
    return dict(zip(("best", "elite", "mean"), (float(part.mean()) for part in parts), strict=True))


def _tensor(name: str, value: Tensor, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    if tuple(value.shape) != shape:
        raise PlanningError(f"{name} must have shape {shape}, not {tuple(value.shape)}")
    value = value.detach().to(device=device, dtype=torch.float32)
    if not bool(value.isfinite().all()):
        raise PlanningError(f"{name} contains NaN or infinite values")
    return value


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
