"""The simulator as a planning problem: the oracle of every success table.

It plans with the true dynamics and scores states by their true distance to the goal, or by another cost: what
it misses, the planner misses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparsewm.envs import SimulatedGoalEnv


class StateCost(Protocol):
    """Scores states that candidates lead to: (B, S, state_dim) -> (B, S)."""

    def resample(self) -> None: ...

    def __call__(self, states: np.ndarray) -> Tensor: ...


class TrueDistance:
    """The environment's own distance to each episode's goal."""

    def __init__(self, env: SimulatedGoalEnv, goals: Sequence[np.ndarray]) -> None:
        self.env, self.goals = env, list(goals)

    def resample(self) -> None:
        """Nothing to draw."""

    def __call__(self, states: np.ndarray) -> Tensor:
        costs = [self.env.shortfall(rows, goal) for rows, goal in zip(states, self.goals, strict=True)]
        return torch.as_tensor(np.stack(costs), dtype=torch.float32)


class SimulatorProblem:
    """`planners.PlanningProblem` whose dynamics is the environment itself.

    Args:
        env: simulates; its own state is left as it is.
        states: present states of B episodes.
        cost: scores final states.
        horizon: H, model steps (each `env.frameskip` environment steps).
        std: standard deviation of the first candidates, in action units (the world model's problem takes that
            of the data).
        action_repeat: plan one environment action per model step, as in `LatentProblem`.
        frame: "last" or "min" state, as in `LatentProblem`.
    """

    def __init__(
        self,
        env: SimulatedGoalEnv,
        states: Sequence[np.ndarray],
        cost: StateCost,
        horizon: int = 5,
        std: float = 0.5,
        action_repeat: bool = False,
        frame: str = "last",
    ) -> None:
        self.env, self.states, self._cost, self.frame = env, list(states), cost, frame
        self.batch, self.horizon = len(self.states), horizon
        low, high = torch.as_tensor(env.action_space.low), torch.as_tensor(env.action_space.high)
        repeat, self.repeats = (1, env.frameskip) if action_repeat else (env.frameskip, 1)
        self.action_dim = repeat * low.shape[0]
        self.low, self.high = low.repeat(repeat), high.repeat(repeat)
        self.mean = torch.zeros(horizon, self.action_dim)
        self.std = torch.full((horizon, self.action_dim), std)
        self.device = torch.device("cpu")

    def resample(self, iteration: int) -> None:
        self._cost.resample()

    def executed(self, actions: Tensor) -> Tensor:
        """Planned actions (..., H, action_dim) as what the environment executes (..., H, frameskip * A)."""
        return actions.repeat(*[1] * (actions.ndim - 1), self.repeats)

    def cost(self, actions: Tensor) -> Tensor:
        """(B, S, H, action_dim) -> (B, S)."""
        return self._costs(actions).amin(-1)

    def steps(self, actions: Tensor) -> Tensor:
        """How many model steps of (B, H, action_dim) to execute: up to the state that was scored (B,)."""
        if self.frame == "last":
            return torch.full((self.batch,), self.horizon)
        return self._costs(actions[:, None])[:, 0].argmin(-1) + 1

    def _costs(self, actions: Tensor) -> Tensor:
        """Costs (B, S, 1) of the last states, or (B, S, H) of those at the end of every model step."""
        actions = self.executed(actions)
        b, s, h, _ = actions.shape
        skip = self.env.frameskip
        sequences = actions.numpy().reshape(b, s, h * skip, -1)
        scored = slice(-1, None) if self.frame == "last" else slice(skip, None, skip)
        ends = np.stack(
            [self.env.rollout_states(x, a)[:, scored] for x, a in zip(self.states, sequences, strict=True)]
        )
        return torch.stack([self._cost(ends[:, :, t]) for t in range(ends.shape[2])], -1)
