"""Tasks of an evaluation: functions of their seeds, and none that is solved at the start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from scripts import freeze_tasks
from sparsewm import envs, tasks
from sparsewm.config import EPISODES_PER_SEED, SEEDS, GoalConfig
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.evaluation.actors import Nothing, RandomActions
from sparsewm.evaluation.episodes import run_episodes
from sparsewm.tasks import (
    FROZEN,
    HELD_OUT,
    Task,
    draw_tasks,
    frozen_set,
    make_tasks,
    solved_at_start,
    tasks_hash,
)

RANDOM, TRAJECTORY = GoalConfig("random"), GoalConfig("trajectory")


@pytest.fixture(scope="module")
def env() -> SimulatedGoalEnv:
    return envs.make_simulated("wall", resolution=32)


def same_tasks(a: Sequence[Task], b: Sequence[Task]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(np.array_equal(x.start, y.start) and np.array_equal(x.goal, y.goal) for x, y in pairs)


@pytest.mark.parametrize("goal", [RANDOM, TRAJECTORY])
def test_tasks_are_functions_of_their_seeds(env: SimulatedGoalEnv, goal: GoalConfig) -> None:
    tasks = make_tasks(env, 4, 3, goal)
    assert [task.seed for task in tasks] == [3 * EPISODES_PER_SEED + i for i in range(4)]
    assert same_tasks(make_tasks(envs.make("wall", resolution=56), 4, 3, goal), tasks)
    assert same_tasks(make_tasks(env, 2, 3, goal), tasks[:2])
    assert len({tuple(np.r_[task.start, task.goal]) for task in tasks}) == 4


def test_two_seeds_share_no_task(env: SimulatedGoalEnv) -> None:
    found = [{task.seed for task in make_tasks(env, 60, seed, RANDOM)} for seed in (0, 1)]
    assert not found[0] & found[1]


def test_random_tasks_are_those_of_reset(env: SimulatedGoalEnv) -> None:
    task = make_tasks(env, 6, 0, RANDOM)[5]
    _, info = env.reset(seed=5)
    assert np.array_equal(task.start, info["state"]) and np.array_equal(task.goal, info["goal"])
    assert (task.start[0] < 32) != (task.goal[0] < 32)
    _, again = env.reset(seed=task.seed, options=task.options)
    assert np.array_equal(again["state"], task.start) and np.array_equal(again["goal"], task.goal)


def test_trajectory_goals_are_as_many_steps_away_as_asked(env: SimulatedGoalEnv) -> None:
    """Two units a step at most: near goals are near, and the same tasks with more steps go farther."""
    near, far = (make_tasks(env, 6, 0, GoalConfig("trajectory", offset)) for offset in (5, 40))
    reach = [max(np.abs(task.goal - task.start).max() for task in tasks) for tasks in (near, far)]
    assert 0 < reach[0] <= 10 + 1e-9 and reach[1] > 12


def test_trajectory_goals_are_not_reached_already(env: SimulatedGoalEnv) -> None:
    """A walk often stays within Wall's 4.5 units for eight steps; one step never leaves them."""
    tasks = make_tasks(env, 40, 0, GoalConfig("trajectory", 8))
    assert not any(env.is_success(task.start, task.goal) for task in tasks)
    with pytest.raises(UserError, match="not reached already: raise `offset`"):
        make_tasks(env, 1, 0, GoalConfig("trajectory", 1))


KINDS = [(name, goal) for name, goals in freeze_tasks.KINDS.items() for goal in goals]


def frozen(goal: GoalConfig, name: str) -> GoalConfig:
    """The same kind of goal from a frozen set."""
    return GoalConfig(goal.source, goal.offset, tasks=name)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "goal"), KINDS, ids=[f"{n}-{g.source}{g.offset}" for n, g in KINDS])
def test_frozen_sets_are_whole_apart_and_not_solved_at_the_start(name: str, goal: GoalConfig) -> None:
    env, found = envs.make_simulated(name, resolution=16), {}
    for part, (first, count) in FROZEN.items():
        found[part] = made = make_tasks(env, count, 0, frozen(goal, part))
        assert [task.frozen for task in made] == list(range(first, first + count))
        for task in made:
            _, info = env.reset(seed=task.seed, options=task.options)
            assert np.array_equal(info["state"], task.start) and np.array_equal(info["goal"], task.goal)
            assert not info["is_success"] and not env.is_strict_success(info["state"], info["goal"])
    starts = {task.start.tobytes() for made in found.values() for task in made if task.start is not None}
    assert len(starts) == sum(count for _, count in FROZEN.values())
    assert tasks_hash(name, frozen(goal, "test"), 1) != tasks_hash(name, frozen(goal, "validation"), 1)


def test_frozen_seeds_are_beyond_those_that_are_drawn_and_recorded() -> None:
    spans = [range(SEEDS * EPISODES_PER_SEED), range(HELD_OUT - 1_000_000, HELD_OUT + 100)]
    spans += [range(first, first + count) for first, count in FROZEN.values()]
    ordered = sorted(spans, key=lambda span: span.start)
    assert all(one.stop <= other.start for one, other in pairwise(ordered))


