"""What is wrong with recorded numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sparsewm.errors import UserError

HUGE = 1e12
"""Numbers beyond this are taken for damage: their squares leave no digits for the others."""


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
