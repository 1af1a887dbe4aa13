"""Environments from outside: any with a picture and continuous actions; goals one can see, by seed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from sparsewm import envs
from sparsewm.envs import PixelGoals
from sparsewm.errors import UserError

HERE = "tests.envs.test_adapter"


class Dot(gym.Env[Any, np.ndarray]):
    """A dot on a line of 40 px, moved by its action; the picture is drawn, or a part of the observation."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    low, high = -2.0, 2.0

    def __init__(self, render_mode: str | None = "rgb_array", seeded: bool = True, size: int = 1):
        self.render_mode, self.seeded = render_mode, seeded
        self.action_space = spaces.Box(self.low, self.high, (size,), np.float64)
        self.observation_space = spaces.Box(-100, 100, (2,), np.float64)
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.options = options
        draw = self.np_random.uniform if self.seeded else np.random.default_rng().uniform
        self.x = float(draw(10, 20))
        return self._look(), {"is_success": True}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.dtype == np.float64 and self.action_space.contains(action)
        self.x = float(np.clip(self.x + action[0], 2, 37))
        return self._look(), 0.5, False, False, {"is_success": True, "state": np.array([self.x])}

    def render(self) -> np.ndarray:
        picture = np.zeros((20, 40, 3), np.uint8)
        picture[8:12, round(self.x) - 2 : round(self.x) + 2] = 255
        return picture

    def close(self) -> None:
        self.closed = True

    def _look(self) -> Any:
        return np.array([self.x, 7.0])


class Nested(Dot):
    """Its picture, drawn in grey and with channels first, is two keys deep; it says where its goal is."""

    def __init__(self) -> None:
        super().__init__(render_mode=None)
        self.observation_space = spaces.Dict(
            {
                "cameras": spaces.Dict({"top": spaces.Box(0, 255, (1, 20, 40), np.uint8)}),
                "joint": spaces.Box(-100, 100, (1,), np.float32),
                "gear": spaces.Discrete(3),
                "desired_goal": spaces.Box(-100, 100, (1,), np.float32),
            }
        )

    def _look(self) -> Any:
        return {
            "cameras": {"top": self.render()[None, :, :, 0]},
            "joint": np.array([self.x], np.float32),
            "gear": 1,
            "desired_goal": np.array([30.0], np.float32),
        }


