"""The four benchmarks that others print: what is reached here beside what they publish.

    python -m scripts.experiments.outside --encoders embedded dinov2_vits14 --drops 0.5

plans for the frozen test tasks by stable-worldmodel's protocol (start and goal 25 steps apart, 50 steps), in
the shipped world models and in those under `runs`; --train first records the benchmarks' own scripted data
and trains where there is none. Writes outside.json, outside.md and outside.png. All of it is `sparsewm train`
and `sparsewm eval`: an interrupted command continues.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

from scripts.common import launch, typed_command
from sparsewm.cli.common import output_folder
from sparsewm.config import GoalConfig
from sparsewm.errors import UserError
from sparsewm.evaluation.table import percent
from sparsewm.files import write_json, write_text
from sparsewm.model.checkpoint import encoder_folder, is_shipped
from sparsewm.report.plots import COLOURS, save_figure, styled
from sparsewm.tasks import tasks_hash

COLUMNS = {"swm/tworoom": "TwoRoom", "pusht": "PushT", "dmc/reacher": "Reacher", "swm/cube": "Cube"}
PUBLISHED: dict[str, tuple[str, tuple[float | None, ...]]] = {
    "DINO-WM": ("as LeWM (arXiv 2603.19312) reports it", (100, 74, 79, 86)),
    "LeWM": ("arXiv 2603.19312", (87, 96, 86, 74)),
    "LeWM, audited": ("CLEAR-LeWM 0.5, moderate rule", (84.0, 86.3, 46.0, 50.3)),
    "GC-IDM, no search": ("arXiv 2605.08732", (100, 84.2, 99.7, 98.7)),
    "LEAP": ("arXiv 2609.03294", (None, None, None, 100)),
}
"""Success in per cent by column, as its authors print it. Data, budgets and rules differ from ours."""
GOAL = GoalConfig(source="trajectory", offset=25, max_steps=50, tasks="test")
PROTOCOL: tuple[str, ...] = ("--goal.source", GOAL.source, "--goal.offset", str(GOAL.offset))
PROTOCOL += ("--max-steps", str(GOAL.max_steps), "--goal.tasks", GOAL.tasks)


@dataclass
class Arguments:
    """Success on the four benchmarks, ours and published."""

    environments: tuple[str, ...] = tuple(COLUMNS)
    """Environments with frozen test tasks (`python -m scripts.freeze_tasks` makes them)."""
    encoders: tuple[str, ...] = ("embedded",)
    """Encoders of the world models; yardsticks are of the first."""
    drops: tuple[float, ...] = (0.0, 0.5)
    """Shares of the tokens dropped."""
    episodes: int = 200
    """Test tasks of a cell."""
    runs: Path = Path("runs")
    """Folder of the trainings (ENV/checkpoint) of what has no shipped world model."""
    train: bool = False
    """Record and train where there is no world model; otherwise such environments are left out."""
    run_missing: bool = True
    """Plan what is not finished; otherwise the table is of the finished cells alone."""
    output: Path = Path("results/outside")
    """Folder."""


def train(arguments: Arguments, environments: Sequence[str], encoder: str) -> None:
    """World models of environments on an encoder, under `runs`."""
    for name in environments:
        run = arguments.runs / encoder_folder(encoder) / name
        flags = ["--env", name, "--encoder", encoder, "--output", str(run), "--resume"]
        command("train", *flags)


def command(*arguments: str) -> None:
    """Run a command of the package; where it fails, it has said why."""
    if code := subprocess.run(["sparsewm", *arguments], check=False).returncode:
        sys.exit(code)


def evaluate(
    arguments: Arguments, environments: Sequence[str], encoder: str, trained: bool
) -> list[dict[str, Any]]:
    """Rows of `sparsewm eval`, in a folder of `output` each for encoders, shipped world models and others."""
    folder = arguments.output / "-".join(
        [*encoder_folder(encoder).parts, "trained" if trained else "shipped"]
    )
    flags = ["--envs", *environments, *PROTOCOL, "--episodes", str(arguments.episodes), "--no-mse"]
    flags += ["--encoders", encoder, "--drops", *map(str, arguments.drops), "--yardsticks"]
    flags += ["nothing", "random_actions"] if encoder == arguments.encoders[0] else []
    flags += ["--checkpoints", str(arguments.runs)] if trained else []
    flags += ["--output", str(folder), "--run-missing" if arguments.run_missing else "--no-run-missing"]
    command("eval", *flags)
    rows: list[dict[str, Any]] = json.loads((folder / "eval.json").read_text())["rows"]
    return rows


def label(row: dict[str, Any]) -> str:
    """What the table calls a row of ours."""
    if row["selection"] != "random":
        return str(row["selection"]).replace("_", " ")
    kept = "all tokens" if row["drop"] == 0 else f"{100 * (1 - row['drop']):.0f}% of the tokens"
    if (place := encoder_folder(row["encoder"])).parts:
        kept = f"{place.name}, {kept}"
    return kept + (", vision alone" if row["proprio_weight"] == 0 else "")


def table(rows: Sequence[dict[str, Any]], title: str) -> str:
    """A line per row, a column per benchmark: ours with interval and strict rule, then what is published."""
    names = [name for name in COLUMNS if any(row["environment"] == name for row in rows)]
    lines = [f"| | {' | '.join(COLUMNS[name] for name in names)} |", "|" + "---|" * (1 + len(names))]
    for kind in dict.fromkeys(map(label, rows)):
        parts = []
        for name in names:
            row = next((row for row in rows if (row["environment"], label(row)) == (name, kind)), None)
            strict = "" if row is None else f", strictly {100 * row['strict']['success_rate']:.0f}%"
            parts.append("" if row is None else percent(row) + strict)
        lines.append(f"| {kind} | {' | '.join(parts)} |")
    for name, (source, rates) in PUBLISHED.items():
        theirs = dict(zip(COLUMNS, rates, strict=True))
        parts = ["" if theirs[column] is None else f"{theirs[column]:g}%" for column in names]
        if any(parts):
            lines.append(f"| {name} (theirs: {source}) | {' | '.join(parts)} |")
    return f"{title}\n\n" + "\n".join(lines) + "\n"


@styled
def plot(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """A panel per benchmark: bars of ours with intervals, and of what is published, paler."""
    names = [name for name in COLUMNS if any(row["environment"] == name for row in rows)]
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.2 * len(names) + 1.6, 3.2), squeeze=False, sharey=False
    )
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["environment"] == name]
        bars = [(label(row), 100 * row["success_rate"], row["success_ci95"]) for row in own]
        column = list(COLUMNS).index(name)
        bars += [
            (theirs, rates[column], None)
            for theirs, (_, rates) in PUBLISHED.items()
            if rates[column] is not None
        ]
        for place, (_, rate, bounds) in enumerate(reversed(bars)):
            axis.barh(place, rate, color=COLOURS[0 if bounds else 1], alpha=0.9 if bounds else 0.45)
            if bounds:
                axis.plot([100 * one for one in bounds], [place, place], color="black", linewidth=1)
        axis.set_yticks(range(len(bars)), [text for text, *_ in reversed(bars)], fontsize=7)
        axis.set_xlim(0, 100)
        axis.set_title(COLUMNS[name], fontsize=9)
        axis.set_xlabel("success, %", fontsize=8)
    both = [
        Patch(color=COLOURS[0], alpha=0.9, label="here"),
        Patch(color=COLOURS[1], alpha=0.45, label="published"),
    ]
    figure.legend(handles=both, loc="lower left", fontsize=8, frameon=False)
    figure.suptitle(textwrap.fill(title, 50 * len(names)), fontsize=9)
    figure.tight_layout()
    save_figure(figure, path)


def main(arguments: Arguments) -> None:
    if unknown := [name for name in arguments.environments if name not in COLUMNS]:
        raise UserError(f"'{unknown[0]}' is no column of this table: choose from {', '.join(COLUMNS)}")
    for name in arguments.environments:
        tasks_hash(name, GOAL, arguments.episodes)  # before days of recording: refuses where there are none
    output = output_folder(arguments.output)
    rows = []
    for encoder in arguments.encoders:
        others = [name for name in arguments.environments if not is_shipped(name, encoder)]
        ready = [name for name in arguments.environments if name not in others]
        if arguments.train:
            train(arguments, others, encoder)
        folder = arguments.runs / encoder_folder(encoder)
        others = [name for name in others if (folder / name / "checkpoint").is_dir()]
        rows += evaluate(arguments, ready, encoder, False) if ready else []
        rows += evaluate(arguments, others, encoder, True) if others else []
    if not rows:
        raise UserError(f"there is no world model of these in {arguments.runs}: let `train` be true")
    title = f"{arguments.episodes} test tasks a cell, start and goal 25 steps apart, 50 steps, "
    title += f"code {rows[0]['code']}"
    found: dict[str, Any] = {"rows": rows, "columns": list(COLUMNS), "command": typed_command()}
    found["published"] = [
        {"name": name, "source": one, "success": rates} for name, (one, rates) in PUBLISHED.items()
    ]
    write_json(output / "outside.json", found)
    text = table(rows, title)
    write_text(output / "outside.md", text)
    plot(output / "outside.png", rows, title)
    print(text)


if __name__ == "__main__":
    launch(main, Arguments)
