"""Self-distillation of the embedded encoder, anchored to what its surroundings look like from afar.

The frame is DINO's (Caron et al. 2021; masked patches as in iBOT, Zhou et al. 2022): student and teacher of
one architecture, the teacher an exponential average, two views of a scene, CLS and patch tokens, masked
patches for the student, centred targets. Five choices are made for planning:

* The two views of a scene are two *renderings* of neighbouring simulator states with other colours and
  textures under the same camera. A batch shares one pair of looks: within it scenes differ by their state
  alone, not by their colours.
* Targets are centred *at every patch position over the batch*. A constant background token earns nothing:
  every token has to tell the scenes of the batch apart, that is, to know the state through attention.
* Targets are the teacher's centred tokens themselves, not prototypes. With 128 or 256 prototypes and
  Sinkhorn-Knopp assignments, as in DINOv2, the loss stayed at the uniform solution for as long as a CPU can
  afford: a few moving pixels hardly change a cosine.
* Distillation alone keeps little of a scene in minutes: tokens that moved by a few thousandths of their
  size, which bfloat16 rounds away. So every token also has to tell, *through one linear layer*, what its
  own view looks like around its patch, at four degrees of blur, relative to the other scenes of the batch.
  A linear reading keeps token distance close to the distance of blurred pictures, which grows smoothly
  with the motion of an object.
* The variance and covariance terms of VICReg (Bardes et al. 2022) and a small price on what all scenes have
  in common keep tokens varied, at a scale that survives low precision. Tokens are few numbers (64).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.encoders.embedded import ViT
from sparsewm.training.optim import MasterAdamW


@dataclass
class DistillationConfig:
    """Recipe of the embedded encoder.

    Attributes:
        steps: optimiser steps. batch: scenes a step, two views each. block: scenes that share their two
            looks.
        masked: fraction of the student's patches replaced by the mask token.
        surroundings: weight of the blurred surroundings. distillation: of the teacher's tokens.
        variance, covariance: of the terms against collapse. common: of what all scenes have in common.
        momentum: start of the teacher's momentum; it ends at 1.
    """

    steps: int = 900
    batch: int = 32
    block: int = 128
    masked: float = 0.15
    surroundings: float = 10.0
    distillation: float = 0.15
    variance: float = 1.0
    covariance: float = 0.01
    common: float = 0.05
    lr: float = 1.5e-3
    momentum: float = 0.98
    weight_decay: float = 0.05


BLURS = ((4.0, 3), (8.0, 2), (16.0, 1), (32.0, 1))
"""Degrees of blur: deviation in pixels, and points per side of a patch at which the picture is read."""


def blurred_surroundings(images: Tensor, patch: int) -> list[Tensor]:
    """What pictures (B, 3, R, R) look like around every patch: per degree of blur (B, N, 3 k^2)."""
    b, _, side, _ = images.shape
    cells, pixels = side // patch, torch.arange(side, device=images.device) + 0.5
    parts = []
    for sigma, k in BLURS:
        points = (torch.arange(cells * k, device=images.device) + 0.5) * patch / k
        weights = torch.exp(-(pixels - points[:, None]).square() / (2 * sigma**2))
        weights = weights / weights.sum(1, keepdim=True)  # (cells * k, R)
        read = (weights @ images @ weights.T).view(b, 3, cells, k, cells, k)
        parts.append(read.permute(0, 2, 4, 1, 3, 5).reshape(b, cells * cells, -1))
    return parts


def surroundings_loss(predicted: Tensor, views: Tensor, patch: int) -> Tensor:
    """Squared error of the blurred surroundings, in deviations over the scenes; every degree weighs the same.

    Args:
        predicted: (looks, B, N, F), all degrees of blur side by side. views: (looks, B, 3, R, R).
    """
    looks, b = views.shape[:2]
    parts = blurred_surroundings(views.flatten(0, 1), patch)
    total = predicted.new_zeros(())
    for part, guess in zip(parts, predicted.split([p.shape[-1] for p in parts], -1), strict=True):
        target = centred(part.unflatten(0, (looks, b)))
        target = target / (target.square().mean((1, 2, 3), keepdim=True).sqrt() + 0.02)
        total = total + (guess - target).square().mean() / len(parts)
    return total


def jitter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pixel noise on normalised pictures (B, 3, R, R), of another strength for every picture."""
    strength = 0.08 * torch.rand(pixels.shape[0], 1, 1, 1, generator=generator)
    return pixels + strength * torch.randn(pixels.shape, generator=generator)


def centred(tokens: Tensor) -> Tensor:
    """Tokens (looks, B, M, D) minus their mean over the batch, per look and position."""
    return tokens - tokens.mean(1, keepdim=True)


