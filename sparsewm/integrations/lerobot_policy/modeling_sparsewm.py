"""A policy whose `select_action` is the agent, for LeRobot's evaluation and recording loops."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.data.frames import resized
from sparsewm.errors import UserError
from sparsewm.integrations.lerobot_policy.configuration_sparsewm import SparseWMConfig
from sparsewm.integrations.lerobot_policy.processor_sparsewm import make_sparsewm_pre_post_processors
from sparsewm.proposals.version import lerobot_imports
from sparsewm.trees import differences, read_yaml

with lerobot_imports("policies for LeRobot's loops"):
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.utils.constants import OBS_IMAGE, OBS_IMAGES


_HERE = {"run.seed", "run.letterbox", "run.adapt", "run.memory_gb", "run.imagine"}
"""Settings of `run` that act in LeRobot's loops."""

_ROUNDING = 0.01
"""By which pictures that were resized may leave [0, 1]."""


class SparseWMPolicy(PreTrainedPolicy):
    """Plans in a world model towards a goal that is seen in a picture file or in the observations.

    `reset` begins an episode, of which the next observation shows the start, and the goal unless a file does.
    Plans are executed as the agent's settings say; observations between two plans become its past frames.
    Actions that were returned count as executed when the next observation comes.

    Args:
        config: checkpoint, goal, and the names of observations.
        agent: acts; made from the configuration when left out.

    Raises:
        UserError: no such checkpoint, goal or setting.
    """

    config_class = SparseWMConfig
    name = "sparsewm"

    def __init__(self, config: SparseWMConfig, agent: Agent | None = None, **_: Any) -> None:
        super().__init__(config)
        self.goal = None if config.goal is None else {"pixels": read_picture(config.goal)}
        if self.goal is not None and config.goal_proprio is not None:
            self.goal["proprio"] = np.asarray(config.goal_proprio, np.float32)
        if agent is None:
            given = {} if config.plan is None else _read_plan(config.plan)
            leaves = {"drop": config.drop, "deadline_ms": config.deadline_ms, "seed": config.seed}
            agent = Agent.from_pretrained(config.checkpoint, device=str(config.device), **given)
            changes = {name: value for name, value in leaves.items() if value is not None}
            agent = Agent(agent.model, agent.config.updated(imagine=False, **changes))
        self.agent = agent
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: SparseWMConfig | None = None, **options: Any
    ) -> SparseWMPolicy:
        """The policy of a saved configuration; the world model comes from its checkpoint."""
        if config is None:
            config = SparseWMConfig.from_pretrained(pretrained_name_or_path, **options)
        return cls(config).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        self.config._save_pretrained(save_directory)
        for pipeline in make_sparsewm_pre_post_processors(self.config):
            pipeline.save_pretrained(save_directory)

    def reset(self) -> None:
        """Begin new episodes."""
        self._waiting: list[deque[np.ndarray]] | None = None  # actions of each episode that are still to come
        self._returned = 0  # actions of each episode that the last call returned

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """The next action of each episode (B, A), raw units.

        Args:
            batch: observations by LeRobot's names: pictures (B, 3, H, W), float32 in [0, 1] or uint8, numbers
                (B, P).

        Raises:
            UserError: the goal, the pictures or the proprioception are not among them, or of another size or
                range, or the goal's is known of some episodes only.
        """
        with torch.inference_mode(False):  # gradient descent plans, too
            return self._select(batch)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """The beginnings of new plans (B, n, A), as many actions as the shortest has, raw units.

        All of them count as executed when the next observation comes, here or in `select_action`. What an
        earlier plan had left for `select_action` is forgotten.

        Args:
            batch: as of `select_action`.

        Raises:
            UserError: as of `select_action`.
        """
        with torch.inference_mode(False):
            seen = self._shown(batch)
            chunks = self.agent.act(seen)
            self._waiting = [deque() for _ in chunks]
            self._returned = min(len(chunk) for chunk in chunks)
            return torch.from_numpy(np.stack([chunk[: self._returned] for chunk in chunks]))

    def _select(self, batch: dict[str, Tensor]) -> Tensor:
        seen = self._shown(batch)
        assert self._waiting is not None
        empty = [i for i, actions in enumerate(self._waiting) if not actions]
        if empty:
            for i, actions in zip(empty, self.agent.act(_rows(seen, empty), active=empty), strict=True):
                self._waiting[i].extend(actions)
        self._returned = 1
        return torch.from_numpy(np.stack([actions.popleft() for actions in self._waiting]))

    def _shown(self, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """What is seen now, after the agent was told that the returned actions were executed."""
        seen = self._observed(batch)
        if self._waiting is None:
            self._begin(batch, seen)
        for i in range(len(seen["pixels"])):
            for left in range(self._returned - 1, -1, -1):  # nobody looked before the last
                self.agent.observe(None if left else _rows(seen, i), episode=i)
        self._returned = 0
        return seen

    def _begin(self, batch: dict[str, Tensor], seen: dict[str, np.ndarray]) -> None:
        """Take over the goal of each episode."""
        config, episodes = self.config, len(seen["pixels"])
        if self.goal is not None:
            goal = {name: np.repeat(value[None], episodes, 0) for name, value in self.goal.items()}
        else:
            if config.goal_image_key not in batch:
                raise UserError(
                    f"no goal: give a picture file as `goal`, or observe it as '{config.goal_image_key}' "
                    f"(`goal_image_key`); observed are {', '.join(sorted(batch))}"
                )
            goal = {"pixels": _pictures(batch[config.goal_image_key])}
            if config.goal_state_key in batch:
                numbers = _numbers(batch[config.goal_state_key])
                known = np.isfinite(numbers).all(1)
                if known.any() and not known.all():
                    raise UserError(
                        f"'{config.goal_state_key}' is known of some episodes of the batch, not of others: "
                        "give it for all of them or for none (`goal_state_key`)"
                    )
                if known.all():
                    goal["proprio"] = numbers
        self.agent.reset(goal)
        self._waiting = [deque() for _ in range(episodes)]

    def _observed(self, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Pictures uint8 (B, H, W, 3) and proprioception (B, P) of what LeRobot observed."""
        keys = self.config.image_keys or self._cameras(batch)
        missing = [key for key in keys if key not in batch]
        if missing:
            raise UserError(f"'{missing[0]}' is not observed; observed are {', '.join(sorted(batch))}")
        parts = [_pictures(batch[key]) for key in keys]
        height = parts[0].shape[1]  # as recorded data of several cameras is shown
        widths = [max(1, round(part.shape[2] * height / part.shape[1])) for part in parts]
        parts = [resized(part, height, width) for part, width in zip(parts, widths, strict=True)]
        seen = {"pixels": np.concatenate(parts, 2)}
        if self.config.state_key in batch:
            seen["proprio"] = _numbers(batch[self.config.state_key])
        return seen

    def _cameras(self, batch: dict[str, Tensor]) -> list[str]:
        named = [f"{OBS_IMAGES}.{camera}" for camera in self.agent.interface.cameras]
        if len(named) > 1 or (named and named[0] in batch):
            return named
        if OBS_IMAGE in batch:
            return [OBS_IMAGE]
        goal = self.config.goal_image_key
        found = sorted(key for key in batch if key.startswith(f"{OBS_IMAGES}.") and key != goal)
        if len(found) != 1:
            raise UserError(
                f"say with `image_keys` which cameras the world model was trained on; observed are "
                f"{', '.join(found) or 'none'}"
            )
        return found

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """LeRobot does not train this policy."""
        raise NotImplementedError("a planning policy is not trained by LeRobot: sparsewm train")

    def get_optim_params(self) -> dict[str, Any]:
        """Nothing is trained."""
        return {}


def read_picture(path: str | Path) -> np.ndarray:
    """A picture file as uint8 (H, W, 3).

    Raises:
        UserError: no picture there.
    """
    import imageio.v3 as iio

    try:
        return np.asarray(iio.imread(path, mode="RGB"), np.uint8)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no readable picture ({error}): give a PNG or JPEG file") from None


def _read_plan(path: str) -> dict[str, Any]:
    """Settings of a plan, by section or leaf.

    Raises:
        UserError: no readable file, no such setting, or one that nothing here reads.
    """
    given = read_yaml(path)
    changed = [name for name, _ in differences(PlanConfig().updated(**given), PlanConfig())]
    for name in ["env"] * ("env" in given) + changed:
        if name == "env" or name.startswith("goal.") or (name.startswith("run.") and name not in _HERE):
            raise UserError(
                f"{path} sets {name}, which LeRobot's loops do not read: leave it out; the policy has "
                "`checkpoint` and `device` of its own"
            )
    return given


def _rows(seen: dict[str, np.ndarray], rows: int | list[int]) -> dict[str, np.ndarray]:
    return {name: value[rows] for name, value in seen.items()}


def _pictures(pictures: Tensor) -> np.ndarray:
    """LeRobot's pictures (B, 3, H, W) as uint8 (B, H, W, 3), the numbers they were made from.

    Raises:
        UserError: neither uint8 nor numbers in [0, 1], or of another shape.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise UserError(f"pictures have shape (B, 3, H, W), got {tuple(pictures.shape)}: move the channels")
    if pictures.dtype != torch.uint8:
        low, high = float(pictures.min()), float(pictures.max())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise UserError(
                f"pictures are uint8, or numbers from 0 to 1, got {low:g} to {high:g}: divide by 255, and do "
                "not standardise them"
            )
        pictures = (pictures.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return pictures.movedim(1, -1).cpu().numpy()


def _numbers(values: Tensor) -> np.ndarray:
    return np.asarray(values.float().cpu().numpy(), np.float32)
