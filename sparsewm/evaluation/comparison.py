"""What cells of a table say of each other: over random actions, and dropped tokens against all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsewm.evaluation.cells import Cell
from sparsewm.evaluation.episodes import success_rate
from sparsewm.evaluation.statistics import paired_difference

Result = dict[str, Any]


def successes(result: Result, name: str = "success", budget: int | None = None) -> list[bool]:
    """Whether each episode of a cell succeeded, within a smaller budget of environment steps if one is given.

    Args:
        name: "success" or "strict".
    """
    steps = [entry[f"{name}_step"] for entry in result["per_episode"]]
    return [step is not None and (budget is None or step <= budget) for step in steps]


def within(result: Result, budget: int) -> dict[str, Any] | None:
    """Success rates of a cell within a smaller budget: what was planned does not depend on the budget.

    None where the episodes had fewer steps.
    """
    if budget > result["goal"]["budget"]:
        return None
    rates = {name: success_rate(successes(result, name, budget)) for name in ("success", "strict")}
    return {"budget": budget, **rates["success"], "strict": rates["strict"]}


def _tasks(result: Result) -> list[tuple[Any, ...]]:
    """What tells the tasks of a cell from those of another."""
    goal = result["goal"]
    kind = (result["environment"], goal["source"], goal["offset"], goal["tasks_sha256"])
    return [(*kind, entry.get("task", entry["seed"])) for entry in result["per_episode"]]


def compared(first: Result, second: Result, name: str = "success") -> dict[str, Any] | None:
    """`paired_difference` of two cells, second less first; None where their tasks are not the same."""
    if _tasks(first) != _tasks(second):
        return None
    return paired_difference(successes(first, name), successes(second, name))


def over_random(cells: Sequence[Cell], results: Sequence[Result]) -> list[dict[str, Any] | None]:
    """Of every cell, how much more often it succeeds than random actions on the same tasks; None without."""
    found: list[dict[str, Any] | None] = []
    rivals = [
        result for cell, result in zip(cells, results, strict=True) if cell.selection == "random_actions"
    ]
    for result in results:
        pairs = (compared(rival, result) for rival in rivals if rival is not result)
        found.append(next((pair for pair in pairs if pair is not None), None))
    return found


def against_all_tokens(cells: Sequence[Cell], results: Sequence[Result]) -> list[dict[str, Any] | None]:
    """Of every cell that drops tokens, against the one that differs by keeping them all, on the same tasks.

    Returns:
        for each cell `paired_difference` of ``success`` and ``strict``, first all tokens, then fewer, and
        both success ``rates``; None where there is no such pair.
    """
    planned = [(cell.config, result) for cell, result in zip(cells, results, strict=True) if _planned(cell)]
    found: list[dict[str, Any] | None] = []
    for cell, result in zip(cells, results, strict=True):
        full = cell.config.updated(drop=0.0)
        rivals = [kept for config, kept in planned if config == full and cell.config != full]
        if not _planned(cell) or not rivals:
            found.append(None)
            continue
        rates = {"rates": [rivals[0]["success_rate"], result["success_rate"]]}
        found.append(rates | {name: compared(rivals[0], result, name) for name in ("success", "strict")})
    return found


def _planned(cell: Cell) -> bool:
    return cell.selection == "random"
