"""Where recorded action sequences rank among others by their costs, with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

DRAWS = 2000
"""Of a bootstrap."""


def rank_scores(costs: np.ndarray) -> dict[str, np.ndarray]:
    """How high the first of K candidates ranks, the cheapest highest.

    Where others cost the same, values are the means over all orders in which ties can be broken: costs that
    are all equal give chance.

    Args:
        costs: (W, K) of W windows.

    Returns:
        float64 (W,) each: `mean_reciprocal_rank` and `top1`, as their means are called; `percentile`, the
        share of the others that cost more; `rank`, from 1 to K.
    """
    costs = np.nan_to_num(np.asarray(costs, np.float64), nan=np.inf, posinf=np.inf)
    count = costs.shape[1]
    own, others = costs[:, :1], costs[:, 1:]
    better, equal = (others < own).sum(1), (others == own).sum(1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, count + 1))])
    rank = 1 + better + equal / 2
    return {
        "mean_reciprocal_rank": (harmonic[better + equal + 1] - harmonic[better]) / (equal + 1),
        "top1": (better == 0) / (equal + 1),
        "percentile": (count - rank) / (count - 1),
        "rank": rank,
    }


def chance(candidates: int) -> dict[str, float]:
    """The means of `rank_scores` for costs that know nothing."""
    reciprocal = float(np.mean(1 / np.arange(1, candidates + 1)))
    return {"mean_reciprocal_rank": reciprocal, "top1": 1 / candidates, "percentile": 0.5}


def mean_with_interval(values: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Mean of values (W,) and its 95% bootstrap interval; what belongs together is drawn together.

    Args:
        groups: (W,) of which episode each value is.

    Returns:
        `value`, and `ci95` [low, high], None where there are fewer than two groups.
    """
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    interval = None
    if len(sums) > 1:
        drawn = rng.integers(len(sums), size=(DRAWS, len(sums)))
        means = sums[drawn].sum(1) / counts[drawn].sum(1)
        interval = [float(bound) for bound in np.percentile(means, [2.5, 97.5])]
    return {"value": float(values.mean()), "ci95": interval}


def summary(costs: np.ndarray, episodes: np.ndarray, seed: int) -> dict[str, Any]:
    """Means of `rank_scores` over windows, with intervals over episodes.

    Args:
        costs: (W, K), the recorded sequence first. episodes: (W,). seed: of the bootstrap.
    """
    if not len(costs):
        return {"windows": 0}
    found, rng = rank_scores(costs), np.random.default_rng([seed, len(costs)])
    names = ("mean_reciprocal_rank", "top1", "percentile")
    return {"windows": len(costs)} | {name: mean_with_interval(found[name], episodes, rng) for name in names}
