"""Pictures of another look, as the training data would show them; those of the usual look as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsewm import envs
from sparsewm.adaptation import SceneAdaptation
from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.envs.looks import Look
from sparsewm.errors import UserError
from sparsewm.evaluation.cells import Cell
from sparsewm.model.checkpoint import load, pretrained_path

NAMES = ("wall", "pusht", "pointmaze", "rope", "granular", "blockpush")


def adapted(name: str) -> tuple[SceneAdaptation, envs.SimulatedGoalEnv]:
    model = load(pretrained_path(name), "cpu", torch.float32)
    return SceneAdaptation.of(model), envs.make_simulated(name)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


@pytest.mark.parametrize("name", NAMES)
def test_background_light_and_camera_are_put_back(name: str) -> None:
    adapt, env = adapted(name)
    for seed in range(3):
        env.dress([])
        usual = env.reset(seed=seed)[0]["pixels"]
        assert np.array_equal(adapt(usual), usual)
        for look in ("background:1", "background:0.3", "light:-0.3", "light:0.1", "shift:1"):
            env.dress(Look.parse(look))
            seen = env.reset(seed=seed)[0]["pixels"]
            limit = 0.25 * apart(seen, usual) + 1.5
            assert apart(adapt(seen), usual) < max(limit, 3.0), (look, seed)


def test_pictures_of_another_size_are_adapted_alike() -> None:
    adapt, _ = adapted("rope")
    env = envs.make_simulated("rope", resolution=196)
    usual = env.reset(seed=1)[0]["pixels"]
    env.dress(Look.parse("light:-0.3,shift:2"))
    seen = env.reset(seed=1)[0]["pixels"]
    assert seen.shape == adapt(seen).shape == (196, 196, 3)
    assert apart(adapt(seen), usual) < 0.1 * apart(seen, usual)


def test_an_agent_plans_as_before_in_the_usual_look_and_alike_in_another() -> None:
    env = envs.make_simulated("rope")
    first = {}
    for look in ("", "background:1"):
        for adapt in (False, True):
            agent = Agent.from_pretrained("rope", dtype="float32", adapt=adapt, iterations=1, candidates=16)
            env.dress(Look.parse(look))
            seen, _ = env.reset(seed=2)
            agent.reset(env.goal_observation(), [2])
            problem = agent.problem(seen)
            rng = torch.Generator().manual_seed(0)
            actions = torch.rand(1, 16, problem.horizon, problem.action_dim, generator=rng) * 2 - 1
            first[look, adapt] = problem.cost(actions)[0]
    usual, other = first["", False], first["background:1", False]
    assert torch.equal(first["", True], usual)
    assert (first["background:1", True] - usual).abs().mean() < 0.2 * (other - usual).abs().mean()


def test_a_model_without_a_decoder_is_refused() -> None:
    model = load(pretrained_path("wall"), "cpu", torch.float32)
    model.decoder = None
    with pytest.raises(UserError, match="no decoder"):
        SceneAdaptation.of(model)


def test_cells_of_other_looks_have_files_of_their_own() -> None:
    config = PlanConfig.of("wall")
    looks = (("", False), ("", True), ("light:0.1", False), ("light:0.1", True), ("light:-0.1", False))
    names = [Cell("random", config.updated(look=look, adapt=adapt)).name for look, adapt in looks]
    assert len(set(names)) == len(names)
    with pytest.raises(UserError, match="KIND:DEGREE"):
        config.updated(look="light").checked()
