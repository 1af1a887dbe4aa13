"""Plans in a receding horizon keep a deadline, and learn from searches that missed it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparsewm import receding
from sparsewm.config import PlanConfig
from sparsewm.planners import CEM
from sparsewm.receding import KEPT, MOST, SPARE, Receding


def test_searches_that_come_late_are_given_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only searches move: of 100 ms, they miss their limit by 4 ms, then by far more."""
    clock, limits, late = [0.0], [], [0.0]

    def plan(problem: Any, mask: Any, proposals: Any, left: float, mode: str, taken: Any) -> Any:
        limits.append(left)
        clock[0] += left + late[0]
        return SimpleNamespace(actions=torch.zeros(1, 2, 1))

    monkeypatch.setattr(receding, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    planning = Receding(PlanConfig.of("wall").updated(deadline_ms=100.0).checked())
    planning.mpc = SimpleNamespace(plan=plan, execute=1)  # type: ignore[assignment]
    problem: Any = SimpleNamespace(
        steps=lambda actions: torch.ones(1, dtype=torch.long), executed=lambda x: x
    )
    usual = (1 - SPARE) * 0.1
    for late[0] in (0.0, 0.004, 0.0, 0.0, 0.09, 0.0):
        planning.plan(problem, np.array([0]), 1, None, clock[0])
    kept = 0.004
    expected = [usual, usual, usual - kept, usual - KEPT * kept, usual - KEPT**2 * kept, usual - MOST * 0.1]
    assert limits == pytest.approx(expected)


def test_a_planner_without_a_seed_is_made_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seedless(CEM):
        def __init__(self, candidates: int, iterations: int) -> None:
            super().__init__(candidates=candidates, iterations=iterations, elites=2)

    monkeypatch.setattr(receding.PLANNERS, "get", lambda name: Seedless)
    assert Receding(PlanConfig.of("wall").updated(candidates=9)).mpc.planner.candidates == 9
