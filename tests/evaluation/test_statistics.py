"""Intervals, quartiles and rank correlations against values from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsewm.evaluation.statistics import (
    paired_difference,
    pearson,
    quartiles,
    ranks,
    sign_test,
    spearman,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "episodes", "interval"),
    [  # Wilson score intervals at 95%, as in Newcombe (1998), table I, and by the textbook formula
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0)),
        (5, 10, (0.2366, 0.7634)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson_interval(successes: int, episodes: int, interval: tuple[float, float]) -> None:
    assert wilson(successes, episodes) == pytest.approx(interval, abs=1e-4)


def pairs(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Successes of two ways."""
    counts = (both, only_first, only_second, neither)
    outcomes = ((True, True), (True, False), (False, True), (False, False))
    found = [pair for pair, count in zip(outcomes, counts, strict=True) for _ in range(count)]
    return [first for first, _ in found], [second for _, second in found]


def test_paired_difference() -> None:
    """36 pairs alike, 12 and 2 unlike: the example of Newcombe (1998b), method 10, 0.0569 to 0.3404."""
    found = paired_difference(*pairs(36, 2, 12, 0))
    assert found["difference"] == pytest.approx(0.2)
    assert found["ci95"] == pytest.approx([0.0569, 0.3404], abs=1e-4)
    assert (found["only_first"], found["only_second"]) == (2, 12)
    assert found["p"] == pytest.approx(0.0129, abs=1e-4)  # of 14 flips: 2 (1 + 14 + 91) / 2^14
    swapped = paired_difference(*pairs(36, 12, 2, 0))
    assert swapped["ci95"] == pytest.approx([-high for high in found["ci95"][::-1]])


def test_pairs_that_say_nothing() -> None:
    same = paired_difference(*pairs(5, 0, 0, 3))
    assert same["difference"] == 0 and same["p"] == 1 and same["ci95"][0] < 0 < same["ci95"][1]
    assert paired_difference([], [])["ci95"] == [-1, 1]
    assert sign_test(8, 1) == pytest.approx(2 * 10 / 2**9) and sign_test(0, 0) == sign_test(4, 4) == 1
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([True], [])


def test_quartiles() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == {"median": 3, "p25": 2, "p75": 4}
    assert quartiles([7.0]) == {"median": 7, "p25": 7, "p75": 7}
    assert quartiles([]) is None


def test_rank_correlation() -> None:
    a = np.array([1.0, 5.0, 2.0, 9.0])
    assert spearman(a, np.exp(a)) == pytest.approx(1) and spearman(a, -(a**3)) == pytest.approx(-1)
    # 1 - 6 * sum d^2 / (n (n^2 - 1)) with rank differences 1, 1, 0, 0
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 3, 4])) == pytest.approx(1 - 6 * 2 / 60)
    assert ranks(np.array([3.0, 1, 3, 7])).tolist() == [1.5, 0, 1.5, 3]
    assert spearman(np.array([0.0, 0, 1]), np.array([1.0, 2, 3])) == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(pearson(np.ones(3), a[:3])) and pearson(a, 2 * a + 1) == pytest.approx(1)
