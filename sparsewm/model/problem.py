"""What the planners optimise: reaching a goal picture inside the world model, on few tokens.

Implements `planners.PlanningProblem`. The start and the goal are encoded before it is made; between
iterations only the drawn subset of patches, and what follows from it, changes.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsewm.errors import UserError
from sparsewm.model.distance import TemporalDistance
from sparsewm.model.drop import AutoDrop, kept_patches
from sparsewm.model.predictor import FrameCache
from sparsewm.model.rollout import Past, Rollout
from sparsewm.model.world_model import History, Latent, WorldModel, gather_patches, random_patches

Selection = Literal["random", "proprio"]
Measure = Literal["mse", "temporal"]
Scored = Literal["last", "best"]

ROUGH = 4
"""A rough cost reads one of so many kept patches."""


@dataclass
class View:
    """What a subset of the patches shows.

    Attributes:
        patches: (B, M) indices.
        tokens: (B, M, D) of the present frame.
        goal: what imagined frames are compared with: tokens (B, 1, M, D), or an embedding for the temporal
            distance.
        past, packed_past: keys and values of earlier frames, for the predictor and the packed rollout; None:
            not asked for yet.
    """

    patches: Tensor
    tokens: Tensor
    goal: Tensor
    past: list[FrameCache] | None = None
    packed_past: Past | None = None


class LatentProblem:
    """Distance to the goal after an imagined action sequence, from the kept tokens of its frames.

    measure "mse":      mean squared error of the tokens to the goal's
                        + alpha * mean squared error of proprioception, both divided by their deviations.
    measure "temporal": the learned number of model steps from the frame to the goal; of pictures alone when
                        alpha is 0.

    Args:
        model: the world model.
        start, goal: present and wanted frame of B episodes.
        low, high: (A,) bounds of the environment's action.
        horizon: H, model steps imagined.
        drop: fraction of patches dropped; redrawn by every `resample`, per episode, shared by its candidates.
            Or what chooses it, and is told how well the first iteration's order stands on more patches.
        later_drops: the fractions of the second iteration, the third, ...; the last one stays.
        alpha: weight of the proprioception error.
        history: earlier (frame, action (B, C)) pairs, oldest first.
        generator: source of the drop masks.
        selection: "random", or "proprio" to leave the token error out (a yardstick).
        chunk: candidates rolled out at once, 0 for all.
        measure: "mse" or "temporal"; the second needs a model trained with a temporal distance.
        hold: plan one environment action per model step and hold it for all of its environment steps. The
            search is smaller by the factor frameskip, and its noise lasts long enough to get round obstacles.
        spread: deviation of the first candidates, in deviations of the recorded actions.
        redraw: draw a new subset at every iteration; otherwise the first one is kept.
        patches: the subset (B, M) to start with; None: a random one.
        scored: which imagined frame is compared with the goal. "last", or "best", the nearest of all: a
            sequence may then pass the goal on its way, and `steps` tells where to stop. A goal half a horizon
            away so needs no plan that waits for it, and one rollout tries as many lengths as it has frames.
    """

    def __init__(
        self,
        model: WorldModel,
        start: Latent,
        goal: Latent,
        low: Tensor,
        high: Tensor,
        *,
        horizon: int = 5,
        drop: float | AutoDrop = 0.0,
        later_drops: Sequence[float] = (),
        alpha: float = 1.0,
        history: History = (),
        generator: torch.Generator | None = None,
        selection: Selection = "random",
        chunk: int = 0,
        measure: Measure = "mse",
        hold: bool = False,
        spread: float = 1.0,
        redraw: bool = True,
        patches: Tensor | None = None,
        scored: Scored = "last",
    ) -> None:
        if horizon < 1:
            raise UserError(f"--horizon must be at least 1 model step, got {horizon}")
        if measure == "temporal" and model.distance is None:
            raise UserError(
                "this world model was trained without a temporal distance: plan with --cost mse, or train one"
            )
        if measure == "temporal" and selection == "proprio":
            raise UserError("--cost temporal reads tokens: give --cost mse with --selection proprio")
        self.model, self.start, self.goal, self.history = model, start, goal, list(history)
        self.batch, self.horizon, self.device = start.tokens.shape[0], horizon, model.device
        self.repeats = model.action_dim // low.shape[0] if hold else 1
        repeat = 1 if hold else model.action_dim // low.shape[0]
        self.action_dim = repeat * low.shape[0]
        self.low, self.high = low.to(self.device).repeat(repeat), high.to(self.device).repeat(repeat)
        standardizer = model.standardizer
        self.mean = standardizer.action_mean.repeat(repeat).expand(horizon, -1)
        self.std = spread * standardizer.action_std.repeat(repeat).expand(horizon, -1)
        self.auto = drop if isinstance(drop, AutoDrop) else None
        first = drop.drop if isinstance(drop, AutoDrop) else drop
        self.counts = [kept_patches(model.patches, share) for share in (first, *later_drops)]
        self.kept, self.iteration = self.counts[0], 0
        self.alpha, self.selection, self.measure, self.chunk = alpha, selection, measure, chunk
        self.scored = scored
        self.generator = generator or torch.Generator(device=self.device).manual_seed(0)
        self.redraw = redraw
        self._rollout: Rollout | None = None
        self._see(self._draw(self.kept) if patches is None else patches)

    def _see(self, patches: Tensor) -> None:
        """Keep a subset (B, M)."""
        self.patches = patches.to(self.device)  # the present subset (B, M), sorted where it was drawn
        self._seen: View | None = None

    @property
    def view(self) -> View:
        """What the present subset shows, computed when it is first asked for."""
        if self._seen is None:
            self._seen = self._view(self.patches)
        return self._seen

    def resample(self, iteration: int) -> None:
        """Draw a new subset of patches for every episode."""
        self.iteration = iteration
        if not self.redraw:
            return
        before, self.kept = self.kept, self.counts[min(iteration, len(self.counts) - 1)]
        if before == self.kept == self.model.patches:
            return
        self._see(self._draw(self.kept))

    def _draw(self, kept: int) -> Tensor:
        return random_patches(self.batch, self.model.patches, kept, self.generator)

    def _view(self, patches: Tensor) -> View:
        """What patches (B, M) show."""
        with torch.inference_mode(False), torch.no_grad():  # gradient descent differentiates through it
            goal = gather_patches(self.goal.tokens, patches)[:, None]
            if self.measure == "temporal":
                goal = self._embedded(goal, self.goal.proprio[:, None], patches)
            return View(patches, gather_patches(self.start.tokens, patches), goal)

    def _past(self, view: View) -> list[FrameCache]:
        """Earlier frames for the predictor."""
        if view.past is None:
            with torch.inference_mode(False), torch.no_grad():  # see `_view`
                view.past = self.model.remember(self.history, view.patches)
        return view.past

    def _packed_past(self, view: View, rollout: Rollout) -> Past:
        """Earlier frames for a packed rollout."""
        if view.packed_past is None:
            view.packed_past = self.model.remember(self.history, view.patches, rollout)
        return view.packed_past

    def select(self, rows: Tensor) -> LatentProblem:
        """The same problem of episodes (b,): see `planners.SeparableProblem`."""
        part = copy.copy(self)
        part.batch, part.start, part.goal = len(rows), self.start[rows], self.goal[rows]
        part.history = [(frame[rows], action[rows]) for frame, action in self.history]
        part._see(self.patches[rows])
        return part

    def executed(self, actions: Tensor) -> Tensor:
        """Planned actions (..., H, action_dim) as the model and the environment take them (..., H, C)."""
        return actions.repeat(*[1] * (actions.ndim - 1), self.repeats)

    def cost(self, actions: Tensor) -> Tensor:
        """(B, S, H, action_dim) in the environment's units -> (B, S)."""
        costs = self._costs(actions, self.patches)
        if self.auto is not None and self.iteration == 0 and not actions.requires_grad:
            self._check(actions[:, : self.auto.candidates], costs[:, : self.auto.candidates], self.auto)
        return costs

    def rough_cost(self, actions: Tensor) -> Tensor:
        """As `cost`, from a quarter of the kept patches, spread over all of them."""
        return self._costs(actions.detach(), self.patches[:, ::ROUGH])

    @torch.no_grad()
    def _check(self, actions: Tensor, costs: Tensor, auto: AutoDrop) -> None:
        """Tell `auto` how candidates stand on twice the patches."""
        fuller = self._draw(min(2 * self.kept, self.model.patches)).to(self.device)
        auto.observe(costs, self._costs(actions, fuller))
        if self.redraw:
            self.counts = [kept_patches(self.model.patches, auto.drop)]

    def imagined(self, actions: Tensor) -> Tensor:
        """Pictures uint8 (B, H, R, R, 3) of what actions (B, H, action_dim) lead to, on the present patches.

        Raises:
            UserError: the model has no decoder.
        """
        if self.model.decoder is None:
            raise UserError("this world model has no decoder: train one with sparsewm train --extend")
        view = self.view
        with torch.inference_mode():
            sequences = self.executed(actions)[:, None]
            start = view.tokens, self.start.proprio
            tokens, _ = self.model.rollout(*start, sequences, self.patches, self._past(view))
            return self.model.decoder.pictures(tokens[:, 0], self.patches)

    def steps(self, actions: Tensor) -> Tensor:
        """Model steps of (B, H, action_dim) to execute: up to the frame that was scored, int64 (B,)."""
        if self.scored == "last":
            return torch.full((self.batch,), self.horizon)
        view = self.view
        with torch.inference_mode():
            frames = self._frames(self.executed(actions)[:, None], view)
            costs = torch.stack([self._distance(*frame, view) for frame in frames], -1)  # (B, 1, H)
            return costs[:, 0].argmin(-1).cpu() + 1

    def _costs(self, actions: Tensor, patches: Tensor) -> Tensor:
        actions = self.executed(actions)
        recorded = self.device.type == "cuda" and not actions.requires_grad
        if not recorded:
            view = self.view if patches is self.patches else self._view(patches)
        if actions.requires_grad:
            return self._cost(actions, view)
        with torch.inference_mode():
            parts = actions.split(self.chunk or actions.shape[1], 1)
            if recorded:
                costs = [self._recorded_cost(part, patches) for part in parts]
            else:
                costs = [self._cost(part, view) for part in parts]
            return torch.cat(costs, 1).clone()

    def _recorded_cost(self, actions: Tensor, patches: Tensor) -> Tensor:
        """`_cost` on patches (B, M) from a CUDA graph; what changes between plans is handed in."""
        history = [part for frame, action in self.history for part in (frame.tokens, frame.proprio, action)]
        ends = [self.start.tokens, self.start.proprio, self.goal.tokens, self.goal.proprio]

        def cost(inputs: Sequence[Tensor]) -> Tensor:
            actions, patches, *ends = inputs[:6]
            problem = copy.copy(self)
            problem.start, problem.goal = Latent(*ends[:2]), Latent(*ends[2:])
            frames = [inputs[i : i + 3] for i in range(6, len(inputs), 3)]
            problem.history = [(Latent(tokens, proprio), action) for tokens, proprio, action in frames]
            return problem._cost(actions, problem._view(patches))

        name = (self.alpha, self.selection, self.measure, self.scored)
        return self.model.graphs.run(name, cost, [actions, patches, *ends, *history])

    def _cost(self, actions: Tensor, view: View) -> Tensor:
        frames = self._frames(actions, view)
        if self.scored == "last":
            (frame,) = deque(frames, maxlen=1)
            return self._distance(*frame, view)
        return torch.stack([self._distance(*frame, view) for frame in frames]).amin(0)

    def _frames(self, actions: Tensor, view: View) -> Iterator[tuple[Tensor, Tensor]]:
        start = view.tokens, self.start.proprio
        if self._rollout is None and not torch.is_grad_enabled():
            self._rollout = self.model.packed()
        if torch.is_grad_enabled() or self._rollout is None:
            return self.model.imagine(*start, actions, view.patches, self._past(view))
        normalised = self.model.standardizer.actions(actions)
        past = self._packed_past(view, self._rollout)
        return self._rollout.imagine(*start, normalised, view.patches, past)

    def _distance(self, tokens: Tensor, proprio: Tensor, view: View) -> Tensor:
        """From frames (B, S, M, D), (B, S, P) to the goal, (B, S)."""
        if self.measure == "temporal":
            return TemporalDistance.between(self._embedded(tokens, proprio, view.patches), view.goal)
        cost = self.alpha * (proprio - self.goal.proprio[:, None]).square().mean(-1)
        if self.selection != "proprio":
            cost = cost + self.model.standardizer.token_error(tokens, view.goal)
        return cost

    def _embedded(self, tokens: Tensor, proprio: Tensor, patches: Tensor) -> Tensor:
        """Frames (B, S, M, D), (B, S, P) as the temporal distance sees them."""
        assert self.model.distance is not None
        return self.model.distance.embed(tokens, proprio if self.alpha > 0 else None, patches)
