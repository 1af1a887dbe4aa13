"""Training of the temporal distance, a minute's stage after the predictor's, on recorded frames only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.data import Windows
from sparsewm.errors import UserError
from sparsewm.model.distance import TemporalDistance
from sparsewm.model.latent import gather_patches, random_patches
from sparsewm.model.world_model import WorldModel
from sparsewm.training.config import DistanceTrainConfig
from sparsewm.training.draws import generators
from sparsewm.training.optim import MasterAdamW
from sparsewm.training.validation import standardized


def distance_loss(
    distance: TemporalDistance,
    tokens: Tensor,
    proprio: Tensor,
    patches: Tensor,
    order: Tensor,
    config: DistanceTrainConfig,
    blind: bool,
) -> dict[str, Tensor]:
    """Push random pairs apart, hold successive frames together (Wang et al. 2023, with a fixed penalty).

    Args:
        tokens: (B, T, N, D) standardised frames of windows. proprio: (B, T, P). patches: (B, M).
        order: (B,) a permutation: window i's goals are the frames of window `order[i]`, on i's patches.
        blind: leave proprioception out.

    Returns:
        `loss`, `far` (mean distance of random pairs) and `local` (of successive frames).
    """
    here = distance.embed(gather_patches(tokens, patches), None if blind else proprio, patches)
    goal = distance.embed(gather_patches(tokens[order], patches), None if blind else proprio[order], patches)
    local = distance.between(here[:, :-1], here[:, 1:])
    far = distance.between(here, goal)
    apart = F.softplus(config.reach - far, beta=3 / config.reach).mean()
    together = F.relu(local - 1).square().mean()
    return {"loss": apart + config.penalty * together, "far": far.mean(), "local": local.mean()}


def train_distance(
    model: WorldModel,
    distance: TemporalDistance,
    windows: Windows,
    config: DistanceTrainConfig,
    dtype: torch.dtype = torch.bfloat16,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a temporal distance, in place; deterministic in `seed`.

    Args:
        model: with statistics filled in; nothing else of it is used. distance: on its device.
        windows: of two frames or more.
        on_step: called with (steps done, values). seed: of all random choices.

    Returns:
        the settings and the last values, for the checkpoint's metadata.

    Raises:
        UserError: training diverges.
    """
    average = [p.detach().float().clone() for p in distance.parameters()]
    distance.to(dtype).train().requires_grad_(True)
    optimizer = MasterAdamW(distance, config.lr, config.steps, config.warmup, config.weight_decay)
    values: dict[str, float] = {}
    for step in range(config.steps):
        rng, generator = generators(seed, 1, step)
        batch = standardized(model, windows.sample(rng, config.batch))
        smallest = min(config.smallest, model.patches)
        kept = int(rng.integers(smallest, model.patches + 1))
        if step % config.full_every == 0:
            kept = model.patches
        patches = random_patches(config.batch, model.patches, kept, generator).to(model.device)
        order = torch.randperm(config.batch, generator=generator).to(model.device)
        losses = distance_loss(
            distance,
            batch["tokens"],
            batch["proprio"],
            patches,
            order,
            config,
            blind=config.blind > 0 and step % config.blind == config.blind - 1,
        )
        optimizer.zero_grad()
        losses["loss"].backward()
        norm = optimizer.step(step)
        optimizer.ema_update(average, min(config.ema, (1 + step) / (10 + step)))
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(values["loss"]) or not math.isfinite(norm):
            raise UserError(f"training of the temporal distance diverged at step {step}: train anew")
        if on_step is not None:
            on_step(step + 1, values)
    with torch.no_grad():
        torch._foreach_copy_(list(distance.parameters()), average)
    distance.eval().requires_grad_(False)
    settings = {name: getattr(config, name) for name in ("steps", "batch", "reach")} | {"seed": seed}
    return settings | values
