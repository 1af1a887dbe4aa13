"""What a frozen world model loses where a scene looks otherwise than its data, and what adaptation gets back.

    python -m scripts.experiments.looks --environments wall rope --encoders embedded dinov2_vits14

Every cell plans for the same frozen tasks, with one change of the look (`sparsewm.envs.looks`) in one degree,
as it is and with test-time adaptation (`sparsewm.adaptation`). Cells are kept as those of `sparsewm eval`:
the same command continues. Writes looks.json, looks.md and looks.png, success against degree.

    python -m scripts.experiments.looks --what ranks --episodes 5

asks in a fraction of the time whether the same random candidates rank as in the usual look, at the start of
each task, by Spearman's correlation of what they cost. Writes ranks.json and ranks.md. `--what pictures` says
how far the pictures of those starts are from the usual ones, as they are and adapted: pictures.json.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import torch

from scripts.common import launch, typed_command
from scripts.lab.states import make_simulator
from sparsewm.adaptation import SceneAdaptation
from sparsewm.agent import Agent
from sparsewm.cli.common import output_folder, progress_bar
from sparsewm.config import PlanConfig, TaskSet
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.envs.looks import KINDS, Look
from sparsewm.errors import UserError
from sparsewm.evaluation.cells import Cell, cell_path, made_on, read_cell, run_cells
from sparsewm.evaluation.machine import code_hash
from sparsewm.evaluation.run import prepare
from sparsewm.evaluation.statistics import paired_difference, spearman
from sparsewm.evaluation.table import percent, points
from sparsewm.files import only_one, write_json, write_text
from sparsewm.model.checkpoint import encoder_folder, shipped
from sparsewm.report.plots import COLOURS, save_figure, styled
from sparsewm.tasks import Task
from sparsewm.trees import at_least

LOOKS: tuple[str, ...] = (
    "background:0.2",
    "background:1",
    "object:0.2",
    "object:1",
    "size:0.3",
    "light:-0.3",
)
LOOKS += ("light:0.1", "shift:1", "shift:3", "distractor:0.15", "blur:1")
CANDIDATES = 64
ENVIRONMENTS = ("wall", "pointmaze", "pusht", "blockpush", "rope", "granular")


@dataclass
class Arguments:
    """Success against the degree of another look, changed at test time only."""

    environments: tuple[str, ...] = ENVIRONMENTS
    """Environments with a shipped world model, or one in `checkpoints`."""
    encoders: tuple[str, ...] = ("embedded",)
    """Encoders of the world models; those that an environment has no model on are passed over."""
    looks: tuple[str, ...] = LOOKS
    """KIND:DEGREE each, beside the usual look."""
    what: Literal["success", "ranks", "pictures"] = "success"
    """success of closed loops, ranks of candidates, or distances of pictures."""
    adapt: tuple[bool, ...] = (False, True)
    """Without and with test-time adaptation; the usual look without."""
    checkpoints: Path | None = None
    """Folder of training runs (ENV/checkpoint), in place of the shipped models."""
    drop: float = 0.5
    """Share of the tokens dropped."""
    tasks: TaskSet = "validation"
    """Frozen tasks."""
    episodes: int = 20
    """Episodes of a cell."""
    seed: int = 0
    """Seed of the agent's random numbers, and of the colours and places of looks."""
    workers: int = 1
    """Processes."""
    run_missing: bool = True
    """Run what is not finished; otherwise the table is of the finished cells alone."""
    output: Path = Path("results/looks")
    """Folder."""


def cells(arguments: Arguments) -> list[Cell]:
    """Every cell, in the order of the table."""
    for text in arguments.looks:
        Look.parse(text)
    found = []
    for name in arguments.environments:
        for encoder in arguments.encoders:
            if arguments.checkpoints is None and name not in shipped(encoder):
                continue
            config = PlanConfig.of(name).updated(
                tasks=arguments.tasks,
                episodes=arguments.episodes,
                seed=arguments.seed,
                drop=arguments.drop,
                encoder=encoder if encoder_folder(encoder).parts else None,
                video=False,
                imagine=False,
            )
            if arguments.checkpoints is not None:
                config = config.updated(checkpoint=str(arguments.checkpoints / name / "checkpoint"))
            found.append(Cell("random", config))
            for look in arguments.looks:
                found += [Cell("random", config.updated(look=look, adapt=adapt)) for adapt in arguments.adapt]
    if not found:
        raise UserError("no world model is shipped for any of these: correct `encoders` or `environments`")
    return found


def row_of(cell: Cell, result: dict[str, Any], usual: dict[str, Any] | None) -> dict[str, Any]:
    """What the table says of a cell; `usual` is the same model's result in the usual look, not adapted."""
    run = cell.config.run
    kind, _, degree = run.look.partition(":")
    row = {
        name: result[name] for name in ("environment", "episodes", "success_rate", "success_ci95", "dtype")
    }
    row |= {"encoder": result["encoder"]["name"], "look": kind, "degree": float(degree or 0)}
    row |= {"adapt": run.adapt}
    row |= {"code": result["machine"]["code"], "machine": result["machine"]["kind"]}
    row["against_usual"] = None
    if usual is not None:
        pair = [[one["success"] for one in found["per_episode"]] for found in (usual, result)]
        row["against_usual"] = paired_difference(*pair)
    return row


