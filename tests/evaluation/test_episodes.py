"""Episodes: by `env.step`, budgets kept, successes counted when they happen, the finished leave the batch."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest

from sparsewm import envs
from sparsewm.config import GoalConfig, PlanConfig, Rule
from sparsewm.envs import PixelGoals, SimulatedGoalEnv
from sparsewm.evaluation.actors import Nothing, Oracle, RandomActions
from sparsewm.evaluation.episodes import Episode, run_episodes, summarize
from sparsewm.report.plots import plot_plan
from sparsewm.report.video import episode_frames
from sparsewm.tasks import Task, make_tasks
from tests.evaluation.walls import Straight, room_task


@pytest.fixture(scope="module")
def walls() -> list[SimulatedGoalEnv]:
    return [envs.make_simulated("wall", resolution=32) for _ in range(3)]


def test_episode_ends_at_the_first_state_that_counts_as_success(walls: list[SimulatedGoalEnv]) -> None:
    """20 units at 2 a step, success below 4.5: the eighth step, in the middle of the second decision."""
    env = walls[0]
    (episode,) = run_episodes([env], [room_task(20)], Straight(), 100, frames=1)
    assert episode.success and episode.steps == 8
    assert len(episode.states) == len(episode.frames) == len(episode.remaining) == 9
    goal = episode.task.goal
    assert goal is not None and env.is_success(episode.states[-1], goal)
    assert not any(env.is_success(state, goal) for state in episode.states[:-1])
    for before, action, after in zip(episode.states, episode.actions, episode.states[1:], strict=False):
        assert np.array_equal(env.rollout_states(before, action[None, None])[0, -1], after)
    for state, frame in zip(episode.states, episode.frames, strict=True):
        assert np.array_equal(env.render_state(state)["pixels"], frame)


@pytest.mark.parametrize("budget", [1, 5, 7, 12])
def test_budget_is_counted_in_environment_steps(walls: list[SimulatedGoalEnv], budget: int) -> None:
    (episode,) = run_episodes(walls[:1], [room_task(40)], Straight(), budget)
    assert not episode.success and episode.steps == budget and not episode.frames


def test_start_that_counts_as_success_needs_no_step(walls: list[SimulatedGoalEnv]) -> None:
    actor = Straight()
    (episode,) = run_episodes(walls[:1], [room_task(3)], actor, 10)
    assert episode.success and episode.steps == 0 and actor.asked == []


def test_finished_episodes_leave_the_batch(walls: list[SimulatedGoalEnv]) -> None:
    actor = Straight()
    tasks = [room_task(20), room_task(44), room_task(3), room_task(30)]
    plans: list[tuple[int, int]] = []
    ended: list[int] = []
    episodes = run_episodes(
        walls,
        tasks,
        actor,
        100,
        on_plan=lambda episode, decision, _: plans.append((episode, decision)),
        on_episode=lambda episode, _: ended.append(episode),
    )
    # the last batch holds the fourth task alone
    assert actor.asked == [[0, 1], [0, 1], [1], [1], [0], [0], [0]]
    assert plans == [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (1, 3), (3, 0), (3, 1), (3, 2)]
    assert ended == [0, 1, 2, 3] and [episode.steps for episode in episodes] == [8, 20, 0, 13]
    for task, together in zip(tasks, episodes, strict=True):
        (alone,) = run_episodes(walls[:1], [task], Straight(), 100)
        assert np.array_equal(together.states, alone.states)


def test_nothing_stays_and_random_moves_the_same_way_every_time(walls: list[SimulatedGoalEnv]) -> None:
    tasks = make_tasks(walls[0], 3, 0, GoalConfig())
    for episode in run_episodes(walls[:2], tasks, Nothing(), 10):
        assert episode.steps == 10
        assert all(np.array_equal(state, episode.task.start) for state in episode.states)
    together = run_episodes(walls, tasks, RandomActions(), 12)
    for a, b in zip(together[1:], run_episodes(walls[:1], tasks[1:], RandomActions(), 12), strict=True):
        assert np.array_equal(a.actions, b.actions)
    actions = np.concatenate([episode.actions for episode in together])
    assert actions.min() >= -1 and actions.max() <= 1 and actions.std() > 0.4
    assert not np.array_equal(together[0].actions[0], together[1].actions[0])


def test_summary_counts_and_measures(walls: list[SimulatedGoalEnv]) -> None:
    episodes = run_episodes(walls[:1], [room_task(20, 4), room_task(40, 5)], Straight(), 10)
    result = summarize("wall", episodes)
    assert result["success_rate"] == 0.5
    assert result["success_ci95"] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert result["seconds_per_plan"] is None and result["seconds_per_iteration"] is None
    found = [(entry["seed"], entry["success"], entry["steps"]) for entry in result["per_episode"]]
    assert found == [(4, True, 8), (5, False, 10)]
    held = [(entry["success_step"], entry["strict"], entry["strict_step"]) for entry in result["per_episode"]]
    assert held == [(8, True, 8), (None, False, None)] and result["strict"]["success_rate"] == 0.5
    assert [entry["initial_distance"]["position"] for entry in result["per_episode"]] == [20, 40]
    assert [entry["distance"]["position"] for entry in result["per_episode"]] == [4, 20]
    # what travels between processes leaves the environment behind
    assert summarize("wall", pickle.loads(pickle.dumps(episodes))) == result


class Picture(gym.Env):  # type: ignore[type-arg]
    """A dot that one sees, and nothing else; nobody says how far it is."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: object = None
    ) -> tuple[np.ndarray, dict[str, object]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(4, 28, 2)
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        self.place = np.clip(self.place + 2 * action, 2, 29)
        return self._seen(), 0.0, False, False, {}

    def _seen(self) -> np.ndarray:
        picture = np.zeros((32, 32, 3), np.uint8)
        x, y = self.place.astype(int)
        picture[y - 1 : y + 2, x - 1 : x + 2] = 255
        return picture

    def is_success(self, seen: np.ndarray, goal: np.ndarray) -> bool:
        return bool((seen == goal).all())


def test_pictures_alone_have_no_distance(tmp_path: Path) -> None:
    env = PixelGoals(Picture())
    (episode,) = run_episodes([env], [Task(0, offset=10)], RandomActions(), 6, frames=1)
    assert len(episode.frames) == 7 and episode.remaining == [] and episode.distances == []
    plot_plan(tmp_path / "plan.png", [episode], None, "a picture alone")
    assert len(episode_frames(episode, None, env.frameskip)) == 7
    assert "distance" not in summarize("picture", [episode])["per_episode"][0]


class Looking(Straight):
    """Sees what follows the last step of a decision."""

    def looks(self, left: int) -> bool:
        return left == 0

    def observe(self, number: int, episode: Episode) -> None:
        if episode.looked:
            seen = episode.env.render_state(episode.states[-1])  # type: ignore[attr-defined]
            assert np.array_equal(seen["pixels"], episode.observation["pixels"])


def test_no_picture_is_drawn_that_nobody_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    env = envs.make_simulated("wall", resolution=32)
    drawn: list[int] = []
    draw = env._observe
    monkeypatch.setattr(env, "_observe", lambda: drawn.append(1) or draw())
    seen = []
    for actor, expected in ((Straight(), 1), (Looking(), 4)):  # the first picture, and three decisions
        drawn.clear()
        (episode,) = run_episodes([env], [room_task(40)], actor, 15)
        assert sum(drawn) == expected and episode.steps == 15
        seen.append(episode.states)
    assert np.array_equal(*seen)


class Creeping(Straight):
    """Moves PushT's disc downwards by about 4 px a step."""

    def act(self, episodes: Sequence[Episode], active: np.ndarray) -> list[np.ndarray]:
        return [np.tile([0.0, 0.1], (self.steps, 1)) for _ in active]


def test_strict_success_is_still_there_after_three_steps_of_doing_nothing() -> None:
    """Creeping to a goal 60 px away, away from the T: within 20 px some steps before it is within 10."""
    env = envs.make_simulated("pusht", resolution=32)
    start = np.array([60.0, 60.0, 300.0, 300.0, 1.0, 0.0, 0.0])
    goal = start + np.array([0.0, 60.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    loose, strict = (
        run_episodes([env], [Task(0, start, goal)], Creeping(), 40, rule=rule)[0] for rule in get_args(Rule)
    )
    assert loose.success and not loose.strict and loose.steps == loose.success_step
    assert strict.success_step == loose.steps and np.array_equal(
        strict.states[: len(loose.states)], loose.states
    )
    ends = [env.rollout_states(state, np.zeros((1, 3, 2)))[0, -1] for state in strict.states]
    expected = [env.is_strict_success(end, goal) for end in ends].index(True)
    assert strict.strict_step == strict.steps == expected > loose.steps
    assert np.array_equal(env.state, strict.states[-1])  # it was only tried


def test_where_things_rest_both_rules_are_one(walls: list[SimulatedGoalEnv]) -> None:
    for rule in get_args(Rule):
        (episode,) = run_episodes(walls[:1], [room_task(20)], Straight(), 100, rule=rule)
        assert episode.strict_step == episode.success_step == episode.steps == 8


class Drifting(gym.Env):  # type: ignore[type-arg]
    """Somebody else's: a number that actions are added to; it may end the episode at the goal."""

    observation_space = gym.spaces.Box(-99, 99, (1,), np.float32)
    action_space = gym.spaces.Box(np.float32([0.5]), np.float32([1.0]))

    def __init__(self, ends: bool, width: float) -> None:
        self.ends, self.width, self.render_mode = ends, width, "rgb_array"

    def render(self) -> np.ndarray:
        return np.zeros((16, 16, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.over = 0.0, False
        return np.zeros(1, np.float32), {"goal": self.render()}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert not self.over, "the episode was over"
        self.place += float(action[0])
        there = abs(self.place - 3) < self.width
        self.over = there and self.ends
        return np.array([self.place], np.float32), 0.0, self.over, False, {"is_success": there}


@pytest.mark.parametrize(
    ("ends", "width", "strict"), [(False, 1.1, True), (False, 0.6, False), (True, 0.6, True)]
)
def test_elsewhere_the_hold_is_tried_for_real_unless_the_episode_is_over(
    ends: bool, width: float, strict: bool
) -> None:
    """It cannot stand still: 0.5 a step is the least. From 2.5, three steps lead to 4."""
    env = envs.PixelGoals(Drifting(ends, width))
    (episode,) = run_episodes([env], [Task(0)], Nothing(), 20)
    assert episode.success and episode.strict is strict
    assert len(episode.actions) == episode.success_step == episode.steps


def oracle(horizon: int, execute: int, **search: object) -> Oracle:
    settings = {"candidates": 50, "elites": 8, "iterations": 5, "horizon": horizon, "execute": execute}
    return Oracle(PlanConfig.of("wall", search=settings | search))


def test_planning_with_the_oracle_crosses_the_door_step_by_step(walls: list[SimulatedGoalEnv]) -> None:
    task = Task(0, np.array([14.0, 30.0]), np.array([50.0, 32.0]))
    actor = oracle(3, 2, action_repeat=False)
    episodes = run_episodes(walls[:2], [task, room_task(20)], actor, 60)
    assert all(episode.success for episode in episodes)
    first = episodes[0]
    assert [decision.step for decision in first.decisions] == list(range(0, first.steps, 10))
    assert all(one.kept is None and np.isfinite(one.cost) for one in first.decisions)
    assert len(first.seconds_per_iteration) == 5 * len(first.decisions)


def test_repeated_actions_are_executed_for_all_steps_of_a_model_step(walls: list[SimulatedGoalEnv]) -> None:
    (episode,) = run_episodes(walls[:1], [room_task(50)], oracle(3, 2), 20)
    actions = np.stack(episode.actions).reshape(4, 5, 2)
    assert np.array_equal(actions, np.repeat(actions[:, :1], 5, 1))
    assert len(np.unique(actions[:, 0], axis=0)) == 4


def test_plans_are_executed_up_to_the_nearest_state_only(walls: list[SimulatedGoalEnv]) -> None:
    """A goal one step away and one three steps away, planned in one batch, both at three imagined steps."""
    near, far = (Task(0, np.array([10.0, 10.0]), np.array([x, 10.0])) for x in (19.0, 27.0))
    config = PlanConfig.of(
        "wall",
        search={"candidates": 200, "elites": 10, "iterations": 6, "horizon": 3, "execute": 3},
        cost={"frame": "min"},
    )
    episodes: Sequence[Episode] = run_episodes(walls[:2], [near, far], Oracle(config), 5)
    steps = [len(episode.decisions[0].actions) for episode in episodes]
    assert steps in ([5, 10], [5, 15]), steps


def test_pictures_are_drawn_of_the_episodes_that_are_shown_and_else_where_somebody_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = [envs.make("wall", resolution=32) for _ in range(2)]
    tasks = [room_task(20), room_task(20), room_task(20)]
    drawn: list[int] = []
    draw = type(both[0])._draw

    def counted(env: Any, state: np.ndarray, resolution: int) -> np.ndarray:
        drawn.append(resolution)
        return draw(env, state, resolution)

    monkeypatch.setattr(type(both[0]), "_draw", counted)
    counts, states = {}, {}
    for frames in (0, 1, math.inf):
        drawn.clear()
        found = run_episodes(both, tasks, RandomActions(), 6, frames=frames)
        counts[frames] = len(drawn)
        states[frames] = np.stack([episode.states for episode in found])
        assert [len(one.frames) for one in found] == [7 if i < frames else 0 for i in range(3)]
    assert counts[1] == counts[0] + 6 and counts[math.inf] == counts[0] + 18
    assert np.array_equal(states[0], states[1]) and np.array_equal(states[0], states[math.inf])
