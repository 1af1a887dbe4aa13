"""The encoder oracle's cost: token distance of the picture of a state, on a random subset of tokens.

A planner with the true dynamics and this cost misses what no world model on the encoder can reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsewm.encoders import PatchEncoder
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.model.drop import kept_patches
from sparsewm.model.latent import Standardizer, gather_patches, random_patches


class TokenDistance:
    """Mean squared error of rendered states to the goal: of tokens, plus alpha times that of proprioception.

    Args:
        env: renders states. encoder: frozen. standardizer: as in a world model.
        goals: goal states. drop: fraction of patches dropped, redrawn at every `resample`.
        alpha: weight of proprioception. generator: source of the masks.
    """

    def __init__(
        self,
        env: SimulatedGoalEnv,
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
