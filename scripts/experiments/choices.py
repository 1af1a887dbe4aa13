r"""Which tokens to keep: success and time of every choice, at several shares of the tokens.

A choice is written NAME, or NAME@TEMPERATURE (0: the highest scores, without chance), and with /COST behind
it where the cost is of some of the imagined tokens only: goal, goal@0, random/goal.

Example, on the frozen tasks that settings are chosen on:

    python -m scripts.experiments.choices --environments rope --choices random goal mixture --drops 0.5 0.9

Every choice has the tasks and candidates that random has, so both are compared task by task. All are timed in
turns, at the end; let nothing else run then, or leave it out (--repeats 0). Finished cells are kept, so an
interrupted run continues. Writes JSON, a table and a plot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from scripts.common import launch, typed_command
from sparsewm.config import PlanConfig, TaskSet
from sparsewm.errors import UserError
from sparsewm.evaluation.cells import Cell, cell_path, read_cell, time_cells
from sparsewm.evaluation.comparison import compared
from sparsewm.evaluation.table import percent, points, seconds
from sparsewm.files import atomic_path, write_json
from sparsewm.model.choices import CHOICES
from sparsewm.report.plots import save_figure

EMBEDDED = "embedded"
"""The encoder of models that are planned with where none is named."""

SHARP = ("attention@0", "ranking@0", "motion@0", "goal@0", "mixture@0")
"""Choices by scores without chance."""

COMPARED = ("random/goal", "random/goal@0")
"""Random tokens imagined, those that differ from the goal compared."""

KEPT = ("success_rate", "success_ci95", "strict", "moved", "seconds_per_plan", "goal", "tokens", "command")
"""What a row has of its cell."""


@dataclass
class Arguments:
    """Success and time of choices of tokens."""

    environments: tuple[str, ...] = ("pusht", "blockpush", "rope", "pointmaze")
    """Environments."""
    encoders: tuple[str, ...] = (EMBEDDED,)
    """Encoders of the world models."""
    checkpoints: Path | None = None
    """Folder of trained runs by environment, instead of shipped models."""
    choices: tuple[str, ...] = (*CHOICES.names(), *SHARP, *COMPARED)
    """Choices, NAME[@TEMPERATURE][/COST[@TEMPERATURE]]; random is run in any case."""
    drops: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Fractions of the tokens that are dropped."""
    tasks: TaskSet = "validation"
    """Tasks: validation, test (look at them last), or drawn with the seed."""
    episodes: int = 60
    """Episodes per cell."""
    seed: int = 0
    """Seed of candidates and tokens."""
    repeats: int = 10
    """Timed plans of each cell; 0: none."""
    output: Path = Path("results/choices")
    """Folder of the results; the same one continues."""


def token_settings(label: str) -> dict[str, Any]:
    """Settings of tokens that a choice's label stands for.

    >>> token_settings("random/goal@0")
    {'choose': 'random', 'cost': 'goal', 'temperature': 0.0}

    Raises:
        UserError: it is no such label, or gives two temperatures.
    """
    found = re.fullmatch(r"([^@/]+)(?:@([\d.]+))?(?:/([^@/]+)(?:@([\d.]+))?)?", label)
    if found is None or (found[2] and found[4] and found[2] != found[4]):
        raise UserError(f"'{label}' is no choice: write NAME, NAME@TEMPERATURE or NAME/COST, as goal@0")
    CHOICES.get(found[1])
    settings: dict[str, Any] = {"choose": found[1]}
    if found[3]:
        settings["cost"] = found[3]
    if found[2] or found[4]:
        settings["temperature"] = float(found[2] or found[4])
    return settings


def planned(arguments: Any, environment: str, encoder: str, label: str, drop: float) -> PlanConfig:
    """The configuration of a cell."""
    config = PlanConfig.of(environment).updated(
        tokens=token_settings(label) | {"drop": drop},
        goal={"tasks": arguments.tasks},
        run={"episodes": arguments.episodes, "seed": arguments.seed, "video": False, "imagine": False},
    )
    if encoder != EMBEDDED:
        config = config.updated(encoder=encoder)
    if arguments.checkpoints is not None:
        config = config.updated(checkpoint=str(arguments.checkpoints / environment / "checkpoint"))
    return config


