"""Training of the decoder, a minute's stage after the predictor's, on recorded frames only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.data import Dataset, Tokens
from sparsewm.errors import UserError
from sparsewm.model.decoder import Decoder
from sparsewm.model.drop import kept_patches
from sparsewm.model.latent import gather_patches, random_patches
from sparsewm.model.world_model import WorldModel
from sparsewm.training.config import DecoderTrainConfig
from sparsewm.training.draws import decoder_rows, generators
from sparsewm.training.optim import MasterAdamW
from sparsewm.training.validation import standardized


def decoder_loss(drawn: Tensor, truth: Tensor, mean: Tensor, ground: float) -> Tensor:
    """Squared error of pictures (B, 3, R, R), weighted to where they differ from the mean picture."""
    unusual = (truth - mean).abs().amax(1, keepdim=True)
    weight = ground + (1 - ground) * (5 * unusual).clamp(max=1)
    return (weight * (drawn - truth).square()).mean()


def train_decoder(
    model: WorldModel,
    decoder: Decoder,
    dataset: Dataset,
    cache: Tokens,
    episodes: np.ndarray,
    config: DecoderTrainConfig,
    dtype: torch.dtype = torch.bfloat16,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a decoder, in place; deterministic in `seed`. The world model is not touched.

    Args:
        model: with statistics filled in. decoder: on its device. episodes: whose frames are used.
        on_step: called with (steps done, values). seed: of all random choices.

    Returns:
        the settings and the last loss, for the checkpoint's metadata.

    Raises:
        UserError: training diverges.
    """
    device, side = model.device, decoder.config.side
    rows = decoder_rows(dataset.rows_of(episodes), config.frames, seed)
    parts = [torch.from_numpy(dataset.pixels[part]) for part in np.array_split(rows, -(-len(rows) // 256))]
    pixels = torch.cat([shrink(part, side) for part in parts])  # uint8 (K, 3, side, side)
    decoder.mean.copy_(pixels.float().mean(0) / 255)
    mean = decoder.mean.float().clone()
    decoder.to(dtype).train().requires_grad_(True)
    optimizer = MasterAdamW(decoder, config.lr, config.steps, config.warmup, config.weight_decay)
    value = 0.0
    for step in range(config.steps):
        rng, generator = generators(seed, 2, step)
        picked = np.sort(rng.integers(len(rows), size=config.batch))
        tokens = model.standardizer.tokens(cache.rows(rows[picked]).to(device))
        smallest = min(config.smallest, model.patches)
        kept = (
            model.patches if step % config.full_every == 0 else int(rng.integers(smallest, model.patches + 1))
        )
        patches = random_patches(config.batch, model.patches, kept, generator).to(device)
        seen = gather_patches(tokens, patches)
        seen = seen + config.noise * torch.randn(seen.shape, generator=generator).to(device)
        truth = pixels[picked].to(device).float() / 255
        loss = decoder_loss(decoder(seen, patches).float(), truth, mean, config.ground)
        optimizer.zero_grad()
        loss.backward()
        norm = optimizer.step(step)
        value = float(loss.detach())
        if not math.isfinite(value) or not math.isfinite(norm):
            raise UserError(f"training of the decoder diverged at step {step}: train anew")
        if on_step is not None:
            on_step(step + 1, {"loss": value})
    decoder.eval().requires_grad_(False)
    return {"steps": config.steps, "batch": config.batch, "seed": seed, "loss": value}


@torch.inference_mode()
def imagine_windows(model: WorldModel, batch: dict[str, Tensor], drop: float, seed: int = 0) -> np.ndarray:
    """Pictures uint8 (B, T, R, R, 3) of raw windows (B, T, ...): the first frame decoded, the rest imagined.

    Args:
        batch: as `Windows.batch` gives it. drop: fraction of the patches dropped.
    """
    assert model.decoder is not None
    units = standardized(model, batch)
    b, kept = len(units["tokens"]), kept_patches(model.patches, drop)
    patches = random_patches(b, model.patches, kept, torch.Generator().manual_seed(seed)).to(model.device)
    start = gather_patches(units["tokens"][:, 0], patches)
    tokens, _ = model.rollout(start, units["proprio"][:, 0], units["action"][:, None], patches)
    frames = torch.cat([start[:, None], tokens[:, 0]], 1)
    pictures: np.ndarray = model.decoder.pictures(frames, patches).cpu().numpy()
    return pictures


def shrink(pixels: Tensor, side: int) -> Tensor:
    """Pictures uint8 (K, H, W, 3) as uint8 (K, 3, side, side)."""
    pictures = pixels.permute(0, 3, 1, 2)
    if pictures.shape[-2:] == (side, side):
        return pictures.contiguous()
    smaller = F.interpolate(
        pictures.float(), (side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return smaller.round().clamp(0, 255).to(torch.uint8)
