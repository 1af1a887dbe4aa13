r"""Blind spots of choices of tokens: patches that decide between candidates, and are never kept.

At every decision of an episode, candidates are imagined on all tokens: half from the first distribution of a
search, half around the plan that was made. A patch *decides* where another candidate is the best once its
token is left out of the cost. It is *kept* where it is at least half of a token. Counted are deciding patches
that none of a plan's iterations kept, and those that none of an episode's did; and how success goes with it.

Example (a choice is written as for scripts.experiments.choices):

    python -m scripts.experiments.blind_spots --environments rope --choices random goal --drops 0.9

Finished cells are kept, so an interrupted run continues. Writes JSON, and a picture for every environment,
encoder and drop ratio: maps of how often each patch is kept, decides, and decides without being kept, a row
for every choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from scripts.common import launch, typed_command
from scripts.experiments.choices import EMBEDDED, file_name, planned
from sparsewm.agent import Agent
from sparsewm.config import TaskSet
from sparsewm.evaluation.actors import AgentActor
from sparsewm.evaluation.cells import Cell, cell_path, read_cell
from sparsewm.evaluation.episodes import Episode, run_episodes
from sparsewm.evaluation.run import prepare
from sparsewm.evaluation.statistics import wilson
from sparsewm.files import write_json
from sparsewm.model import LatentProblem
from sparsewm.model.choices import CHOICES, Scene, TokenChoice
from sparsewm.model.choices.base import patch_errors
from sparsewm.model.objectives import Objective, TokenError
from sparsewm.planners.seeding import generator
from sparsewm.report.plots import save_figure


@dataclass
class Arguments:
    """How often a choice of tokens never keeps what decides."""

    environments: tuple[str, ...] = ("pusht", "rope")
    """Environments."""
    encoders: tuple[str, ...] = (EMBEDDED,)
    """Encoders of the world models."""
    checkpoints: Path | None = None
    """Folder of trained runs by environment, instead of shipped models."""
    choices: tuple[str, ...] = (*CHOICES.names(), "attention@0", "goal@0", "motion@0")
    """Choices, NAME[@TEMPERATURE][/COST]."""
    drops: tuple[float, ...] = (0.5, 0.9)
    """Fractions of the tokens that are dropped."""
    tasks: TaskSet = "validation"
    """Tasks: validation, test, or drawn with the seed."""
    episodes: int = 20
    """Episodes per cell."""
    candidates: int = 32
    """Candidates between which patches decide."""
    seed: int = 0
    """Seed of candidates and tokens."""
    output: Path = Path("results/blind_spots")
    """Folder of the results; the same one continues."""


class Recorded(TokenChoice):
    """Another choice, with what it was shown and what it kept."""

    def __init__(self, inner: TokenChoice) -> None:
        super().__init__(inner.model, inner.temperature)
        self.inner, self.attention, self.imagination = inner, inner.attention, inner.imagination
        self.scene: Scene | None = None
        self.kept: list[np.ndarray] = []

    def choose(self, scene: Scene, kept: int, generators: Sequence[torch.Generator]) -> Tensor:
        chosen = self.inner.choose(scene, kept, generators)
        self.scene = scene
        self.kept.append(presence(chosen[0], self.model.patches).cpu().numpy())
        return chosen


def presence(chosen: Tensor, patches: int) -> Tensor:
    """The largest share (N,) that each patch has in any of the tokens (M,) or (M, N + 2)."""
    if chosen.is_floating_point():
        return chosen[:, :-2].amax(0)
    return torch.zeros(patches, device=chosen.device).index_fill(0, chosen, 1.0)


@dataclass
class Seen:
    """Of one episode: for every decision which patches decide (N,), and what share of iterations kept each.

    Attributes:
        turned: share of the best eighth of the candidates that changes without a patch.
    """

    deciding: list[np.ndarray] = field(default_factory=list)
    turned: list[np.ndarray] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)


class Watched(AgentActor):
    """An agent whose choices are recorded and judged after every decision; one episode at a time."""

    def __init__(self, agent: Agent, candidates: int) -> None:
        super().__init__(agent)
        self.candidates, self.choice, self.episodes = candidates, Recorded(agent.choice), list[Seen]()
        agent.choice = self.choice

    def begin(self, episodes: Sequence[Episode]) -> None:
        super().begin(episodes)
        self.episodes.append(Seen())
        self.noise = generator(episodes[0].task.seed, "judging")

    def act(self, episodes: Sequence[Episode], active: np.ndarray) -> Sequence[np.ndarray]:
        self.choice.kept = []
        actions = super().act(episodes, active)
        decision, seen = self.agent.decisions[0], self.episodes[-1]
        assert decision is not None
        first = self.agent.config.tokens.resample == "iteration"  # drawn before any iteration, not used
        seen.kept.append((np.stack(self.choice.kept[first:]) >= 0.5).mean(0))
        deciding, turned = self._judge(torch.as_tensor(decision.plan))
        seen.deciding.append(deciding)
        seen.turned.append(turned)
        return actions

    def _judge(self, plan: Tensor) -> tuple[np.ndarray, np.ndarray]:
        agent, scene, config = self.agent, self.choice.scene, self.agent.config
        assert scene is not None
        problem = LatentProblem(
            agent.model,
            scene.start,
            scene.goal,
            agent._low,
            agent._high,
            objective=agent.objective,
            horizon=config.search.horizon,
            drop=0.0,
            frame=config.cost.frame,
            action_repeat=config.search.action_repeat,
            init_std=config.search.init_std,
            generators=[self.noise],
        )
        half, shape = self.candidates // 2, tuple(problem.mean.shape)
        noise = torch.randn(self.candidates, *shape, generator=self.noise).to(problem.device)
        wide = problem.mean + problem.std * noise[:half]
        near = plan.to(problem.device) + 0.3 * problem.std * noise[half:]
        actions = torch.cat([wide, near])[None].clamp(problem.low, problem.high)
        with torch.inference_mode():
            costs, without = leave_one_out(problem, scene, problem.executed(actions), agent.objective)
        best = costs.argmin()
        count = max(1, self.candidates // 8)
        elite = torch.zeros_like(costs).index_fill(0, costs.topk(count, largest=False).indices, 1.0)
        others = without.topk(count, dim=0, largest=False).indices  # (count, N)
        stay = elite[others].mean(0)
        return (without.argmin(0) != best).cpu().numpy(), (1 - stay).cpu().numpy()


def leave_one_out(
    problem: LatentProblem, scene: Scene, actions: Tensor, objective: Objective
) -> tuple[Tensor, Tensor]:
    """Costs (S,) of actions (1, S, H, C) imagined on all tokens, and (S, N) without each patch's token."""
    model, patches = problem.model, problem.patches
    past = model.remember(scene.history, patches)
    tokens, proprio = model.rollout(scene.start.tokens, scene.start.proprio, actions, patches, past)
    frames = range(tokens.shape[2]) if problem.frame == "min" else [tokens.shape[2] - 1]
    goal = scene.goal.tokens[:, None], scene.goal.proprio[:, None]
    whole, parts = [], []
    for frame in frames:
        now, place = tokens[:, :, frame], proprio[:, :, frame]
        whole.append(objective.distance(now, place, objective.goal(*goal, patches), patches)[0])
        parts.append(_without_each(model, objective, now, place, goal, patches, whole[-1]))
    return torch.stack(whole).amin(0), torch.stack(parts).amin(0)


