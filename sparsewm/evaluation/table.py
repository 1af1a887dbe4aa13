"""Tables of evaluation cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def cell_row(selection: str, result: dict[str, Any]) -> dict[str, Any]:
    """One row of eval.json from what `plan` found; `selection` is what the table calls it."""
    settings = result["settings"]
    keys = ("environment", "drop", "planner", "proposals", "episodes", "success_rate", "success_ci95")
    times = ("seconds_per_iteration", "seconds_per_plan", "seconds_per_episode")
    row = {key: result[key] for key in (*keys, *times, "tokens", "goal", "seed", "command", "dtype")}
    row |= {"selection": selection, "actor": result["actor"], "threads": result["machine"]["threads"]}
    row |= {"proprio_weight": settings["cost"]["proprio_weight"], "cost": settings["cost"]["objective"]}
    row |= {"proposal_mode": settings["proposals"]["mode"], "code": result["machine"]["code"]}
    row["encoder"] = None if result["encoder"] is None else result["encoder"]["name"]
    if "moved" in result:
        row["moved"] = result["moved"]
    return row


def markdown(rows: Sequence[dict[str, Any]], title: str) -> str:
    """The table, one line per cell."""
    names = ["environment", "encoder", "tokens", "cost", "candidates", "success (95%)", "T moves"]
    names += ["an iteration", "a decision", "an episode"]
    lines = [title, "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        yardstick = row["selection"] != "random"
        tokens = row["selection"].replace("_", " ") if yardstick else f"drop {100 * row['drop']:.0f}%"
        cost = ""
        if row["selection"] in ("random", "cls"):
            cost = row["cost"] + vision_only(row)
        cells = [row["environment"], row["encoder"] or "", tokens, cost, candidates(row)]
        cells += [percent(row), percent(row.get("moved"))]
        cells += [seconds(row[f"seconds_per_{name}"]) for name in ("iteration", "plan", "episode")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def vision_only(row: dict[str, Any]) -> str:
    """What follows a row's cost or name where proprioception has no weight in it."""
    return ", vision only" if row["proprio_weight"] == 0 else ""


def candidates(row: dict[str, Any]) -> str:
    """Where a row's candidates come from, and what is done with them."""
    if row["selection"] in ("nothing", "random_actions"):
        return ""
    if row["proposals"] == "none":
        return row["planner"]
    name = Path(row["proposals"]).name
    return f"{name}, the first" if row["selection"] == "policy" else f"{name}, {row['proposal_mode']}"


def percent(result: dict[str, Any] | None) -> str:
    """A success rate with its interval: 98% (91-100)."""
    if result is None:
        return ""
    low, high = result["success_ci95"]
    return f"{100 * result['success_rate']:.0f}% ({100 * low:.0f}-{100 * high:.0f})"


def seconds(value: dict[str, float] | None) -> str:
    """A median for people: 12 ms, 3.4 s."""
    if value is None:
        return "-"
    median = value["median"]
    return f"{1000 * median:.0f} ms" if median < 1 else f"{median:.1f} s"
