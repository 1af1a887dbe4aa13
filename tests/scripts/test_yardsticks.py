"""Scripts that run episodes with the true simulator: calibration, and the gate of encoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import calibrate
from scripts.experiments import gate_encoder
from sparsewm.config import PlanConfig


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of a moment."""
    usual = PlanConfig.of("wall")
    config = usual.updated(max_steps=10, candidates=6, iterations=1, elites=2)
    for module in (calibrate, gate_encoder):
        monkeypatch.setattr(module.PlanConfig, "of", lambda name: config)


def test_calibration_runs_its_yardsticks(tmp_path: Path) -> None:
    calibrate.main(calibrate.Arguments(("wall",), episodes=2, output=tmp_path / "found.json"))
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["actor"] for row in rows] == ["nothing", "random", "oracle"]
    assert rows[0]["success_rate"] == 0 and all(row["episodes"] == 2 for row in rows)


def test_the_gate_plans_with_an_encoders_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    env = gate_encoder.make_simulator("wall", resolution=56)
    encoder = gate_encoder.load_embedded()
    few = gate_encoder.explored
    monkeypatch.setattr(gate_encoder, "explored", lambda env, seed: few(env, seed)[::17])
    config = gate_encoder.PlanConfig.of("wall")
    for judged in (None, encoder):
        found = gate_encoder.oracle(env, config, 1, 0, judged, 0.5, 0.0)
        assert found.keys() == {"success_rate", "success_ci95"}
