"""stable-worldmodel both ways: with a double of its protocols, and with the package where it is installed."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import sparsewm.envs
from sparsewm.config import PlanConfig
from sparsewm.errors import UserError
from sparsewm.integrations.stable_worldmodel import (
    CostableProblem,
    CostModel,
    GoalInInfo,
    PlannerSolver,
)
from sparsewm.model import WorldModel
from sparsewm.planners import CEM, GradientDescent, PlanningProblem
from tests.model.tiny import tiny_model

BOUNDS = {"low": (-1.0, -1.0), "high": (1.0, 1.0)}


def observed(batch: int = 2, seed: int = 0) -> dict[str, Any]:
    """What a policy hands to a solver: values (B, 1, ...)."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (2, batch, 1, 56, 56, 3), dtype=np.uint8)
    numbers = 40 * rng.random((2, batch, 1, 2))
    return {
        "pixels": torch.from_numpy(pictures[0]),
        "goal": torch.from_numpy(pictures[1]),
        "proprio": torch.from_numpy(numbers[0]),
        "goal_proprio": torch.from_numpy(numbers[1]),
        "id": torch.arange(batch)[:, None],
        "task": ["push"] * batch,
    }


def repeated(info: dict[str, Any], samples: int) -> dict[str, Any]:
    """As a solver repeats it for its candidates."""
    return {
        name: value[:, None].expand(len(value), samples, *value.shape[1:])
        if isinstance(value, Tensor)
        else value
        for name, value in info.items()
    }


def settings(**changes: Any) -> PlanConfig:
    return PlanConfig("wall").updated(**({"drop": 0.0, "seed": 3} | changes))


def direct(model: WorldModel, info: dict[str, Any], actions: Tensor, weight: float = 1.0) -> Tensor:
    """Costs (B, S) of raw actions by the model itself, on all of its tokens."""
    start, goal = (
        model.encode(info[name][:, 0], info[proprio][:, 0])
        for name, proprio in (("pixels", "proprio"), ("goal", "goal_proprio"))
    )
    patches = torch.arange(model.patches).expand(len(start.tokens), -1)
    tokens, proprio = model.rollout(start.tokens, start.proprio, actions, patches)
    error = (proprio[:, :, -1] - goal.proprio[:, None]).square().mean(-1)
    return model.standardizer.token_error(tokens[:, :, -1], goal.tokens[:, None]) + weight * error


def test_without_tokens_proprioception_alone_is_scored() -> None:
    """As the agent has it."""
    model, info = tiny_model(), observed()
    cost = CostModel(model, settings(selection="none"), **BOUNDS)
    actions = candidates(model)
    before = cost.get_cost(repeated(info, 5), actions)
    other = info | {"goal": 255 - info["goal"]}
    assert torch.equal(before, cost.get_cost(repeated(other, 5), actions))
    assert not torch.equal(
        before, CostModel(model, settings(), **BOUNDS).get_cost(repeated(info, 5), actions)
    )
    blind = {name: value for name, value in info.items() if name != "goal_proprio"}
    with pytest.raises(UserError, match="leaves nothing of the cost where no tokens are selected"):
        CostModel(model, settings(selection="none"), **BOUNDS).get_cost(repeated(blind, 5), actions)


def candidates(model: WorldModel, batch: int = 2, samples: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, samples, 3, model.action_dim, generator=generator)


def raw(model: WorldModel, actions: Tensor) -> Tensor:
    """Deviations as actions, cut to the bounds."""
    standardizer, frameskip = model.standardizer, model.frameskip
    mean, std = (s.repeat(frameskip) for s in (standardizer.action_mean, standardizer.action_std))
    return (actions * std + mean).clamp(-1, 1)


def test_costs_are_those_of_the_world_model() -> None:
    model, info = tiny_model(), observed()
    actions = candidates(model)
    expected = direct(model, info, raw(model, actions))
    asked = repeated(info, 5)
    before = dict(asked)
    cost = CostModel(model, settings(objective="mse"), **BOUNDS)
    torch.testing.assert_close(cost.get_cost(asked, actions), expected)
    torch.testing.assert_close(cost.criterion(asked, actions), expected)
    assert asked.keys() == before.keys() and all(asked[name] is before[name] for name in asked)
    plain = CostModel(model, settings(objective="mse"), **BOUNDS, standardized=False)
    torch.testing.assert_close(plain.get_cost(asked, raw(model, actions)), expected)
    first = {**asked, **{name: asked[name].movedim(-1, -3) for name in ("pixels", "goal")}}
    torch.testing.assert_close(cost.get_cost(first, actions), expected)  # colours may come first
    del asked["goal_proprio"]
    blind = direct(model, info, raw(model, actions), weight=0.0)
    torch.testing.assert_close(cost.get_cost(asked, actions), blind)


