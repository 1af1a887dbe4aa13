"""What is odd about a dataset that could be trained on: said, not refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsewm.data.dataset import Dataset

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
