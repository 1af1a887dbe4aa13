"""The world models that are timed: of a checkpoint, or of a preset's sizes with random weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsewm.encoders import PatchEncoder, ViT, load_encoder, weights_hash
from sparsewm.envs import GoalEnv
from sparsewm.evaluation.actors import interface_of_env
from sparsewm.model import PredictorConfig, WorldModel, load
from sparsewm.model.checkpoint import pretrained_path
from sparsewm.training.config import preset


def bench_model(
    env: GoalEnv, checkpoint: Path | None, device: torch.device, dtype: torch.dtype, **files: Any
) -> WorldModel:
    """A checkpoint, or the shipped model; `files` as `load` takes them for its encoder."""
    return load(checkpoint or pretrained_path(env.name), device, dtype, environment=env.name, **files)


def random_model(env: GoalEnv, name: str, device: torch.device, dtype: torch.dtype, seed: int) -> WorldModel:
    """A world model of a preset's sizes with random weights.

    Args:
        name: of the preset. `default` has the shipped encoder, 64 tokens of 64 features; others a random
            one of DINO's sizes, 196 of 384.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        interface = interface_of_env(env)
        encoder = load_encoder(picture=interface.picture) if name == "default" else _large_encoder()
        sizes = interface.proprio_dim, interface.action_dim * env.frameskip
        config = PredictorConfig(encoder.dim, encoder.grid, *sizes, **asdict(preset(name).model))
        model = WorldModel(encoder, config, env.name, env.frameskip, {"interface": interface.to_dict()})
        fill(model.predictor)
    model.eval().requires_grad_(False)
    return model.place(device, dtype)


def fill(network: nn.Module) -> None:
    """Move every weight by a small random number.

    A new predictor has dozens of tensors of zeros, which training fills. With them nothing changes from frame
    to frame, and what depends on the numbers, such as denormal ones, never comes up.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def _large_encoder() -> PatchEncoder:
    """196 tokens of 384 features."""
    encoder = ViT(resolution=224, patch=16, width=384, depth=12, heads=6, dim=384)
    encoder.name, encoder.hash = "random", weights_hash(encoder)
    encoder.freeze()
    return encoder
