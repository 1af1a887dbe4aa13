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
  own view looks like around its patch, at four degrees of blur, relative to the other scenes of the batch:
  its colours, which move with an object, and how strong its edges are and which way they run (as in
  MaskFeat, Wei et al. 2022), which turn with it.
* At the end tokens are transformed so that their squared distance *is* that of these readings
  (`measure_by_reading`), and most of their features give way to the readings themselves (`join_readings`):
  what a transformer reads after minutes of training is too coarse to tell which way an object is turned.
* The variance and covariance terms of VICReg (Bardes et al. 2022) and a small price on what all scenes have
  in common keep tokens varied, at a scale that survives low precision. Tokens are few numbers (64).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.encoders.embedded import ViT
from sparsewm.encoders.surroundings import READINGS, blurred_surroundings
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

    steps: int = 2800
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


def surroundings_loss(predicted: Tensor, views: Tensor) -> Tensor:
    """Weighted squared error of the blurred surroundings, in deviations over the scenes.

    Args:
        predicted: (looks, B, N, F), all `READINGS` side by side. views: (looks, B, 3, R, R).
    """
    looks, b = views.shape[:2]
    parts = blurred_surroundings(views.flatten(0, 1))
    total = predicted.new_zeros(())
    guesses = predicted.split([size for size, _ in READINGS], -1)
    for part, guess, (_, weight) in zip(parts, guesses, READINGS, strict=True):
        target = centred(part.unflatten(0, (looks, b)))
        target = target / (target.square().mean((1, 2, 3), keepdim=True).sqrt() + 0.02)
        total = total + weight * (guess - target).square().mean()
    return total / sum(weight for _, weight in READINGS)


@torch.no_grad()
def measure_by_reading(encoder: ViT, reader: Tensor, seed: int = 0) -> None:
    """Transform an encoder's tokens so that their squared distance is the weighted one of their readings.

    The basis is a random one, so that all features vary alike and a world model, which divides each by its
    deviation, changes little.

    Args:
        reader: weights (F, D) of the linear layer, all `READINGS` side by side.
    """
    scales = torch.cat([torch.full((size,), weight / size) for size, weight in READINGS]).double()
    weighted = reader.double() * scales[:, None].sqrt()
    variances, directions = torch.linalg.eigh(weighted.T @ weighted / scales.sum())
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(encoder.dim, encoder.dim, generator=generator, dtype=torch.double))[0]
    change = basis @ (directions * variances.clamp_min(0).sqrt()).T * encoder.dim**0.5
    for part in (encoder.project.weight, encoder.project.bias):
        part.copy_((change @ part.double()).to(part.dtype))


@torch.no_grad()
def join_readings(encoder: ViT, pictures: Sequence[np.ndarray], readings: int = 48, seed: int = 0) -> ViT:
    """An encoder whose tokens are what patches look like, beside the strongest directions of another's.

    Both parts are principal components over the pictures, every set of which counts alike, in a random basis,
    so that all features vary alike.

    Args:
        encoder: without readings. pictures: uint8 (K, R, R, 3) of each environment. readings: features of the
            `encoder.dim` that become readings.
    """
    looks = [torch.cat(blurred_surroundings(encoder.preprocess(part)), -1) for part in pictures]
    sizes = [size for size, _ in READINGS]
    spreads = torch.stack(
        [
            torch.stack([centred(part[None]).square().mean() for part in look.split(sizes, -1)])
            for look in looks
        ]
    )
    scales = spreads.sqrt().log().mean(0).exp() + 0.01  # parts that hardly vary stay small
    gains = torch.cat(
        [
            torch.full((size,), float((weight / size) ** 0.5 / scale))
            for (size, weight), scale in zip(READINGS, scales, strict=True)
        ]
    )
    tokens = [encoder.encode(part).patches for part in pictures]
    reading_map = gains[:, None] * components([look * gains for look in looks], readings, seed)
    context_map = components(tokens, encoder.dim - readings, seed + 1)
    joined = ViT(
        encoder.resolution,
        encoder.patch,
        encoder.width,
        len(encoder.blocks),
        encoder.heads,
        encoder.project.out_features,
        maps=(reading_map.bfloat16().float(), context_map.bfloat16().float()),
    )
    joined.load_state_dict(encoder.state_dict() | joined.maps())
    joined.freeze()
    return joined


def components(features: Sequence[Tensor], count: int, seed: int) -> Tensor:
    """Strongest directions (F, count) of several sets (K, N, F), all counting alike, in a random basis."""
    size = features[0].shape[-1]
    total = torch.zeros(size, size, dtype=torch.double)
    for part in features:
        flat = centred(part[None]).flatten(0, 2).double()
        total += flat.T @ flat / flat.square().sum()
    directions = torch.linalg.eigh(total)[1][:, -count:]
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(count, count, generator=generator, dtype=torch.double))[0]
    return (directions @ basis).float()


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
        "surroundings": surroundings_loss(read, views),
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
    dtype: torch.dtype = torch.bfloat16,
) -> ViT:
    """Train an encoder on pre-rendered scenes; returns the teacher, frozen, in float32.

    Args:
        scenes: per environment, uint8 (K, 2, R, R, 3): two looks of K states; the looks change every
            `config.block` scenes.
        progress: called every 20 steps with the step and the mean losses; returning True stops early.
        dtype: precision of weights and activations; masters are float32.
    """
    generator = torch.Generator().manual_seed(seed)
    student = encoder
    student = student.to(dtype)
    teacher = deepcopy(student).requires_grad_(False)
    reader = nn.Linear(student.dim, sum(size for size, _ in READINGS)).to(dtype)
    read = list(reader.parameters())
    ema = [p.detach().float().clone() for p in [*student.parameters(), *read]]
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
        torch._foreach_lerp_(ema, optimizer.masters, 1 - momentum)
        with torch.no_grad():
            torch._foreach_copy_(list(teacher.parameters()), ema[: -len(read)])
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach()) / 20
        if step % 20 == 19:
            if progress is not None and progress(step + 1, totals):
                break
            totals = {}
    result = deepcopy(teacher).float()
    with torch.no_grad():
        torch._foreach_copy_(list(result.parameters()), ema[: -len(read)])
    measure_by_reading(result, ema[-len(read)], seed)
    return result
