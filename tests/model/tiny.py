"""A small world model with random weights everywhere, so that nothing is hidden behind a zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsewm.encoders.embedded import ViT
from sparsewm.model import Latent, LatentProblem, PredictorConfig, WorldModel
from sparsewm.model.decoder import DecoderConfig
from sparsewm.model.distance import DistanceConfig
from sparsewm.model.interface import Interface
from sparsewm.model.objectives import OBJECTIVES, TokenError
from sparsewm.planners.seeding import generator

HASH = "0123456789abcdef" * 4


def tiny_encoder(resolution: int = 56, weights_hash: str = HASH, seed: int = 0) -> ViT:
    """16 patches of 8 features at 56 pixels, 4 patches at 28."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ViT(resolution=resolution, patch=14, width=32, depth=1, heads=1, dim=8)
    encoder.name, encoder.hash = "embedded", weights_hash
    encoder.freeze()
    return encoder


def tiny_model(
    history: int = 3,
    frameskip: int = 2,
    environment: str = "wall",
    encoder: ViT | None = None,
    seed: int = 0,
    **sizes: Any,
) -> WorldModel:
    """A frozen world model of 2-d proprioception and 2-d actions, every parameter moved at random."""
    encoder = encoder or tiny_encoder()
    sizes = {"width": 32, "depth": 2, "heads": 2, "mlp": 48} | sizes
    config = PredictorConfig(encoder.dim, encoder.grid, 2, 2 * frameskip, history, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = DistanceConfig(16, 2, 6), DecoderConfig(width=16, layers=1, channels=4, side=28)
        interface = Interface(
            environment, encoder.resolution, (-1, -1), (1, 1), ("ax", "ay"), ("x", "y"), frameskip
        )
        metadata = {"note": "tiny", "interface": interface.to_dict()}
        model = WorldModel(encoder, config, environment, frameskip, metadata, *heads)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        model.standardizer.fit(
            {
                "token_mean": 0.2 * torch.randn(encoder.tokens, encoder.dim),
                "token_map": torch.diag(1 / (0.5 + torch.rand(encoder.dim))),
                "proprio_mean": torch.tensor([30.0, 20.0]),
                "proprio_std": torch.tensor([15.0, 10.0]),
                "action_mean": torch.tensor([0.1, -0.1]),
                "action_std": torch.tensor([0.5, 0.6]),
            }
        )
    model.eval().requires_grad_(False)
    return model


def random_latent(model: WorldModel, episodes: int, generator: torch.Generator) -> Latent:
    """A frame in the model's space, from nowhere."""
    tokens = torch.randn(episodes, model.patches, model.config.token_dim, generator=generator)
    return Latent(tokens, torch.randn(episodes, model.config.proprio_dim, generator=generator))


def random_actions(model: WorldModel, *shape: int, generator: torch.Generator) -> Tensor:
    """Actions (*shape, frameskip * A) in [-1, 1]."""
    return torch.rand(*shape, model.action_dim, generator=generator) * 2 - 1


def latent_problem(
    model: WorldModel,
    start: Latent,
    goal: Latent,
    *,
    seed: int = 0,
    objective: str = "mse",
    weight: float = 1.0,
    tokens: bool = True,
    **options: Any,
) -> LatentProblem:
    """A planning problem with actions from -1 to 1: all tokens, five steps, the last frame, if not said."""
    score = OBJECTIVES.get(objective)(model, weight) if tokens else TokenError(model, weight, tokens=False)
    usual = {"horizon": 5, "drop": 0.0, "frame": "last", "action_repeat": False, "init_std": 1.0}
    masks = [generator((seed, i), "tokens") for i in range(len(start.tokens))]
    bounds = -torch.ones(2), torch.ones(2)
    return LatentProblem(model, start, goal, *bounds, objective=score, generators=masks, **(usual | options))