class OwnGoal(Dot):
    """It shows its goal, where the dot is at 30, and says when it is reached."""

    def goal_observation(self) -> dict[str, np.ndarray]:
        x, self.x = self.x, 30.0
        picture, self.x = self.render(), x
        return {"pixels": picture, "proprio": np.array([30.0, 7.0])}

    def reset(self, **kwargs: Any) -> tuple[Any, Any]:
        return super().reset(**kwargs)[0], {"success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, _ = super().step(action)
        return seen, reward, terminated, truncated, {"success": abs(self.x - 30) < 3}


class Strict(Dot):
    """It has a rule of its own for any goal."""

    def is_success(self, observation: np.ndarray, goal: np.ndarray) -> bool:
        return bool(abs(observation[0] - goal[0]) < 0.25)


class Unbounded(Dot):
    high = np.inf


class Blind(Dot):
    """Nothing but pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (20, 40, 3), np.uint8)

    def _look(self) -> Any:
        return self.render()


class Restless(Dot):
    """Its episodes end after three steps."""

    def reset(self, **kwargs: Any) -> tuple[Any, Any]:
        self.left = 3
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        seen, reward, _, _, info = super().step(action)
        return seen, reward, self.left == 0, False, info


def factory(resolution: int = 16) -> envs.GoalEnv:
    return PixelGoals(Strict(), resolution, proprio=lambda seen: seen[:1])


def towards(observation: dict[str, np.ndarray], goal: dict[str, Any]) -> np.ndarray:
    return goal["proprio"][:1] - observation["proprio"][:1]


@pytest.mark.parametrize("name", ["Dot", "Nested", "OwnGoal", "Strict"])
@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space")
@pytest.mark.filterwarnings("ignore:.*(Box observation space.*inf|not having a spec)")
@pytest.mark.filterwarnings("error")
def test_what_is_wrapped_follows_gymnasium(name: str) -> None:
    env = envs.make(f"{HERE}:{name}", resolution=None)
    assert isinstance(env, envs.GoalEnv) and env.name == f"{HERE}:{name}"
    check_env(env)
    assert env.instruction is None
    env.env.unwrapped.instruction = "to the right"
    assert env.instruction == "to the right"
    assert env.render().shape == (20, 40, 3) and env.metadata["render_fps"] == 20 and env.frameskip == 5
    env.close()
    assert env.env.closed


def test_pictures_and_numbers_are_found() -> None:
    drawn, _ = envs.make(f"{HERE}:Dot").reset(seed=1)
    nested = envs.make(f"{HERE}:Nested")
    seen, _ = nested.reset(seed=1)
    np.testing.assert_array_equal(seen["pixels"], drawn["pixels"])  # 20 px are fewer than asked for
    assert drawn["proprio"].tolist()[1:] == [7.0]
    assert seen["proprio"].dtype == np.float32
    assert dict(zip(nested.proprio_names, seen["proprio"], strict=True)) == pytest.approx(
        {"gear0": 0, "gear1": 1, "gear2": 0, "joint": drawn["proprio"][0]}
    )
    small, _ = envs.make(f"{HERE}:Nested", resolution=16, proprio=["joint"]).reset(seed=1)
    assert small["pixels"].shape == (16, 32, 3) and small["proprio"].shape == (1,)
    blind, _ = envs.make(f"{HERE}:Blind").reset(seed=1)
    np.testing.assert_array_equal(blind["pixels"], drawn["pixels"])
    assert blind["proprio"].tolist() == [0.0]


def test_a_goal_lies_ahead_and_is_the_same_by_seed() -> None:
    env, twin = (envs.make(f"{HERE}:Dot") for _ in range(2))
    plain, _ = twin.reset(seed=4)
    start, info = env.reset(seed=4, options={"goal_offset": 10})
    np.testing.assert_array_equal(start["pixels"], plain["pixels"])  # the episode itself is as without
    assert not info["is_success"]  # what the environment says is about another goal
    goal = env.goal_observation()
    first = info["distance"]["proprio"]
    for _ in range(10):
        observation, reward, _, _, info = env.step(towards(start, goal) / 10)
        if info["is_success"]:
            break
        start = observation
    assert info["is_success"] and info["distance"]["proprio"] < 0.5 < first and reward == 0.5
    twin.reset(seed=4, options={"goal_offset": 10})
    np.testing.assert_array_equal(twin.goal_observation()["pixels"], goal["pixels"])
    env.reset(seed=5, options={"goal_offset": 10})
    assert not np.array_equal(env.goal_observation()["proprio"], goal["proprio"])
    env.reset(seed=4)
    with pytest.raises(UserError, match=r"shows no goal of its own: begin with .*goal_offset"):
        env.goal_observation()


def test_goals_are_seen_under_a_policy_of_ones_own() -> None:
    env = PixelGoals(Dot(), policy=lambda observation: np.array([0.5], np.float32))
    start, _ = env.reset(seed=0, options={"goal_offset": 8})
    assert env.goal_observation()["proprio"][0] == pytest.approx(start["proprio"][0] + 4, abs=1e-5)
    short = PixelGoals(Restless(), policy=lambda observation: np.array([0.5], np.float32))
    start, _ = short.reset(seed=0, options={"goal_offset": 8})  # an episode of three steps
    assert short.goal_observation()["proprio"][0] == pytest.approx(start["proprio"][0] + 1.5, abs=1e-5)


def test_its_own_goal_and_success_count() -> None:
    env = envs.make(f"{HERE}:OwnGoal")
    observation, info = env.reset(seed=0)
    assert env.goal_observation()["proprio"].tolist() == [30, 7] and not info["is_success"]
    for _ in range(20):
        observation, _, _, _, info = env.step(np.array([9.0]))  # clipped to 2
        assert info["is_success"] == (abs(observation["proprio"][0] - 30) < 3)
    env.reset(seed=0, options={"goal_offset": 4})
    assert env.goal_observation()["proprio"][0] != 30


def test_a_rule_of_ones_own_sees_the_environments_observations() -> None:
    for env in (envs.make(f"{HERE}:Strict"), PixelGoals(Dot(), success=Strict().is_success)):
        start, _ = env.reset(seed=0, options={"goal_offset": 10})
        goal = env.goal_observation()
        aim = float(towards(start, goal)[0])
        infos = [env.step(np.array([aim / 8]))[-1] for _ in range(8)]
        assert [info["is_success"] for info in infos] == [False] * 7 + [True]


def test_goals_are_given_as_pictures_or_observations() -> None:
    env = envs.make(f"{HERE}:Dot", resolution=16)
    picture = np.zeros((20, 40, 3), np.uint8)
    with pytest.raises(UserError, match=r"nothing says when a goal .*: give it a method is_success"):
        env.reset(seed=0, options={"goal": picture})
    seeing = PixelGoals(Dot(), 16, success=lambda seen, goal: bool(goal.max()) and seen[0] > 30)
    seeing.reset(seed=0, options={"goal": picture, "speed": 3})
    assert set(seeing.goal_observation()) == {"pixels"}
    assert seeing.goal_observation()["pixels"].shape == (16, 32, 3)
    assert seeing.env.options == {"speed": 3}  # what is not ours goes on to the environment
    start, _ = env.reset(seed=0, options={"goal": {"pixels": picture, "proprio": np.array([30.0, 7.0])}})
    for _ in range(15):
        start, _, _, _, info = env.step(towards(start, env.goal_observation()))
    assert info["is_success"] and info["distance"]["proprio"] < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Unbounded", {}, "has actions without bounds: wrap it in gymnasium's RescaleAction"),
        ("Dot", {"render_mode": None}, "shows no picture: neither does it observe one"),
        ("Nested", {"pixels": "front"}, "observes no picture 'front': choose cameras/top, render"),
        ("Nested", {"proprio": ["arm"]}, "observes no numbers 'arm': choose of .*joint"),
        ("Dot", {"resolution": 8}, "resolution must be a whole number from 16 to 2048"),
        ("Dot", {"colour": "red"}, "takes other options .*colour"),
        ("towards", {}, "takes other options"),
        ("HERE", {}, "makes no Gymnasium environment"),
        ("Dotty", {}, r"no environment at .*Dotty.*PYTHONPATH"),
    ],
)
def test_what_cannot_be_wrapped_is_one_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        envs.make(f"{HERE}:{name}", **options)


def test_goals_that_cannot_be_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"does not start .*Dot in the same way twice"):
        envs.make(f"{HERE}:Dot", seeded=False).reset(seed=0, options={"goal_offset": 5})
    with pytest.raises(UserError, match=r"nothing says when a goal of .*Blind is reached"):
        envs.make(f"{HERE}:Blind").reset(seed=0, options={"goal_offset": 5})
    with pytest.raises(UserError, match="goal_offset must be at least 1"):
        envs.make(f"{HERE}:Dot").reset(seed=0, options={"goal_offset": 0})
    still = PixelGoals(Strict(), policy=lambda observation: np.zeros(1, np.float32))
    with pytest.raises(UserError, match=r"goals 5 steps ahead .* are reached at the start already"):
        still.reset(seed=0, options={"goal_offset": 5})


def test_gymnasiums_own_environments_are_made_by_their_ids() -> None:
    env = envs.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos")
    observation, info = env.reset(seed=0, options={"goal_offset": 10})
    assert observation["pixels"].shape == (96, 96, 3) and env.proprio_names == ("agent_pos0", "agent_pos1")
    assert not info["is_success"] and env.action_space.high.tolist() == [512, 512]
    assert envs.max_episode_steps("gym_pusht/PushT-v0") == 300
    assert envs.make("gym_pusht:gym_pusht/PushT-v0").name == "gym_pusht:gym_pusht/PushT-v0"
    with pytest.raises(UserError, match=r"Discrete.* only a Box of floating point"):
        envs.make("CartPole-v1")
    with pytest.raises(UserError, match=r"unknown environment 'Pendulun-v1'\. Did you mean 'Pendulum-v1'"):
        envs.make("Pendulun-v1")


def test_names_of_plugins_functions_and_classes() -> None:
    envs.ENVIRONMENTS.register("dot", Strict)
    assert envs.make("dot").name == "dot" and isinstance(envs.make("dot").env, Strict)
    made = envs.make(f"{HERE}:factory", resolution=18)
    assert made.name == f"{HERE}:factory" and made.reset(seed=0)[0]["pixels"].shape == (18, 36, 3)
    assert envs.max_episode_steps("dot") == 100 and envs.max_episode_steps("sparsewm/PushT-v0") == 150
    assert envs.canonical("sparsewm/pusht-v0") == "pusht" and envs.canonical("my:Env") == "my:Env"
    with pytest.raises(UserError, match="needs a simulator"):
        envs.make_simulated("dot")
    assert envs.make_simulated("wall", resolution=16).resolution == 16
