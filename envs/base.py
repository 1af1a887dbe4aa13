"""What the closed loop asks of an environment: any that has a goal one can see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Observation = dict[str, np.ndarray]


class GoalEnv(gym.Env[Observation, np.ndarray], ABC):
    """A Gymnasium environment seen in pictures, with a goal that can be seen, too.

    Observations are `{"pixels": uint8 (H, W, 3), "proprio": float32 (P,)}`, P at least 1; actions a finite
    `Box` (A,). The `info` of `reset` and `step` holds `is_success`: whether the goal is reached now. It may
    hold `distance`, a dict of floats that say how far away the goal is (for reports), and `state`, an array
    (D,) that recordings keep. `reset(seed=s)` starts the same episode each time.

    A subclass gives `observation_space`, `action_space`, `reset`, `step` and `goal_observation`. What is an
    ordinary Gymnasium environment needs no subclass: `sparsewm.envs.make` wraps it.
    """

    name: str  # as it is made and reported
    frameskip: int = 5  # environment steps per model step
    action_space: spaces.Box

    @abstractmethod
    def goal_observation(self) -> dict[str, Any]:
        """What one would observe at the goal of this episode; "proprio" may be missing."""
