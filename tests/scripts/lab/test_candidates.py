"""Candidates with known ends, and how a cost orders them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.experiments.rank_candidates import Arguments, main
from scripts.lab.candidates import NEAR, make_candidates, near_tasks, regret
from sparsewm import envs
from sparsewm.config import PlanConfig
from sparsewm.tasks import make_tasks


def test_ends_and_distances_are_those_of_the_simulator() -> None:
    env, config = envs.make("wall"), PlanConfig.of("wall").updated(horizon=2)
    tasks = make_tasks(env, 2, 0, config.goal)
    found = make_candidates(env, config, tasks, 8, np.random.default_rng(0))
    assert found.actions.shape == (2, 2, 8, 2, 2) and found.ends.shape == (2, 2, 8, 1, env.state_dim)
    held = np.repeat(found.actions[1, 0, :3], env.frameskip, 1)
    assert np.array_equal(env.rollout_states(found.starts[1], held)[:, -1], found.ends[1, 0, :3, 0])
    assert np.allclose(env.shortfall(found.ends[0, 1, :, 0], found.goals[0]), found.distances[0, 1])
    assert found.distances[:, 1].mean() < found.distances[:, 0].mean()  # drawn about the best


def test_near_tasks_start_near_their_goals() -> None:
    env, config = envs.make("wall"), PlanConfig.of("wall")
    tasks = near_tasks(env, config, make_tasks(env, 8, 0, config.goal), np.random.default_rng(0))
    away = [float(env.shortfall(task.start[None], task.goal)[0]) for task in tasks]
    assert tasks and all(NEAR[0] < one <= NEAR[1] for one in away)


def test_regret_is_nothing_for_the_truth_and_one_for_the_middle() -> None:
    distances = np.random.default_rng(0).random((3, 2, 21))
    assert regret(distances, distances) == {"best": [0.0, 0.0], "elites": [0.0, 0.0]}
    middle = np.abs(distances - np.median(distances, -1, keepdims=True))
    assert regret(middle, distances)["best"] == [1.0, 1.0]
    assert min(regret(-distances, distances)["elites"]) > 1.0


@pytest.mark.slow
def test_spaces_and_world_models_are_judged(tmp_path: Path) -> None:
    some = Arguments(("wall",), "random", features=(0, 4), drops=(0.0, 0.5), tasks=2, candidates=6)
    some.output = tmp_path
    main(some)
    rows = json.loads((tmp_path / "wall.json").read_text())["spaces"]["112"]
    assert [(row["features"], row["pool"]) for row in rows] == [(0, 0.0), (0, 0.125), (4, 0.0), (4, 0.125)]
    some.checkpoint = Path("sparsewm/pretrained/wall")
    main(some)
    judged = json.loads((tmp_path / "wall.json").read_text())["model"]
    assert 0 < judged["drop_0"]["error"] < 1 and set(judged["drop_0.5"]) == {"true", "imagined", "error"}