def _without_each(
    model: Any,
    objective: Objective,
    tokens: Tensor,
    proprio: Tensor,
    goal: tuple[Tensor, Tensor],
    patches: Tensor,
    whole: Tensor,
) -> Tensor:
    """Costs (S, N) of frames without the token of each patch."""
    count = patches.shape[1]
    if isinstance(objective, TokenError):  # a mean over patches
        errors = patch_errors(model, tokens, goal[0])[0]  # (S, N)
        mean = errors.mean(-1, keepdim=True)
        return whole[:, None] - mean + (count * mean - errors) / (count - 1)
    found = []
    for patch in range(count):
        others = torch.arange(count, device=patches.device) != patch
        left = patches[:, others]
        wanted = objective.goal(goal[0][:, :, others], goal[1], left)
        found.append(objective.distance(tokens[:, :, others], proprio, wanted, left)[0])
    return torch.stack(found, -1)


def measure(seen: Sequence[Seen], episodes: Sequence[Episode]) -> dict[str, Any]:
    """Numbers of a cell and its maps, of what was seen."""
    deciding = [np.stack(one.deciding) for one in seen if one.deciding]  # (plans, N) of every episode
    kept = [np.stack(one.kept) for one in seen if one.deciding]
    turned = [np.stack(one.turned) for one in seen if one.deciding]
    success = [episode.success for one, episode in zip(seen, episodes, strict=True) if one.deciding]
    all_deciding, all_kept, all_turned = map(np.concatenate, (deciding, kept, turned))
    never = [d.any(0) & (k == 0).all(0) for d, k in zip(deciding, kept, strict=True)]
    missed = [int(one.sum()) for one in never]
    pairs = sum(int(one.any(0).sum()) for one in deciding)
    blind = all_deciding & (all_kept == 0)
    weight = all_turned.sum()
    groups = {}
    for name, some in (("none_missed", False), ("some_missed", True)):
        chosen = [won for won, count in zip(success, missed, strict=True) if (count > 0) == some]
        interval = list(wilson(sum(chosen), len(chosen)))
        groups[name] = {"episodes": len(chosen), "successes": sum(chosen), "ci95": interval}
    return {
        "episodes": len(success),
        "success_rate": sum(success) / max(1, len(success)),
        "plans": len(all_deciding),
        "deciding_per_plan": float(all_deciding.sum(1).mean()),
        "never_kept_in_the_plan": _share(blind.sum(), all_deciding.sum()),
        "never_kept_in_the_episode": _share(sum(missed), pairs),
        "elites_turned_by_unseen": _share((all_turned * (all_kept == 0)).sum(), weight),
        "kept_share": float(all_kept.mean()),
        "kept_share_of_deciding": _share((all_kept * all_deciding).sum(), all_deciding.sum()),
        "success_by_blind_spots": groups,
        "missed_per_episode": missed,
        "successes": [bool(won) for won in success],
        "maps": {
            "kept": all_kept.mean(0).round(4).tolist(),
            "deciding": all_deciding.mean(0).round(4).tolist(),
            "blind": blind.mean(0).round(4).tolist(),
        },
    }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def watch(cell: Cell, candidates: int) -> dict[str, Any]:
    """Run a cell's episodes and judge every decision."""
    ready = prepare(cell.config)
    assert ready.model is not None
    actor = Watched(Agent(ready.model, ready.config), candidates)
    goal = ready.config.goal
    episodes = run_episodes(ready.envs[:1], ready.tasks, actor, goal.max_steps, rule=goal.rule)
    return {"grid": list(ready.model.config.grid)} | measure(actor.episodes, episodes)