def test_frozen_tasks_are_the_same_for_every_seed_which_drives_the_agent(env: SimulatedGoalEnv) -> None:
    goal = frozen(RANDOM, "validation")
    found = [make_tasks(env, 5, seed, goal) for seed in (0, 1)]
    assert same_tasks(*found)
    assert [task.seed for task in found[1]] == [EPISODES_PER_SEED + i for i in range(5)]
    assert [task.seed for task in found[0]] == list(range(5))


def test_what_was_frozen_is_what_the_seeds_draw(env: SimulatedGoalEnv) -> None:
    for kept in make_tasks(env, 3, 0, frozen(RANDOM, "test")):
        assert kept.frozen is not None
        (drawn,) = tasks.draw_tasks(env, [kept.frozen], RANDOM)
        assert drawn.start is not None and kept.start is not None
        np.testing.assert_allclose(kept.start, drawn.start, rtol=1e-6)


@pytest.mark.parametrize("name", ["rope", "pusht", "granular"])
def test_a_frozen_start_gives_the_same_episode_again(name: str) -> None:
    goal = next(goal for kind, goal in KINDS if kind == name)
    made = make_tasks(envs.make(name), 2, 0, frozen(goal, "validation"))
    found = [run_episodes([envs.make(name)], made, RandomActions(), 4) for _ in range(2)]
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one.states, other.states) and np.array_equal(one.states[0], one.task.start)


@pytest.mark.parametrize("name", list(freeze_tasks.KINDS))
def test_doing_nothing_changes_nothing_at_rest(name: str) -> None:
    """Rope and Granular, too, where every action is a push: it happens in a corner."""
    env, goal = envs.make_simulated(name, resolution=16), freeze_tasks.KINDS[name][-1]
    for episode in run_episodes([env], make_tasks(env, 3, 0, frozen(goal, "validation")), Nothing(), 3):
        things = slice(None, -2) if name in ("rope", "granular") else slice(None)
        assert np.abs(episode.states[-1][things] - episode.states[0][things]).max() < 2e-3
        assert not episode.success and not episode.strict


def test_edited_and_missing_files_are_refused(
    env: SimulatedGoalEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = frozen(RANDOM, "test")
    (tmp_path / "tasks").mkdir()
    path = tmp_path / "tasks" / "wall-random.json"
    shutil.copy(tasks.tasks_file("wall", goal), path)
    monkeypatch.setattr(tasks, "config_folder", lambda: tmp_path)
    assert len(make_tasks(env, 200, 0, goal)) == 200
    with pytest.raises(UserError, match="holds 200 tasks: lower `episodes` 201"):
        make_tasks(env, 201, 0, goal)
    content = json.loads(path.read_text())
    content["test"]["goal"] = content["validation"]["goal"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was edited or is damaged"):
        make_tasks(env, 1, 0, goal)
    assert make_tasks(env, 1, 0, frozen(RANDOM, "validation"))
    with pytest.raises(UserError, match=r"no frozen tasks are wall-25.*wall-random"):
        make_tasks(env, 1, 0, frozen(TRAJECTORY, "test"))


def test_moments_that_are_solved_already_are_passed_over_and_counted(
    env: SimulatedGoalEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    rule = env.is_success

    def noted(state: np.ndarray, goal: np.ndarray) -> bool:
        asked.append(rule(state, goal))
        return asked[-1]

    monkeypatch.setattr(env, "is_success", noted)
    monkeypatch.setattr(env, "_part", lambda draw_state: None)  # a reset asks about its own goal, too
    counted = solved_at_start(draw_tasks(env, range(6), GoalConfig("trajectory", 3)))
    assert counted == sum(asked) > 0
    assert solved_at_start(draw_tasks(env, range(2), RANDOM)) is None


def test_freezing_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze_tasks, "FROZEN", {"validation": (950_000_000, 2), "test": (960_000_000, 3)})
    arguments = freeze_tasks.Arguments(("wall",), output=tmp_path)
    freeze_tasks.main(arguments)
    content = json.loads((tmp_path / "wall-random.json").read_text())
    assert {name: part["episodes"] for name, part in content.items()} == {"validation": 2, "test": 3}
    (tmp_path / "wall-random.json").write_text("kept")
    freeze_tasks.main(arguments)
    assert (tmp_path / "wall-random.json").read_text() == "kept"
    arguments.again = True
    freeze_tasks.main(arguments)
    assert json.loads((tmp_path / "wall-random.json").read_text()) == content


def test_moments_solved_at_their_start_are_kept_with_frozen_tasks(
    env: SimulatedGoalEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = GoalConfig("trajectory", 25, tasks="test")
    assert tasks_hash("swm/tworoom", goal, 200)  # a file that can be read without its package
    drawn = [replace(task, solved=i) for i, task in enumerate(draw_tasks(env, (1, 2, 3), goal))]
    path = tmp_path / "tasks" / "wall-25.json"
    path.parent.mkdir()
    found = frozen_set("wall", goal, drawn)
    path.write_text(json.dumps({"test": found}))
    monkeypatch.setattr(tasks, "config_folder", lambda: tmp_path)
    assert [task.solved for task in make_tasks(env, 2, 0, goal)] == [0, 1]
    assert solved_at_start(make_tasks(env, 3, 0, goal)) == 3
    path.write_text(json.dumps({"test": found | {"solved": [0, 1, 7]}}))
    with pytest.raises(UserError, match="was edited"):
        make_tasks(env, 3, 0, goal)