def markdown(rows: Sequence[dict[str, Any]], title: str) -> str:
    """A line per environment, encoder and look, without and with adaptation."""
    lines = ["| environment | encoder | look | success (95%) | against usual | adapted | against usual |"]
    lines.append("|" + "---|" * 7)
    keys = list(dict.fromkeys(_key(row) for row in rows))
    for key in keys:
        both = [
            next((r for r in rows if _key(r) == key and r["adapt"] == adapt), None) for adapt in (False, True)
        ]
        environment, encoder, look, degree = key
        parts = [environment, encoder, f"{look} {degree:g}" if look else "usual"]
        for row in both:
            parts += [percent(row), points(row["against_usual"]) if row and look else ""]
        lines.append(f"| {' | '.join(parts)} |")
    return f"{title}\n\n" + "\n".join(lines) + "\n"


def _key(row: dict[str, Any]) -> tuple[str, str, str, float]:
    return row["environment"], row["encoder"], row["look"], row["degree"]


@styled
def plot(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """A row of panels per environment, a panel per kind, a line per encoder; dashed where adapted."""
    names = list(dict.fromkeys(row["environment"] for row in rows))
    kinds = [kind for kind in KINDS if any(row["look"] == kind for row in rows)]
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    size = (2.1 * len(kinds) + 0.8, 1.8 * len(names) + 0.6)
    figure, axes = plt.subplots(len(names), len(kinds), figsize=size, squeeze=False, sharey=True)
    for line, name in zip(axes, names, strict=True):
        line[0].set_ylabel(f"{name}, %")
        for axis, kind in zip(line, kinds, strict=True):
            for encoder in encoders:
                for adapt in (False, True):
                    chosen = [row for row in rows if (row["environment"], row["encoder"]) == (name, encoder)]
                    chosen = [r for r in chosen if not r["look"] or (r["look"], r["adapt"]) == (kind, adapt)]
                    chosen.sort(key=lambda row: row["degree"])
                    if len(chosen) < 2:
                        continue
                    degrees = [row["degree"] for row in chosen]
                    rates = [100 * row["success_rate"] for row in chosen]
                    label = encoder + (", adapted" if adapt else "")
                    colour = COLOURS[encoders.index(encoder) % len(COLOURS)]
                    style = "--" if adapt else "-"
                    axis.plot(degrees, rates, style, marker="o", markersize=3, color=colour, label=label)
                    low, high = zip(*(row["success_ci95"] for row in chosen), strict=True)
                    bounds = [[100 * one for one in side] for side in (low, high)]
                    axis.fill_between(degrees, *bounds, color=colour, alpha=0.1, linewidth=0)
            axis.set_ylim(-3, 103)
            if name == names[0]:
                axis.set_title(kind, fontsize=9)
    handles = {h.get_label(): h for axis in axes.ravel() for h in axis.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    save_figure(figure, path)


def ranks(wanted: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """A row per cell of another look: how alike candidates rank to how they do in the usual one."""
    for usual in (cell for cell in wanted if not cell.config.run.look):
        ready, env = prepare(usual.config), make_simulator(usual.config.env)
        assert ready.model is not None
        agents = {adapt: Agent(ready.model, usual.config.updated(adapt=adapt)) for adapt in (False, True)}
        own = [_costs(agents[False], env, "", task) for task in ready.tasks]
        for cell in wanted:
            run = cell.config.run
            if not run.look or usual.config != cell.config.updated(look="", adapt=False):
                continue
            agent = agents[run.adapt]
            costs = [_costs(agent, env, run.look, task) for task in ready.tasks]
            found = [spearman(one, other) for one, other in zip(costs, own, strict=True)]
            row: dict[str, Any] = {
                "environment": env.name,
                "encoder": ready.model.encoder.name,
                "look": run.look,
            }
            row |= {"adapt": run.adapt, "tasks": len(found), "seed": run.seed, "code": code_hash()}
            yield row | {"mean": float(np.mean(found)), "least": float(min(found))}


def pictures(wanted: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """A row per look: how far pictures of starts are from the usual ones (mean absolute level of 255)."""
    for usual in (cell for cell in wanted if not cell.config.run.look):
        ready, env = prepare(usual.config), make_simulator(usual.config.env)
        assert ready.model is not None
        adaptation = SceneAdaptation.of(ready.model)
        own = [_start(env, "", task)["pixels"] for task in ready.tasks]
        for look in ("", *dict.fromkeys(cell.config.run.look for cell in wanted if cell.config.run.look)):
            shown = [_start(env, look, task)["pixels"] for task in ready.tasks]
            begun = time.process_time()
            adapted = [adaptation(picture) for picture in shown]
            spent = (time.process_time() - begun) / len(shown)
            row: dict[str, Any] = {"environment": env.name, "look": look or "usual", "starts": len(shown)}
            for name, found in (("as_it_is", shown), ("adapted", adapted)):
                row[name] = float(np.mean(np.abs(np.subtract(found, own, dtype=np.float64))))
            yield row | {"processor_milliseconds": 1000 * spent, "code": code_hash()}


def _start(env: SimulatedGoalEnv, look: str, task: Task) -> dict[str, np.ndarray]:
    """What is seen at the start of a task."""
    env.dress(Look.parse(look))
    seen, _ = env.reset(seed=task.seed, options=task.options)
    return seen


def _costs(agent: Agent, env: SimulatedGoalEnv, look: str, task: Task) -> np.ndarray:
    """What random candidates cost at the start of a task, (K,)."""
    seen = _start(env, look, task)
    agent.reset(env.goal_observation(), [task.seed])
    problem = agent.problem(seen)
    generator = torch.Generator().manual_seed(task.seed)
    shares = torch.rand(1, CANDIDATES, problem.horizon, problem.action_dim, generator=generator)
    with torch.no_grad():
        found: np.ndarray = problem.cost(problem.low + shares * (problem.high - problem.low))[0].numpy()
    return found


def ranks_markdown(rows: Sequence[dict[str, Any]], title: str) -> str:
    """A line per environment and encoder, a column per look: as it is, then adapted."""
    looks = list(dict.fromkeys(row["look"] for row in rows))
    lines = [f"| environment | encoder | {' | '.join(looks)} |", "|" + "---|" * (2 + len(looks))]
    for environment, encoder in dict.fromkeys((row["environment"], row["encoder"]) for row in rows):
        parts = [environment, encoder]
        for look in looks:
            chosen = [row for row in rows if (row["environment"], row["encoder"]) == (environment, encoder)]
            chosen = sorted((row for row in chosen if row["look"] == look), key=lambda row: row["adapt"])
            parts.append(", ".join(f"{row['mean']:.2f}" for row in chosen))
        lines.append(f"| {' | '.join(parts)} |")
    return f"{title}\n\n" + "\n".join(lines) + "\n"


def main(arguments: Arguments) -> None:
    at_least(1, workers=arguments.workers, episodes=arguments.episodes)
    folder = output_folder(arguments.output)
    if arguments.what == "pictures":
        distances = []
        for row in pictures(cells(arguments)):
            distances.append(row)
            print(row, flush=True)
            write_json(folder / "pictures.json", {"rows": distances, "command": typed_command()})
        return
    if arguments.what == "ranks":
        compared = []
        for row in ranks(cells(arguments)):
            compared.append(row)
            print(f"{row['environment']} {row['look']} {row['adapt']}: {row['mean']:.2f}", flush=True)
            write_json(folder / "ranks.json", {"rows": compared, "command": typed_command()})
        head = (
            f"Spearman's correlation of {CANDIDATES} candidates' costs with those in the usual look, mean of "
        )
        table = ranks_markdown(compared, f"{head}{arguments.episodes} tasks; as it is, then adapted")
        write_text(folder / "ranks.md", table)
        print(table)
        return
    with only_one(folder):
        (folder / "cells").mkdir(exist_ok=True)
        wanted = cells(arguments)
        requests = {cell.name: cell.request() for cell in wanted}
        waiting = [cell for cell in wanted if read_cell(folder, cell.name, requests[cell.name]) is None]
        if arguments.run_missing:
            with progress_bar("evaluating") as progress:
                done = len(wanted) - len(waiting)
                progress(done, len(wanted))
                for name, result in run_cells(waiting, arguments.workers, None, lambda _: None):
                    write_json(
                        cell_path(folder, name), {"request": made_on(requests[name], result), **result}
                    )
                    done += 1
                    progress(done, len(wanted), f"{name}: {100 * result['success_rate']:.0f}%")
        results = {cell.name: read_cell(folder, cell.name, requests[cell.name]) for cell in wanted}
        rows = []
        for cell in wanted:
            if (found := results[cell.name]) is not None:
                usual = results.get(Cell("random", cell.config.updated(look="", adapt=False)).name)
                rows.append(row_of(cell, found, usual))
        if not rows:
            raise UserError(f"{folder} holds no finished cell of this table: let `run_missing` be true")
        title = f"{arguments.episodes} {arguments.tasks} tasks a cell, seed {arguments.seed}, "
        title += f"{100 * arguments.drop:.0f}% of the tokens dropped"
        write_json(folder / "looks.json", {"rows": rows, "command": typed_command()})
        made = f"code {rows[0]['code']}, {rows[0]['dtype']}, {rows[0]['machine']}"
        table = markdown(rows, f"{title}; {made}")
        write_text(folder / "looks.md", table)
        plot(folder / "looks.png", rows, title)
        print(table)


if __name__ == "__main__":
    launch(main, Arguments)
