"""PointMaze: the original's physics, exact states, pictures that show where the ball is."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sparsewm import envs
from sparsewm.envs.pointmaze import MAX_SPEED, RADIUS, PointMazeEnv


@pytest.fixture
def env() -> PointMazeEnv:
    env = PointMazeEnv(resolution=112)
    env.reset(seed=0)
    return env


def persistent_actions(rng: np.random.Generator, sequences: int, steps: int) -> np.ndarray:
    """Forces (S, T, 2) that change every 10 steps, so that the ball reaches walls at speed."""
    return np.repeat(rng.uniform(-1.5, 1.5, (sequences, steps // 10, 2)).clip(-1, 1), 10, axis=1)


def test_follows_gymnasium() -> None:
    env = gym.make("sparsewm/PointMaze-v0", disable_env_checker=True)
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize(("maze", "original_map"), [("umaze", "U_MAZE"), ("large", "LARGE_MAZE")])
def test_physics_is_that_of_gymnasium_robotics(maze: str, original_map: str) -> None:
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv as Original

    env = PointMazeEnv(maze=maze)
    original = Original(maze_map=getattr(maps, original_map), continuing_task=True, reset_target=False)
    rng = np.random.default_rng(0)
    hit_a_wall = False
    for episode in range(5):
        observation, _ = original.reset(seed=episode)
        env.set_state(observation["observation"])
        for action in persistent_actions(rng, 1, 200)[0]:
            expected = original.step(action)[0]["observation"]
            env._advance(action)
            np.testing.assert_allclose(env.state, expected, atol=1e-9)
            hit_a_wall |= env._data.ncon > 1
    original.close()
    os.unlink(original.tmp_xml_file_path)
    assert hit_a_wall


def test_stepping_from_a_restored_state_repeats_bit_for_bit(env: PointMazeEnv) -> None:
    actions = persistent_actions(np.random.default_rng(1), 1, 200)[0]
    states = []
    for action in actions:
        env.step(action)
        states.append(env.state)
    other = PointMazeEnv()
    for t in range(0, 199, 7):
        other.set_state(states[t])
        np.testing.assert_array_equal(other.state, states[t])
        other.step(actions[t + 1])
        np.testing.assert_array_equal(other.state, states[t + 1])


def test_rollout_equals_stepping_and_leaves_the_environment_alone(env: PointMazeEnv) -> None:
    start, before = env.sample_state(), env.state
    actions = 1.5 * persistent_actions(np.random.default_rng(2), 4, 60)  # beyond the action space: clipped
    states = env.rollout_states(start, actions)
    assert states.shape == (4, 61, 4)
    np.testing.assert_array_equal(env.state, before)
    for trajectory, sequence in zip(states, actions, strict=True):
        env.set_state(start)
        for t, action in enumerate(sequence):
            env.step(action)
            np.testing.assert_array_equal(env.state, trajectory[t + 1])


def test_drawing_a_state_does_not_change_the_simulation(env: PointMazeEnv) -> None:
    twin = pickle.loads(pickle.dumps(env))
    action = np.array([0.7, -0.4])
    for _ in range(30):
        twin.render_state(twin.sample_state())
        twin.step(action)
        env.step(action)
    np.testing.assert_array_equal(env.state, twin.state)


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_every_state_the_physics_reaches_may_be_set_and_has_a_path(maze: str) -> None:
    env = PointMazeEnv(maze=maze)
    env.reset(seed=0)
    rng = np.random.default_rng(3)
    space = env.observation_space["proprio"]
    for _ in range(8):
        start, goal = env.sample_state(), env.sample_state()
        states = env.rollout_states(start, rng.choice([-1.0, 1.0], (3, 8, 2)).repeat(25, axis=1)).reshape(
            -1, 4
        )
        for state in states[::5]:
            env.set_state(state)
            assert space.contains(env.proprio_of(state))
        assert np.isfinite(env.shortfall(states, goal)).all()
        assert np.abs(states[:, :2]).max() < max(env._maze.size) / 2 - 1


def test_speed_is_clipped_before_a_step(env: PointMazeEnv) -> None:
    env.set_state(np.array([-1.0, 1.0, 8.0, 0.0]))
    env.step(np.zeros(2))
    assert 0.9 * MAX_SPEED < env.state[2] <= MAX_SPEED


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ([0.0, 0.0, 0.0, 0.0], "floor"),
        ([7.0, 0.0, 0.0, 0.0], "floor"),
        ([1.0, 0.0, 11.0, 0.0], "velocities"),
        ([1.0, np.nan, 0.0, 0.0], "finite"),
        ([1.0, 0.0], "shape"),
    ],
)
def test_impossible_states_are_refused(env: PointMazeEnv, state: list[float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        env.set_state(np.array(state))


def test_unknown_maze_is_refused() -> None:
    with pytest.raises(ValueError, match=r"umaze, medium, large; got 'tiny'"):
        PointMazeEnv(maze="tiny")


def test_starts_and_goals_cover_the_floor_and_are_apart(env: PointMazeEnv) -> None:
    seen = set()
    for seed in range(80):
        _, info = env.reset(seed=seed)
        state, goal = info["state"], info["goal"]
        assert np.hypot(*(state - goal)[:2]) >= 1.0
        assert not info["is_success"]
        assert state[2:].tolist() == goal[2:].tolist() == [0.0, 0.0]
        for x, y in (state[:2], goal[:2]):
            assert env._maze.is_free(np.array([x, y]), RADIUS)
            seen.add((round(x), round(y)))
    assert seen == {(-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)}


def test_success_is_a_distance_below_half_a_cell_at_any_speed(env: PointMazeEnv) -> None:
    goal = np.array([1.0, 0.0, 0.0, 0.0])
    assert env.is_success(np.array([1.0, 0.49, 5.0, -5.0]), goal)
    assert not env.is_success(np.array([1.0, 0.51, 0.0, 0.0]), goal)
    _, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (reward, terminated, truncated) == (float(info["is_success"]), False, False)


def test_path_length_goes_round_the_wall(env: PointMazeEnv) -> None:
    top, bottom, beside = np.array([0.0, 1.0]), np.array([0.0, -1.0]), np.array([1.0, 1.0])
    state, goal, near = (np.array([*p, 0.0, 0.0]) for p in (top, bottom, beside))
    assert env.distance(state, near) == {"position": 1.0, "path": 1.0}
    corner = np.array([0.5 + RADIUS, 0.5 + RADIUS])
    around = 2 * np.hypot(*(top - corner)) + 2 * corner[1]
    assert env.distance(state, goal)["path"] == pytest.approx(around)
    assert env.distance(state, goal)["position"] == 2.0
    np.testing.assert_allclose(env.shortfall(np.stack([state, near, goal]), goal)[[0, 2]], [around / 0.5, 0])


def test_a_planner_that_shortens_the_path_reaches_goals_across_the_wall(env: PointMazeEnv) -> None:
    rng = np.random.default_rng(4)
    for start, goal in (((-1.0, 1.0), (-1.0, -1.0)), ((0.2, -1.2), (-1.3, 1.4))):
        env.reset(options={"state": np.array([*start, 0, 0]), "goal": np.array([*goal, 0, 0])})
        for _ in range(envs.max_episode_steps(env.name) // 10):
            sequences = rng.uniform(-1.5, 1.5, (100, 3, 2)).clip(-1, 1).repeat(10, axis=1)  # random shooting
            ends = env.rollout_states(env.state, sequences)[:, -1]
            best = sequences[env.shortfall(ends, env.goal).argmin()]
            reached = [env.step(action)[4]["is_success"] for action in best[:10]]
            if any(reached):
                break
        assert any(reached), (start, goal)


# Pictures -------------------------------------------------------------------------------------------------


def ball_pixels(env: PointMazeEnv, state: np.ndarray, resolution: int) -> np.ndarray:
    """Which pixels (R, R) show the ball: those that differ from a picture with the ball elsewhere."""
    elsewhere = [cell for cell in env._maze.cells if np.hypot(*(cell - state[:2])) > 1.2][:2]
    pictures = env.render_states(
        np.array([state, *([*cell, 0, 0] for cell in elsewhere)]), resolution
    ).astype(int)
    return np.logical_and.reduce([np.abs(pictures[0] - other).sum(-1) > 100 for other in pictures[1:]])


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
@pytest.mark.parametrize("resolution", [64, 112, 224])
def test_the_ball_is_where_the_state_says_and_easy_to_see(maze: str, resolution: int) -> None:
    env = PointMazeEnv(maze=maze)
    env.reset(seed=0)
    for _ in range(5):
        state = env.sample_state()
        rows, columns = np.nonzero(ball_pixels(env, state, resolution))
        centre = np.array([columns.mean(), rows.mean()]) + 0.5
        expected = (state[:2] * (1, -1) / env._maze.extent + 0.5) * resolution
        assert np.abs(centre - expected).max() < 0.6
        assert np.sqrt(len(rows) / np.pi) > 4 * resolution / 112


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_walls_are_drawn_where_the_ball_cannot_be(maze: str) -> None:
    env = PointMazeEnv(maze=maze, resolution=224)
    env.reset(seed=0)
    state = env.sample_state()
    picture = env.render_state(state)["pixels"].astype(int)
    is_wall = np.abs(picture - (178, 128, 77)).sum(-1) < 10
    is_floor = np.abs(picture - (38, 64, 89)).sum(-1) < 10
    for row in range(0, 224, 3):
        for column in range(0, 224, 3):
            x, y = np.array([column + 0.5 - 112, 111.5 - row]) / 224 * env._maze.extent
            if np.hypot(x - state[0], y - state[1]) > 0.5:
                fits = [env._maze.is_free(np.array([x + dx, y]), 1e-6) for dx in (-0.06, 0.06)]
                fits += [env._maze.is_free(np.array([x, y + dy]), 1e-6) for dy in (-0.06, 0.06)]
                assert is_floor[row, column] or not env._maze.is_free(np.array([x, y]), 0.06)
                assert is_wall[row, column] or any(fits)
    for margin in (is_wall[0], is_wall[-1], is_wall[:, 0], is_wall[:, -1]):
        assert margin.all()


def test_a_tiny_motion_changes_the_picture(env: PointMazeEnv) -> None:
    first, second = env.render_states(np.array([[1.0, 0.0, 0, 0], [1.005, 0.0, 0, 0]]))
    assert (first != second).any()


def test_random_looks_change_the_picture_only_and_can_be_undone(env: PointMazeEnv) -> None:
    state = env.state
    plain = env.render()
    rng = np.random.default_rng(5)
    looks = []
    for _ in range(10):
        env.randomize_appearance(rng)
        looks.append(env.render())
    np.testing.assert_array_equal(env.state, state)
    distinct = {picture.tobytes() for picture in [plain, *looks]}
    assert len(distinct) == 11
    env.randomize_appearance(None)
    np.testing.assert_array_equal(env.render(), plain)


@pytest.mark.slow
def test_vectorises_in_processes() -> None:
    vector = gym.vector.AsyncVectorEnv([lambda: envs.make("pointmaze", resolution=32)] * 2, context="spawn")
    try:
        observation, _ = vector.reset(seed=[0, 1])
        assert observation["pixels"].shape == (2, 32, 32, 3)
        alone = envs.make("pointmaze", resolution=32)
        expected, _ = alone.reset(seed=1)
        np.testing.assert_array_equal(observation["pixels"][1], expected["pixels"])
    finally:
        vector.close()


@pytest.mark.slow
def test_without_opengl_one_sentence_says_what_to_do_and_physics_still_works() -> None:
    program = (
        "from sparsewm import envs\n"
        "env = envs.make('pointmaze')\n"
        "print(env.rollout_states(env.state, [[[1.0, 0.0]]]).shape)\n"
        "try:\n"
        "    env.reset(seed=0)\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "MUJOCO_GL": "disabled"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    shape, message = run.stdout.splitlines()
    assert shape == "(1, 2, 4)"
    assert "libegl1" in message and "MUJOCO_GL=osmesa" in message
