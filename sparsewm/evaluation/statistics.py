"""Small statistics that every table needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def wilson(successes: int, episodes: int, z: float = 1.96) -> tuple[float, float]:
    """95% score interval of a success rate (Wilson 1927); (0, 1) without episodes."""
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    scale = 1 + z**2 / episodes
    middle = (rate + z**2 / (2 * episodes)) / scale
    half = z * math.sqrt(rate * (1 - rate) / episodes + z**2 / (4 * episodes**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def quartiles(values: Sequence[float]) -> dict[str, float] | None:
    """Median and quartiles ``{"median", "p25", "p75"}``, None without values."""
    if not values:
        return None
    p25, median, p75 = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "p25": float(p25), "p75": float(p75)}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two samples (K,); NaN where all values of one are equal."""
    return pearson(ranks(a), ranks(b))


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two samples (K,); NaN where all values of one are equal."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value (K,), 0 for the smallest; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: np.ndarray = np.cumsum(counts) - (counts + 1) / 2
    return shared[place]
