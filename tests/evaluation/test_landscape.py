"""The landscape of costs: its truth is the simulator's, and its costs are those a planner would see."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

import sparsewm
from sparsewm import envs
from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.evaluation.landscape import make_landscape
from sparsewm.tasks import make_tasks
from tests.cli.commands import call

SIDE = 5


def test_truth_and_costs_of_held_actions() -> None:
    env, config = envs.make_simulated("wall"), PlanConfig.of("wall").updated(horizon=2)
    model = sparsewm.load_pretrained("wall")
    [task] = make_tasks(env, 1, 11, config.goal)
    found = make_landscape(model, config, env, task, SIDE)
    assert list(found.costs) == ["all 64 tokens", "32 of 64 tokens", "true distance"] and found.held
    observation, _ = env.reset(seed=task.seed, options=task.options)
    row, column = 1, 3  # the second number by rows
    action = np.array([found.values[0, column], found.values[1, row]], np.float32)
    ends = env.rollout_states(env.state, np.tile(action, (1, 2 * env.frameskip, 1)))
    truth = env.shortfall(ends[:, -1], env.goal)[0]
    assert found.costs["true distance"][row, column] == pytest.approx(truth, rel=1e-5)
    agent = Agent(model, config.updated(drop=0.5))
    agent.reset(env.goal_observation(), seeds=[task.seed])
    cost = agent.problem(observation).cost(torch.from_numpy(action).expand(1, 1, 2, 2))
    rounding = 0.02 if next(model.predictor.parameters()).dtype == torch.bfloat16 else 1e-4
    assert found.costs["32 of 64 tokens"][row, column] == pytest.approx(float(cost), rel=rounding)
    correlation = found.content()["rank_correlation_with_truth"]
    assert list(correlation) == ["all 64 tokens", "32 of 64 tokens"]
    assert all(0.5 < value <= 1 for value in correlation.values())


def test_of_a_push_its_end_varies() -> None:
    env = envs.make_simulated("granular")
    config = PlanConfig.of("granular").updated(iterations=1, candidates=4)
    [task] = make_tasks(env, 1, 0, config.goal)
    found = make_landscape(sparsewm.load_pretrained("granular"), config, env, task, 3)
    assert not found.held and found.names == ("action 2", "action 3")
    truth = found.costs["true distance"]
    assert truth.shape == (3, 3) and truth.std() > 0


@pytest.mark.slow
def test_plan_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = "--max-steps 5 --iterations 1 --candidates 4 --horizon 1 --run.no-video --output o"
    code, _, error = call(f"plan --env wall --landscape {quick}")
    assert code == 0, error
    assert len(json.loads(Path("o/landscape.json").read_text())["costs"]) == 3
    assert imageio.imread("o/landscape.png").shape[1] > 1000
    code, _, error = call(f"plan --env wall --landscape --run.actor oracle {quick}")
    assert code == 2 and "--landscape" in error
    assert call(f"plan --env wall {quick}")[0] == 0
    assert not Path("o/landscape.png").exists()  # of an earlier run
