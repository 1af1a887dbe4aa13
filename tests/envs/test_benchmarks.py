"""Other people's benchmarks as simulators: their physics and rules, exact states, data that repeats."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from sparsewm import envs
from sparsewm.bodies import bodies
from sparsewm.cli.plan import by_task_line
from sparsewm.config import GoalConfig, PlanConfig, environment_file
from sparsewm.data.collect import demonstrate, explore
from sparsewm.envs.benchmarks.meshes import coarse_meshes, merged_corners
from sparsewm.envs.benchmarks.parts import Part
from sparsewm.envs.benchmarks.several import SeveralTasks
from sparsewm.envs.policies import exploration_policy
from sparsewm.errors import UserError
from sparsewm.evaluation.run import prepare, results, run
from sparsewm.tasks import make_tasks

PACKAGES = {
    "ogbench": "ogbench",
    "metaworld": "metaworld",
    "dmc": "dm_control",
    "swm": "stable_worldmodel",
    "libero": "libero",
}
NAMES = (
    "ogbench/cube-single",
    "ogbench/puzzle-3x3",
    "ogbench/pointmaze-medium",
    "metaworld/drawer-close-v3",
    "dmc/reacher",
    "swm/tworoom",
    "libero/spatial/0",
)
STEPS = 8
_made: dict[str, envs.SimulatedGoalEnv] = {}


def made(name: str, number: int = 0) -> envs.SimulatedGoalEnv:
    """The environment, made once and used by all tests; skips where its package is not installed."""
    if importlib.util.find_spec(PACKAGES[name.partition("/")[0]]) is None:
        pytest.skip(f"{name} is not installed")
    key = f"{name} {number}"
    if key not in _made:
        _made[key] = envs.make_simulated(name, resolution=32)
    return _made[key]


@pytest.fixture(scope="module", autouse=True)
def closed() -> object:
    yield
    while _made:
        _made.popitem()[1].close()


@pytest.fixture(params=NAMES)
def env(request: pytest.FixtureRequest) -> envs.SimulatedGoalEnv:
    return made(request.param)


@pytest.mark.slow
def test_follows_gymnasium(env: envs.SimulatedGoalEnv) -> None:
    check_env(env)


@pytest.mark.slow
def test_an_exploration_repeats_and_any_state_of_it_goes_on_alike(env: envs.SimulatedGoalEnv) -> None:
    states, actions = explore(env, 3, 1, STEPS)
    again, same = explore(env, 3, 1, STEPS)
    assert np.array_equal(states, again) and np.array_equal(actions, same)
    assert len(np.unique(states, axis=0)) == STEPS + 1 and not np.array_equal(
        states, explore(env, 3, 2, 8)[0]
    )
    env.set_state(states[0])
    for state, action in zip(states[1:], actions, strict=True):  # without stopping
        env.advance(action)
        assert np.array_equal(env.state, state)
    other = made(env.name, 1)
    other.reset(seed=9)
    for t in (5, 0, 7):
        assert np.array_equal(other.rollout_states(states[t], actions[None, t : t + 1])[0, 1], states[t + 1])
    kept = env.state
    pictures = [one.render_state(states[2])["pixels"] for one in (env, other)]
    assert np.array_equal(*pictures) and np.array_equal(env.state, kept)
    assert (pictures[0] != env.render_state(states[-1])["pixels"]).any()
    env.set_state(states[2])
    assert np.array_equal(env.render(), pictures[0])
    assert np.array_equal(env.render_state(env.state)["proprio"], env.proprio_of(states[2]))


def test_start_and_goal(env: envs.SimulatedGoalEnv) -> None:
    first, info = env.reset(seed=4)
    goal = env.goal_observation()
    assert not info["is_success"] and (goal["pixels"] != first["pixels"]).any()
    assert env.shortfall(info["state"][None], env.goal)[0] > env.shortfall(env.goal[None], env.goal)[0] == 0
    assert env.is_success(env.goal, env.goal)
    again, repeated = env.reset(seed=4)
    assert np.array_equal(again["pixels"], first["pixels"]) and np.array_equal(repeated["goal"], info["goal"])
    assert not np.array_equal(env.reset(seed=5)[1]["state"], info["state"])


def test_a_random_look_changes_pictures_and_is_taken_off_again(env: envs.SimulatedGoalEnv) -> None:
    picture = env.reset(seed=4)[0]["pixels"]
    env.randomize_appearance(np.random.default_rng(0))
    assert np.abs(env.render().astype(int) - picture).mean() > 2
    env.randomize_appearance(None)
    assert np.array_equal(env.render(), picture)


def test_steps_are_the_benchmarks_own() -> None:
    ours = made("ogbench/cube-single")
    theirs = importlib.import_module("ogbench.manipspace.envs.cube_env").CubeEnv(
        "single", mode="data_collection", visualize_info=False
    )
    theirs.reset(seed=0)  # the first one compiles, and its solver starts elsewhere in the last bits
    theirs.reset(seed=11)
    ours.reset(seed=11)
    for part in ("qpos", "qvel"):
        assert np.array_equal(getattr(theirs._data, part), getattr(ours._data, part))  # type: ignore[attr-defined]
    for action in np.random.default_rng(0).uniform(-1, 1, (STEPS, 5)):  # of float32 it scales in float32
        theirs.step(action)
        ours.advance(action)
        assert np.array_equal(theirs._data.qpos, ours._data.qpos)  # type: ignore[attr-defined]
    seen = theirs.compute_ob_info()
    proprio = ours.proprio_of(ours.state)
    assert np.array_equal(proprio[:3], np.float32(seen["proprio/effector_pos"]))
    assert np.arctan2(proprio[4], proprio[3]) == pytest.approx(seen["proprio/effector_yaw"][0], abs=1e-6)
    assert proprio[5] == pytest.approx(seen["proprio/gripper_opening"][0], abs=1e-6)


def test_meshes_are_drawn_no_finer_than_half_a_pixel_and_physics_keeps_them() -> None:
    env = made("ogbench/cube-single")
    env.reset(seed=3)
    state, model = env.state, env._model  # type: ignore[attr-defined]
    faces = [array.copy() for array in (model.mesh_facenum, model.mesh_face, model.mesh_facenormal)]
    env._close_renderer()  # type: ignore[attr-defined]
    coarse = env.render_state(state)["pixels"].astype(int)
    for now, before in zip((model.mesh_facenum, model.mesh_face, model.mesh_facenormal), faces, strict=True):
        assert np.array_equal(now, before)
    renderer = importlib.import_module("mujoco").Renderer(model, len(coarse), len(coarse))
    renderer.update_scene(env._canvas, env._viewpoint)  # type: ignore[attr-defined]
    fine = renderer.render().astype(int)
    renderer.close()
    empty = np.abs(fine - fine.mean((0, 1))).mean()
    assert 0 < np.abs(coarse - fine).mean() < 0.1 * empty


def test_corners_of_a_cell_become_the_one_nearest_to_their_middle() -> None:
    points = np.array([[0, 0, 0], [0.4, 0, 0], [0.5, 0, 0], [1.2, 0, 0], [0, 3.0, 0]])
    assert merged_corners(points, 1.0).tolist() == [1, 1, 1, 3, 4]
    assert merged_corners(points, np.inf).tolist() == [1] * 5


def test_meshes_come_back_though_drawing_fails() -> None:
    model = made("ogbench/cube-single")._model  # type: ignore[attr-defined]
    before = model.mesh_facenum.copy()
    with pytest.raises(RuntimeError, match="no screen"), coarse_meshes(model, 0.01):
        assert 0 < model.mesh_facenum.sum() < before.sum() / 4
        raise RuntimeError("no screen")
    assert np.array_equal(model.mesh_facenum, before)


def test_a_cube_counts_within_four_centimetres() -> None:
    env = made("ogbench/cube-single")
    env.reset(seed=0)
    goal = env.state
    first = env.state_names.index("qpos_0") + 14  # after six joints of the arm and eight of the gripper
    for away, reached in ((0.039, True), (0.041, False)):
        state = goal.copy()
        state[first] += away
        assert env.is_success(state, goal) is reached
        assert env.distance(state, goal)["cube_0"] == pytest.approx(away)
    moved = goal.copy()
    moved[:3] += 0.2  # the gripper may be anywhere
    assert env.is_success(moved, goal) and env.shortfall(moved[None], goal)[0] > 0


def test_a_picture_of_a_cube_shows_gripper_and_cube() -> None:
    env = made("ogbench/cube-single")
    states = []
    for seed in (0, 1):
        env.reset(seed=seed)
        states.append(env.state)
    seen = env.shown_state(np.stack(states))
    assert bodies(tuple(seen)) == [(0, 1, None, 2), (3, 4, 6, 5)]
    place = [env.state_names.index(f"qpos_{i}") for i in (14, 15, 16)]
    found = np.stack([seen[f"cube_0_{axis}"] for axis in "xyz"], 1)
    assert np.array_equal(found, np.stack(states)[:, place])
    turned = states[0].copy()
    half = 0.3 / 2  # of an angle about the vertical, and w and z of the quaternion before
    w, z = turned[place[-1] + 1], turned[place[-1] + 4]
    turned[[place[-1] + 1, place[-1] + 4]] = (
        w * np.cos(half) - z * np.sin(half),
        w * np.sin(half) + z * np.cos(half),
    )
    before, after = (env.shown_state(one[None])["cube_0_angle"][0] for one in (states[0], turned))
    assert (after - before + np.pi) % (2 * np.pi) - np.pi == pytest.approx(0.3)


def test_metaworlds_expert_solves_its_task_by_metaworlds_rule() -> None:
    env = made("metaworld/drawer-close-v3")
    states, actions = demonstrate(env, 0, 0, 150)
    assert len(actions) < 150 and states[-1][env.state_names.index("solved")] == 1
    assert states[0][env.state_names.index("solved")] == 0 and env.is_success(states[-1], env.goal)
    still = env.goal.copy()
    still[env.state_names.index("solved")] = 0  # a goal that solves nothing: hand and object count
    assert env.is_success(env.goal, still) and not env.is_success(states[0], still)


def test_a_goal_of_libero_has_the_bowl_on_the_plate_by_liberos_rule() -> None:
    env = made("libero/spatial/0")
    _, info = env.reset(seed=2)
    solved = env.state_names.index("solved")
    assert env.goal[solved] == 1 and info["state"][solved] == 0
    bowl, plate = (
        next(part for part in env._parts if part.name == name) for name in ("akita_black_bowl_1", "plate_1")
    )  # type: ignore[attr-defined]
    columns = list(bowl.columns[:2]), list(plate.columns[:2])
    assert np.abs(env.goal[columns[0]] - env.goal[columns[1]]).max() < 0.03
    assert info["distance"]["akita_black_bowl_1"] > 0.05 > info["distance"]["plate_1"]
    elsewhere = env.goal.copy()
    elsewhere[solved] = 0  # a goal that solves nothing: hand and things count
    assert env.is_success(env.goal, elsewhere) and not env.is_success(info["state"], elsewhere)
    assert "black bowl" in env.instruction  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_suite_of_libero_is_one_environment() -> None:
    suite, alone = made("libero/spatial"), made("libero/spatial/0")
    assert isinstance(suite, SeveralTasks)
    assert suite.tasks == tuple(f"spatial/{number}" for number in range(10))
    _, info = suite.reset(seed=1)
    assert suite.task_of(info["state"]) == "spatial/1" and suite.instruction != alone.instruction
    seen, info = suite.reset(seed=0)
    theirs, own = alone.reset(seed=0)
    assert suite.instruction == alone.instruction == suite.instruction_of(info["state"])
    assert np.array_equal(seen["pixels"], theirs["pixels"])
    assert np.array_equal(info["state"][1 : 1 + len(own["state"])], own["state"])
    with pytest.raises(UserError, match=r"LIBERO has no suite 'spatail'\. Did you mean"):
        envs.make("libero/spatail")


def test_starts_that_are_solved_already_are_counted() -> None:
    env = made("ogbench/cube-single")
    (task,) = make_tasks(env, 1, 0, GoalConfig("trajectory", 25))
    assert task.start is not None and task.goal is not None and task.solved is not None
    assert not env.is_success(task.start, task.goal) and task.solved >= 0


def test_angles_are_compared_around_the_circle() -> None:
    part = Part("shoulder", (0,), 0.05, angle=True)
    assert part.away(np.array([[3.13], [-3.13]]), np.array([-3.13])) == pytest.approx([0.0232, 0], abs=1e-4)


# Where nothing is installed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("ogbench/cube-single", "ogbench.manipspace.envs.cube_env", "ogbench"),
        ("ogbench/pointmaze-medium", "ogbench.locomaze.maze", "ogbench"),
        ("metaworld/reach-v3", "metaworld.env_dict", "metaworld"),
        ("dmc/reacher", "dm_control.suite", "dmc"),
        ("swm/tworoom", "stable_worldmodel.envs.two_room.env", "tworoom"),
        ("libero/spatial/0", "libero.libero.benchmark", "libero"),
        ("libero/spatial", "libero.libero.benchmark", "libero"),
    ],
)
def test_a_missing_package_is_said_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'sparsewm\[{extra}\]'"):
        envs.make(name)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'cube-single'"):
        envs.make("ogbench/cube-singel")
    with pytest.raises(UserError, match="only dmc/reacher"):
        envs.make("dmc/walker")
    with pytest.raises(UserError, match="Did you mean 'tworoom'"):
        envs.make("swm/two-rooms")
    with pytest.raises(UserError, match="ogbench/TASK, metaworld/TASK"):
        envs.make("ogbensch")


def test_a_family_has_settings_for_all_of_its_tasks() -> None:
    assert environment_file("ogbench/scene").name == "ogbench.yaml"
    assert environment_file("gym_pusht/PushT-v0").name == "PushT-v0.yaml"
    goal = PlanConfig.of("ogbench/cube-single").goal
    assert (goal.source, goal.offset, goal.max_steps) == ("trajectory", 25, 50)


# ------------------------------------------------------------------------------------ several tasks as one


def make_both(resolution: int = 32) -> SeveralTasks:
    """Rope and Granular as one: the same actions and proprioception, other states."""

    def one(name: str) -> envs.SimulatedGoalEnv:
        env = envs.make_simulated(name, resolution=resolution)
        env.instruction = f"move the {name}"
        return env

    return SeveralTasks("both", ("rope", "granular"), one, resolution, "rgb_array")


@pytest.fixture
def both() -> SeveralTasks:
    return make_both()


def test_several_tasks_are_one_environment(both: SeveralTasks) -> None:
    check_env(both)
    alone = [envs.make_simulated(name, resolution=32) for name in both.tasks]
    for seed in (0, 1, 2, 3):
        observation, info = both.reset(seed=seed)
        env = alone[seed % 2]
        theirs, own = env.reset(seed=seed)
        size = env.state_dim
        assert both.instruction == both.instruction_of(both.goal) == f"move the {both.tasks[seed % 2]}"
        assert both.task_of(info["state"]) == both.task_of(both.goal) == both.tasks[seed % 2]
        assert np.array_equal(observation["pixels"], theirs["pixels"])
        assert np.array_equal(observation["proprio"], theirs["proprio"])
        assert (
            np.array_equal(info["state"][1 : 1 + size], own["state"]) and not info["state"][1 + size :].any()
        )
        assert np.array_equal(both.goal[1 : 1 + size], env.goal) and info["distance"] == own["distance"]
        assert np.array_equal(both.goal_observation()["pixels"], env.goal_observation()["pixels"])
        action = np.array([0.3, -0.2, 0.5, 0.1], np.float32)
        (after, reward, *_, info), (expected, theirs_reward, *_, own) = both.step(action), env.step(action)
        assert np.array_equal(after["pixels"], expected["pixels"]) and reward == theirs_reward
        assert np.array_equal(info["state"][1 : 1 + size], own["state"])
        assert np.array_equal(
            both.shortfall(both.state[None], both.goal), env.shortfall(env.state[None], env.goal)
        )
        assert both.is_success(both.goal, both.goal) and both.is_strict_success(both.goal, both.goal)


def test_several_tasks_are_told_as_their_own_environments_say(both: SeveralTasks) -> None:
    both.reset(seed=0)
    env = both._envs[0]
    assert both.frameskip == env.frameskip != 5 and np.array_equal(both.idle_action(), env.idle_action())
    assert both.idle_action().any()
    _, info = both.reset(seed=1, options={"goal": both.goal})  # a start of the goal's task
    assert both.task_of(info["state"]) == "rope" and info["distance"] == both.distance(
        info["state"], both.goal
    )
    picture = both.render()
    both.randomize_appearance(np.random.default_rng(0), keep_geometry=True)
    assert (both.render() != picture).any()
    with pytest.raises(ValueError, match="wall has another action_low than rope"):
        SeveralTasks("odd", ("rope", "wall"), envs.make_simulated, 32, "rgb_array")


def test_a_state_of_one_task_reaches_no_goal_of_another(both: SeveralTasks) -> None:
    _, rope = both.reset(seed=0)
    _, granular = both.reset(seed=1)
    assert not both.is_success(rope["state"], both.goal) and both.distance(rope["state"], both.goal) == {}
    states = np.stack([rope["state"], both.goal, granular["state"]])
    far, reached, near = both.shortfall(states, both.goal)
    assert far > near > reached == 0
    assert both.shortfall(rope["state"][None], both.goal).tolist() == [far]
    picture = both.render_state(rope["state"])["pixels"]
    assert np.array_equal(both.state, granular["state"]) and (picture != both.render()).any()
    with pytest.raises(ValueError, match="tasks 0 to 1"):
        both.set_state(np.full(both.state_dim, 2.0))


def test_explorations_are_of_all_tasks_and_what_pictures_show_has_one_width(both: SeveralTasks) -> None:
    states = []
    for seed in (0, 1):
        both.reset(seed=seed)
        policy = both.scripted(np.random.default_rng(0))
        policy.reset(both.state)
        rng = np.random.default_rng(0)
        alone = [exploration_policy(env, rng) for env in both._envs][seed]
        own = both.state[1 : 1 + both._envs[seed].state_dim]
        alone.reset(own)
        assert np.array_equal(policy.act(both.state), alone.act(own))
        states.append(both.state)
    seen = both.shown_state(np.stack(states))
    names = [set(env.shown_state(np.zeros((1, env.state_dim)))) for env in both._envs]
    assert set(seen) == set(both.shown_state(states[0][None])) == names[0] | names[1]
    first = next(iter(names[1] - names[0]))
    assert seen[first][0] == 0 and seen[first][1] != 0


def test_success_is_told_for_each_task() -> None:
    config = PlanConfig.of("tests.envs.test_benchmarks:make_both").updated(actor="nothing", episodes=5)
    ready = prepare(config.updated(max_steps=1))
    found = results(ready, run(ready))
    assert {name: one["episodes"] for name, one in found["by_task"].items()} == {"granular": 2, "rope": 3}
    assert found["by_task"]["rope"]["success_rate"] == 0 == found["success_rate"]
    assert by_task_line(found) == "by task: granular 0/2, rope 0/3\n"
    wall = prepare(PlanConfig.of("wall").updated(actor="nothing").updated(max_steps=1))
    assert by_task_line(results(wall, run(wall))) == ""


class Still:
    """A policy that does nothing."""

    def __init__(self, interface: Any) -> None:
        self.size = len(interface.action_low)

    def propose(
        self, observation: Any, goal: Any, instruction: Any, samples: int, horizon: int, generators: Any
    ) -> torch.Tensor:
        return torch.zeros(len(generators), samples, horizon, self.size)


def test_results_say_what_a_policy_was_told() -> None:
    def told(name: str, **settings: Any) -> Any:
        config = PlanConfig.of(name).updated(episodes=2, max_steps=1, goal={"source": "random"}, **settings)
        ready = prepare(config)
        return results(ready, run(ready)).get("instruction", "nothing")

    policy, both = f"{__name__}:Still", f"{__name__}:make_both"
    acts: dict[str, Any] = {"actor": "policy", "proposals": policy}
    texts = {"granular": "move the granular", "rope": "move the rope"}
    assert told(both, **acts) == texts and told(both, actor="nothing") == "nothing"
    assert told(both, instruction="go", **acts) == "go"
    assert told("blockpush", **acts) == "push both blocks to their goals"


@pytest.mark.slow
def test_ten_tasks_of_metaworld_are_solved_by_their_experts() -> None:
    env = made("metaworld/mt10")
    assert isinstance(env, SeveralTasks) and len(env.tasks) == 10
    solved = 0
    for seed in range(10):
        _, info = env.reset(seed=seed)
        assert env.task_of(info["state"]) == env.tasks[seed] and not info["is_success"]
        solved += env.is_success(demonstrate(env, seed, 0, 150)[0][-1], env.goal)
    assert solved >= 8
    states, _ = explore(env, 0, 0, STEPS)
    seen = env.shown_state(states)
    assert bodies(tuple(seen)) == [(0, 1, None, 2), (3, 4, None, 5)] and list(seen)[::3] == [
        "hand_x",
        "object_x",
    ]
    hand = np.stack([seen[f"hand_{axis}"] for axis in "xyz"], 1)
    assert np.allclose(hand, np.stack([env.proprio_of(state)[:3] for state in states]), atol=1e-6)
