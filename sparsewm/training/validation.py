"""Batches in a model's units on its device, and the error of its rollouts on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.data import Windows
from sparsewm.model.latent import gather_patches, random_patches
from sparsewm.model.world_model import WorldModel
from sparsewm.training.draws import validation_windows


@torch.inference_mode()
def validate(
    model: WorldModel,
    windows: Windows,
    horizon: int,
    drops: tuple[float, ...] = (0.0, 0.5),
    samples: int = 256,
) -> dict[str, Any]:
    """Rollout error from one recorded frame, against copying that frame, per horizon and drop ratio.

    Returns:
        per drop ratio ``{"drop_0.5": {"tokens": [...], "tokens_copy": [...], "tokens_ratio": [...],
        "proprio": ..., "ratio": mean over horizons}}``, lists over horizons 1..H.
    """
    generator = torch.Generator().manual_seed(0)
    total: dict[str, Any] = {}
    batches = [
        standardized(model, windows.batch(numbers, horizon + 1))
        for numbers in validation_windows(windows, samples)
    ]
    for drop in drops:
        kept = max(1, round((1 - drop) * model.patches))
        sums = {name: torch.zeros(horizon) for name in ("tokens", "tokens_copy", "proprio", "proprio_copy")}
        for batch in batches:
            truth_tokens, truth_proprio = batch["tokens"][:, : horizon + 1], batch["proprio"]
            patches = random_patches(truth_tokens.shape[0], model.patches, kept, generator).to(model.device)
            truth = gather_patches(truth_tokens, patches)
            tokens, proprio = model.rollout(
                truth[:, 0], truth_proprio[:, 0], batch["action"][:, None, :horizon], patches
            )
            for t in range(horizon):
                sums["tokens"][t] += (tokens[:, 0, t] - truth[:, t + 1]).square().mean().cpu()
                sums["tokens_copy"][t] += (truth[:, 0] - truth[:, t + 1]).square().mean().cpu()
                sums["proprio"][t] += (proprio[:, 0, t] - truth_proprio[:, t + 1]).square().mean().cpu()
                sums["proprio_copy"][t] += (
                    (truth_proprio[:, 0] - truth_proprio[:, t + 1]).square().mean().cpu()
                )
        means = {name: (value / len(batches)).tolist() for name, value in sums.items()}
        for name in ("tokens", "proprio"):  # nothing may have moved
            means[f"{name}_ratio"] = [
                a / max(b, 1e-9) for a, b in zip(means[name], means[f"{name}_copy"], strict=True)
            ]
        total[f"drop_{drop:g}"] = means | {"ratio": float(np.mean(means["tokens_ratio"]))}
    return total


def standardized(model: WorldModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A raw window batch in the model's units, on its device (actions stay in the environment's)."""
    found = {name: placed(tensor, model.device) for name, tensor in batch.items() if name != "state"}
    standard = found.get("standard_tokens")
    return {
        "tokens": model.standardizer.tokens(found["tokens"]) if standard is None else standard,
        "proprio": model.standardizer.proprio(found["proprio"]),
        "action": found["action"],
    }


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU's tensor on a device; a GPU is not waited for."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
