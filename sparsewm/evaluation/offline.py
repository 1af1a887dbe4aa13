"""A world model judged by recorded data alone: imagined frames against recorded ones, and hindsight ranking.

Hindsight ranking stands in for planning. The frame that a recorded action sequence led to is made the goal;
the world model scores that sequence among others from the data, exactly as a planner would. A model that can
be planned with ranks it high.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.data import Dataset
from sparsewm.errors import UserError
from sparsewm.evaluation.hindsight import Cases, check_looks, draw_cases, held_out
from sparsewm.evaluation.ranking import chance, summary
from sparsewm.model.drop import kept_patches
from sparsewm.model.latent import History, Latent, gather_patches
from sparsewm.model.problem import LatentProblem
from sparsewm.model.world_model import WorldModel
from sparsewm.planners.seeding import generator
from sparsewm.trees import at_least

WINDOWS_AT_ONCE = 8
FRAMES_AT_ONCE = 64
MEMORY = 1e9
"""Bytes that imagined candidates may take."""
ERRORS = ("tokens", "tokens_copy", "proprio", "proprio_copy")


@dataclass(frozen=True)
class Scores:
    """What a world model makes of cases, at D drop ratios.

    Attributes:
        errors: float64 (D, W, H) by name: squared errors of imagined `tokens`, as the cost measures them, and
            of `proprio`, both standardised, 1 to H model steps ahead; `tokens_copy`, `proprio_copy`: of the
            present frame in their place.
        costs: float64 (D, W, K) of the action sequences, the recorded one first.
        change: float64 (W,) squared error of the present frame's tokens, all of them, to the goal's.
    """

    drops: tuple[float, ...]
    errors: dict[str, np.ndarray]
    costs: np.ndarray
    change: np.ndarray

    @property
    def moving(self) -> np.ndarray:
        """Whether a window's frame changes by at least half as much as on average, bool (W,)."""
        return np.asarray((self.change > 0) & (self.change >= self.change.mean() / 2))


