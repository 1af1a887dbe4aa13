"""Offline judgement against the closed loop: correlations over checkpoints, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.experiments import offline_against_closed_loop as study
from sparsewm.config import PlanConfig
from sparsewm.errors import UserError
from sparsewm.model import save
from tests.model.tiny import tiny_model


@pytest.fixture
def arguments(tmp_path: Path) -> study.Arguments:
    names = [str(save(tiny_model(seed=seed), tmp_path / f"model-{seed}")) for seed in range(4)]
    return study.Arguments(
        "wall", "wall.h5", tuple(names), episodes=2, work=tmp_path / "work", output=tmp_path / "out"
    )


def test_correlations_over_checkpoints(arguments: study.Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"model-0": 0.1, "model-1": 0.9, "model-2": 0.5, "model-3": 0.9}

    def judge(arguments: study.Arguments, config: PlanConfig, name: str, folder: Path) -> dict[str, Any]:
        rate = rates[Path(name).name]
        known = {"value": rate**3, "ci95": [0.0, 1.0]}
        return {"mean_reciprocal_rank": known, "top1": {"value": 0.5, "ci95": None}, "percentile": known} | {
            "error_ratio": {"value": 1 - rate, "ci95": None},
            "chance": {"top1": 0.5},
        }

    def closed_loop(config: PlanConfig) -> dict[str, Any]:
        assert config.cost.objective == "mse" and config.tokens.drop == 0.5 and config.run.episodes == 2
        rate = rates[Path(str(config.run.checkpoint)).name]
        return {"success_rate": rate, "success_ci95": [max(0, rate - 0.1), min(1, rate + 0.1)]}

    monkeypatch.setattr(study, "judge", judge)
    monkeypatch.setattr(study, "closed_loop", closed_loop)
    study.main(arguments)
    report = json.loads((arguments.output / "wall.json").read_text())
    found = report["correlations_with_success"]
    assert found["percentile"]["spearman"] == pytest.approx(1) and 0.8 < found["percentile"]["pearson"] < 1
    assert found["error_ratio"]["pearson"] == pytest.approx(-1)
    assert found["top1"] == {"spearman": None, "pearson": None}
    assert (arguments.output / "wall.png").is_file() and len(report["rows"]) == 4
    monkeypatch.setattr(study, "judge", lambda *_: pytest.fail("was measured before"))
    study.main(arguments)
    arguments.windows += 1
    with pytest.raises(pytest.fail.Exception):
        study.main(arguments)
    arguments.checkpoints = arguments.checkpoints[:2]
    with pytest.raises(UserError, match="three at least"):
        study.main(arguments)
