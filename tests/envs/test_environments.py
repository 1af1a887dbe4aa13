"""What every environment promises: Gymnasium's interface, exact states, repeatable episodes, clear errors."""

from __future__ import annotations

import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

from sparsewm import envs
from sparsewm.envs.policies import exploration_policy
from sparsewm.errors import UserError

IDS = {
    "pusht": "sparsewm/PushT-v0",
    "wall": "sparsewm/Wall-v0",
    "pointmaze": "sparsewm/PointMaze-v0",
    "pointmaze-large": "sparsewm/PointMazeLarge-v0",
    "rope": "sparsewm/Rope-v0",
    "granular": "sparsewm/Granular-v0",
    "blockpush": "sparsewm/BlockPush-v0",
}
OURS = ["pusht", "wall", "rope", "granular", "blockpush"]  # pointmaze, which needs GL, has tests of its own
LENGTH = {"rope": 12, "granular": 12}  # a step is a whole push


@pytest.fixture(params=OURS)
def env(request: pytest.FixtureRequest) -> envs.SimulatedGoalEnv:
    env = envs.make(request.param, resolution=48)
    env.reset(seed=0)
    return env


def explore(env: envs.SimulatedGoalEnv, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """States (steps + 1, D) and actions (steps, A) of the exploration policy."""
    env.reset(seed=seed)
    policy = exploration_policy(env, np.random.default_rng(seed))
    policy.reset(env.state)
    states, actions = [env.state], []
    for _ in range(steps):
        actions.append(policy.act(env.state))
        env.step(actions[-1])
        states.append(env.state)
    return np.array(states), np.array(actions)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.filterwarnings("error")
def test_follows_gymnasium(name: str) -> None:
    check_env(gym.make(IDS[name]).unwrapped)


@pytest.mark.parametrize("name", envs.names())
def test_gymnasium_stops_an_episode_at_the_budget_and_make_does_not(name: str) -> None:
    cls = type(envs.make(name))
    assert gym.spec(IDS[name]).max_episode_steps == envs.max_episode_steps(name)
    assert type(envs.make(IDS[name])) is type(envs.make(name.upper())) is cls
    assert (cls.state_dim, cls.proprio_dim) == (len(cls.state_names), len(cls.proprio_low))


def test_unknown_name_says_which_there_are() -> None:
    with pytest.raises(
        UserError, match=r"Did you mean 'pointmaze'\?.*pusht, wall, pointmaze, .*rope, .*sparsewm/PushT-v0"
    ):
        envs.make("point-maze")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectorises(mode: str) -> None:
    vector = gym.make_vec(IDS["pusht"], num_envs=2, vectorization_mode=mode, resolution=32)
    try:
        first, _ = vector.reset(seed=3)
        vector.step(vector.action_space.sample())
        alone = envs.make("pusht", resolution=32)
        for i in range(2):
            expected, _ = alone.reset(seed=3 + i)
            np.testing.assert_array_equal(first["pixels"][i], expected["pixels"])
    finally:
        vector.close()


@pytest.mark.parametrize("resolution", [15, 2049, 64.5, True])
def test_impossible_resolution_is_refused(resolution: float) -> None:
    with pytest.raises(ValueError, match="resolution must be a whole number"):
        envs.make("wall", resolution=resolution)


def test_same_seed_same_episode(env: envs.SimulatedGoalEnv) -> None:
    first, goal = explore(env, 7, 20)[0], env.goal
    again = explore(env, 7, 20)[0]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(goal, env.goal)
    assert not np.array_equal(first, explore(env, 8, 20)[0])


def test_reset_takes_state_and_goal(env: envs.SimulatedGoalEnv) -> None:
    state, goal = env.sample_state(), env.sample_goal()
    _, info = env.reset(options={"state": state, "goal": goal})
    np.testing.assert_array_equal(info["state"], state)
    np.testing.assert_array_equal(info["goal"], goal)
    info["goal"][:] = 0
    np.testing.assert_array_equal(env.goal, goal)
    with pytest.raises(ValueError, match="'gaol'"):
        env.reset(options={"gaol": goal})


@pytest.mark.slow
def test_stepping_from_a_restored_state_repeats_bit_for_bit(env: envs.SimulatedGoalEnv) -> None:
    for seed in range(6 if env.frameskip > 1 else 3):
        states, actions = explore(env, seed, LENGTH.get(env.name, 60))
        other = envs.make(env.name)
        for t in np.random.default_rng(seed).permutation(
            LENGTH.get(env.name, 60)
        ):  # unrelated states before each
            other.set_state(states[t])
            np.testing.assert_array_equal(other.state, states[t])
            other.step(actions[t])
            np.testing.assert_array_equal(other.state, states[t + 1])


@pytest.mark.slow
def test_rollout_equals_stepping_and_leaves_the_environment_alone(env: envs.SimulatedGoalEnv) -> None:
    states, actions = explore(env, 3, 75)
    actions = actions.astype(np.float64)
    env.set_state(env.sample_state())
    before = env.state
    rollouts = env.rollout_states(states[0], actions.reshape(3, 25, -1) * [[[1.0]], [[3.0]], [[0.2]]])
    assert rollouts.shape == (3, 26, env.state_dim)
    np.testing.assert_array_equal(rollouts[0], states[:26])
    np.testing.assert_array_equal(env.state, before)
    env.set_state(states[0])
    for t in range(25):
        env.step(3 * actions[25 + t])  # clipped to the action space
        np.testing.assert_array_equal(env.state, rollouts[1, t + 1])


@pytest.mark.slow
def test_drawing_a_state_leaves_the_simulation_alone(env: envs.SimulatedGoalEnv) -> None:
    twin = pickle.loads(pickle.dumps(env))
    states, actions = explore(env, 1, 30)
    twin.set_state(states[0])
    for action in actions:
        seen = twin.render_state(env.sample_state())
        assert env.observation_space.contains(seen)
        twin.step(action)
    np.testing.assert_array_equal(twin.state, states[-1])


def test_observations_are_drawn_from_the_state(env: envs.SimulatedGoalEnv) -> None:
    states, _ = explore(env, 2, 5)
    observation = env.render_state(states[-1])
    np.testing.assert_array_equal(observation["pixels"], env.render())
    np.testing.assert_array_equal(env.render_states(states)[-1], env.render())
    assert env.render_states(states, resolution=30).shape == (6, 30, 30, 3)
    assert all(env.observation_space["proprio"].contains(env.proprio_of(state)) for state in states)


def shifted(env: envs.SimulatedGoalEnv, state: np.ndarray, offset: float) -> np.ndarray:
    """The state with its agent, or on a table all its particles, moved along x by a share of the picture."""
    size = {"pusht": 512.0, "wall": 64.0, "rope": 1.08, "granular": 1.08, "blockpush": 0.64}[env.name]
    moved = state.copy()
    moved[: -2 if env.frameskip == 1 else 1 : 2] += offset * size
    return moved


def test_a_tiny_motion_changes_the_picture(env: envs.SimulatedGoalEnv) -> None:
    for _ in range(20):
        state = env.sample_state()
        if env.name in ("pusht", "wall"):
            state[:2] = np.clip(state[:2], *((51.0, 205.0) if env.name == "pusht" else (6.4, 25.6)))
        moved = shifted(env, state, 0.1 / env.resolution)  # a tenth of a pixel
        first, second = env.render_states(np.stack([state, moved]))
        assert (first != second).any()


def test_a_wrong_action_or_state_is_refused_and_changes_nothing(env: envs.SimulatedGoalEnv) -> None:
    before, size = env.state, env.action_dim
    bad = [
        ([0.0] * (size + 1), "shape"),
        ([0.0] * (size - 1) + [np.nan], "finite"),
        ([[0.0] * size], "shape"),
    ]
    for action, complaint in bad:
        with pytest.raises(ValueError, match=complaint):
            env.step(np.array(action))
    place = {"pusht": "agent", "wall": "floor"}.get(env.name, "on the table")
    for state, complaint in [
        (before[:-1], "shape"),
        (np.full_like(before, np.inf), "finite"),
        (before * [-1] + [-1], place),
    ]:
        with pytest.raises(ValueError, match=complaint):
            env.set_state(state)
    np.testing.assert_array_equal(env.state, before)


def test_reward_is_success_and_episodes_do_not_end(env: envs.SimulatedGoalEnv) -> None:
    state = env.sample_state()
    for goal, reached in [(state, True), (env.sample_goal(), None)]:
        env.reset(options={"state": state, "goal": goal})
        _, reward, terminated, truncated, info = env.step(np.zeros(env.action_dim))
        assert (reward, terminated, truncated) == (float(env.is_success(env.state, goal)), False, False)
        assert info["is_success"] == bool(reward)
        assert reached is None or info["is_success"]


def test_shortfall_ranks_states_as_the_distance_does(env: envs.SimulatedGoalEnv) -> None:
    goal = env.sample_goal()
    states = np.array([goal, *(env.sample_state() for _ in range(20))])
    shortfall = env.shortfall(states, goal)
    assert shortfall[0] == 0 and (shortfall[1:] > 0).all()
    for state, value in zip(states, shortfall, strict=True):
        if value < 1:  # in units of the success thresholds
            assert env.is_success(state, goal)


def test_random_looks_are_repeatable_change_pictures_only_and_can_be_undone(
    env: envs.SimulatedGoalEnv,
) -> None:
    state, plain = env.state, env.render()
    looks: list[list[bytes]] = []
    for _ in range(2):
        rng = np.random.default_rng(5)
        looks.append([])
        for _ in range(12):
            env.randomize_appearance(rng)
            looks[-1].append(env.render().tobytes())
    assert looks[0] == looks[1]
    assert len({plain.tobytes(), *looks[0]}) == 13
    np.testing.assert_array_equal(env.state, state)
    env.randomize_appearance(None)
    np.testing.assert_array_equal(env.render(), plain)


def test_what_moves_can_be_seen_in_most_random_looks(env: envs.SimulatedGoalEnv) -> None:
    rng, seen = np.random.default_rng(0), []
    first = env.sample_state()
    if env.name in ("pusht", "wall"):
        first[:2] = (100.0, 100.0) if env.name == "pusht" else (20.0, 20.0)
    elif env.name == "blockpush":
        first[:2] *= 0.5
    second = shifted(env, first, 0.3 if first[0] < 0.1 or env.name == "pusht" else -0.3)
    if env.name == "wall":
        second = first + np.array([0.0, 20.0])
    elif env.name in ("rope", "granular"):
        second = env.sample_state()
    for _ in range(60):
        env.randomize_appearance(rng)
        pictures = env.render_states(np.stack([first, second])).astype(int)
        seen.append((np.abs(pictures[0] - pictures[1]).sum(-1) > 60).sum() >= 4)
    assert np.mean(seen) > 0.9


def test_keep_geometry_changes_colours_and_nothing_else(env: envs.SimulatedGoalEnv) -> None:
    rng = np.random.default_rng(0)
    env.randomize_appearance(rng)
    first = (env._camera.angle, env._camera.zoom, env._camera.shift)
    shapes = [getattr(env._look, name) for name in env._geometry]
    picture = env.render()
    env.randomize_appearance(rng, keep_geometry=True)
    assert (env._camera.angle, env._camera.zoom, env._camera.shift) == first
    assert all(getattr(env._look, name) is shape for name, shape in zip(env._geometry, shapes, strict=True))
    assert (picture != env.render()).any()


@pytest.mark.slow
def test_importing_and_making_prints_nothing() -> None:
    names = ("pusht", "wall", "rope", "granular", "blockpush")
    program = f"from sparsewm import envs\nfor name in {names}: envs.make(name)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr


@pytest.mark.parametrize(("name", "solved", "drawn"), [("granular", [85, 88], [0]), ("rope", [108], [0, 1])])
def test_no_episode_starts_solved(name: str, solved: list[int], drawn: list[int]) -> None:
    """The first goal drawn after these seeds is reached already; other seeds keep their first goals."""
    env, twin = envs.make(name, resolution=16), envs.make(name, resolution=16)
    for seed in solved + drawn:
        _, info = env.reset(seed=seed)
        twin.np_random, _ = seeding.np_random(seed)
        twin.set_state(twin.sample_state())
        goal = twin.sample_goal()
        np.testing.assert_array_equal(env.state, twin.state)
        assert env.is_success(env.state, goal) == (seed in solved)
        assert np.array_equal(env.goal, goal) == (seed in drawn)
        assert not info["is_success"]
    state = env.state
    _, info = env.reset(options={"state": state, "goal": state})  # who asks for it gets it
    assert info["is_success"] and info["distance"] == env.distance(state, state)


def test_the_goal_can_be_seen(env: envs.SimulatedGoalEnv) -> None:
    seen = env.goal_observation()
    env.set_state(env.goal)
    np.testing.assert_array_equal(seen["pixels"], env.render())
    np.testing.assert_array_equal(seen["proprio"], env.proprio_of(env.goal))
