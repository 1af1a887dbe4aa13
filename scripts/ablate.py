"""What sparse imagination owes to its two parts: the mask redrawn at every iteration, and grouped attention.

Example, after training a pair of models that differ by their groups alone:

    sparsewm train --env wall --groups 1 --output runs/ungrouped/wall
    sparsewm train --env wall --output runs/grouped/wall
    python scripts/ablate.py --environments wall --ungrouped runs/ungrouped --grouped runs/grouped

Closed-loop success with the mask redrawn at every optimiser iteration, at every re-plan, and never; and of
models trained with and without randomly grouped attention. Finished cells are kept, so an interrupted run
continues. Writes ablations.json, ablations.md and a plot.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import matplotlib.pyplot as plt
import numpy as np
import tyro

from sparsewm.cli.evaluate import Cell, cell_path, read_cell
from sparsewm.cli.plan import Plan
from sparsewm.evaluation.closed_loop import Redraw
from sparsewm.evaluation.table import percent
from sparsewm.files import atomic_path, write_json


@dataclass
class Arguments:
    """Success with the mask redrawn more or less often, and with and without grouped training."""

    environments: tuple[str, ...] = ("pusht", "wall")
    """Environments."""
    drops: tuple[float, ...] = (0.0, 0.5)
    """Drop ratios at which models with and without groups are compared; masks are redrawn at the last one."""
    ungrouped: Path | None = None
    """Folder of runs trained with --groups 1, by environment; without it only redrawing is varied."""
    grouped: Path | None = None
    """Folder of the same runs with groups; the shipped models when left out."""
    episodes: int = 60
    """Episodes per cell."""
    seed: int = 0
    """Seed of tasks, candidates and masks."""
    output: Path = Path("results/ablations")
    """Folder of the results; the same one continues."""


def cells(arguments: Arguments) -> Iterator[tuple[str, Cell]]:
    """What is varied, and the cell."""
    for name in arguments.environments:
        plan = Plan(name, episodes=arguments.episodes, seed=arguments.seed, video=False, imagine=False)
        for redraw in get_args(Redraw):
            yield f"redrawn: {redraw}", Cell("random", replace(plan, drop=arguments.drops[-1], redraw=redraw))
        if arguments.ungrouped is None:
            continue
        for label, folder in (("grouped", arguments.grouped), ("not grouped", arguments.ungrouped)):
            checkpoint = None if folder is None else folder / name / "checkpoint"
            for drop in arguments.drops:
                yield f"trained {label}", Cell("random", replace(plan, drop=drop, checkpoint=checkpoint))


def main(arguments: Arguments) -> None:
    (arguments.output / "cells").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for label, cell in cells(arguments):
        name = f"{cell.name}-{label.replace(': ', '-').replace(' ', '-')}"
        request = cell.request() | {"redraw": cell.plan.redraw}
        result = read_cell(arguments.output, name, request)
        if result is None:
            result = {"request": request, **cell.run()}
            write_json(cell_path(arguments.output, name), result)
        kept = ("success_rate", "success_ci95", "moved", "command")
        row = {"environment": cell.plan.env, "varied": label, "drop": cell.plan.drop}
        rows.append(row | {key: result[key] for key in kept if key in result})
        print(f"{cell.plan.env}, {label}, drop {cell.plan.drop:g}: {percent(result)}", flush=True)
    report = {"command": " ".join(sys.argv), "episodes": arguments.episodes, "seed": arguments.seed}
    write_json(arguments.output / "ablations.json", report | {"rows": rows})
    lines = ["| environment | | drop | success (95%) | T moves |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['environment']} | {row['varied']} | {100 * row['drop']:.0f}% | {percent(row)} "
        f"| {percent(row.get('moved'))} |"
        for row in rows
    ]
    with atomic_path(arguments.output / "ablations.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(rows) + 1), layout="constrained")
    rates = np.array([row["success_rate"] for row in rows])
    low, high = np.array([row["success_ci95"] for row in rows]).T
    axes.barh(range(len(rows)), rates, xerr=[rates - low, high - rates], color="tab:blue", alpha=0.7)
    names = [f"{row['environment']}, {row['varied']}, drop {100 * row['drop']:.0f}%" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set(xlabel="success, 95% interval", xlim=(0, 1))
    figure.savefig(arguments.output / "ablations.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