def variance_loss(tokens: Tensor) -> Tensor:
    """How far features' deviations over the batch fall short of one, per look and position (VICReg, eq 1)."""
    return F.relu(1 - (tokens.var(1) + 1e-4).sqrt()).mean()


def covariance_loss(tokens: Tensor) -> Tensor:
    """Squared correlation between features over batch and positions, per look (VICReg, eq. 4)."""
    flat = tokens.flatten(1, 2)  # (looks, B * M, D)
    covariance = flat.transpose(1, 2) @ flat / flat.shape[1]
    off_diagonal = covariance - torch.diag_embed(torch.diagonal(covariance, dim1=1, dim2=2))
    return off_diagonal.square().sum((1, 2)).mean() / flat.shape[2]


def distillation_losses(
    student: ViT,
    teacher: ViT,
    reader: nn.Linear,
    views: Tensor,
    config: DistillationConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Losses of one batch of normalised float32 views (2, B, 3, R, R); `reader` is the linear layer."""
    looks, b = views.shape[:2]
    both = jitter(views.flatten(0, 1), generator).to(reader.weight.dtype)
    with torch.no_grad():
        patches, cls, _ = teacher.transform(teacher.patchify(both))
        targets = centred(torch.cat([patches, cls[:, None]], 1).unflatten(0, (looks, b)).float())
    masked = torch.rand(looks * b, student.tokens, 1, generator=generator) < config.masked
    blank = student.mask_token + student.positions.to(both.dtype)
    tokens, cls, _ = student.transform(torch.where(masked, blank, student.patchify(both)))
    raw = torch.cat([tokens, cls[:, None]], 1).unflatten(0, (looks, b)).float()
    tokens = centred(raw)
    read = reader(tokens[:, :, :-1].to(reader.weight.dtype)).float()
    return {
        "surroundings": surroundings_loss(read, views, student.patch),
        "own": (tokens - targets).square().mean(),
        "other": (tokens - targets.flip(0)).square().mean(),
        "variance": variance_loss(tokens),
        "covariance": covariance_loss(tokens),
        "common": raw.mean(1).square().mean(),
    }


def pretrain(
    scenes: dict[str, np.ndarray],
    config: DistillationConfig,
    encoder: ViT,
    seed: int = 0,
    progress: Callable[[int, dict[str, float]], bool | None] | None = None,
) -> ViT:
    """Train an encoder on pre-rendered scenes; returns the teacher, frozen, in float32.

    Args:
        scenes: per environment, uint8 (K, 2, R, R, 3): two looks of K states; the looks change every
            `config.block` scenes.
        progress: called every 20 steps with the step and the mean losses; returning True stops early.
    """
    generator = torch.Generator().manual_seed(seed)
    student = encoder
    ema = [p.detach().float().clone() for p in student.parameters()]
    student = student.bfloat16()
    teacher = deepcopy(student).requires_grad_(False)
    reader = nn.Linear(student.dim, 3 * sum(k * k for _, k in BLURS)).bfloat16()
    optimizer = MasterAdamW(
        nn.ModuleList([student, reader]), config.lr, config.steps, warmup=50, weight_decay=config.weight_decay
    )
    names = sorted(scenes)
    totals: dict[str, float] = {}
    for step in range(config.steps):
        pictures = scenes[names[step % len(names)]]
        block = int(torch.randint(len(pictures) // config.block, (), generator=generator)) * config.block
        rows = block + torch.randperm(config.block, generator=generator)[: config.batch].sort().values.numpy()
        views = torch.as_tensor(pictures[rows]).transpose(0, 1).flatten(0, 1)  # (2B, R, R, 3)
        images = student.preprocess(views).float().unflatten(0, (2, -1))
        losses = distillation_losses(student, teacher, reader, images, config, generator)
        optimizer.zero_grad()
        (
            config.surroundings * losses["surroundings"]
            + config.distillation * (losses["own"] + losses["other"])
            + config.variance * losses["variance"]
            + config.covariance * losses["covariance"]
            + config.common * losses["common"]
        ).backward()
        optimizer.step(step)
        momentum = 1 - (1 - config.momentum) * (1 + np.cos(np.pi * step / config.steps)) / 2
        torch._foreach_lerp_(ema, optimizer.masters[: len(ema)], 1 - momentum)  # without the reader
        with torch.no_grad():
            torch._foreach_copy_(list(teacher.parameters()), ema)
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach()) / 20
        if step % 20 == 19:
            if progress is not None and progress(step + 1, totals):
                break
            totals = {}
    result = deepcopy(teacher).float()
    with torch.no_grad():
        torch._foreach_copy_(list(result.parameters()), ema)
    return result
