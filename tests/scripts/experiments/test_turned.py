"""Costs of turned Ts: nothing at the goal, and told of every angle, distance and objective."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.experiments import turned


@pytest.mark.slow
def test_the_goal_itself_costs_nothing(tmp_path: Path) -> None:
    turned.main(turned.Arguments(goals=2, output=tmp_path))
    report = json.loads((tmp_path / "pusht_turned.json").read_text())
    lines = report["objectives"]["mse"]
    assert list(lines) == ["0", "30", "60"] and (tmp_path / "pusht_turned.png").is_file()
    costs = lines["0"]["cost"]
    assert len(costs) == len(report["angles"]) and costs[0] == 0 < min(costs[1:])
    assert lines["0"]["trapped"] == 0 and all(0 <= line["trapped"] <= 1 for line in lines.values())
    assert lines["60"]["cost"][0] > lines["30"]["cost"][0] > 0
