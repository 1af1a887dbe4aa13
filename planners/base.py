"""The planning loop, once. CEM, iCEM, MPPI and gradient descent are leaves that fill in three methods."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from sparsewm.planners.proposals import ProposalMode
from sparsewm.planners.protocol import Plan, PlanningError, PlanningProblem
from sparsewm.planners.seeding import generator
from sparsewm.planners.space import Gaussian, Space, beginning

State = TypeVar("State")

SLOWER = 1.1
"""How much longer an iteration may take than the slowest lately, where a deadline is kept."""


class Planner(ABC, Generic[State]):
    """Minimises a :class:`PlanningProblem` over action sequences, all episodes at once.

    Two planners with the same arguments give the same sequence of plans. Subclasses say how a search starts,
    which candidates it scores, and what it learns from the costs.

    Args:
        candidates: action sequences scored per episode and iteration, at least 1.
        iterations: optimiser iterations, at least 1.
        elites: candidates reported as elite in the history (and fitted to by CEM), 1 to ``candidates``.
        seed: seed of the random numbers, not negative.

    Raises:
        ValueError: an argument is out of range; the message says which and its value.
    """

    differentiates: bool = False  # whether the costs need a gradient with respect to the candidates
    kept: int = 1  # how many candidates Plan.elites holds

    def __init__(self, candidates: int, iterations: int, elites: int, seed: int) -> None:
        at_least("candidates", candidates, 1)
        at_least("iterations", iterations, 1)
        at_least("seed", seed, 0)
        if not 1 <= elites <= candidates:
            raise ValueError(f"elites must lie between 1 and candidates={candidates}, not {elites}")
        self.candidates = candidates
        self.iterations = iterations
        self.elites = elites
        self.seed = seed
        self._generator: torch.Generator | None = None
        self._pace = 0.0  # seconds per candidate of a slow iteration lately

    @abstractmethod
    def start(self, prior: Gaussian, space: Space) -> State:
        """State of a new search around the prior."""

    @abstractmethod
    def sample(self, state: State, space: Space, iteration: int, count: int) -> Tensor:
        """About `count` candidates (B, S, H, A) for this iteration, inside the bounds; the mean first.

        Random numbers come from ``space.noise``, which keeps episodes apart.
        """

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
        generators: Sequence[torch.Generator] | None = None,
    ) -> Plan:
        """Plan every episode of the problem.

        The plan is the best candidate of the *last* iteration: a problem that redraws its tokens makes costs
        of different iterations incomparable. Costs that are not finite count as the worst.

        Args:
            problem: what to minimise.
            warm_start: action sequences (B, H, A) to search around, the noise still the problem's own. Or
                (B, K, H, A): the first is searched around, the others join the first iteration.
            proposals: candidates (B, K, H, A) from elsewhere, see ``proposal_mode``.
            deadline: seconds this call may take. An iteration that would end later if it took a tenth longer
                than the slowest lately, in this plan and in those before it, is not started; the first always
                is. Where that is too slow for three iterations, fewer candidates are drawn and fewer
                proposals scored, the first of them (gradient descent excepted).
            proposal_mode: "seed" mixes the proposals into the first iteration; "prior" starts from a Gaussian
                fitted to them (its std at least a tenth of the problem's); "replace" scores them once and
                takes the best, without any search.
            generators: one per episode, on the problem's device: what is drawn for an episode then does not
                depend on the others. None: the planner's own for all.

        Returns:
            The plan, on the problem's device.

        Raises:
            PlanningError: the problem, warm start, proposals or generators do not fit, hold NaN, or all
                candidates of an episode have a cost that is not finite.
        """
        started = time.perf_counter()
        limit = math.inf if deadline is None else deadline
        space = self._space(problem, generators)
        if proposal_mode not in get_args(ProposalMode):
            modes = ", ".join(get_args(ProposalMode))
            raise PlanningError(f"proposal_mode must be one of {modes}, not {proposal_mode!r}")
        prior, seeds = beginning(space, warm_start, proposals, proposal_mode)
        replaced = proposals is not None and proposal_mode == "replace"
        iterations = 1 if replaced else self.iterations
        offered = seeds.shape[1]
        if replaced:
            count = self._affordable(limit, offered, 1, 1)
            seeds = seeds[:, :count]
        else:  # the mean comes before them
            room = self._affordable(limit, max(self.candidates, offered + 1), 3, max(self.elites, 2))
            count, seeds = min(self.candidates, room), seeds[:, : room - 1]
        candidates = seeds
        history: list[dict[str, float]] = []
        seconds: list[float] = []
        # Only gradient descent has to leave the caller's inference mode.
        inference = torch.is_inference_mode_enabled() and not self.differentiates
        with torch.inference_mode(inference), torch.no_grad():
            state = self.start(prior, space)
            for iteration in range(iterations):
                begun = _now(space)
                if seconds and begun - started + SLOWER * self._pace * candidates.shape[1] > limit:
                    break
                problem.resample(iteration)
                candidates = seeds if replaced else self.sample(state, space, iteration, count)
                if iteration == 0 and not replaced and seeds.shape[1]:
                    candidates = _mix(candidates, seeds)
                last = iteration + 1 == iterations
                costs, known = self._score(problem, candidates, iteration, self.differentiates and not last)
                elites, elite_costs = lowest(candidates.detach(), costs.detach(), max(self.kept, 1))
                history.append(_summary(known, self.elites))
                if not last:
                    state = self.update(state, candidates, costs, space, iteration)
                seconds.append(_now(space) - begun)
                self._pace = max(seconds[-1] / candidates.shape[1], 0.9 * self._pace)
        return Plan(elites[:, 0].clone(), elite_costs[:, 0].clone(), elites, history, seconds)

    def warm_up(
        self, problem: PlanningProblem, proposals: Tensor | None = None, proposal_mode: ProposalMode = "seed"
    ) -> None:
        """Learn how fast this machine is, for deadlines to come: a few iterations whose plans are forgotten.

        The first of them, in which kernels are made, do not count. No random numbers of the planner are used
        up; those of the problem are, so give it one of its own.
        """
        kept = self._generator, self.iterations
        try:
            for self.iterations in (2, 1):
                self._generator, self._pace = None, 0.0
                self.plan(problem, proposals=proposals, proposal_mode=proposal_mode)
        finally:
            self._generator, self.iterations = kept

    def _affordable(self, limit: float, most: int, iterations: int, least: int) -> int:
        """Candidates of which, at the pace of earlier calls, so many iterations fit into `limit` seconds."""
        if self.differentiates or not self._pace or math.isinf(limit):
            return most
        return min(most, max(least, int(limit / ((iterations - 1 + SLOWER) * self._pace))))

    def _space(self, problem: PlanningProblem, generators: Sequence[torch.Generator] | None) -> Space:
        """The problem's space, with random numbers for it."""
        space = Space.of(problem)
        device = space.low.device
        if generators is None:
            if self._generator is None or self._generator.device != device:
                self._generator = generator(self.seed, "candidates", device)
            generators = [self._generator]
        elif len(generators) != space.batch or any(source.device != device for source in generators):
            raise PlanningError(
                f"generators must be one of each of the {space.batch} episodes, on {device}, "
                f"not {[str(source.device) for source in generators]}"
            )
        return replace(space, generators=generators)

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


def _now(space: Space) -> float:
    """Seconds of a clock, once the device has done its work."""
    if space.low.device.type == "cuda":
        torch.cuda.synchronize(space.low.device)
    return time.perf_counter()
