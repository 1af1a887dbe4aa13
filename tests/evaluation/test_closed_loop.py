"""Closed loop: the same tasks every time, budgets kept, successes counted when they happen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sparsewm import envs
from sparsewm.envs import GoalEnv
from sparsewm.errors import UserError
from sparsewm.evaluation.closed_loop import (
    ModelProblems,
    Planned,
    RandomActions,
    Still,
    Task,
    Trace,
    make_tasks,
    run_episodes,
    summarize,
)
from sparsewm.evaluation.simulator import SimulatorProblem, TrueDistance
from sparsewm.model import LatentProblem
from sparsewm.planners import CEM, MPC
from tests.model.tiny import tiny_model


@pytest.fixture(scope="module")
def env() -> GoalEnv:
    return envs.make("wall", resolution=56)


def same_tasks(a: Sequence[Task], b: Sequence[Task]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(np.array_equal(x.start, y.start) and np.array_equal(x.goal, y.goal) for x, y in pairs)


@pytest.mark.parametrize("source", ["random", "trajectory"])
def test_tasks_are_functions_of_their_seeds(env: GoalEnv, source: str) -> None:
    tasks = make_tasks(env, 4, seed=10, source=source)
    assert [task.seed for task in tasks] == [10, 11, 12, 13]
    assert same_tasks(make_tasks(envs.make("wall", resolution=32), 4, seed=10, source=source), tasks)
    assert same_tasks(make_tasks(env, 2, seed=12, source=source), tasks[2:])
    assert len({tuple(task.start) for task in tasks}) == 4
    assert not same_tasks(make_tasks(env, 4, seed=20, source=source), tasks)


def test_random_tasks_are_those_of_reset(env: GoalEnv) -> None:
    (task,) = make_tasks(env, 1, seed=5)  # Wall's own source is random
    _, info = env.reset(seed=5)
    assert np.array_equal(task.start, info["state"]) and np.array_equal(task.goal, info["goal"])
    assert (task.start[0] < 32) != (task.goal[0] < 32)


def test_trajectory_goals_are_as_many_steps_away_as_asked(env: GoalEnv) -> None:
    """Two units a step at most: near goals are near, and the same tasks with more steps go farther."""
    near = make_tasks(env, 6, source="trajectory", offset=5)
    far = make_tasks(env, 6, source="trajectory", offset=40)
    reach = [max(np.abs(task.goal - task.start).max() for task in tasks) for tasks in (near, far)]
    assert 0 < reach[0] <= 10 + 1e-9 and reach[1] > 12


def test_trajectory_goals_are_not_reached_already(env: GoalEnv) -> None:
    """A walk often stays within Wall's 4.5 units for eight steps; one step never leaves them."""
    assert not any(
        env.is_success(task.start, task.goal) for task in make_tasks(env, 40, source="trajectory", offset=8)
    )
    with pytest.raises(UserError, match="not reached already: raise --goal-offset"):
        make_tasks(env, 1, source="trajectory", offset=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "replay"}, "--goal-source must be random or trajectory, not 'replay'"),
        ({"source": "trajectory", "offset": 0}, "--goal-offset must be at least 1 environment step, got 0"),
        ({"offset": -3}, "--goal-offset must be at least 1 environment step, got -3"),
    ],
)
def test_impossible_tasks(env: GoalEnv, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_tasks(env, 1, **options)  # type: ignore[arg-type]


class Straight:
    """Goes straight to the goal at full speed, `steps` environment steps per decision."""

    def __init__(self, steps: int = 5) -> None:
        self.steps = steps
        self.asked: list[list[int]] = []

    def begin(self, traces: Sequence[Trace]) -> None:
        self.traces = traces

    def act(self, active: np.ndarray) -> np.ndarray:
        self.asked.append(active.tolist())
        chosen = []
        for i in active:
            way = self.traces[i].task.goal - self.traces[i].states[-1]
            chosen.append(np.tile(way / np.abs(way).max(), (self.steps, 1)))
        return np.stack(chosen)


def room_task(distance: float, seed: int = 0) -> Task:
    """Start and goal in the left room, `distance` units apart."""
    return Task(np.array([15.0, 8.0]), np.array([15.0, 8.0 + distance]), seed)


def test_episode_ends_at_the_first_state_that_counts_as_success(env: GoalEnv) -> None:
    """20 units at 2 a step, success below 4.5: the eighth step, in the middle of the second decision."""
    (trace,) = run_episodes(env, [room_task(20)], Straight(), budget=100)
    assert trace.success and trace.steps == 8 and len(trace.actions) == 8
    assert env.is_success(trace.states[-1], trace.task.goal)
    assert not any(env.is_success(state, trace.task.goal) for state in trace.states[:-1])
    for before, action, after in zip(trace.states, trace.actions, trace.states[1:], strict=False):
        assert np.array_equal(env.rollout_states(before, action[None, None])[0, -1], after)


@pytest.mark.parametrize("budget", [1, 5, 7, 12])
def test_budget_is_counted_in_environment_steps(env: GoalEnv, budget: int) -> None:
    (trace,) = run_episodes(env, [room_task(40)], Straight(), budget=budget)
    assert not trace.success and trace.steps == budget


def test_start_that_counts_as_success_needs_no_step(env: GoalEnv) -> None:
    policy = Straight()
    (trace,) = run_episodes(env, [room_task(3)], policy, budget=10)
    assert trace.success and trace.steps == 0 and policy.asked == []


def test_finished_episodes_leave_the_batch(env: GoalEnv) -> None:
    policy = Straight()
    tasks = [room_task(20), room_task(44), room_task(3), room_task(30)]
    plans: list[tuple[int, int]] = []
    ended: list[int] = []
    traces = run_episodes(
        env,
        tasks,
        policy,
        budget=100,
        batch=3,
        on_plan=lambda episode, decision, _: plans.append((episode, decision)),
        on_episode=lambda episode, _: ended.append(episode),
    )
    assert policy.asked == [
        [0, 1],
        [0, 1],
        [1],
        [1],
        [0],
        [0],
        [0],
    ]  # the last batch holds the fourth task alone
    assert plans == [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (1, 3), (3, 0), (3, 1), (3, 2)]
    assert ended == [0, 1, 2, 3] and [trace.steps for trace in traces] == [8, 20, 0, 13]
    alone = [run_episodes(env, [task], Straight(), budget=100)[0] for task in tasks]
    for together, single in zip(traces, alone, strict=True):
        assert np.array_equal(together.states, single.states)


def test_still_stays_and_random_moves_the_same_way_every_time(env: GoalEnv) -> None:
    tasks = make_tasks(env, 3)
    for trace in run_episodes(env, tasks, Still(env), budget=10, batch=2):
        assert trace.steps == 10 and all(np.array_equal(state, trace.task.start) for state in trace.states)
    together = run_episodes(env, tasks, RandomActions(env), budget=12, batch=3)
    alone = run_episodes(env, tasks[1:], RandomActions(env), budget=12)
    for a, b in zip(together[1:], alone, strict=True):
        assert np.array_equal(a.actions, b.actions)
    actions = np.concatenate([trace.actions for trace in together])
    assert actions.min() >= -1 and actions.max() <= 1 and actions.std() > 0.4
    assert not np.array_equal(together[0].actions[0], together[1].actions[0])


def test_summary_counts_and_measures(env: GoalEnv) -> None:
    tasks = [room_task(20, seed=4), room_task(40, seed=5)]
    traces = run_episodes(env, tasks, Straight(), budget=10)
    traces[0].seconds_per_plan += [1.0, 3.0]
    result = summarize(env, traces)
    assert result["success_rate"] == 0.5 and result["success_ci95"] == pytest.approx(
        [0.0945, 0.9055], abs=1e-4
    )
    assert result["seconds_per_plan"]["median"] == 2 and result["seconds_per_iteration"] is None
    assert [(e["seed"], e["success"], e["steps"]) for e in result["per_episode"]] == [
        (4, True, 8),
        (5, False, 10),
    ]
    assert [e["initial_distance"]["position"] for e in result["per_episode"]] == [20, 40]
    assert [e["distance"]["position"] for e in result["per_episode"]] == [4, 20]


def test_planning_with_the_oracle_crosses_the_door_step_by_step(env: GoalEnv) -> None:
    task = Task(np.array([14.0, 30.0]), np.array([50.0, 32.0]), 0)

    def oracle(traces: Sequence[Trace], active: np.ndarray) -> SimulatorProblem:
        rows = [traces[i] for i in active]
        goals = [trace.task.goal for trace in rows]
        return SimulatorProblem(
            env, [trace.states[-1] for trace in rows], TrueDistance(env, goals), horizon=3
        )

    planner = CEM(candidates=50, elites=8, iterations=5)
    traces = run_episodes(
        env, [task, room_task(20)], Planned(env, MPC(planner, execute=2), oracle), 60, batch=2
    )
    assert all(trace.success for trace in traces)
    first = traces[0]
    assert [plan["step"] for plan in first.plans] == list(range(0, first.steps, 10))
    assert all(plan["kept"] is None and np.isfinite(plan["cost"]) for plan in first.plans)
    assert len(first.seconds_per_plan) == len(first.plans)
    assert len(first.seconds_per_iteration) == 5 * len(first.plans)


def test_held_actions_are_executed_for_all_steps_of_a_model_step(env: GoalEnv) -> None:
    def oracle(traces: Sequence[Trace], active: np.ndarray) -> SimulatorProblem:
        states, goals = [traces[i].states[-1] for i in active], [traces[i].task.goal for i in active]
        return SimulatorProblem(env, states, TrueDistance(env, goals), horizon=3, hold=True)

    policy = Planned(env, MPC(CEM(candidates=30, elites=5, iterations=4), execute=2), oracle)
    (trace,) = run_episodes(env, [room_task(50)], policy, budget=20)
    actions = np.stack(trace.actions).reshape(4, 5, 2)
    assert (
        np.array_equal(actions, np.repeat(actions[:, :1], 5, 1))
        and len(np.unique(actions[:, 0], axis=0)) == 4
    )


def test_plans_are_executed_up_to_the_best_state_only(env: GoalEnv) -> None:
    """A goal one step away and one three steps away, planned in one batch, both at three imagined steps."""
    near, far = (Task(np.array([10.0, 10.0]), np.array([x, 10.0]), 0) for x in (19.0, 27.0))

    def oracle(traces: Sequence[Trace], active: np.ndarray) -> SimulatorProblem:
        states, goals = [traces[i].states[-1] for i in active], [traces[i].task.goal for i in active]
        cost = TrueDistance(env, goals)
        return SimulatorProblem(env, states, cost, horizon=3, hold=True, scored="best")

    steps: list[int] = []

    class Noted(Planned):
        def act(self, active: np.ndarray) -> Sequence[np.ndarray]:
            actions = super().act(active)
            steps.extend(len(a) for a in actions)
            return actions

    policy = Noted(env, MPC(CEM(candidates=200, elites=10, iterations=6), execute=3), oracle)
    run_episodes(env, [near, far], policy, budget=5, batch=2)
    assert steps == [5, 10] or steps == [5, 15], steps


def test_model_sees_the_frames_and_actions_of_the_past(env: GoalEnv) -> None:
    model = tiny_model(history=3, frameskip=5)
    make = ModelProblems(model, env, horizon=2, drop=0.5, alpha=1.0, seed=0)
    tasks = [room_task(44), Task(np.array([50.0, 50.0]), np.array([10.0, 10.0]), 1)]
    problems = []

    def keep(traces: Sequence[Trace], active: np.ndarray) -> LatentProblem:
        problems.append(make(traces, active))
        return problems[-1]

    policy = Planned(env, MPC(CEM(candidates=6, elites=2, iterations=2), execute=1), keep)
    traces = run_episodes(env, tasks, policy, budget=20, batch=2)
    assert [len(problem.history) for problem in problems] == [0, 1, 2, 2]
    for decision, problem in enumerate(problems):
        now = 5 * decision
        close = torch.testing.assert_close
        close(problem.start.tokens, make.observe([trace.states[now] for trace in traces]).tokens)
        close(problem.goal.tokens, make.observe([trace.task.goal for trace in traces]).tokens)
        for back, (frame, action) in enumerate(reversed(problem.history), 1):
            then = now - 5 * back
            seen = make.observe([trace.states[then] for trace in traces])
            close(frame.tokens, seen.tokens)
            close(frame.proprio, seen.proprio)
            taken = np.stack([np.concatenate(trace.actions[then : then + 5]) for trace in traces])
            assert np.array_equal(action.numpy(), taken.astype(np.float32))
    for row, trace in enumerate(traces):
        assert [plan["step"] for plan in trace.plans] == [0, 5, 10, 15]
        assert all(len(plan["kept"]) == 8 for plan in trace.plans)
        assert np.array_equal(trace.plans[-1]["kept"], problems[-1].patches[row].numpy())


def test_no_frame_is_encoded_twice(env: GoalEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(history=3, frameskip=5)
    make = ModelProblems(model, env, horizon=2, drop=0.5, alpha=1.0, seed=0)
    encoded, observe = [], make.observe
    monkeypatch.setattr(make, "observe", lambda states: encoded.append(len(states)) or observe(states))
    policy = Planned(env, MPC(CEM(candidates=6, elites=2, iterations=2), execute=1), make)
    traces = run_episodes(env, make_tasks(env, 2, seed=3), policy, budget=20, batch=2)
    assert encoded == [4, 2, 2, 2]  # start and goal of both episodes, then what is new
    encoded.clear()
    policy = Planned(env, MPC(CEM(candidates=6, elites=2, iterations=2), execute=2), make)
    run_episodes(env, make_tasks(env, 1, seed=3), policy, budget=30)
    assert encoded == [2, 2, 2]  # the present, and the frame that went by unplanned
    assert not any(trace.latents for trace in traces)  # they are not sent between processes


@pytest.mark.parametrize("redraw", ["iteration", "plan", "never"])
def test_patches_are_redrawn_as_often_as_asked(redraw: str) -> None:
    env = envs.make("wall", resolution=56)
    model = tiny_model(frameskip=env.frameskip)
    problems = ModelProblems(model, env, 0, redraw, horizon=1, drop=0.5)  # type: ignore[arg-type]
    traces = [Trace(task, [task.start]) for task in make_tasks(env, 2)]
    drawn = []
    for _ in range(2):  # plans
        problem = problems(traces, np.arange(2))
        for iteration in range(2):
            problem.resample(iteration)
            drawn.append(problem.patches)
    first, second, other, _ = drawn
    assert first.shape == (2, 8) and not first[0].equal(first[1])
    assert first.equal(second) == (redraw != "iteration")
    assert first.equal(other) == (redraw == "never")
