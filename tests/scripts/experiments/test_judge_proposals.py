"""Whose choice among a policy's proposals leads nearer to the goal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.experiments import judge_proposals
from scripts.experiments.judge_proposals import JUDGES, Arguments, Bench, markdown, plot, summed_up
from sparsewm.errors import UserError


def row(task: str, gain: float, rank: float | None) -> dict[str, Any]:
    measured = {"hand": 0.1, "distance": 2.0}
    return {
        "task": task,
        "spread": 1.0,
        "range": measured,
        "gain": {judge: dict.fromkeys(measured, gain * (i + 1)) for i, judge in enumerate(JUDGES)},
        "rank": {judge: dict.fromkeys(measured, rank) for judge in JUDGES[:2]},
    }


def test_means_are_by_task_and_of_all(tmp_path: Path) -> None:
    rows = [row("reach", 0.5, 1.0), row("reach", 0.25, None), row("push", -0.25, 0.5)]
    found = summed_up(rows)
    hand = {one["task"]: one for one in found if one["part"] == "hand"}
    assert [hand[task]["decisions"] for task in ("reach", "push", "all")] == [2, 1, 3]
    assert hand["reach"]["gain"]["world model"] == 0.375 and hand["push"]["gain"]["true distance"] == -0.75
    assert hand["reach"]["rank"]["world model"] == 1.0 and hand["all"]["rank"]["true pictures"] == 0.75
    assert found[-1]["task"] == "all" and "| all | 1 | hand | 3 | 0.1000 |" in markdown(found, "title")
    plot(tmp_path / "judged.png", found, "title")
    assert (tmp_path / "judged.png").stat().st_size > 5000


class Fan:
    """Pushes with all its force, its first proposal backwards, the others from left to right."""

    def propose(
        self, observation: Any, goal: Any, instruction: Any, samples: int, horizon: int
    ) -> np.ndarray:
        turns = np.linspace(-np.pi / 2, np.pi / 2, samples - 1)
        found = np.stack([np.cos(turns), np.sin(turns)], -1)
        return np.repeat(np.concatenate([[[-1.0, 0.0]], found])[None, :, None], horizon, 2)


@pytest.mark.slow
def test_the_true_distance_gains_most_on_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_fan(*args: Any) -> Fan:
        return Fan()

    monkeypatch.setattr("sparsewm.evaluation.run.load_sampler", make_fan)
    quick = judge_proposals.PlanConfig.of("wall").updated(max_steps=30)
    monkeypatch.setattr(judge_proposals.PlanConfig, "of", lambda name: quick)
    asked = Arguments(
        "wall", proposals="a:fan", samples=6, every=1, tasks="drawn", episodes=2, output=tmp_path
    )
    judge_proposals.main(asked)
    found = json.loads((tmp_path / "judged.json").read_text())
    assert {one["spread"] for one in found["decisions"]} == {1.0, 2.5} and found["dtype"]
    for one in found["decisions"]:
        gains = [one["gain"][judge]["distance"] for judge in JUDGES]
        assert gains[2] >= max(gains) - 1e-9 and gains[2] >= 0
    summary = {(one["spread"], one["part"]): one for one in found["summary"]}
    assert summary[1.0, "distance"]["rank"]["true pictures"] > 0.5
    assert summary[1.0, "distance"]["range"] > 0.5
    assert (tmp_path / "judged.md").is_file() and (tmp_path / "judged.png").is_file()


def test_a_judge_needs_proposals() -> None:
    with pytest.raises(UserError, match="`proposals` are none"):
        Bench(Arguments("wall", proposals="none", episodes=1))
