"""Contestants take turns; those of few repeats are spread over the rounds, and all are warmed up alike."""

from __future__ import annotations

import torch

from sparsewm.evaluation.bench.timing import WARM_UP, Contestant, interleave

CPU = torch.device("cpu")


def test_turns() -> None:
    calls: list[str] = []
    often = Contestant(lambda: calls.append("often"), 4)
    seldom = Contestant(lambda: calls.append("seldom"), 2)
    rounds: list[tuple[int, int]] = []
    interleave([often, seldom], CPU, lambda *done: rounds.append(done))
    assert calls[: 2 * WARM_UP] == ["often", "seldom"] * WARM_UP
    assert calls[2 * WARM_UP :] == ["often", "often", "seldom"] * 2
    assert len(often.seconds) == 4 and len(seldom.seconds) == 2
    assert rounds[-1] == (4 + WARM_UP, 4 + WARM_UP)
    assert often.bytes is None


def test_memory_is_that_of_each() -> None:
    small, large = (Contestant(lambda n=n: torch.ones(n << 20).sum(), 1) for n in (1, 24))
    interleave([small, large, small], CPU, memory=True)
    assert small.bytes is None or (large.bytes or 0) > 80e6 > (small.bytes or 0)
