"""The oracle's ways to goals are demonstrations where no expert is scripted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsewm import envs
from sparsewm.data import collect, open_dataset
from sparsewm.data.collect import Demonstrator, demonstrate, explore
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.evaluation import oracle
from sparsewm.evaluation.actors import Nothing
from sparsewm.evaluation.episodes import Episode, run_episodes
from sparsewm.tasks import Task


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("wall", demonstrate),
        ("pointmaze", demonstrate),
        ("pusht", oracle.demonstrate_far),
        ("blockpush", oracle.demonstrate_in_turns),
        ("rope", oracle.plan_demonstration),
    ],
)
def test_the_oracle_demonstrates_where_no_expert_is_scripted(name: str, who: Demonstrator) -> None:
    assert oracle.demonstrator(envs.make(name)) is who


def test_the_scripted_expert_of_pusht_goes_to_the_ends_of_trajectories() -> None:
    env = envs.make("pusht", resolution=32)
    states, actions = oracle.demonstrate_far(env, 0, 1, 200)
    assert len(states) == len(actions) + 1 <= 201
    rng = np.random.default_rng([0, 1, 3, 0])
    way, _ = explore(env, oracle._WAYS, int(rng.integers(2**31)), 100)
    assert (way[:25] == states[0]).all(1).any() and env.is_success(states[-1], way[-1])
    again, _ = oracle.demonstrate_far(env, 0, 1, 200)
    assert np.array_equal(states, again)


def test_the_scripted_expert_of_blockpush_goes_to_its_targets_in_every_other_episode() -> None:
    env = envs.make("blockpush", resolution=32)
    for episode in range(4):
        states, actions = oracle.demonstrate_in_turns(env, 0, episode, 300)
        assert len(states) == len(actions) + 1 <= 301
        assert env.is_success(states[-1], env.sample_goal()) == bool(episode % 2)


def test_a_planned_way_ends_at_its_goal_and_depends_on_its_number_alone() -> None:
    env = envs.make("wall")
    states, actions = oracle.plan_demonstration(env, 3, 5, 100)
    assert len(states) == len(actions) + 1 <= 101 and actions.dtype == np.float32
    np.testing.assert_allclose(states[1:], env.rollout_states(states[0], actions[None])[0, 1:], atol=1e-6)
    rng = np.random.default_rng([3, 5, 2, 0])
    env.reset(seed=int(rng.integers(2**31)))
    assert env.is_success(states[-1], env.goal) and not env.is_success(states[0], env.goal)
    again, _ = oracle.plan_demonstration(env, 3, 5, 100)
    other, _ = oracle.plan_demonstration(env, 3, 6, 100)
    assert np.array_equal(states, again) and not np.array_equal(states[0], other[0])


def test_goals_lie_far_along_trajectories_where_goals_are_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning on PushT takes seconds: here the start is the goal."""
    tasks: list[Task] = []

    def noted(env: SimulatedGoalEnv, asked: list[Task], *rest: object) -> list[Episode]:
        tasks.extend(asked)
        (episode,) = run_episodes([env], asked, Nothing(), 1)
        episode.states, episode.actions = episode.states[:1], []
        return [episode]

    monkeypatch.setattr(oracle, "run_oracle", noted)
    env = envs.make("pusht")
    states, actions = oracle.plan_demonstration(env, 0, 0, 10)
    assert states.shape == (1, env.state.size) and actions.shape == (0, env.action_dim)
    assert len(tasks) == oracle._ATTEMPTS  # none succeeded: tried again with others
    way, _ = explore(env, oracle._WAYS, tasks[0].seed, 100)
    place = np.flatnonzero((way == tasks[0].start).all(1))
    assert np.array_equal(way[-1], tasks[0].goal) and place[0] <= 25


@pytest.mark.slow
def test_planned_ways_are_recorded(tmp_path: Path) -> None:
    path = collect(
        "wall", 2, tmp_path / "e.h5", workers=1, steps=60, resolution=16, expert=oracle.plan_demonstration
    )
    dataset = open_dataset(path, "wall")
    assert dataset.attributes["policy"] == "expert, plan_demonstration" and dataset.episodes == 2
