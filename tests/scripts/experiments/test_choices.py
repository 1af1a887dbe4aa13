"""The study of choices of tokens, and of what they never keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.experiments import blind_spots, choices
from sparsewm.errors import UserError
from sparsewm.evaluation.episodes import Episode
from sparsewm.model.choices import Scene
from tests.model.tiny import latent_problem, random_actions, random_latent, tiny_model


def test_a_label_stands_for_settings_of_tokens() -> None:
    assert choices.token_settings("goal") == {"choose": "goal"}
    assert choices.token_settings("goal@0") == {"choose": "goal", "temperature": 0.0}
    compared = {"choose": "random", "cost": "goal", "temperature": 0.5}
    assert choices.token_settings("random/goal@0.5") == compared
    for wrong in ("goal@", "/goal", "goal@1/goal@2", "gaol"):
        with pytest.raises(UserError, match=r"is no choice|unknown choice"):
            choices.token_settings(wrong)


def test_every_cell_differs_and_can_be_asked_for() -> None:
    arguments = choices.Arguments(environments=("rope", "pointmaze"), drops=(0.5, 0.9))
    found = list(choices.cells(arguments))
    assert len(found) == 2 * 2 * len(arguments.choices)
    for _, cell in found:
        cell.config.checked()
        assert cell.config.goal.tasks == "validation" and not cell.config.run.video
    assert len({repr(cell.config) for _, cell in found}) == len(found)
    assert found[0][0]["choice"] == "random"


@pytest.mark.slow
def test_the_study_keeps_finished_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = choices.PlanConfig.of("wall")
    quick = usual.updated(max_steps=5, candidates=8, iterations=2, elites=2)
    monkeypatch.setattr(choices.PlanConfig, "of", lambda name: quick)
    arguments = choices.Arguments(
        ("wall",), choices=("goal@0",), drops=(0.5,), tasks="drawn", episodes=2, repeats=1, output=tmp_path
    )
    choices.main(arguments)
    report = json.loads((tmp_path / "choices.json").read_text())
    assert [row["choice"] for row in report["rows"]] == ["random", "goal@0"]
    assert (
        "| 50% | goal@0 |" in (tmp_path / "choices.md").read_text() and (tmp_path / "choices.png").is_file()
    )
    monkeypatch.setattr(choices.Cell, "run", lambda cell: pytest.fail("was run before"))
    choices.main(arguments)


@pytest.mark.parametrize("objective", ["mse", "temporal"])
@pytest.mark.parametrize("frame", ["last", "min"])
def test_a_patch_left_out_of_the_cost(objective: str, frame: str) -> None:
    model, source = tiny_model(), torch.Generator().manual_seed(2)
    start, goal, before = (random_latent(model, 1, source) for _ in range(3))
    history = [(before, random_actions(model, 1, generator=source))]
    scene = Scene(start, goal, history)
    actions = random_actions(model, 1, 6, 3, generator=source)
    options: dict[str, Any] = {"history": history, "horizon": 3, "objective": objective, "frame": frame}
    problem = latent_problem(model, start, goal, **options)
    with torch.inference_mode():
        costs, without = blind_spots.leave_one_out(problem, scene, actions, problem.objective)
    torch.testing.assert_close(costs, problem.cost(actions)[0], atol=1e-4, rtol=1e-4)
    assert without.shape == (6, 16) and not torch.allclose(without, costs[:, None].expand(-1, 16))
    every = torch.arange(16)[None]
    past = model.remember(history, every)
    tokens, proprio = model.rollout(start.tokens, start.proprio, actions, every, past)
    left = every[:, every[0] != 5]
    wanted = problem.objective.goal(goal.tokens[:, None][:, :, left[0]], goal.proprio[:, None], left)
    expected = torch.stack(
        [
            problem.objective.distance(tokens[:, :, t][:, :, left[0]], proprio[:, :, t], wanted, left)[0]
            for t in ([2] if frame == "last" else range(3))
        ]
    ).amin(0)
    torch.testing.assert_close(without[:, 5], expected, atol=1e-4, rtol=1e-4)


def test_blind_spots_are_counted_for_plans_and_for_episodes() -> None:
    def seen(deciding: list[list[int]], kept: list[list[float]]) -> blind_spots.Seen:
        turned = [np.array(one, float) / 4 for one in deciding]
        return blind_spots.Seen([np.array(one, bool) for one in deciding], turned, list(map(np.array, kept)))

    def episode(success: bool) -> Episode:
        one = Episode.__new__(Episode)
        one.success_step = 1 if success else None
        return one

    first = seen([[1, 1, 0, 0], [0, 1, 0, 0]], [[0.5, 0, 0, 0], [0, 1, 0, 0]])
    second = seen([[0, 0, 1, 0]], [[1, 1, 0, 0]])
    found = blind_spots.measure([first, second], [episode(True), episode(False)])
    assert found["plans"] == 3 and found["missed_per_episode"] == [0, 1]
    assert found["never_kept_in_the_plan"] == 2 / 4  # patch 1 in the first plan, patch 2 in the third
    assert found["never_kept_in_the_episode"] == 1 / 3
    assert found["success_by_blind_spots"]["none_missed"]["successes"] == 1
    assert found["success_by_blind_spots"]["some_missed"]["episodes"] == 1
    assert found["maps"]["blind"] == [0, 0.3333, 0.3333, 0]


@pytest.mark.slow
def test_blind_spots_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = choices.PlanConfig.of("wall")
    quick = usual.updated(max_steps=5, candidates=8, iterations=2, elites=2)
    monkeypatch.setattr(choices.PlanConfig, "of", lambda name: quick)
    arguments = blind_spots.Arguments(
        ("wall",), choices=("random", "merge"), drops=(0.9,), tasks="drawn", episodes=2, output=tmp_path
    )
    blind_spots.main(arguments)
    random, merge = json.loads((tmp_path / "blind_spots.json").read_text())["rows"]
    assert random["plans"] == 2 and abs(random["kept_share"] - 6 / 64) < 1e-6
    assert merge["kept_share"] < 0.5 and (tmp_path / "wall-embedded-all-drop0.9.png").is_file()
    plain = choices.Cell("random", choices.planned(arguments, "wall", "embedded", "random", 0.9)).run()
    assert [one["success"] for one in plain["per_episode"]] == random["successes"]  # judged, not changed
