"""Does a world model choose, of a policy's proposals, those that truly lead nearer to the goal?

Example:

    python -m scripts.experiments.judge_proposals --environment metaworld/mt10 --proposals vla --spreads 1 2.5

The policy alone acts, so that the states do not depend on who chooses. At some of its decisions its
proposals, and the same spread more widely about their mean, are followed in the true simulator. Three judges
choose one: the world model, the tokens of true pictures (all of them: a world model without an error), and
the true distance. Written is by how much of a unit (m, rad) each part of the scene then comes nearer to its
goal than by the policy's first proposal, and how the costs rank with the true distances (Spearman's
correlation); `distance` is what the oracle minimises, in success thresholds. Writes judged.json, judged.md
and judged.png.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from scripts.common import launch, typed_command
from scripts.lab.token_distance import TokenDistance
from sparsewm.agent import Agent
from sparsewm.cli.common import output_folder, progress_bar
from sparsewm.config import PlanConfig, TaskSet
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.evaluation.machine import code_hash
from sparsewm.evaluation.run import prepare
from sparsewm.evaluation.statistics import spearman
from sparsewm.files import write_json, write_text
from sparsewm.model.problem import LatentProblem
from sparsewm.planners.seeding import generator
from sparsewm.report.plots import COLOURS, save_figure, styled
from sparsewm.settings import told
from sparsewm.tasks import Task
from sparsewm.trees import at_least

JUDGES = ("world model", "true pictures", "true distance")


@dataclass
class Arguments:
    """Whose choice among a policy's proposals leads nearer to the goal."""

    environment: str = "metaworld/mt10"
    """Environment with a world model, one of the simulators."""
    checkpoint: str | None = None
    """Folder of the world model; the shipped one when left out."""
    proposals: str = "vla"
    """Policy, as `sparsewm plan` takes it."""
    samples: int = 32
    """Proposals of a decision."""
    spreads: tuple[float, ...] = (1.0, 2.5)
    """Deviations of the proposals from their mean, times these."""
    drop: float = 0.5
    """Share of the tokens that the world model drops."""
    every: int = 4
    """Decisions from one that is judged to the next."""
    tasks: TaskSet = "validation"
    """Frozen tasks."""
    episodes: int = 20
    """Episodes."""
    seed: int = 0
    """Seed of the policy's noise and of dropped tokens."""
    output: Path = Path("results/proposals/judged")
    """Folder."""


class Tried:
    """A planning problem that remembers what it was first asked about."""

    def __init__(self, problem: LatentProblem) -> None:
        self.problem = problem
        self.actions: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.problem, name)

    def cost(self, actions: Tensor) -> Tensor:
        if self.actions is None:
            self.actions = actions.clone()
        return self.problem.cost(actions)


class Bench:
    """The policy acts; its proposals are judged on the way."""

    def __init__(self, arguments: Arguments) -> None:
        config = PlanConfig.of(arguments.environment).updated(
            proposals=arguments.proposals,
            samples=arguments.samples,
            mode="replace",
            drop=arguments.drop,
            tasks=arguments.tasks,
            episodes=arguments.episodes,
            seed=arguments.seed,
            checkpoint=arguments.checkpoint,
            video=False,
            imagine=False,
        )
        ready = prepare(config)
        env = ready.envs[0]
        if not isinstance(env, SimulatedGoalEnv) or ready.model is None or ready.sampler is None:
            raise UserError(f"{env.name} is no simulator whose states can be set, or `proposals` are none")
        self.env, self.tasks, self.config, self.arguments = env, ready.tasks, ready.config, arguments
        self.agent = Agent(ready.model, ready.config, sampler=ready.sampler)
        self.agent.watch = self._watch
        self.dtype = str(ready.dtype).removeprefix("torch.")
        self._tried: Tried | None = None

    def _watch(self, problem: LatentProblem) -> Tried:
        self._tried = Tried(problem)
        return self._tried

    def episode(self, task: Task) -> Iterator[dict[str, Any]]:
        """A row for every judged decision and spread."""
        env, agent, model = self.env, self.agent, self.agent.model
        seen, info = env.reset(seed=task.seed, options=task.options)
        text = told(self.config.proposals.instruction, env)
        agent.reset(env.goal_observation(), [task.seed], [text])
        goal = np.asarray(info["goal"])
        pictures = TokenDistance(
            env, model.encoder, model.standardizer, [goal], 0.0, 0.0, generator(task.seed, "judging")
        )
        steps, limit = 0, self.config.goal.max_steps
        execute = self.config.search.execute * env.frameskip
        while steps < limit and not info["is_success"]:
            agent.act(seen)
            tried = self._tried
            assert tried is not None and tried.actions is not None
            if steps // execute % self.arguments.every == 0:
                for spread in self.arguments.spreads:
                    row = self._judge(tried.problem, tried.actions, spread, goal, pictures)
                    yield {"seed": task.seed, "task": text or env.name, "step": steps, "spread": spread} | row
            taken = tried.executed(tried.actions[:, 0]).reshape(-1, env.action_dim).numpy()[:execute]
            for action in taken:
                seen, _, _, _, info = env.step(action)
                agent.observe(seen, action)
                steps += 1
                if info["is_success"]:
                    break

    def _judge(
        self,
        problem: LatentProblem,
        proposed: Tensor,
        spread: float,
        goal: np.ndarray,
        pictures: TokenDistance,
    ) -> dict[str, Any]:
        """Of one decision: what each judge's choice gains on the first proposal, by part; how costs rank."""
        env = self.env
        mean = proposed.mean(1, keepdim=True)
        actions = mean + spread * (proposed - mean)
        actions = torch.maximum(torch.minimum(actions, problem.high), problem.low)
        states = env.rollout_states(
            env.state,
            problem.executed(actions)[0].reshape(len(actions[0]), -1, env.action_dim).cpu().numpy(),
        )[:, env.frameskip :: env.frameskip]
        scored = states if self.config.cost.frame == "min" else states[:, -1:]
        flat = scored.reshape(-1, scored.shape[-1])
        shape = scored.shape[:2]
        away = [env.distance(state, goal) for state in flat]
        measured = {name: np.array([one[name] for one in away]).reshape(shape).min(1) for name in away[0]}
        truth = env.shortfall(flat, goal).reshape(shape).min(1)
        measured["distance"] = truth
        with torch.no_grad():
            imagined = problem.cost(actions)[0].cpu().numpy()
        seen = pictures(flat[None])[0].cpu().numpy().reshape(shape).min(1)
        costs = dict(zip(JUDGES, (imagined, seen, truth), strict=True))
        chosen = {judge: int(cost.argmin()) for judge, cost in costs.items()}
        return {
            "range": {name: float(np.ptp(values)) for name, values in measured.items()},
            "gain": {
                judge: {name: float(values[0] - values[i]) for name, values in measured.items()}
                for judge, i in chosen.items()
            },
            "rank": {
                judge: {name: _rank(costs[judge], values) for name, values in measured.items()}
                for judge in JUDGES[:2]
            },
        }


