"""The simulator as a planning problem: what an oracle must reach, and that looking ahead changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsewm import envs
from sparsewm.envs import GoalEnv
from sparsewm.evaluation.simulator import SimulatorProblem, TrueDistance
from sparsewm.planners import CEM, PlanningProblem

STARTS = [np.array([24.0, 30.0]), np.array([10.0, 50.0]), np.array([50.0, 12.0])]
GOALS = [np.array([44.0, 31.0]), np.array([22.0, 12.0]), np.array([44.0, 45.0])]  # the first through the door


@pytest.fixture
def env() -> GoalEnv:
    env = envs.make("wall", resolution=56)
    env.reset(seed=0, options={"state": np.array([12.0, 13.0]), "goal": np.array([50.0, 51.0])})
    return env


def test_oracle_reaches_goals_with_cem(env: GoalEnv) -> None:
    problem = SimulatorProblem(env, STARTS, TrueDistance(env, GOALS), horizon=5)
    assert isinstance(problem, PlanningProblem)
    plan = CEM(candidates=80, elites=10, iterations=10).plan(problem)
    assert plan.actions.shape == (3, 5, 10)
    for start, goal, actions, cost in zip(STARTS, GOALS, plan.actions, plan.cost, strict=True):
        final = env.rollout_states(start, actions.reshape(1, 25, 2).numpy())[0, -1]
        assert env.is_success(final, goal) and not env.is_success(start, goal)
        assert cost == pytest.approx(env.distance(final, goal)["path"] / 4.5, abs=1e-4)


def test_cost_is_that_of_stepping_the_environment(env: GoalEnv) -> None:
    problem = SimulatorProblem(env, STARTS[:2], TrueDistance(env, GOALS[:2]), horizon=2)
    actions = torch.rand(2, 3, 2, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cost = problem.cost(actions)
    assert cost.shape == (2, 3) and cost.dtype == torch.float32
    for b in range(2):
        for s in range(3):
            env.set_state(STARTS[b])
            for action in actions[b, s].reshape(10, 2).numpy():
                env.step(action)
            assert float(cost[b, s]) == pytest.approx(
                env.distance(env.state, GOALS[b])["path"] / 4.5, abs=1e-4
            )


def test_bounds_and_prior_are_those_of_the_environment(env: GoalEnv) -> None:
    problem = SimulatorProblem(env, STARTS, TrueDistance(env, GOALS), horizon=3, std=0.4)
    assert (problem.batch, problem.horizon, problem.action_dim) == (3, 3, 10)
    assert problem.low.tolist() == [-1] * 10 and problem.high.tolist() == [1] * 10
    assert problem.mean.shape == problem.std.shape == (3, 10) and bool((problem.std == 0.4).all())


def test_held_actions_cost_what_their_repetition_costs(env: GoalEnv) -> None:
    free, held = (
        SimulatorProblem(env, STARTS, TrueDistance(env, GOALS), horizon=2, action_repeat=repeat)
        for repeat in (False, True)
    )
    assert (held.action_dim, held.low.tolist(), held.std.shape) == (2, [-1, -1], (2, 2))
    actions = torch.rand(3, 4, 2, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    repeated = torch.cat([actions] * 5, -1)
    assert torch.equal(held.executed(actions), repeated) and torch.equal(free.executed(repeated), repeated)
    assert torch.equal(held.cost(actions), free.cost(repeated))


def test_best_scoring_takes_the_nearest_state_of_every_sequence(env: GoalEnv) -> None:
    cost = TrueDistance(env, GOALS)
    best = SimulatorProblem(env, STARTS, cost, horizon=3, action_repeat=True, frame="min")
    actions = torch.rand(3, 6, 3, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ends = [
        SimulatorProblem(env, STARTS, cost, horizon=h, action_repeat=True).cost(actions[:, :, :h])
        for h in (1, 2, 3)
    ]
    frames = torch.stack(ends, -1)
    assert torch.equal(best.cost(actions), frames.amin(-1))
    assert len(frames.argmin(-1).unique()) > 1
    assert torch.equal(best.steps(actions[:, 0]), frames[:, 0].argmin(-1) + 1)


def test_planning_leaves_the_environment_as_it_is(env: GoalEnv) -> None:
    state, goal, picture = env.state, env.goal.copy(), env.render()
    cost = TrueDistance(env, GOALS[:2])
    CEM(candidates=6, elites=2, iterations=2).plan(SimulatorProblem(env, STARTS[:2], cost, horizon=2))
    assert np.array_equal(env.state, state) and np.array_equal(env.goal, goal)
    assert np.array_equal(env.render(), picture)
