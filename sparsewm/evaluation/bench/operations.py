"""Floating-point operations by formula: products and attention, a multiplication and an addition each.

L = M + 1 tokens of a frame (the kept patches and proprioception), W width, I features of all heads together,
D features of a token, P of proprioception, C of a model step's action, N patches.
"""

from __future__ import annotations

from torch import nn

from sparsewm.evaluation.bench.recipe import RecipeConfig
from sparsewm.model import PredictorConfig


def parameters(network: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(parameter.numel() for parameter in network.parameters())


def inner_width(config: PredictorConfig) -> int:
    """Features I of all heads together."""
    return config.heads * config.head_size


def rollout_operations(config: PredictorConfig, kept: int, horizon: int) -> float:
    """Of one candidate: every frame computed once, attending to the `history` last ones, itself included."""
    frames = [(1, 1, min(step + 1, config.history)) for step in range(horizon)]
    return _positions(config) + sum(_predictor(config, kept, *sizes) for sizes in frames)


def window_operations(config: PredictorConfig, kept: int, horizon: int) -> float:
    """Of one candidate with the same predictor: a window of frames computed anew at every step, all of its
    tokens in one masked attention."""
    total = _positions(config)
    for step in range(horizon):
        frames = min(step + 1, config.history)
        total += _predictor(config, kept, frames, frames, frames, ages=config.history)
    return total


def recipe_operations(config: RecipeConfig, kept: int, horizon: int) -> float:
    """Of one candidate of the published network: a window computed anew at every step."""
    return sum(recipe_window(config, kept, min(step + 1, config.history)) for step in range(horizon))


def recipe_window(config: RecipeConfig, kept: int, frames: int) -> float:
    """Of one window of the published network."""
    width, inner, rows = config.inside, config.heads * config.head_dim, frames * kept
    layer = 2 * rows * (4 * width * inner + 2 * width * config.mlp) + 4 * rows**2 * inner
    given = 2 * frames * config.embedded * (config.action_dim + config.proprio_dim)
    projections = 4 * rows * width * config.joined if config.width is not None else 0
    return config.depth * layer + given + projections


def step_operations(config: PredictorConfig, kept: int, frames: int, windows: int) -> float:
    """Of a training step: forward once, backward twice as much.

    Args:
        kept: tokens of a frame that are computed. frames: predicted ones of a window. windows: of the batch.
    """
    return 3 * (
        _positions(config) + windows * (rollout_operations(config, kept, frames) - _positions(config))
    )


def recipe_step_operations(config: RecipeConfig, tokens: int, windows: int) -> float:
    """Of a training step of the published recipe, likewise."""
    return 3 * windows * recipe_window(config, tokens, config.history)


def _positions(config: PredictorConfig) -> float:
    """Of the coordinates of all patches, embedded once per rollout."""
    rows, cols = config.grid
    return 2.0 * rows * cols * config.width**2


def _predictor(
    config: PredictorConfig, kept: int, frames: int, queries: int, keys: int, ages: int | None = None
) -> float:
    """Of `frames` frames through the predictor.

    Args:
        queries, keys: frames that attend at once, and frames that each of them is scored against.
        ages: numbers that tell a query how old keys are; one per frame in sight if None.
    """
    width, inner, length = config.width, inner_width(config), kept + 1
    rows = frames * length
    layer = 2 * rows * (4 * width * inner + 2 * width * config.mlp) + 2 * frames * 6 * width**2
    layer += 4 * queries * length * keys * length * inner
    layer += 2 * queries * length * inner * (keys if ages is None else ages)
    inputs = config.token_dim * kept + config.proprio_dim
    condition = (config.action_dim + config.proprio_dim + width) * width
    return config.depth * layer + 2 * frames * (2 * width * inputs + condition)
