"""Self-distillation of the embedded encoder: a student predicts the tokens of its own moving average.

The frame is DINO's (Caron et al. 2021; masked patches as in iBOT, Zhou et al. 2022): student and teacher of
one architecture, the teacher an exponential average, two views of a scene, CLS and patch tokens, masked
patches for the student, centred targets. Four choices are made for planning:

* The two views of a scene are two *renderings* of the same simulator state with other colours and
  textures under the same camera. What both views share is where things are, so that is what tokens learn.
  A batch shares one pair of looks: within it scenes differ by their state alone, not by their colours.
* Targets are centred *at every patch position over the batch*. A constant background token earns nothing:
  every token has to tell the scenes of the batch apart, that is, to know the state through attention. This
  is what makes token error grow beyond one patch, and what lets half of the tokens stand for all.
* Targets are the teacher's centred tokens themselves, not prototypes. With 128 or 256 prototypes and
  Sinkhorn-Knopp assignments, as in DINOv2, the loss stayed at the uniform solution for as long as a CPU can
  afford: a few moving pixels hardly change a cosine. Collapse is prevented by the variance and covariance
  terms of VICReg (Bardes et al. 2022), over the batch, at every position.
* Tokens are few numbers (64): with more, decorrelated features become ever finer functions of the state, and
  distance saturates early.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
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
        variance, covariance: weights of the terms against collapse, the prediction error having weight one.
        momentum: start of the teacher's momentum; it ends at 1.
    """

    steps: int = 600
    batch: int = 64
    block: int = 128
    masked: float = 0.2
    variance: float = 1.0
    covariance: float = 0.01
    lr: float = 1.5e-3
    momentum: float = 0.98
    weight_decay: float = 0.05


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
    student: ViT, teacher: ViT, views: Tensor, config: DistillationConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """Losses of one batch of normalised views (2, B, 3, R, R)."""
    looks, b = views.shape[:2]
    both = views.flatten(0, 1)
    with torch.no_grad():
        patches, cls, _ = teacher.transform(teacher.patchify(both))
        targets = centred(torch.cat([patches, cls[:, None]], 1).unflatten(0, (looks, b)).float())
    masked = torch.rand(looks * b, student.tokens, 1, generator=generator) < config.masked
    blank = student.mask_token + student.positions.to(both.dtype)
    tokens, cls, _ = student.transform(torch.where(masked, blank, student.patchify(both)))
    tokens = centred(torch.cat([tokens, cls[:, None]], 1).unflatten(0, (looks, b)).float())
    return {
        "own": (tokens - targets).square().mean(),
        "other": (tokens - targets.flip(0)).square().mean(),
        "variance": variance_loss(tokens),
        "covariance": covariance_loss(tokens),
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
    optimizer = MasterAdamW(student, config.lr, config.steps, warmup=50, weight_decay=config.weight_decay)
    names = sorted(scenes)
    totals: dict[str, float] = {}
    for step in range(config.steps):
        pictures = scenes[names[step % len(names)]]
        block = int(torch.randint(len(pictures) // config.block, (), generator=generator)) * config.block
        rows = block + torch.randperm(config.block, generator=generator)[: config.batch].sort().values.numpy()
        views = torch.as_tensor(pictures[rows]).transpose(0, 1).flatten(0, 1)  # (2B, R, R, 3)
        images = jitter(student.preprocess(views).float(), generator).bfloat16()
        losses = distillation_losses(student, teacher, images.unflatten(0, (2, -1)), config, generator)
        optimizer.zero_grad()
        (
            losses["own"]
            + losses["other"]
            + config.variance * losses["variance"]
            + config.covariance * losses["covariance"]
        ).backward()
        optimizer.step(step)
        momentum = 1 - (1 - config.momentum) * (1 + np.cos(np.pi * step / config.steps)) / 2
        optimizer.ema_update(ema, momentum)
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
