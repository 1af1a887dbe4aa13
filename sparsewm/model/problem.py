"""What the planners optimise: reaching a goal picture inside the world model, on few tokens.

Implements `planners.PlanningProblem`. The start and the goal are encoded before it is made; between
iterations only the drawn subset of patches, and what follows from it, changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from sparsewm.errors import UserError
from sparsewm.model.distance import TemporalDistance
from sparsewm.model.predictor import FrameCache
from sparsewm.model.rollout import Rollout
from sparsewm.model.world_model import Latent, WorldModel, gather_patches, random_patches

Selection = Literal["random", "proprio"]
Measure = Literal["mse", "temporal"]
Scored = Literal["last", "best"]


def kept_patches(patches: int, drop: float) -> int:
    """How many of `patches` stay when a fraction `drop` is dropped, at least one.

    Raises:
        UserError: `drop` outside [0, 1).
    """
    if not 0 <= drop < 1:
        raise UserError(f"--drop must be at least 0 and below 1, got {drop:g}: 0.5 drops half of the tokens")
    return max(1, round((1 - drop) * patches))


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
        drop: float = 0.0,
        later_drops: Sequence[float] = (),
        alpha: float = 1.0,
        history: Sequence[tuple[Latent, Tensor]] = (),
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
        self.counts = [kept_patches(model.patches, share) for share in (drop, *later_drops)]
        self.kept = self.counts[0]
        self.alpha, self.selection, self.measure, self.chunk = alpha, selection, measure, chunk
        self.scored = scored
        self.generator = generator or torch.Generator(device=self.device).manual_seed(0)
        if patches is None:
            patches = random_patches(self.batch, model.patches, self.kept, self.generator)
        self.redraw = redraw
        self._rollout: Rollout | None = None
        self._use(patches)

    @torch.no_grad()  # not inference mode: gradient descent differentiates through what is kept here
    def resample(self, iteration: int) -> None:
        """Draw a new subset of patches for every episode."""
        if not self.redraw:
            return
        before, self.kept = self.kept, self.counts[min(iteration, len(self.counts) - 1)]
        if before == self.kept == self.model.patches:
            return
        self._use(random_patches(self.batch, self.model.patches, self.kept, self.generator))

    def _use(self, patches: Tensor) -> None:
        """Take the subset (B, M) of patches from here on."""
        self.patches = patches.to(self.device)
        self._tokens = gather_patches(self.start.tokens, self.patches)  # (B, M, D)
        self._goal = gather_patches(self.goal.tokens, self.patches)[:, None]
        if self.measure == "temporal":
            self._goal = self._embedded(self._goal, self.goal.proprio[:, None])
        self._past: list[FrameCache] = self.model.remember(self.history, self.patches) if self.history else []

    def executed(self, actions: Tensor) -> Tensor:
        """Planned actions (..., H, action_dim) as the model and the environment take them (..., H, C)."""
        return actions.repeat(*[1] * (actions.ndim - 1), self.repeats)

    def cost(self, actions: Tensor) -> Tensor:
        """(B, S, H, action_dim) in the environment's units -> (B, S)."""
        actions = self.executed(actions)
        if actions.requires_grad:
            return self._cost(actions)
        with torch.inference_mode():
            parts = actions.split(self.chunk or actions.shape[1], 1)
            return torch.cat([self._cost(part) for part in parts], 1).clone()

    def imagined(self, actions: Tensor) -> Tensor:
        """Pictures uint8 (B, H, R, R, 3) of what actions (B, H, action_dim) lead to, on the present patches.

        Raises:
            UserError: the model has no decoder.
        """
        if self.model.decoder is None:
            raise UserError("this world model has no decoder: train one with sparsewm train --extend")
        with torch.inference_mode():
            sequences = self.executed(actions)[:, None]
            start = self._tokens, self.start.proprio
            tokens, _ = self.model.rollout(*start, sequences, self.patches, self._past)
            return self.model.decoder.pictures(tokens[:, 0], self.patches)

    def steps(self, actions: Tensor) -> Tensor:
        """Model steps of (B, H, action_dim) to execute: up to the frame that was scored, int64 (B,)."""
        if self.scored == "last":
            return torch.full((self.batch,), self.horizon)
        with torch.inference_mode():
            frames = self._frames(self.executed(actions)[:, None])
            costs = torch.stack([self._distance(*frame) for frame in frames], -1)  # (B, 1, H)
            return costs[:, 0].argmin(-1).cpu() + 1

    def _frames(self, actions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        start = self._tokens, self.start.proprio
        if torch.is_grad_enabled() or self.device.type != "cpu":
            return self.model.imagine(*start, actions, self.patches, self._past)
        if self._rollout is None:
            self._rollout = Rollout(self.model.predictor)
        normalised = self.model.standardizer.actions(actions)
        return self._rollout.imagine(*start, normalised, self.patches, self._past)

    def _cost(self, actions: Tensor) -> Tensor:
        if self.scored == "last":
            (frame,) = deque(self._frames(actions), maxlen=1)
            return self._distance(*frame)
        return torch.stack([self._distance(*frame) for frame in self._frames(actions)]).amin(0)

    def _distance(self, tokens: Tensor, proprio: Tensor) -> Tensor:
        """From frames (B, S, M, D), (B, S, P) to the goal, (B, S)."""
        if self.measure == "temporal":
            return TemporalDistance.between(self._embedded(tokens, proprio), self._goal)
        cost = self.alpha * (proprio - self.goal.proprio[:, None]).square().mean(-1)
        if self.selection != "proprio":
            cost = cost + self.model.standardizer.token_error(tokens, self._goal)
        return cost

    def _embedded(self, tokens: Tensor, proprio: Tensor) -> Tensor:
        """Frames (B, S, M, D), (B, S, P) as the temporal distance sees them."""
        assert self.model.distance is not None
        return self.model.distance.embed(tokens, proprio if self.alpha > 0 else None, self.patches)
