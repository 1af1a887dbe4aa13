"""Success by task, of results in an environment of several.

Example:

    python -m scripts.experiments.by_task --results half=runs/half/results.json alone=runs/alone/results.json

Reads what `sparsewm plan --env metaworld/mt10` wrote, and writes by_task.json, by_task.md and by_task.png: a
row for each task and one for all, a column for each file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from scripts.common import launch, typed_command
from sparsewm.errors import UserError
from sparsewm.evaluation.table import percent
from sparsewm.files import read_json, write_json, write_text
from sparsewm.report.plots import COLOURS, save_figure, styled


@dataclass
class Arguments:
    """Success by task, beside each other."""

    results: tuple[str, ...]
    """NAME=FILE each, in the order of the columns."""
    output: Path = Path("results/outside/mt10")
    """Folder."""


def read(named: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Success of each task and of `all`, by what a file is called.

    Raises:
        UserError: a file is of one task, there is none, or the files are not of the same set of tasks.
    """
    found: dict[str, dict[str, Any]] = {}
    sets = set()  # of tasks
    for text in named:
        name, equals, path = text.partition("=")
        if not equals or name in found:
            raise UserError(f"`results` are NAME=FILE, each with another name, not {text}")
        content = read_json(path)
        if "by_task" not in content:
            raise UserError(f"{path} is of an environment with one task: give results of several")
        kept = ("episodes", "success_rate", "success_ci95")
        sets.add((frozenset(content["by_task"]), content["goal"]["tasks_sha256"], content["seed"]))
        found[name] = content["by_task"] | {"all": {key: content[key] for key in kept}}
    if not found:
        raise UserError("give `results`, NAME=FILE each")
    if len(sets) > 1:
        raise UserError("`results` are not of the same tasks")
    return found


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """A line per task, all of them last."""
    tasks = list(next(iter(found.values())))
    lines = [f"| task | {' | '.join(found)} |", "|" + "---|" * (len(found) + 1)]
    for task in tasks:
        lines.append(f"| {task} | {' | '.join(percent(one[task]) for one in found.values())} |")
    return "\n".join(lines) + "\n"


@styled
def plot(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """A group of bars per task, with intervals."""
    tasks = list(next(iter(found.values())))
    figure, axes = plt.subplots(
        figsize=(9, 0.32 * len(tasks) * max(2, len(found)) / 2 + 1), layout="constrained"
    )
    height = 0.8 / len(found)
    for i, (name, one) in enumerate(found.items()):
        rates = np.array([one[task]["success_rate"] for task in tasks])
        low, high = np.array([one[task]["success_ci95"] for task in tasks]).T
        at = np.arange(len(tasks)) + (i - (len(found) - 1) / 2) * height
        spread = np.clip([rates - low, high - rates], 0, None)
        axes.barh(at, rates, height, xerr=spread, color=COLOURS[i % len(COLOURS)], label=name, alpha=0.8)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="success, 95% interval")
    figure.legend(loc="outside right upper")
    save_figure(figure, path)


def main(arguments: Arguments) -> None:
    found = read(arguments.results)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "by_task.json", {"command": typed_command(), "results": found})
    write_text(arguments.output / "by_task.md", markdown(found))
    plot(arguments.output / "by_task.png", found)
    print(markdown(found), end="")


if __name__ == "__main__":
    launch(main, Arguments)
