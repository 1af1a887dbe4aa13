"""What the planners optimise: reaching a goal picture inside the world model, on few tokens.

Implements `sparsewm.planners.PlanningProblem`. The start and the goal are encoded before it is made; between
iterations only the drawn subset of patches, and what follows from it, changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparsewm.errors import UserError
from sparsewm.kernels import flushed
from sparsewm.memory import free_memory
from sparsewm.model.choices.base import Scene, ScoredChoice, TokenChoice, drawn, patch_errors
from sparsewm.model.choices.uniform import RandomPatches
from sparsewm.model.drop import kept_patches
from sparsewm.model.latent import History, Latent, gather_patches
from sparsewm.model.objectives import Objective
from sparsewm.model.predictor import FrameCache
from sparsewm.model.rollout import Past, Rollout
from sparsewm.model.world_model import WorldModel
from sparsewm.planners.protocol import PlanningError

PLENTY = 1 << 26
"""Bytes that a rollout may take without a look at how many are left."""


@dataclass
class View:
    """What a subset of the patches shows, and what was computed from it.

    Attributes:
        patches: (B, M) indices, or blended tokens (`sparsewm.model.latent.blend`).
        compared: (B, K) which of them the objective sees; None: all.
        tokens, proprio: (B, M, D) and (B, P) of the present frame.
        goal: what the objective compares imagined frames with.
        history: earlier frames and the actions taken at them.
        past, packed_past: their keys and values, for the predictor and the packed rollout; None: not asked
            for yet.
    """

    patches: Tensor
    compared: Tensor | None
    tokens: Tensor
    proprio: Tensor
    goal: Any
    history: History
    past: list[FrameCache] | None = None
    packed_past: Past | None = None


class LatentProblem:
    """Distance to the goal after an imagined action sequence, from the kept tokens of its frames.

    A cost draws no random numbers: the same actions have the same cost until the next `resample`.

    Args:
        model: the world model.
        start, goal: present and wanted frame of B episodes.
        low, high: (A,) bounds of the environment's action.
        objective: scores frames.
        horizon: H, model steps imagined.
        drop: fraction of tokens dropped; the kept ones are shared by the candidates of an episode.
        frame: which imagined frame is scored. "last", or "min", the nearest of all: a sequence may then pass
            the goal on its way, and `steps` tells where to stop. A goal half a horizon away so needs no plan
            that waits for it, and one rollout tries as many lengths as it has frames.
        action_repeat: plan one environment action per model step, held for all of its environment steps. The
            search is smaller by the factor frameskip, and its noise lasts long enough to get round obstacles.
        init_std: deviation of the first candidates, in deviations of the recorded actions.
        generators: sources of the subsets, one per episode.
        choice: of the kept tokens; random patches when left out.
        comparison: picks which of the kept tokens the objective compares; None: all.
        cost_drop: fraction of the kept tokens that it leaves out.
        history: earlier (frame, action (B, C)) pairs, oldest first.
        redraw: draw a new subset at every `resample`; otherwise the first one is kept.
        patches: the subset (B, M) to start with; None: a random one.
        memory: bytes that a rollout may take; candidates are then imagined in parts. None: all at once,
            unless half of the memory that a CPU has left is less.

    Raises:
        UserError: a horizon below 1, or a drop ratio outside [0, 1).
    """

    def __init__(
        self,
        model: WorldModel,
        start: Latent,
        goal: Latent,
        low: Tensor,
        high: Tensor,
        *,
        objective: Objective,
        horizon: int,
        drop: float,
        frame: str,
        action_repeat: bool,
        init_std: float,
        generators: Sequence[torch.Generator],
        choice: TokenChoice | None = None,
        comparison: ScoredChoice | None = None,
        cost_drop: float = 0.5,
        history: History = (),
        redraw: bool = True,
        patches: Tensor | None = None,
        memory: float | None = None,
    ) -> None:
        if horizon < 1:
            raise UserError(f"`horizon` must be at least 1 model step, got {horizon}")
        if frame not in ("last", "min"):
            raise UserError(f"`frame` must be last or min, not '{frame}'")
        self.model, self.start, self.goal, self.history = model, start, goal, list(history)
        self.batch, self.horizon, self.device = start.tokens.shape[0], horizon, model.device
        if len(generators) != self.batch or len(goal.tokens) != self.batch:
            raise ValueError(
                f"{self.batch} present frames need as many goals and generators, got {len(goal.tokens)} and "
                f"{len(generators)}"
            )
        frameskip = model.action_dim // low.shape[0]
        repeat, self.repeats = (1, frameskip) if action_repeat else (frameskip, 1)
        self.action_dim = repeat * low.shape[0]
        self.low, self.high = low.to(self.device).repeat(repeat), high.to(self.device).repeat(repeat)
        standardizer = model.standardizer
        self.mean = standardizer.action_mean.repeat(repeat).expand(horizon, -1)
        self.std = init_std * standardizer.action_std.repeat(repeat).expand(horizon, -1)
        self.kept = kept_patches(model.patches, drop)
        self.objective, self.frame, self.redraw = objective, frame, redraw
        self.generators, self.memory = list(generators), memory
        self.choice = choice if choice is not None and self.kept < model.patches else RandomPatches(model)
        self.comparison, self._cost_drop = comparison, cost_drop
        self._rollout: Rollout | None = None
        self._fresh = False  # whether packed weights were compared with the predictor's
        self._middle: Tensor | None = None  # the first candidate of the last iteration, a planner's mean
        self._whole: View | None = None  # of all patches
        self.patches = (self._draw() if patches is None else patches).to(self.device)
        self.compared = self._pick()
        self._seen: View | None = None

    @property
    def view(self) -> View:
        """What the present subset shows, computed when it is first asked for."""
        if self._seen is None:
            self._seen = self._view(self.start, self.goal, self.history, self.patches, self.compared)
        return self._seen

    def resample(self, iteration: int) -> None:
        """Draw a new subset of tokens for every episode."""
        if self.redraw and self.kept < self.model.patches:
            self.patches, self._seen = self._draw().to(self.device), None
        if self.redraw and self.comparison is not None:
            self.compared, self._seen = self._pick(), None

    def scene(self, imagination: bool = False) -> Scene:
        """What a choice of tokens may look at, with what imagination changed where it is wanted."""
        imagined = self._imagined_change() if imagination else None
        return Scene(self.start, self.goal, self.history, imagined)

    def _draw(self) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # see `_view`
            return self.choice.choose(self.scene(self.choice.imagination), self.kept, self.generators)

    def _pick(self) -> Tensor | None:
        """Which of the kept tokens are compared with the goal, (B, K)."""
        choice = self.comparison
        if choice is None:
            return None
        with torch.inference_mode(False), torch.no_grad():  # see `_view`
            scores = choice.scores(self.scene(choice.imagination))
            scores = gather_patches(scores[..., None], self.patches)[..., 0]
            count = kept_patches(self.kept, self._cost_drop)
            return drawn(scores, count, choice.temperature, self.generators).to(self.device)

    def _imagined_change(self) -> Tensor | None:
        """Error (B, N) between the present frame and the end of the last mean, of all patches."""
        if self._middle is None:
            return None
        if self._whole is None:
            every = torch.arange(self.model.patches, device=self.device).expand(self.batch, -1)
            self._whole = self._view(self.start, self.goal, self.history, every, None)
        with torch.inference_mode():
            (last,) = deque(self._frames(self.executed(self._middle), self._whole), maxlen=1)
            change = patch_errors(self.model, last[0][:, 0], self.start.tokens)
        return change.clone()

    def _view(
        self, start: Latent, goal: Latent, history: History, patches: Tensor, compared: Tensor | None
    ) -> View:
        """What patches (B, M) show."""
        with torch.inference_mode(False), torch.no_grad():  # gradient descent differentiates through it
            seen = patches if compared is None else picked(patches, compared)
            wanted = gather_patches(goal.tokens, seen)[:, None], goal.proprio[:, None]
            return View(
                patches,
                compared,
                gather_patches(start.tokens, patches),
                start.proprio,
                self.objective.goal(*wanted, seen),
                history,
            )

    def _past(self, view: View) -> list[FrameCache]:
        """Earlier frames for the predictor."""
        if view.past is None:
            with torch.inference_mode(False), torch.no_grad():  # see `_view`
                view.past = self.model.remember(view.history, view.patches)
        return view.past

    def executed(self, actions: Tensor) -> Tensor:
        """Planned actions (..., H, action_dim) as the model and the environment take them (..., H, C)."""
        return actions.repeat(*[1] * (actions.ndim - 1), self.repeats)

    @flushed()
    def cost(self, actions: Tensor) -> Tensor:
        """(B, S, H, action_dim) in the environment's units -> (B, S)."""
        self._middle = actions[:, :1].detach()
        actions = self.executed(actions)
        parts = actions.split(self._part(actions.shape[1], actions.requires_grad), 1)
        if actions.requires_grad:
            if len(parts) == 1:
                return self._cost(actions, self.view)
            # What the gradient of a part needs is computed again when it is asked for.
            costs = [checkpoint(self._cost, part, self.view, use_reentrant=False) for part in parts]
            return torch.cat(costs, 1)
        recorded = self.device.type == "cuda"
        with torch.inference_mode():
            costs = [self._recorded_cost(part) if recorded else self._cost(part, self.view) for part in parts]
            return torch.cat(costs, 1).clone()

    def _part(self, candidates: int, gradient: bool = False) -> int:
        """How many candidates are imagined at once; for a gradient all of their steps are remembered."""
        config, length = self.model.config, self.kept + 1
        inner = config.heads * config.head_size
        cached = 2 * config.history * config.depth * inner  # numbers per token: keys and values
        passing = config.width + 3 * inner + config.mlp + 3 * config.token_dim
        size = self.batch * length * (cached + passing) * 4
        if gradient:
            size *= config.depth * self.horizon
        room = self.memory
        if room is None:
            if self.device.type != "cpu" or candidates * size < PLENTY:
                return candidates
            room = free_memory() / 2
        return max(1, min(candidates, int(room / size)))

    @flushed()
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
            tokens, _ = self.model.rollout(
                view.tokens, view.proprio, sequences, view.patches, self._past(view)
            )
            return self.model.decoder.pictures(tokens[:, 0], view.patches)

    @flushed()
    def steps(self, actions: Tensor) -> Tensor:
        """Model steps of (B, H, action_dim) to execute: up to the frame that was scored, int64 (B,)."""
        if self.frame == "last":
            return torch.full((self.batch,), self.horizon)
        with torch.inference_mode():
            frames = self._frames(self.executed(actions)[:, None], self.view)
            costs = torch.stack([self._distance(*frame, self.view) for frame in frames], -1)  # (B, 1, H)
            return costs[:, 0].argmin(-1).cpu() + 1

    def _recorded_cost(self, actions: Tensor) -> Tensor:
        """`_cost` from a CUDA graph; what changes between plans is handed in."""
        if not self._fresh:
            self.model.packed()  # weights that have changed since are packed anew, and their graphs go
            self._fresh = True
        history = [part for frame, action in self.history for part in (frame.tokens, frame.proprio, action)]
        ends = [self.start.tokens, self.start.proprio, self.goal.tokens, self.goal.proprio]
        some = [] if self.compared is None else [self.compared]

        def cost(inputs: Sequence[Tensor]) -> Tensor:
            actions, patches, *ends = inputs[:6]
            compared, others = (inputs[6], inputs[7:]) if some else (None, inputs[6:])
            frames = [others[i : i + 3] for i in range(0, len(others), 3)]
            earlier = [(Latent(tokens, proprio), action) for tokens, proprio, action in frames]
            view = self._view(Latent(*ends[:2]), Latent(*ends[2:]), earlier, patches, compared)
            return self._cost(actions, view)

        name = (self.objective.key, self.frame, bool(some))
        return self.model.graphs.run(name, cost, [actions, self.patches, *ends, *some, *history])

    def _cost(self, actions: Tensor, view: View) -> Tensor:
        frames = self._frames(actions, view)
        if self.frame == "last":
            (frame,) = deque(frames, maxlen=1)
            return self._distance(*frame, view)
        return torch.stack([self._distance(*frame, view) for frame in frames]).amin(0)

    def _frames(self, actions: Tensor, view: View) -> Iterator[tuple[Tensor, Tensor]]:
        start = view.tokens, view.proprio
        if self._rollout is None and not torch.is_grad_enabled():
            self._rollout = self.model.packed()
        if torch.is_grad_enabled() or self._rollout is None:
            return self.model.imagine(*start, actions, view.patches, self._past(view))
        normalised = self.model.standardizer.actions(actions)
        if view.packed_past is None:
            view.packed_past = self.model.remember(view.history, view.patches, self._rollout)
        return self._rollout.imagine(*start, normalised, view.patches, view.packed_past)

    def _distance(self, tokens: Tensor, proprio: Tensor, view: View) -> Tensor:
        """From frames (B, S, M, D), (B, S, P) to the goal, (B, S)."""
        compared, seen = tokens, view.patches
        if view.compared is not None:
            compared, seen = gather_patches(tokens, view.compared), picked(view.patches, view.compared)
        found = self.objective.distance(compared, proprio, view.goal, seen)
        if found.shape != tokens.shape[:2]:
            shape = tuple(tokens.shape[:2])
            raise PlanningError(f"an objective's distance must have shape {shape}, got {tuple(found.shape)}")
        return found


def picked(patches: Tensor, compared: Tensor) -> Tensor:
    """Patches (B, M), or blended tokens, at (B, K) of their numbers."""
    if patches.is_floating_point():
        return gather_patches(patches, compared)
    return patches.gather(1, compared)