def picture(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Maps over the patches, a row for every choice."""
    names = {"kept": "kept, share of iterations", "deciding": "decides, share of plans"}
    names["blind"] = "decides, never kept in the plan"
    size = (8, 2.3 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), 3, figsize=size, layout="constrained", squeeze=False)
    largest = max(max(row["maps"]["deciding"]) for row in rows) or 1.0
    for place, (line, row) in enumerate(zip(axes, rows, strict=True)):
        for axis, (name, label) in zip(line, names.items(), strict=True):
            shown = np.array(row["maps"][name]).reshape(row["grid"])
            image = axis.imshow(shown, vmin=0, vmax=1 if name == "kept" else largest, cmap="viridis")
            axis.set(xticks=[], yticks=[])
            if place == 0:
                axis.set_title(label, fontsize=9)
            figure.colorbar(image, ax=axis, shrink=0.8)
        line[0].set_ylabel(row["choice"], fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def main(arguments: Arguments) -> None:
    (arguments.output / "cells").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for environment in arguments.environments:
        for encoder in arguments.encoders:
            for drop in arguments.drops:
                here = []
                for label in arguments.choices:
                    cell = Cell("random", planned(arguments, environment, encoder, label, drop))
                    name = file_name(environment, encoder, label, drop)
                    request = cell.request() | {"judged": arguments.candidates}
                    result = read_cell(arguments.output, name, request)
                    if result is None:
                        result = {"request": request, **watch(cell, arguments.candidates)}
                        write_json(cell_path(arguments.output, name), result)
                    varied = {"environment": environment, "encoder": encoder, "choice": label, "drop": drop}
                    here.append(varied | {key: value for key, value in result.items() if key != "request"})
                    shown = ("success_rate", "never_kept_in_the_plan", "never_kept_in_the_episode")
                    print(*varied.values(), *(f"{key} {result[key]}" for key in shown), flush=True)
                place = arguments.output / f"{file_name(environment, encoder, 'all', drop)}.png"
                picture(place, here, f"{environment}, {encoder}, {100 * (1 - drop):.0f}% of the tokens")
                rows += here
    report = {"command": typed_command(), "tasks": arguments.tasks, "seed": arguments.seed}
    write_json(arguments.output / "blind_spots.json", report | {"rows": rows})


if __name__ == "__main__":
    launch(main, Arguments)
