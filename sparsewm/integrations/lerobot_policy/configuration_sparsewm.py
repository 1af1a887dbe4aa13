"""What a planning policy of LeRobot is set by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sparsewm.proposals.version import lerobot_imports

with lerobot_imports("policies for LeRobot's loops"):
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.utils.constants import OBS_ENV_STATE, OBS_IMAGES, OBS_STATE


@PreTrainedConfig.register_subclass("sparsewm")
@dataclass
class SparseWMConfig(PreTrainedConfig):
    """A world model, a goal, and where LeRobot's observations have both.

    Attributes:
        checkpoint: shipped world model, folder, or user/name on the hub.
        goal: picture file of the goal; without it the goal is observed under `goal_image_key`.
        goal_proprio: proprioception at the goal of the file; without it, it is left out of the cost.
        goal_image_key, goal_state_key: observations of the goal's picture and proprioception; the second may
            be missing, or NaN for all episodes where nobody knows it.
        image_keys: cameras from left to right, as the world model was trained on them; without it those that
            the world model names, else the only one.
        state_key: observation that holds the proprioception.
        drop, deadline_ms: fraction of dropped tokens, and milliseconds that a decision may take; the world
            model's settings where left out.
        plan: YAML file with other settings of `sparsewm.PlanConfig`: its search, cost, tokens and proposals,
            and of run seed, letterbox, adapt and memory_gb.
        seed: of candidates and dropped tokens; that of the plan, or 0, where left out.
    """

    checkpoint: str = "pusht"
    goal: str | None = None
    goal_proprio: list[float] | None = None
    goal_image_key: str = f"{OBS_IMAGES}.goal"
    goal_state_key: str = OBS_ENV_STATE
    image_keys: list[str] = field(default_factory=list)
    state_key: str = OBS_STATE
    drop: float | None = None
    deadline_ms: float | None = None
    plan: str | None = None
    seed: int | None = None

    @property
    def observation_delta_indices(self) -> None:
        """The agent remembers by itself."""

    @property
    def action_delta_indices(self) -> None:
        """No actions are asked of a dataset."""

    @property
    def reward_delta_indices(self) -> None:
        """No rewards either."""

    def validate_features(self) -> None:
        """What is missing of an observation is said when there is one."""

    def get_optimizer_preset(self) -> Any:
        """LeRobot does not train this policy."""
        raise NotImplementedError("a planning policy is not trained by LeRobot: sparsewm train")

    def get_scheduler_preset(self) -> None:
        """LeRobot does not train this policy."""
