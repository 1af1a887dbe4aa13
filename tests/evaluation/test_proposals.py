"""Candidates of a sampler in the closed loop: what it sees, what becomes of its chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from sparsewm.evaluation.closed_loop import (
    FirstProposal,
    Planned,
    Proposals,
    Task,
    Trace,
    as_planned,
    run_episodes,
)
from torch import Tensor

from sparsewm import envs
from sparsewm.envs import GoalEnv
from sparsewm.evaluation.simulator import SimulatorProblem, TrueDistance
from sparsewm.planners import CEM, MPC, PlanningError, ProposalMode


@pytest.fixture(scope="module")
def env() -> GoalEnv:
    return envs.make("wall", resolution=32)


class Fan:
    """Walks at full speed in directions round the circle, the first of them up; remembers what it saw."""

    def __init__(self, frames: int = 1) -> None:
        self.frames = frames
        self.seen: list[Mapping[str, np.ndarray]] = []

    def propose(
        self,
        observation: Mapping[str, np.ndarray],
        goal: Mapping[str, np.ndarray],
        instruction: str | Sequence[str] | None,
        samples: int,
        horizon: int,
    ) -> Tensor:
        self.seen.append(observation)
        angles = torch.arange(samples) / samples * 2 * torch.pi
        directions = torch.stack([angles.sin(), angles.cos()], -1)  # (samples, 2)
        return directions[None, :, None].expand(len(goal["proprio"]), -1, horizon, -1)


def task(seed: int = 0) -> Task:
    """20 units to the right, in the left room."""
    return Task(np.array([6.0, 30.0]), np.array([26.0, 30.0]), seed)


def oracle(env: GoalEnv, hold: bool = False) -> object:
    def problems(traces: Sequence[Trace], active: np.ndarray) -> SimulatorProblem:
        rows = [traces[i] for i in active]
        distance = TrueDistance(env, [trace.task.goal for trace in rows])
        return SimulatorProblem(env, [trace.states[-1] for trace in rows], distance, 2, hold=hold)

    return problems


@pytest.mark.parametrize("hold", [False, True])
def test_environment_actions_become_model_steps(env: GoalEnv, hold: bool) -> None:
    """What is then executed is the chunk itself, or its mean over each model step where that is held."""
    problem = SimulatorProblem(env, [task().start], TrueDistance(env, [task().goal]), 2, hold=hold)
    chunk = torch.rand(1, 3, 2 * env.frameskip, 2)
    executed = problem.executed(as_planned(chunk, problem)).unflatten(-1, (env.frameskip, 2)).flatten(2, 3)
    steps = chunk.unflatten(2, (2, env.frameskip))
    expected = steps.mean(3, keepdim=True).expand_as(steps).flatten(2, 3) if hold else chunk
    assert torch.allclose(executed, expected)


def test_replace_executes_the_candidate_that_leads_to_the_goal(env: GoalEnv) -> None:
    for samples, success in (
        (4, True),
        (1, False),
    ):  # of four directions the second is right, the first is not
        proposals = Proposals(Fan(), samples, "replace")
        policy = Planned(env, MPC(CEM(), execute=2), oracle(env), proposals=proposals)
        (trace,) = run_episodes(env, [task()], policy, budget=20)
        assert trace.success is success


def test_the_policy_alone_executes_its_first_candidate(env: GoalEnv) -> None:
    policy = FirstProposal(env, Proposals(Fan(), samples=4), steps=7)
    (trace,) = run_episodes(env, [task()], policy, budget=14)
    assert np.allclose(trace.actions, [[0.0, 1.0]] * 14)
    assert len(trace.seconds_per_plan) == 2 and not trace.plans


@pytest.mark.parametrize("mode", ["seed", "prior"])
def test_a_search_starts_from_the_candidates(env: GoalEnv, mode: ProposalMode) -> None:
    """A single iteration of little noise finds what it was told, and nothing else."""
    for proposals, success in ((Proposals(Fan(), 4, mode), mode == "seed"), (None, False)):
        planner = CEM(candidates=8, elites=2, iterations=1)
        problems = oracle(env, hold=True)
        policy = Planned(env, MPC(planner, execute=2), problems, proposals=proposals)
        (trace,) = run_episodes(env, [task()], policy, budget=10)
        assert trace.success is success


def test_samplers_see_the_present_or_as_far_back_as_they_ask(env: GoalEnv) -> None:
    for frames, shape in ((1, (2, 32, 32, 3)), (3, (2, 3, 32, 32, 3))):
        fan = Fan(frames)
        policy = FirstProposal(env, Proposals(fan), steps=1)
        traces = run_episodes(env, [task(), task(1)], policy, budget=4, batch=2)
        assert fan.seen[3]["pixels"].shape == shape and fan.seen[3]["pixels"].dtype == np.uint8
        past = np.stack(traces[0].states[: len(fan.seen)][-frames:])
        assert np.allclose(fan.seen[3]["proprio"][0], past if frames > 1 else past[0])
        first = np.broadcast_to(task().start, fan.seen[0]["proprio"][0].shape)
        assert np.allclose(fan.seen[0]["proprio"][0], first)  # nothing before the start


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda actions: actions[:, :, :-1], r"shape \(1, 4, 10, 2\), not \(1, 4, 9, 2\)"),
        (lambda actions: actions * float("nan"), "NaN"),
    ],
)
def test_what_a_sampler_gets_wrong_is_said(env: GoalEnv, change: object, message: str) -> None:
    class Wrong(Fan):
        def propose(self, *arguments: object) -> Tensor:
            return change(super().propose(*arguments))  # type: ignore[operator, arg-type]

    policy = Planned(env, MPC(CEM()), oracle(env), proposals=Proposals(Wrong(), 4))
    with pytest.raises(PlanningError, match=message):
        run_episodes(env, [task()], policy, budget=20)
