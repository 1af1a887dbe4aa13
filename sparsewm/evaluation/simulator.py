"""The simulator as a planning problem: the oracle of every success table and the gate of every encoder.

Both plan with the true dynamics. The *oracle* scores states by their true distance to the goal: what it
misses, the planner misses. The *encoder oracle* scores the picture of the last state by token distance, on
a random subset of tokens: what it misses beyond the oracle, no world model on that encoder can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparsewm.encoders import PatchEncoder
from sparsewm.envs import GoalEnv
from sparsewm.model.drop import kept_patches
from sparsewm.model.latent import Standardizer, gather_patches, random_patches


class StateCost(Protocol):
    """Scores states that candidates lead to: (B, S, state_dim) -> (B, S)."""

    def resample(self) -> None: ...

    def __call__(self, states: np.ndarray) -> Tensor: ...


class TrueDistance:
    """The environment's own distance to each episode's goal."""

    def __init__(self, env: GoalEnv, goals: Sequence[np.ndarray]) -> None:
        self.env, self.goals = env, list(goals)

    def resample(self) -> None:
        """Nothing to draw."""

    def __call__(self, states: np.ndarray) -> Tensor:
        costs = [self.env.shortfall(rows, goal) for rows, goal in zip(states, self.goals, strict=True)]
        return torch.as_tensor(np.stack(costs), dtype=torch.float32)


class TokenDistance:
    """Mean squared error of rendered states to the goal: of tokens, plus alpha times that of proprioception.

    Args:
        env: renders states. encoder: frozen. standardizer: as in a world model.
        goals: goal states. drop: fraction of patches dropped, redrawn at every `resample`.
        alpha: weight of proprioception. generator: source of the masks.
    """

    def __init__(
        self,
        env: GoalEnv,
        encoder: PatchEncoder,
        standardizer: Standardizer,
        goals: Sequence[np.ndarray],
        drop: float,
        alpha: float,
        generator: torch.Generator,
    ) -> None:
        self.env, self.encoder, self.standardizer = env, encoder, standardizer
        self.drop, self.alpha, self.generator = drop, alpha, generator
        self.goal_tokens, self.goal_proprio = self._observe(np.stack(list(goals)))
        self.resample()

    def resample(self) -> None:
        kept = kept_patches(self.encoder.tokens, self.drop)
        self.patches = random_patches(len(self.goal_tokens), self.encoder.tokens, kept, self.generator)

    @torch.inference_mode()
    def _observe(self, states: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels = self.env.render_states(states)
        dtype = next(self.encoder.parameters()).dtype
        parts = [
            self.encoder.encode(part).patches.to(dtype)
            for part in np.array_split(pixels, -(-len(pixels) // 128))
        ]
        proprio = np.stack([self.env.proprio_of(state) for state in states])
        return self.standardizer.tokens(torch.cat(parts)), self.standardizer.proprio(torch.as_tensor(proprio))

    @torch.inference_mode()
    def __call__(self, states: np.ndarray) -> Tensor:
        b, s = states.shape[:2]
        tokens, proprio = self._observe(states.reshape(b * s, -1))
        kept = gather_patches(tokens.unflatten(0, (b, s)), self.patches)
        goal = gather_patches(self.goal_tokens, self.patches)[:, None]
        cost = self.standardizer.token_error(kept, goal)
        if self.alpha:
            cost = cost + self.alpha * (
                proprio.unflatten(0, (b, s)) - self.goal_proprio[:, None]
            ).square().mean(-1)
        return cost.clone()


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
        env: GoalEnv,
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
