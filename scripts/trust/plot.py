"""The figures of `results/trust` in one picture.

Example:

    python -m scripts.trust.plot
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from scripts.common import launch
from scripts.trust.common import RESULTS
from sparsewm.errors import UserError
from sparsewm.files import read_json
from sparsewm.report.plots import save_figure

COLOURS = {"refused": "#4477aa", "read": "#99ccee", "healed": "#44aa99", "wrong": "#cc3311"}


@dataclass
class Arguments:
    """Draw what was found."""

    folder: Path = RESULTS
    """Folder of hostile.json and kills.json; trust.png is written there."""


def _stacked(axis: Any, rows: dict[str, dict[str, float]], title: str) -> None:
    left = dict.fromkeys(rows, 0.0)
    for kind, colour in COLOURS.items():
        values = [rows[name].get(kind, 0) for name in rows]
        if any(values):
            axis.barh(list(rows), values, left=list(left.values()), color=colour, label=kind)
            left = {name: left[name] + value for name, value in zip(rows, values, strict=True)}
    axis.invert_yaxis()
    axis.set_title(title)
    axis.legend(loc="lower right", frameon=False)


def main(arguments: Arguments) -> None:
    if not (arguments.folder / "hostile.json").is_file():
        raise UserError(f"no hostile.json in {arguments.folder}: run scripts.trust.hostile")
    hostile = read_json(arguments.folder / "hostile.json")
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    _stacked(axes[0], hostile["readers"], f"{hostile['inputs']} broken inputs")
    kills = arguments.folder / "kills.json"
    jobs = read_json(kills)["jobs"] if kills.is_file() else {}
    rows = {
        name: {"healed": job["kills"] - len(job["wrong"]), "wrong": len(job["wrong"])}
        for name, job in jobs.items()
    }
    _stacked(axes[1], rows, "kills, and what went wrong after them")
    save_figure(figure, arguments.folder / "trust.png")


if __name__ == "__main__":
    launch(main, Arguments)