def test_what_is_seen_is_encoded_once_and_tokens_are_drawn_for_every_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, info = tiny_model(), observed()
    encode, encoded = model.encode, []
    monkeypatch.setattr(model, "encode", lambda *frame, **_: encoded.append(len(frame[0])) or encode(*frame))
    actions, cost = candidates(model), CostModel(model, settings(drop=0.5), **BOUNDS)
    asked = repeated(info, 5)
    first, second = (cost.get_cost(asked, actions) for _ in range(2))
    assert encoded == [2, 2] and not torch.equal(first, second)
    info["pixels"][0, 0, 0, 0, 0] += 1  # pools of environments write into the same arrays
    cost.get_cost(repeated(info, 5), actions)
    assert encoded == [2, 2, 2, 2]
    again = CostModel(model, settings(drop=0.5), **BOUNDS)
    assert torch.equal(again.get_cost(repeated(observed(), 5), actions), first)


def test_gradients_reach_the_candidates_even_after_inference_mode() -> None:
    model, asked = tiny_model(), repeated(observed(), 5)
    cost = CostModel(model, settings(), **BOUNDS)
    with torch.inference_mode():
        cost.get_cost(asked, candidates(model))
    actions = (0.1 * candidates(model)).requires_grad_()
    cost.get_cost(asked, actions).sum().backward()
    assert actions.grad is not None and bool((actions.grad != 0).any((-1, -2)).all())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pixels": torch.zeros(2, 5, 1, 56, 56, 3)}, "'pixels' must be uint8"),
        ({"goal": None}, "info must hold 'goal'"),
        ({"proprio": None}, "info must hold 'proprio'"),
        ({"actions": torch.zeros(2, 5, 3, 2)}, "action_block=2"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, Any], reason: str) -> None:
    model = tiny_model()
    asked = repeated(observed(), 5) | {"actions": candidates(model)} | change
    actions = asked.pop("actions")
    asked = {name: value for name, value in asked.items() if value is not None}
    with pytest.raises(ValueError, match=reason):
        CostModel(model, settings(), **BOUNDS).get_cost(asked, actions)


def test_scaled_actions_come_back() -> None:
    cost = CostModel(tiny_model(), settings(), **BOUNDS)
    actions = np.random.default_rng(0).normal(size=(7, 2))
    scaler = cost.process["action"]
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(actions)), actions, rtol=1e-6)
    np.testing.assert_allclose(scaler.inverse_transform(np.zeros(2)), [0.1, -0.1], rtol=1e-6)
    assert CostModel(tiny_model(), settings(), **BOUNDS, standardized=False).process == {}


class Double:
    """A model of stable-worldmodel: keeps what it encoded in `info`, with the candidates' axis in it."""

    def __init__(self) -> None:
        self.encoded = 0

    def get_cost(self, info_dict: dict[str, Any], action_candidates: Tensor) -> Tensor:
        if "goal_emb" not in info_dict:
            self.encoded += 1
            info_dict["goal_emb"] = info_dict["goal"][:, 0]
        assert info_dict["goal"].shape[:2] == action_candidates.shape[:2] and info_dict["task"][0] == "push"
        info_dict["action"] = action_candidates[:, :, :1]
        return (action_candidates.sum(2) - info_dict["goal_emb"]).square().sum(-1)


