"""Candidates of a sampler in the closed loop: what it sees, what becomes of its chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm import envs
from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.envs import GoalEnv
from sparsewm.evaluation.actors import AgentActor, Oracle, PolicyActor, interface_of_env
from sparsewm.evaluation.episodes import Episode, run_episodes
from sparsewm.evaluation.simulator import SimulatorProblem, TrueDistance
from sparsewm.observations import Eyes
from sparsewm.planners import PlanningError, ProposalMode
from sparsewm.proposals.candidates import as_planned
from sparsewm.tasks import Task
from tests.model.tiny import tiny_model


@pytest.fixture(scope="module")
def env() -> GoalEnv:
    return envs.make("wall", resolution=32)


START, GOAL = np.array([6.0, 30.0]), np.array([26.0, 30.0])


class Fan:
    """Walks at full speed in directions round the circle, the first of them up; remembers what it saw."""

    def __init__(self, frames: int = 1) -> None:
        self.frames = frames
        self.seen: list[Mapping[str, np.ndarray]] = []
        self.told: list[str | Sequence[str] | None] = []

    def propose(
        self,
        observation: Mapping[str, np.ndarray],
        goal: Mapping[str, np.ndarray],
        instruction: str | Sequence[str] | None,
        samples: int,
        horizon: int,
    ) -> Tensor:
        self.seen.append(observation)
        self.told.append(instruction)
        angles = torch.arange(samples) / samples * 2 * torch.pi
        directions = torch.stack([angles.sin(), angles.cos()], -1)  # (samples, 2)
        return directions[None, :, None].expand(len(goal["proprio"]), -1, horizon, -1)


def task(seed: int = 0) -> Task:
    """20 units to the right, in the left room."""
    return Task(seed, START, GOAL)


def searched(
    env: GoalEnv,
    fan: Fan | None,
    max_steps: int,
    samples: int = 4,
    mode: ProposalMode = "replace",
    **search: int,
) -> Episode:
    """An episode of the planner in the simulator, on the candidates of a sampler."""
    config = PlanConfig.of("wall", search={"horizon": 2, "execute": 2} | search)
    if fan is not None:
        proposals = {"source": "tests:fan", "samples": samples, "mode": mode}
        config = config.updated(proposals=proposals).checked()
    actor = Oracle(config, None, fan, interface_of_env(env))
    (episode,) = run_episodes([env], [task()], actor, max_steps)
    return episode


def alone(env: GoalEnv, fan: Fan, steps: int) -> PolicyActor:
    """The policy without a search."""
    return PolicyActor(fan, interface_of_env(env), None, steps)


@pytest.mark.parametrize("repeat", [False, True])
def test_environment_actions_become_model_steps(env: GoalEnv, repeat: bool) -> None:
    """What is then executed is the chunk itself, or its mean over each model step where that is held."""
    problem = SimulatorProblem(env, [START], TrueDistance(env, [GOAL]), 2, action_repeat=repeat)
    chunk = torch.rand(1, 3, 2 * env.frameskip, 2)
    executed = problem.executed(as_planned(chunk, problem)).unflatten(-1, (env.frameskip, 2)).flatten(2, 3)
    steps = chunk.unflatten(2, (2, env.frameskip))
    expected = steps.mean(3, keepdim=True).expand_as(steps).flatten(2, 3) if repeat else chunk
    assert torch.allclose(executed, expected)


def test_replace_executes_the_candidate_that_leads_to_the_goal(env: GoalEnv) -> None:
    """Of four directions the second is right, the first is not."""
    for samples, success in ((4, True), (1, False)):
        assert searched(env, Fan(), 20, samples).success is success


def test_the_policy_alone_executes_its_first_candidate(env: GoalEnv) -> None:
    (episode,) = run_episodes([env], [task()], alone(env, Fan(), 7), 14)
    assert np.allclose(episode.actions, [[0.0, 1.0]] * 14)
    assert len(episode.seconds_per_plan) == 2 and episode.decisions[0].kept is None


def test_a_policy_sees_as_its_world_model_does(env: GoalEnv) -> None:
    """Alone, and where it proposes to the oracle."""
    eyes = Eyes(interface_of_env(env), adapt=lambda picture: 255 - picture)
    first = envs.make("wall", resolution=32).reset(seed=0, options={"state": START, "goal": GOAL})[0][
        "pixels"
    ]
    config = PlanConfig.of("wall", search={"horizon": 2, "execute": 2})
    config = config.updated(proposals={"source": "tests:fan"}).checked()
    for alone in (True, False):
        fan, interface = Fan(), interface_of_env(env)
        actor = (
            PolicyActor(fan, interface, None, 5, eyes)
            if alone
            else Oracle(config, None, fan, interface, None, eyes)
        )
        run_episodes([env], [task()], actor, 5)
        assert np.array_equal(fan.seen[0]["pixels"][0], 255 - first)


def test_policies_are_told_what_each_environment_asks_for_unless_a_setting_says_it() -> None:
    both = [envs.make("wall", resolution=32) for _ in range(2)]
    for env, text in zip(both, ("to the left", None), strict=True):
        env.instruction = text
    for said, told in ((None, ["to the left", ""]), ("go", "go")):
        fan = Fan()
        run_episodes(both, [task(), task(1)], PolicyActor(fan, interface_of_env(both[0]), said, 5), 5)
        assert fan.told == [told]
    fan = Fan()
    run_episodes(both[1:], [task()], alone(both[1], fan, 5), 5)
    assert fan.told == [None]


@pytest.mark.parametrize(("said", "expected"), [(None, ["to the left", ""]), ("go", "go")])
def test_a_planner_tells_its_policy_the_same(said: str | None, expected: list[str] | str) -> None:
    both = [envs.make("wall", resolution=56) for _ in range(2)]
    both[0].instruction = "to the left"
    model, fan = tiny_model(frameskip=5), Fan()
    config = PlanConfig.of("wall", search={"horizon": 2, "execute": 2}, cost={"objective": "mse"})
    config = config.updated(proposals={"source": "tests:fan", "samples": 4, "instruction": said}).checked()
    run_episodes(both, [task(), task(1)], AgentActor(Agent(model, config, sampler=fan)), 5)
    assert fan.told and all(one == expected for one in fan.told)


@pytest.mark.parametrize("mode", ["seed", "prior"])
def test_a_search_starts_from_the_candidates(env: GoalEnv, mode: ProposalMode) -> None:
    """A single iteration of little noise finds what it was told, and nothing else."""
    sizes = {"candidates": 8, "elites": 2, "iterations": 1}
    assert searched(env, Fan(), 10, 4, mode, **sizes).success is (mode == "seed")
    assert not searched(env, None, 10, **sizes).success


def test_samplers_see_the_present_or_as_far_back_as_they_ask(env: GoalEnv) -> None:
    both = [env, envs.make("wall", resolution=32)]
    for frames, shape in ((1, (2, 32, 32, 3)), (3, (2, 3, 32, 32, 3))):
        fan = Fan(frames)
        episodes = run_episodes(both, [task(), task(1)], alone(env, fan, 1), 4)
        assert fan.seen[3]["pixels"].shape == shape and fan.seen[3]["pixels"].dtype == np.uint8
        past = np.stack(episodes[0].states[: len(fan.seen)][-frames:])
        assert np.allclose(fan.seen[3]["proprio"][0], past if frames > 1 else past[0])
        first = np.broadcast_to(task().start, fan.seen[0]["proprio"][0].shape)  # type: ignore[arg-type]
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

    with pytest.raises(PlanningError, match=message):
        searched(env, Wrong(), 20)
