"""What is wrong with recorded numbers, and what is odd about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsewm.errors import UserError

if TYPE_CHECKING:
    from sparsewm.data.dataset import Dataset

HUGE = 1e12
"""Numbers beyond this are taken for damage: their squares leave no digits for the others."""

OUTLIER = 100.0
"""Distance from the median, in units of the range of 98% of the rows, from which a number is an outlier."""


def warnings(dataset: Dataset, pictures: np.ndarray | None = None, space: Any = None) -> list[str]:
    """What is odd about a dataset, a sentence each.

    Args:
        pictures: some of the data, uint8 (K, H, W, 3); a few are read when None.
        space: bounds (low, high) of an environment's actions, each (A,); what the dataset declares when None.
    """
    found: list[str] = []
    rows = np.arange(dataset.rows)
    if len(rows) == 0:
        return found
    if pictures is None:
        pictures = dataset.pixels[rows[np.unique(np.linspace(0, len(rows) - 1, 16).astype(int))]]
    if (pictures == pictures[0]).all():
        found.append(f"the pictures of {dataset.path} never change: nothing can be learned from them")
    acting = rows[dataset.acting[rows]]
    for name, some in (("action", acting), ("proprio", rows if dataset.has_proprio else rows[:0])):
        values = getattr(dataset, name)[some].astype(np.float64)
        found += _odd_numbers(name, values, getattr(dataset, f"{name}_names"), some) if len(some) else []
    if space is None and dataset.declared_bounds:
        space = (dataset.action_low, dataset.action_high)
    if space is not None:
        low, high = (np.asarray(bound, np.float64) for bound in space)
        margin = 1e-3 * (high - low) + 1e-6
        action = dataset.action[acting]
        outside = np.flatnonzero(((action < low - margin) | (action > high + margin)).any(1))
        if len(outside):
            found.append(
                f"actions of {len(outside)} rows are outside the action space, first in row "
                f"{acting[outside[0]]} ({', '.join(f'{x:g}' for x in action[outside[0]])})"
            )
    return found


def _odd_numbers(name: str, values: np.ndarray, names: tuple[str, ...], rows: np.ndarray) -> list[str]:
    """Numbers of a column (rows, n) that never change, or lie far from all the others."""
    found = []
    still = [names[i] for i in np.flatnonzero(values.max(0) == values.min(0))]
    if still:
        found.append(f"{name} {', '.join(still)} never changes")
    order, aside = np.sort(values, 0), min(-(-len(values) // 100), (len(values) - 1) // 2)
    low, middle, high = order[aside], order[len(order) // 2], order[-1 - aside]
    far = np.abs(values - middle).max(0)
    for i in np.flatnonzero((high > low) & (far > OUTLIER * (high - low))):
        worst = int(np.argmax(np.abs(values[:, i] - middle[i])))
        found.append(
            f"{name} {names[i]} is {values[worst, i]:g} in row {rows[worst]}, though 98% of the rows are "
            f"within {low[i]:g} and {high[i]:g}: if that is an error, remove its episode"
        )
    return found


def matrix(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """A column of numbers (rows, n); (rows,) becomes (rows, 1), and what is no such thing a `UserError`."""
    values = np.asarray(values)
    if values.ndim not in (1, 2) or values.dtype.kind not in "fiub":
        raise UserError(
            f"column '{name}' of {path} must be numbers (rows, size), is {values.dtype} {values.shape}"
        )
    return values if values.ndim == 2 else values[:, None]


def are_bounds(low: Any, high: Any, size: int) -> bool:
    """Whether these declare bounds of `size` numbers: finite ones, since a search needs them."""
    try:
        low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    except (TypeError, ValueError):
        return False
    good = low.shape == high.shape == (size,)
    return good and bool(np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all())


def damaged_numbers(name: str, values: np.ndarray) -> list[str]:
    """What is wrong with numbers (rows, n) of a column."""
    found = []
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        found.append(
            f"column '{name}' is not finite in row {bad[0]}"
            + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
            + ": remove those episodes"
        )
    huge = np.flatnonzero((np.isfinite(values) & (np.abs(values) > HUGE)).any(1))
    if len(huge):
        row = values[huge[0]]
        found.append(
            f"column '{name}' holds {row[np.argmax(np.abs(row))]:g} in row {huge[0]}"
            + (f" and such numbers in {len(huge) - 1} more" if len(huge) > 1 else "")
            + ": no number may be beyond 1e12"
        )
    return found