def wanted(batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {"goal": 2 * torch.rand(batch, 1, 4, generator=generator) - 1, "task": ["push"] * batch}


def test_our_planners_plan_in_its_models() -> None:
    double, info = Double(), wanted()
    problem = CostableProblem(double, info, 3, -torch.ones(4), torch.ones(4))
    assert isinstance(problem, PlanningProblem)
    plan = CEM(candidates=64, elites=8, iterations=12).plan(problem)
    assert float(plan.cost.max()) < 1e-2 and double.encoded == 2  # once for every episode
    both = CostableProblem(Double(), info, 3, -torch.ones(4), torch.ones(4), batch_size=2)
    actions = torch.rand(2, 5, 3, 4)
    torch.testing.assert_close(both.cost(actions), problem.cost(actions))
    assert sorted(info) == ["goal", "task"]
    plan = GradientDescent(candidates=4, iterations=100).plan(problem)
    assert float(plan.cost.max()) < 1e-2


def test_our_planners_are_its_solvers() -> None:
    space = spaces.Box(-2.0, 2.0, (2, 2), np.float32)
    config = SimpleNamespace(horizon=3, receding_horizon=1, action_block=2)
    solver = PlannerSolver(Double(), CEM(candidates=64, elites=8, iterations=12))
    solver.configure(action_space=space, n_envs=2, config=config)
    assert (solver.action_dim, solver.n_envs, solver.horizon) == (4, 2, 3)
    first = solver(wanted())
    assert first["actions"].shape == (2, 3, 4) and max(first["costs"]) < 1e-2
    rest = first["actions"][:, 1:]
    worn = PlannerSolver(Double(), CEM(candidates=2, elites=2, iterations=1))
    worn.configure(action_space=space, n_envs=2, config=config)
    cold, warm = worn.solve(wanted())["costs"], worn.solve(wanted(), init_action=rest)["costs"]
    assert sum(warm) < sum(cold)  # it goes on from what is left of the last plan
    cost = CostModel(tiny_model(), settings(), **BOUNDS)
    scaled = PlannerSolver(cost, CEM(candidates=8, elites=2, iterations=2), cost.process["action"])
    scaled.configure(action_space=spaces.Box(-1.0, 1.0, (2, 2), np.float32), n_envs=2, config=config)
    plan = scaled.solve(observed())["actions"].reshape(2, 6, 2).numpy()
    assert np.abs(cost.process["action"].inverse_transform(plan)).max() <= 1 + 1e-5
    with pytest.raises(ValueError, match="finite bounds"):
        solver.configure(action_space=spaces.Discrete(3), n_envs=2, config=config)


def test_an_environment_of_ours_tells_what_its_world_wants() -> None:
    env = GoalInInfo(gym.make("sparsewm/Wall-v0", resolution=56))
    observation, info = env.reset(seed=0)
    goal = env.unwrapped.goal_observation()
    assert list(observation) == ["proprio"] and env.observation_space.contains(observation)
    assert np.array_equal(info["goal"], goal["pixels"])
    assert np.array_equal(info["goal_proprio"], goal["proprio"])
    assert env.render().shape == (56, 56, 3)
    env.unwrapped.set_state(env.unwrapped.goal)
    *_, terminated, _, info = env.step(np.zeros(2, np.float32))
    assert terminated and info["is_success"]


# With the package itself ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swm() -> Any:
    os.environ.setdefault("STABLEWM_HOME", "/nowhere")
    return pytest.importorskip("stable_worldmodel")


def plan_settings(swm: Any, **changes: int) -> Any:
    return swm.policy.PlanConfig(**({"horizon": 3, "receding_horizon": 2, "action_block": 2} | changes))


@pytest.mark.parametrize("name", ["CEM", "ICEM", "MPPI", "PredictiveSampling", "Gradient"])
def test_its_solvers_plan_in_our_models(swm: Any, name: str) -> None:
    model, info = tiny_model(), observed()
    cost = CostModel(model, settings(), **BOUNDS)
    options: dict[str, Any] = {"num_samples": 32}
    if name != "PredictiveSampling":
        options["n_steps"] = 6
    if name in ("CEM", "ICEM"):
        options["topk"] = 6
    if name == "Gradient":
        options |= {"num_samples": 4, "optimizer_kwargs": {"lr": 0.1}}
    solver = getattr(swm.solver, f"{name}Solver")(cost, **options)
    solver.configure(
        action_space=spaces.Box(-1.0, 1.0, (2, 2), np.float32), n_envs=2, config=plan_settings(swm)
    )
    numbers = {key: value for key, value in info.items() if key != "task"}
    plan = solver(numbers)["actions"]
    assert plan.shape == (2, 3, 4)
    still, found = (
        cost.get_cost(repeated(info, 1), actions[:, None].float()) for actions in (torch.zeros(2, 3, 4), plan)
    )
    assert bool((found < still).all()), (name, found, still)


@pytest.mark.parametrize("ours", [False, True])
def test_its_world_evaluates_our_model(swm: Any, ours: bool) -> None:
    cost = CostModel(tiny_model(), settings(), **BOUNDS)
    solver = (
        PlannerSolver(cost, CEM(candidates=8, elites=2, iterations=2), cost.process["action"])
        if ours
        else swm.solver.CEMSolver(cost, num_samples=8, n_steps=2, topk=2)
    )
    world = swm.World(
        "sparsewm/Wall-v0", 2, (56, 56), max_episode_steps=6, pre_wrappers=[GoalInInfo], resolution=56
    )
    world.set_policy(swm.policy.WorldModelPolicy(solver, plan_settings(swm), process=cost.process))
    results = world.evaluate(episodes=2, seed=0)
    assert results["episode_successes"].shape == (2,) and 0 <= results["success_rate"] <= 100


def test_our_planners_plan_in_its_lewm(swm: Any) -> None:
    from stable_worldmodel.wm.lewm import LeWM
    from stable_worldmodel.wm.lewm.module import Embedder, Predictor

    class Encoder(torch.nn.Module):
        """Stands for its vision transformer."""

        def __init__(self) -> None:
            super().__init__()
            self.look = torch.nn.Linear(3 * 8 * 8, 16)

        def forward(self, pixels: Tensor, interpolate_pos_encoding: bool) -> Any:
            return SimpleNamespace(last_hidden_state=self.look(pixels.flatten(1))[:, None])

    torch.manual_seed(0)
    predictor = Predictor(num_frames=3, depth=1, heads=2, mlp_dim=32, input_dim=16, hidden_dim=16, dim_head=8)
    model = LeWM(Encoder(), predictor, Embedder(4, 4, 16)).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    info = {
        "pixels": torch.rand(2, 1, 3, 8, 8),
        "goal": torch.rand(2, 1, 3, 8, 8),
        "action": torch.zeros(2, 1, 4),
    }
    problem = CostableProblem(model, info, 4, -2 * torch.ones(4), 2 * torch.ones(4))
    still = problem.cost(torch.zeros(2, 1, 4, 4))[:, 0]
    for planner in (CEM(candidates=32, elites=4, iterations=6), GradientDescent(candidates=4, iterations=20)):
        plan = planner.plan(problem)
        assert bool((plan.cost < still).all()), (plan.cost, still)
    assert sparsewm.envs.names()
