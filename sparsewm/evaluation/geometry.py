"""Cost geometry: does token error keep rising with the distance of states, at each drop ratio?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs import GoalEnv
from sparsewm.encoders import PatchEncoder
from sparsewm.model.problem import kept_patches


@torch.inference_mode()
def encode_states(env: GoalEnv, encoder: PatchEncoder, states: np.ndarray) -> Tensor:
    """Raw patch tokens float32 (K, N, D) of rendered states (K, state_dim)."""
    parts = [
        encoder.encode(env.render_states(states[i : i + 128])).patches.float()
        for i in range(0, len(states), 128)
    ]
    return torch.cat(parts)


def ranks(values: np.ndarray) -> np.ndarray:
    order = np.empty(len(values))
    order[values.argsort()] = np.arange(len(values))
    return order


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two samples (K,) without ties."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def cost_geometry(
    env: GoalEnv,
    encoder: PatchEncoder,
    drops: tuple[float, ...] = (0.0, 0.5, 0.8),
    states: int = 512,
    seed: int = 0,
) -> dict[str, Any]:
    """Token error against true distance to goals, tokens standardised as a world model does.

    For 16 random goals, all states are ranked by token error on one random subset and by true distance
    (`GoalEnv.shortfall`); the result is the mean rank correlation, over all states and over the nearer and
    the farther half.

    Returns:
        ``{"drop_0": {"all": r, "near": r, "far": r}, ...}``.
    """
    env.reset(seed=seed)
    points = np.stack([env.sample_state() for _ in range(states + 16)])
    tokens = encode_states(env, encoder, points)
    mean = tokens.mean(0)
    tokens = (tokens - mean) / (tokens - mean).square().mean((0, 1)).sqrt().clamp_min(1e-6)
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, Any] = {}
    for drop in drops:
        sums: dict[str, list[float]] = {"all": [], "near": [], "far": []}
        for goal in range(16):
            subset = torch.randperm(encoder.tokens, generator=generator)[: kept_patches(encoder.tokens, drop)]
            error = (tokens[16:, subset] - tokens[goal, subset]).square().mean((1, 2)).numpy()
            distance = env.shortfall(points[16:], points[goal])
            near = distance < np.median(distance)
            sums["all"].append(spearman(error, distance))
            sums["near"].append(spearman(error[near], distance[near]))
            sums["far"].append(spearman(error[~near], distance[~near]))
        result[f"drop_{drop:g}"] = {name: round(float(np.mean(values)), 3) for name, values in sums.items()}
    return result