def file_name(environment: str, encoder: str, choice: str, drop: float) -> str:
    """Of a cell."""
    return re.sub("[^a-z0-9.@_]+", "-", f"{environment}-{encoder}-{choice}-drop{drop:g}")


def cells(arguments: Arguments) -> Iterator[tuple[dict[str, Any], Cell]]:
    """What is varied, and the cell; random first."""
    for environment in arguments.environments:
        for encoder in arguments.encoders:
            for drop in arguments.drops:
                for label in dict.fromkeys(("random", *arguments.choices)):
                    varied = {"environment": environment, "encoder": encoder, "choice": label, "drop": drop}
                    yield varied, Cell("random", planned(arguments, environment, encoder, label, drop))


def run(arguments: Arguments) -> tuple[list[dict[str, Any]], list[Cell]]:
    """A row of every cell, and the cells; finished ones are read."""
    rows: list[dict[str, Any]] = []
    done: list[Cell] = []
    reference: dict[str, Any] = {}
    for varied, cell in cells(arguments):
        name, request = file_name(**varied), cell.request()
        result = read_cell(arguments.output, name, request)
        if result is None:
            result = {"request": request, **cell.run()}
            write_json(cell_path(arguments.output, name), result)
        if varied["choice"] == "random":
            reference = result
        row = varied | {key: result[key] for key in KEPT if key in result}
        row |= {key: request[key] for key in ("code", "dtype", "machine")}
        for name in ("success", "strict"):
            same = reference is result
            row[f"{name}_against_random"] = None if same else compared(reference, result, name)
        rows.append(row)
        done.append(cell)
        print(*varied.values(), percent(result), flush=True)
    return rows, done


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for every cell."""
    names = ("environment", "encoder", "kept", "choice", "success (95%)", "over random (95%)", "p", "strict")
    lines = [f"| {' | '.join((*names, 'over random (95%)', 'a plan'))} |", "|---" * 10 + "|"]
    for row in rows:
        pairs = [row[f"{name}_against_random"] for name in ("success", "strict")]
        cells = [row["environment"], row["encoder"], f"{_kept(row):.0f}%", row["choice"], percent(row)]
        cells += [points(pairs[0]), "" if pairs[0] is None else f"{pairs[0]['p']:.2g}"]
        cells += [percent(row["strict"]), points(pairs[1]), seconds(row["seconds_per_plan"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Success over the share of tokens, a panel for every environment and encoder."""
    panels = list(dict.fromkeys((row["environment"], row["encoder"]) for row in rows))
    labels = list(dict.fromkeys(row["choice"] for row in rows))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels) + 2, 4.5), layout="constrained", squeeze=False, sharey=True
    )
    for axis, (environment, encoder) in zip(axes[0], panels, strict=True):
        for i, label in enumerate(labels):
            shown = [
                row
                for row in rows
                if (row["environment"], row["encoder"], row["choice"]) == (environment, encoder, label)
            ]
            kept, rates = ([f(row) for row in shown] for f in (_kept, lambda row: 100 * row["success_rate"]))
            axis.plot(kept, rates, "ox^sD"[i // 10 % 5] + "-", color=f"C{i % 10}", label=label, lw=1, ms=4)
            if label == "random":
                low, high = 100 * np.array([row["success_ci95"] for row in shown]).T
                axis.fill_between(kept, low, high, color=f"C{i % 10}", alpha=0.15)
        axis.set(title=f"{environment}, {encoder}", xlabel="tokens kept, %", ylim=(0, 102))
    axes[0, 0].set_ylabel("success, %; band: 95% of random")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8)
    save_figure(figure, path)


def _kept(row: dict[str, Any]) -> float:
    return float(100 * (1 - row["drop"]))


def main(arguments: Arguments) -> None:
    (arguments.output / "cells").mkdir(parents=True, exist_ok=True)
    rows, done = run(arguments)
    if arguments.repeats:
        for row, times in zip(rows, time_cells(done, arguments.repeats), strict=True):
            row["seconds_per_plan"] = None if times is None else times["seconds_per_plan"]
    report = {"command": typed_command(), "episodes": arguments.episodes, "tasks": arguments.tasks}
    write_json(arguments.output / "choices.json", report | {"seed": arguments.seed, "rows": rows})
    with atomic_path(arguments.output / "choices.md") as temporary:
        temporary.write_text(table(rows))
    plot(arguments.output / "choices.png", rows)


if __name__ == "__main__":
    launch(main, Arguments)
