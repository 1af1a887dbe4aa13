"""What the closed loop asks of an environment: any that has a goal one can see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Observation = dict[str, np.ndarray]

_LONGEST = 4  # model steps for which a random action is held


class GoalEnv(gym.Env[Observation, np.ndarray], ABC):
    """A Gymnasium environment seen in pictures, with a goal that can be seen, too.

    Observations are `{"pixels": uint8 (H, W, 3), "proprio": float32 (P,)}`, P at least 1; actions a finite
    `Box` (A,). The `info` of `reset` and `step` holds `is_success`: whether the goal is reached now. It may
    hold `distance`, a dict of floats that say how far away the goal is (for reports), and `state`, an array
    (D,) that recordings keep. `reset(seed=s)` starts the same episode each time.

    A subclass gives `observation_space`, `action_space`, `reset`, `step` and `goal_observation`. An ordinary
    Gymnasium environment needs no subclass: `sparsewm.envs.make` wraps it in `PixelGoals`.
    """

    name: str  # by which `sparsewm.envs.make` makes it
    frameskip: int = 5  # environment steps per model step
    proprio_names: tuple[str, ...] = ()  # P of them, if they have any
    instruction: str | None = None  # the present task in words, for policies that read a sentence
    action_space: spaces.Box

    @abstractmethod
    def goal_observation(self) -> dict[str, Any]:
        """What one would observe at the goal of this episode; "proprio" may be missing."""

    def exploration(self, rng: np.random.Generator) -> Callable[[Observation], np.ndarray]:
        """A policy for recordings, from observation to action (A,); all its randomness comes from `rng`.

        By default random actions, each held for one to four model steps.
        """
        space = self.action_space
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        held: np.ndarray = low
        left = 0

        def act(observation: Observation) -> np.ndarray:
            nonlocal held, left
            if not left:
                held = rng.uniform(low, high).astype(np.float32)
                left = self.frameskip * int(rng.integers(1, _LONGEST + 1))
            left -= 1
            return held

        return act

    def idle_action(self) -> np.ndarray:
        """The action float32 (A,) that changes least: zero, or the nearest the bounds allow."""
        return np.clip(0, self.action_space.low, self.action_space.high).astype(np.float32)

    @property
    def action_dim(self) -> int:
        """Size A of an action."""
        return int(self.action_space.shape[0])