def _rank(cost: np.ndarray, distance: np.ndarray) -> float | None:
    found = spearman(cost, distance)
    return None if np.isnan(found) else found


def summed_up(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per task (`all` last), spread and part: means of what choices gain and of how costs rank."""
    found = []
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for task in [*tasks, "all"] if len(tasks) > 1 else tasks:
        for spread in dict.fromkeys(row["spread"] for row in rows):
            some = [r for r in rows if task in (r["task"], "all") and r["spread"] == spread]
            for part in dict.fromkeys(name for row in some for name in row["range"]):
                own = [row for row in some if part in row["range"]]
                line = {"task": task, "spread": spread, "part": part, "decisions": len(own)}
                line["range"] = _mean(row["range"][part] for row in own)
                for kind, judges in (("gain", JUDGES), ("rank", JUDGES[:2])):
                    line[kind] = {judge: _mean(row[kind][judge][part] for row in own) for judge in judges}
                found.append(line)
    return found


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def markdown(summary: Sequence[dict[str, Any]], title: str) -> str:
    """A line per task, spread and part."""
    lines = ["| task | spread | part | decisions | range | " + " | ".join(f"gained by {j}" for j in JUDGES)]
    lines[0] += " | " + " | ".join(f"rank by {judge}" for judge in JUDGES[:2]) + " |"
    lines.append("|" + "---|" * (5 + len(JUDGES) + 2))

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    for row in summary:
        parts = [row["task"], f"{row['spread']:g}", row["part"], str(row["decisions"])]
        parts += [shown(row["range"], "{:.4f}")]
        parts += [shown(row["gain"][judge], "{:+.4f}") for judge in JUDGES]
        parts += [shown(row["rank"][judge], "{:.2f}") for judge in JUDGES[:2]]
        lines.append(f"| {' | '.join(parts)} |")
    return f"{title}\n\n" + "\n".join(lines) + "\n"


@styled
def plot(path: Path, summary: Sequence[dict[str, Any]], title: str) -> None:
    """A panel per part, a group of bars per spread, a bar per judge: what its choice gains."""
    rows = [row for row in summary if row["task"] == summary[-1]["task"]]
    parts = list(dict.fromkeys(row["part"] for row in rows))
    figure, axes = plt.subplots(1, len(parts), figsize=(2.4 * len(parts) + 0.8, 2.8), squeeze=False)
    for axis, part in zip(axes[0], parts, strict=True):
        own = [row for row in rows if row["part"] == part]
        for i, judge in enumerate(JUDGES):
            at = np.arange(len(own)) + (i - 1) * 0.27
            axis.bar(at, [row["gain"][judge] for row in own], 0.25, color=COLOURS[i], label=judge)
        axis.axhline(0, color="black", linewidth=0.5)
        axis.set_xticks(range(len(own)), [f"{row['spread']:g}" for row in own])
        axis.set(title=part, xlabel="spread")
    axes[0, 0].set_ylabel("nearer than the first proposal")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    save_figure(figure, path)


def main(arguments: Arguments) -> None:
    at_least(1, episodes=arguments.episodes, every=arguments.every, samples=arguments.samples)
    bench = Bench(arguments)
    folder = output_folder(arguments.output)
    rows: list[dict[str, Any]] = []
    title = f"{arguments.samples} proposals of {arguments.proposals} in {bench.env.name}, "
    title += f"{arguments.episodes} {arguments.tasks} tasks, seed {arguments.seed}"
    with progress_bar("judging") as progress:
        for number, task in enumerate(bench.tasks):
            rows += bench.episode(task)
            summary = summed_up(rows)
            said = {"command": typed_command(), "code": code_hash(), "dtype": bench.dtype}
            write_json(folder / "judged.json", said | {"summary": summary, "decisions": rows})
            progress(number + 1, len(bench.tasks))
    if not rows:
        raise UserError("nothing was judged: give `spreads`, and tasks whose starts are not solved")
    write_text(folder / "judged.md", markdown(summary, title))
    plot(folder / "judged.png", summary, title)
    print(markdown(summary, title), end="")


if __name__ == "__main__":
    launch(main, Arguments)
