"""Small statistics that every table needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """How much more often the second of two ways succeeds, on the same tasks in the same order.

    Returns:
        ``difference`` of the rates (second less first) and its ``ci95`` (Newcombe 1998, method 10), how many
        tasks only one solves, ``only_first`` and ``only_second``, and ``p`` of the exact sign test on these
        (McNemar).
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} episodes are no pairs")
    count, only_a, only_b = len(a), int((a & ~b).sum()), int((~a & b).sum())
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    rate_a, rate_b = a.mean() if count else 0.0, b.mean() if count else 0.0
    (low_a, high_a), (low_b, high_b) = wilson(int(a.sum()), count), wilson(int(b.sum()), count)
    phi, sides = 0.0, (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if sides:
        together = both * neither - only_a * only_b
        phi = (max(together - count / 2, 0.0) if together > 0 else together) / math.sqrt(sides)

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(0.0, down**2 - 2 * phi * down * up + up**2))

    difference = float(rate_b - rate_a)
    low = difference - reach(rate_b - low_b, high_a - rate_a)
    high = difference + reach(high_b - rate_b, rate_a - low_a)
    return {
        "difference": difference,
        "ci95": [max(-1.0, low), min(1.0, high)],
        "only_first": only_a,
        "only_second": only_b,
        "p": sign_test(only_a, only_b),
    }


def sign_test(first: int, second: int) -> float:
    """Two-sided probability that a fair coin falls as unequally as this often on one side and the other."""
    flips = first + second
    tail = sum(math.comb(flips, k) for k in range(min(first, second) + 1))
    return min(1.0, 2 * tail / 2**flips)


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
