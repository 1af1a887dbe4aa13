"""Seconds of several ways to do a thing, timed in turns, so that drifts of the machine cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from sparsewm.evaluation.machine import matmul_peak, wait
from sparsewm.evaluation.statistics import quartiles
from sparsewm.kernels import flushed
from sparsewm.memory import PeakMemory

WARM_UP = 2
"""Untimed rounds of every contestant: kernels are made in the first, graphs recorded in the second."""


@dataclass
class Contestant:
    """One way to do a thing, and what was measured of it.

    Attributes:
        work: does it once.
        repeats: how often it is timed.
        seconds: of the timed repeats.
        bytes: of memory that doing it takes at its peak; None where nobody tells.
    """

    work: Callable[[], object]
    repeats: int
    seconds: list[float] = field(default_factory=list)
    bytes: int | None = None

    @property
    def spread(self) -> dict[str, float]:
        """Median and quartiles of the seconds."""
        found = quartiles(self.seconds)
        assert found is not None
        return found


@flushed()
def interleave(
    contestants: Sequence[Contestant],
    device: torch.device,
    progress: Callable[..., None] | None = None,
    memory: bool = False,
) -> None:
    """Time all of them in turns, after rounds that warm up; those of few repeats are spread over the rounds.

    Denormal numbers are zero to all of them, as they are to planning and training.

    Args:
        progress: called with the rounds done and all of them.
        memory: also measure what each takes, while it warms up.
    """
    rounds = max(one.repeats for one in contestants)
    # A GPU records graphs in the second round, and their memory is not given back; on a CPU the first one
    # packs weights.
    measured = (0 if device.type == "cuda" else 1) if memory else None
    for round_ in range(WARM_UP + rounds):
        for one in contestants:
            if round_ >= WARM_UP and not _due(round_ - WARM_UP, one.repeats, rounds):
                continue
            if round_ == measured:
                peak = PeakMemory(device)
                one.work()
                one.bytes = peak.added()
                continue
            wait(device)
            started = time.perf_counter()
            one.work()
            wait(device)
            if round_ >= WARM_UP:
                one.seconds.append(time.perf_counter() - started)
        if progress is not None:
            progress(round_ + 1, WARM_UP + rounds)


def matmul_peaks(device: torch.device) -> dict[str, float]:
    """Rate of a large product in float32 and in bfloat16, in operations per second."""
    return {name: matmul_peak(device, getattr(torch, name)) for name in ("bfloat16", "float32")}


def _due(round_: int, wanted: int, rounds: int) -> bool:
    """Whether one of `wanted` repeats, spread evenly over the rounds, is in this one; at most one is."""
    return (round_ + 1) * wanted // rounds > round_ * wanted // rounds
