"""The closed-loop table of README and docs: shipped weights, yardsticks, one `sparsewm plan` per cell.

Example:

    python scripts/evaluate.py --episodes 60 --output results/closed_loop

Every finished cell stays in its own JSON file, so an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from sparsewm.files import write_json


@dataclass
class Arguments:
    """Closed-loop success of the shipped weights, with yardsticks."""

    environments: tuple[str, ...] = ("wall", "pointmaze", "pusht")
    """Environments."""
    cells: tuple[str, ...] = (
        "none",
        "random_actions",
        "drop=0.5",
        "drop=0",
        "oracle",
        "drop=0.5,selection=proprio",
        "drop=0.5,alpha=0",
    )
    """Cells: a yardstick's name, or flags of `sparsewm plan`."""
    episodes: int = 60
    """Episodes per cell."""
    seed: int = 0
    """Seed."""
    output: Path = Path("results/closed_loop")
    """Folder of the JSON files and the table."""


def flags(cell: str) -> list[str]:
    """`sparsewm plan` flags of a cell."""
    if "=" not in cell:
        return ["--selection", cell, "--drop", "0"]
    pairs = [pair.split("=") for pair in cell.split(",")]
    return [word for name, value in pairs for word in (f"--{name}", value)]


def main(arguments: Arguments) -> None:
    rows: list[dict[str, Any]] = []
    for cell in arguments.cells:
        for name in arguments.environments:
            path = arguments.output / f"{name}-{cell.replace(',', '-').replace('=', '')}.json"
            if not path.exists():
                work = Path("runs/evaluate") / path.stem
                words = ["plan", "--env", name, *flags(cell), "--episodes", str(arguments.episodes)]
                words += ["--seed", str(arguments.seed), "--no-video", "--output", str(work)]
                started = time.time()
                subprocess.run(["sparsewm", *words], check=True, stdout=subprocess.DEVNULL)
                result = json.loads((work / "results.json").read_text())
                result["command"] = " ".join(["sparsewm", *words[:-2]])
                write_json(path, result | {"wall_seconds": round(time.time() - started, 1)})
            result = json.loads(path.read_text())
            rows.append(row(cell, result))
            print(rows[-1], flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "table.md").write_text(table(rows))
    print(table(rows))


def row(cell: str, result: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    low, high = result["success_ci95"]
    moved = result.get("moved")
    seconds = result["seconds_per_iteration"]
    return {
        "environment": result["environment"],
        "cell": cell,
        "success": f"{100 * result['success_rate']:.0f}% ({100 * low:.0f}-{100 * high:.0f})",
        "moved": "" if moved is None else f"{100 * moved['success_rate']:.0f}% of {moved['episodes']}",
        "iteration": "" if seconds is None else f"{1000 * seconds['median']:.0f} ms",
        "budget": result["goal"]["budget"],
        "episodes": result["episodes"],
        "seed": result["seed"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    if not rows:
        return ""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(r[name]) for name in names) + " |" for r in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
