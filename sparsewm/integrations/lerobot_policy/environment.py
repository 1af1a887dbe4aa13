"""Environments of ours for LeRobot's evaluation: `--env.type=sparsewm --env.task=pusht`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sparsewm import envs
from sparsewm.proposals.version import lerobot_imports

with lerobot_imports("environments for LeRobot's loops"):
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.envs.configs import EnvConfig
    from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGES, OBS_STATE

ID = "sparsewm/LeRobot-v0"


class LeRobotView(gym.Wrapper[Any, Any, Any, Any]):
    """An environment as LeRobot observes one: `pixels` of a camera and of the goal, `agent_pos` (P,).

    The goal's proprioception, NaN where nobody knows it, is the `environment_state`. An episode terminates at
    success: LeRobot asks for it at an episode's end alone.
    """

    def __init__(self, env: envs.GoalEnv) -> None:
        super().__init__(env)
        parts = dict(env.observation_space.items())  # type: ignore[attr-defined]  # a Dict, as `GoalEnv` says
        picture, proprio = parts["pixels"], parts["proprio"]
        pixels = spaces.Dict({"camera": picture, "goal": picture})
        self.observation_space = spaces.Dict(
            {"pixels": pixels, "agent_pos": proprio, "environment_state": proprio}
        )

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        self._goal = self.env.unwrapped.goal_observation()  # type: ignore[attr-defined]
        return self._shown(observation), {"is_success": bool(info["is_success"])}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        success = bool(info["is_success"])
        return self._shown(observation), reward, terminated or success, truncated, {"is_success": success}

    def _shown(self, observation: Any) -> dict[str, Any]:
        proprio = observation["proprio"]
        return {
            "pixels": {"camera": observation["pixels"], "goal": self._goal["pixels"]},
            "agent_pos": proprio,
            "environment_state": np.asarray(self._goal.get("proprio", np.nan * proprio), proprio.dtype),
        }


def make(task: str, **options: Any) -> LeRobotView:
    """The environment called `task`, as LeRobot observes one."""
    return LeRobotView(envs.make(task, **options))


if ID not in gym.registry:
    gym.register(ID, entry_point="sparsewm.integrations.lerobot_policy.environment:make")


@EnvConfig.register_subclass("sparsewm")
@dataclass
class SparseWMEnv(EnvConfig):
    """An environment of `sparsewm.envs` in LeRobot's evaluation.

    Attributes:
        task: its name.
        episode_length: environment steps of an episode; its own when left out.
        resolution: side of the pictures.
    """

    task: str | None = "pusht"
    fps: int = 10
    episode_length: int | None = None
    resolution: int = 112

    def __post_init__(self) -> None:
        env = envs.make(str(self.task))
        if self.episode_length is None:
            self.episode_length = envs.max_episode_steps(str(self.task))
        (actions,), (numbers,) = env.action_space.shape, env.observation_space["proprio"].shape  # type: ignore[index]
        picture = PolicyFeature(type=FeatureType.VISUAL, shape=(self.resolution, self.resolution, 3))
        self.features = {
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(actions,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(numbers,)),
            "environment_state": PolicyFeature(type=FeatureType.ENV, shape=(numbers,)),
            "pixels/camera": picture,
            "pixels/goal": picture,
        }
        self.features_map = {
            ACTION: ACTION,
            "agent_pos": OBS_STATE,
            "environment_state": OBS_ENV_STATE,
            "pixels/camera": f"{OBS_IMAGES}.camera",
            "pixels/goal": f"{OBS_IMAGES}.goal",
        }

    @property
    def package_name(self) -> str:
        """What registers it."""
        return __name__

    @property
    def gym_id(self) -> str:
        """Its name in Gymnasium."""
        return ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """What it is made from."""
        return {"task": self.task, "resolution": self.resolution, "max_episode_steps": self.episode_length}