class OfflineJudge:
    """Scores recorded windows with a world model as planning does: its history, objective and dropped tokens.

    Args:
        model: the world model. dataset: recorded episodes, of any format.
        config: its `cost` and `tokens.selection` are used.
        drops: fractions of the tokens dropped; a larger one keeps a part of what a smaller one keeps.
        horizon: model steps up to which frames are imagined.
        ranked: model steps to the frame that action sequences are ranked by; `horizon` when left out.

    Raises:
        UserError: the dataset does not fit the model, an argument is out of range, or the model has no such
            objective.
    """

    def __init__(
        self,
        model: WorldModel,
        dataset: Dataset,
        config: PlanConfig,
        drops: Sequence[float] = (0.0, 0.5),
        horizon: int = 5,
        ranked: int | None = None,
    ) -> None:
        at_least(1, horizon=horizon, ranked=ranked)
        self.horizon, self.ranked = horizon, horizon if ranked is None else ranked
        if self.ranked > horizon:
            raise UserError(f"`ranked` {ranked} is more than `horizon` {horizon}: lower it")
        self.drops = tuple(dict.fromkeys(float(drop) for drop in drops))
        if not self.drops or not all(0 <= drop < 1 for drop in self.drops):
            raise UserError(
                f"`drops` must be numbers from 0 on and below 1, got {list(drops)}: 0.5 drops half"
            )
        agent = Agent(model, config)
        self.model, self.dataset, self.config = model, dataset, agent.config
        self.objective, self.interface = agent.objective, agent.interface
        check_looks(model, dataset, agent.interface.picture, agent.interface.cameras)
        self.low, self.high = (
            torch.tensor(bound, dtype=torch.float32)
            for bound in (agent.interface.action_low, agent.interface.action_high)
        )

    def cases(
        self, episodes: np.ndarray | None = None, windows: int = 256, candidates: int = 32, seed: int = 0
    ) -> Cases:
        """Draw what is to be scored, see `draw_cases`; of the held-out episodes when none are given."""
        return draw_cases(
            self.dataset,
            held_out(self.model, self.dataset) if episodes is None else episodes,
            self.model,
            horizon=self.horizon,
            ranked=self.ranked,
            windows=windows,
            candidates=candidates,
            seed=seed,
        )

    def score(
        self,
        cases: Cases,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Imagine all cases at all drop ratios.

        Args:
            seed: of the dropped tokens. progress: called with the windows done and all.

        Raises:
            UserError: an imagined frame is not finite.
        """
        shape = len(self.drops), len(cases.rows)
        errors = {name: np.zeros((*shape, self.horizon)) for name in ERRORS}
        costs, change = np.zeros((*shape, cases.others.shape[1] + 1)), np.zeros(shape[1])
        done = 0
        for depth in np.unique(cases.depth):
            numbers = np.flatnonzero(cases.depth == depth)
            for part in np.split(numbers, range(WINDOWS_AT_ONCE, len(numbers), WINDOWS_AT_ONCE)):
                start, future, history = self._frames(cases, part)
                goal = future[self.ranked - 1]
                change[part] = _numpy(self.model.standardizer.token_error(start.tokens, goal.tokens))
                sequences = self.sequences(cases, part)
                for i, drop in enumerate(self.drops):
                    problem = self._problem(start, goal, history, drop, part, seed)
                    costs[i, part] = _numpy(problem.cost(sequences))
                    for name, error in self._errors(problem, cases.rows[part], future).items():
                        errors[name][i, part] = _numpy(error)
                done += len(part)
                if progress is not None:
                    progress(done, shape[1])
        if not all(np.isfinite(values).all() for values in errors.values()):
            raise UserError("the frames this checkpoint imagines are not finite: train it again")
        return Scores(self.drops, errors, costs, change)

    def imagined(self, cases: Cases, number: int, drop: float, candidate: int, seed: int = 0) -> np.ndarray:
        """Picture uint8 (R, R, 3) of the frame that a case's action sequence leads to.

        Args:
            candidate: number of the sequence, 0 is the recorded one.

        Raises:
            UserError: the model has no decoder.
        """
        part = np.array([number])
        start, future, history = self._frames(cases, part)
        problem = self._problem(start, future[self.ranked - 1], history, drop, part, seed)
        pictures = problem.imagined(self.sequences(cases, part)[:, candidate])
        return pictures[0, -1].cpu().numpy()

    def sequences(self, cases: Cases, numbers: np.ndarray) -> Tensor:
        """Competing actions float32 (B, K, ranked, C) within the model's bounds, the recorded ones first."""
        first = np.concatenate([cases.rows[numbers, None], cases.others[numbers]], 1)
        return self._actions(first, self.ranked, clip=True)

    def _actions(self, first: np.ndarray, steps: int, clip: bool = False) -> Tensor:
        """Recorded actions (..., steps, C) from first rows (...) on."""
        frameskip = self.model.frameskip
        actions = torch.from_numpy(self.dataset.action[first[..., None] + np.arange(steps * frameskip)])
        if clip:
            actions = actions.clamp(self.low, self.high)
        return actions.reshape(*first.shape, steps, -1).to(self.model.device)

    @torch.inference_mode()
    def _frames(self, cases: Cases, numbers: np.ndarray) -> tuple[Latent, list[Latent], History]:
        """Present frames, those of the next `horizon` model steps, and the past, of cases of one depth."""
        depth = int(cases.depth[numbers[0]])
        rows = cases.rows[numbers, None] + self.model.frameskip * np.arange(-depth, self.horizon + 1)
        unique, place = np.unique(rows, return_inverse=True)
        encoded = [
            self.model.encode(self.dataset.pixels[part], self.dataset.proprio[part])
            for part in np.split(unique, range(FRAMES_AT_ONCE, len(unique), FRAMES_AT_ONCE))
        ]
        bare = Latent.cat([Latent(frame.tokens, frame.proprio) for frame in encoded])
        times = [
            bare[torch.from_numpy(column).to(self.model.device)] for column in place.reshape(rows.shape).T
        ]
        history = [(times[t], self._actions(rows[:, t], 1)[:, 0]) for t in range(depth)]
        return times[depth], times[depth + 1 :], history

    def _problem(
        self, start: Latent, goal: Latent, history: History, drop: float, numbers: np.ndarray, seed: int
    ) -> LatentProblem:
        return LatentProblem(
            self.model,
            start,
            goal,
            self.low,
            self.high,
            objective=self.objective,
            horizon=self.ranked,
            drop=drop,
            frame=self.config.cost.frame,
            action_repeat=False,
            init_std=1.0,
            generators=[generator((seed, int(i)), "tokens") for i in numbers],
            history=history,
            redraw=False,
            memory=MEMORY,
        )

    @torch.inference_mode()
    def _errors(
        self, problem: LatentProblem, rows: np.ndarray, future: Sequence[Latent]
    ) -> dict[str, Tensor]:
        """Errors (B, horizon) of the frames that the recorded actions are imagined to lead to."""
        view, model = problem.view, self.model
        past = model.remember(view.history, view.patches)
        actions = self._actions(rows, self.horizon)[:, None]
        tokens, proprio = model.rollout(view.tokens, view.proprio, actions, view.patches, past)
        true = gather_patches(torch.stack([frame.tokens for frame in future], 1), view.patches)
        own, error = torch.stack([frame.proprio for frame in future], 1), model.standardizer.token_error
        return {
            "tokens": error(tokens[:, 0].float(), true),
            "tokens_copy": error(view.tokens[:, None], true),
            "proprio": (proprio[:, 0].float() - own).square().mean(-1),
            "proprio_copy": (view.proprio[:, None] - own).square().mean(-1),
        }


def report(cases: Cases, scores: Scores, model: WorldModel, seed: int = 0) -> dict[str, Any]:
    """Errors and ranking as JSON takes them, per drop ratio."""
    errors, ranking, moving = {}, {}, scores.moving
    for i, drop in enumerate(scores.drops):
        sums = {name: values[i].sum(0) for name, values in scores.errors.items()}
        part: dict[str, Any] = {"kept": kept_patches(model.patches, drop)}
        for name in ("tokens", "proprio"):
            ours, copy = sums[name], sums[f"{name}_copy"]
            part[name] = (ours / len(cases.rows)).tolist()
            part[f"{name}_copy"] = (copy / len(cases.rows)).tolist()
            part[f"{name}_ratio"] = [
                float(a / b) if b > 1e-9 else None for a, b in zip(ours, copy, strict=True)
            ]
        errors[f"drop_{drop:g}"] = part
        ranking[f"drop_{drop:g}"] = {
            "all": summary(scores.costs[i], cases.episodes, seed),
            "moving": summary(scores.costs[i][moving], cases.episodes[moving], seed),
        }
    return {
        "windows": len(cases.rows),
        "episodes": len(np.unique(cases.episodes)),
        "errors": errors,
        "candidates": scores.costs.shape[2],
        "chance": chance(scores.costs.shape[2]),
        "ranking": ranking,
        "moving_share": float(moving.mean()),
    }


def _numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
