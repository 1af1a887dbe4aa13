"""Tables of evaluation cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMED = ("environment", "encoder", "tokens", "cost", "candidates")


def cell_row(selection: str, result: dict[str, Any]) -> dict[str, Any]:
    """One row of eval.json from what `plan` found; `selection` is what the table calls it."""
    settings = result["settings"]
    keys: tuple[str, ...] = ("environment", "drop", "planner", "proposals", "episodes")
    keys += ("success_rate", "success_ci95", "strict")
    times = ("seconds_per_iteration", "seconds_per_plan", "seconds_per_episode")
    row = {key: result[key] for key in (*keys, *times, "tokens", "goal", "seed", "command", "dtype")}
    row |= {"selection": selection, "actor": result["actor"], "threads": result["machine"]["threads"]}
    row |= {"proprio_weight": settings["cost"]["proprio_weight"], "cost": settings["cost"]["objective"]}
    row |= {"proposal_mode": settings["proposals"]["mode"], "code": result["machine"]["code"]}
    row |= {"machine": result["machine"]["kind"]}
    row |= {"encoder": None if result["encoder"] is None else result["encoder"]["name"]}
    if "moved" in result:
        row["moved"] = result["moved"]
    return row


def markdown(rows: Sequence[dict[str, Any]], title: str, budgets: Sequence[int] = ()) -> str:
    """The table, one line per cell, with success within smaller `budgets` (`row["within"]`)."""
    names = [*NAMED, "success (95%)", *(f"in {budget} steps" for budget in budgets), "strict"]
    names += ["over random", "T moves", "an iteration", "a decision", "an episode"]
    lines, labels = [], policy_labels(rows)
    for row in rows:
        cells = [*_named(row, labels), percent(row), *map(percent, row["within"]), percent(row["strict"])]
        cells += [points(row["over_random"]), percent(row.get("moved"))]
        lines.append(
            cells + [seconds(row[f"seconds_per_{name}"]) for name in ("iteration", "plan", "episode")]
        )
    return f"{title}\n\n{_lines(names, lines)}"


def paired_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the rows that have a rival with all tokens; empty where none has."""
    names = [*NAMED, "all tokens", "fewer", "difference (95%)", "only all", "only fewer", "p"]
    lines, labels = [], policy_labels(rows)
    for row in rows:
        if (pair := row["against_all_tokens"]) is not None:
            found, rates = pair["success"], [f"{100 * rate:.0f}%" for rate in pair["rates"]]
            counts = [str(found["only_first"]), str(found["only_second"]), f"{found['p']:.2g}"]
            lines.append([*_named(row, labels), *rates, points(found), *counts, points(pair["strict"])])
    if not lines:
        return ""
    title = (
        "Fewer tokens against all of them on the same tasks, in points; p of the exact sign test (McNemar)"
    )
    return f"{title}\n\n{_lines([*names, 'strict difference'], lines)}"


def _named(row: dict[str, Any], labels: Mapping[str, str]) -> list[str]:
    """What tells a row from others, under the heads `NAMED`."""
    yardstick = row["selection"] != "random"
    tokens = row["selection"].replace("_", " ") if yardstick else f"drop {100 * row['drop']:.0f}%"
    cost = row["cost"] + vision_only(row) if row["selection"] in ("random", "cls") else ""
    return [row["environment"], row["encoder"] or "", tokens, cost, candidates(row, labels)]


def _lines(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    dashes = "|" + "---|" * len(names)
    return "\n".join([f"| {' | '.join(names)} |", dashes, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def points(pair: dict[str, Any] | None) -> str:
    """A difference of rates in percentage points with its interval: -3 (-9 to +2)."""
    if pair is None:
        return ""
    low, high = pair["ci95"]
    return f"{100 * pair['difference']:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"


def vision_only(row: dict[str, Any]) -> str:
    """What follows a row's cost or name where proprioception has no weight in it."""
    return ", vision only" if row["proprio_weight"] == 0 else ""


def policy_labels(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What policies are called in tables and plots, by source: the shortest ends of paths that differ."""
    paths = {row["proposals"]: Path(row["proposals"]).parts for row in rows}
    labels = {}
    for source, parts in paths.items():
        others = [other for name, other in paths.items() if name != source]
        sizes = range(1, len(parts) + 1)
        short = (n for n in sizes if all(other[-n:] != parts[-n:] for other in others))
        size = next(short, None)
        labels[source] = source if size is None else str(Path(*parts[-size:]))
    return labels


def candidates(row: dict[str, Any], labels: Mapping[str, str]) -> str:
    """Where a row's candidates come from, and what is done with them.

    Args:
        labels: of policies, as `policy_labels` has them.
    """
    if row["selection"] in ("nothing", "random_actions"):
        return ""
    if row["proposals"] == "none":
        return row["planner"]
    name = labels[row["proposals"]]
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
