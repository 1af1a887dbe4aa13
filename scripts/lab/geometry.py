"""Cost geometry: does token error rise with the distance of states, and which objects does it count?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.bodies import is_angle
from sparsewm.data import token_statistics
from sparsewm.encoders import PatchEncoder
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.envs.table import TableEnv
from sparsewm.evaluation.statistics import spearman
from sparsewm.model.drop import kept_patches


@torch.inference_mode()
def encode_states(env: SimulatedGoalEnv, encoder: PatchEncoder, states: np.ndarray) -> Tensor:
    """Raw patch tokens float32 (K, N, D) of rendered states (K, state_dim)."""
    parts = [
        encoder.encode(env.render_states(states[i : i + 128])).patches.float()
        for i in range(0, len(states), 128)
    ]
    return torch.cat(parts)


def cost_geometry(
    env: SimulatedGoalEnv,
    encoder: PatchEncoder,
    drops: tuple[float, ...] = (0.0, 0.5, 0.8),
    states: int = 512,
    seed: int = 0,
) -> dict[str, Any]:
    """Token error against true distance to goals, in the tokens that plans are scored in.

    For 16 random goals, all states are ranked by token error on one random subset and by true distance
    (`GoalEnv.shortfall`); the result is the mean rank correlation, over all states and over the nearer and
    the farther half.

    Returns:
        ``{"drop_0": {"all": r, "near": r, "far": r}, ...}``.
    """
    env.reset(seed=seed)
    points = np.stack([env.sample_state() for _ in range(states + 16)])
    tokens = encode_states(env, encoder, points)
    statistics = token_statistics(tokens)
    tokens = (tokens - statistics["token_mean"]) @ statistics["token_map"]
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


def movable_parts(env: SimulatedGoalEnv) -> dict[str, list[int]]:
    """Columns of the state that belong to one object or angle, by name; particles are one object."""
    if isinstance(env, TableEnv):
        return {"particles": list(range(env.state_dim - 2))}
    parts: dict[str, list[int]] = {}
    for column, name in enumerate(env.state_names):
        *owner, last = name.split("_")
        if last in ("x", "y"):
            parts.setdefault("_".join(owner) or "position", []).append(column)
        elif last == "angle":
            parts[name] = [column]
    return parts  # velocities are not in a picture


def token_sensitivity(
    env: SimulatedGoalEnv,
    encoder: PatchEncoder,
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4),
    states: int = 96,
    seed: int = 0,
) -> dict[str, Any]:
    """How much token error a displacement of one object alone makes, all tokens, standardised.

    What barely counts here is what planning by token error neglects, however exact the world model is.

    Args:
        shares: displacements, in deviations of the object over random states (angles: in deviations of a
            uniform angle), in random directions.

    Returns:
        ``{"block": {"moved": [...], "error": [...]}, ...}``, displacements in the state's units.
    """
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    points = np.stack([env.sample_state() for _ in range(states)])
    tokens = encode_states(env, encoder, points)
    token_map = token_statistics(tokens)["token_map"]
    result: dict[str, Any] = {}
    for name, columns in movable_parts(env).items():
        angle = is_angle(name)
        scale = np.pi / np.sqrt(3) if angle else float(points[:, columns[:2]].std(0).mean())
        result[name] = {"moved": [], "error": []}
        for share in shares:
            ways = rng.uniform(0, 2 * np.pi, states)
            offset = np.sign(np.cos(ways))[:, None] if angle else np.stack([np.cos(ways), np.sin(ways)], 1)
            moved = points.copy()
            moved[:, columns] += share * scale * np.tile(offset, len(columns) // offset.shape[1])
            usable = [row for row, state in enumerate(moved) if _possible(env, state)]
            change = (encode_states(env, encoder, moved[usable]) - tokens[usable]) @ token_map
            result[name]["moved"].append(round(share * scale, 4))
            result[name]["error"].append(round(float(change.square().mean()), 4))
    return result


def _possible(env: SimulatedGoalEnv, state: np.ndarray) -> bool:
    try:
        env.render_state(state)
    except ValueError:
        return False
    return True
