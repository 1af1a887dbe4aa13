"""Teaches the vision encoder of a SmolVLA to see, before the policy learns to act.

An encoder from scratch that only learns by the policy's loss stays blind for a long time: most of an action
follows from proprioception, and a policy that never looks at the goal imitates well on average. Recorded
states say where everything is, so the encoder first learns to tell that from single pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sparsewm.bodies import is_angle, seen_from_bodies, waves
from sparsewm.data.cameras import overlay
from sparsewm.positions import sincos_positions
from sparsewm.training.optim import MasterMuon

if TYPE_CHECKING:
    from sparsewm.proposals.modeling_grids import SmolVLAGridsPolicy
    from sparsewm.training.smolvla.frames import HindsightFrames

WARMUP = 0.1  # of the steps
PLACES = 0.5  # root mean square of new embeddings of positions, beside patches of about 1
WAVES = (0.25, 0.5, 1, 2, 4)  # periods over four deviations
POOL = 400_000  # pairs of present and goal of which a vision encoder learns to see
SIZE = 0.1  # weight of the tokens' size beside the error
DECAY = 0.01  # of matrices
MUON = 3.0  # learning rate of the encoder's matrices, in units of the others'

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""So many pictures (B, 3, R, R) in [0, 1], and what is seen there (B, T)."""


def visible(seen: Mapping[str, np.ndarray]) -> Tensor:
    """What pictures show of recorded states, `SimulatedGoalEnv.shown_state`, as a network is to tell it.

    Positions are in their deviations, with sines and cosines of `WAVES` periods over four of them, of which
    functions that change from corridor to corridor are easier to learn (Tancik et al. 2020); angles are sine
    and cosine.
    """
    columns = []
    for name, column in seen.items():
        if is_angle(name):
            columns.append(np.stack([np.sin(column), np.cos(column)], 1))
        else:
            place = (column - column.mean()) / max(float(column.std()), 1e-6)
            columns.append(waves(place[:, None], WAVES))
    return torch.from_numpy(np.concatenate(columns, 1).astype(np.float32))


def single(pixels: Tensor, targets: Tensor) -> Draw:
    """Single pictures uint8 (N, 3, R, R), with `targets` (N, T) from `visible`."""

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(pixels), (size,), generator=generator)
        return pixels[rows].float() / 255, targets[rows]

    return draw


def with_goals(
    frames: HindsightFrames, states: np.ndarray, names: Sequence[str], symmetry: int = 1, seed: int = 0
) -> Draw:
    """Pictures of present and goal in one, of frames that show them so, with the states of their rows."""
    pool = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(frames), (min(POOL, 4 * len(frames)),), generator=pool)
    goals = rows + frames.ahead(rows, pool)
    targets = seen_from_bodies(states[rows.numpy()], states[goals.numpy()], names, symmetry)
    targets = targets[:, targets.std(0) > 0]
    pairs = torch.stack([rows, goals], 1)

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(len(pairs), (size,), generator=generator)
        present, goal = pairs[drawn].unbind(1)
        return overlay(frames.pixels[present], frames.pixels[goal]).float() / 255, targets[drawn]

    return draw


def begin_anew(module: nn.Module) -> None:
    """Weights of a deviation of 1/sqrt(inputs), which pass a signal on as it is.

    Transformers' own deviation, 0.02 whatever the width, suits layers that are twenty times wider.
    """
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(part.weight, std=part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=part.embedding_dim**-0.5)


def teach_vision(
    policy: SmolVLAGridsPolicy,
    draw: Draw,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    bfloat16: bool = False,
    progress: Callable[..., None] | None = None,
) -> float:
    """Train vision encoder and connector in place, from new weights.

    A linear layer has to tell all targets from every single token, so that each knows the whole scene, few of
    them show as much as all, and the transformer finds it without computing; the layer is thrown away. Tokens
    learn a mean square of 1 as the transformer sees them. Larger ones would drown what its layers add.

    Args:
        policy: whose vision it is. draw: what is seen, `single` or `with_goals`.
        steps, batch, lr, seed: of one cycle; Muon for the matrices of the encoder's layers, at three times
            the rate, with which angles are learned in half of the steps, and AdamW for all else.
        bfloat16: by autocast.

    Returns:
        mean squared error of the last tenth of the steps, as a share of the targets' variance.
    """
    model = policy.model.vlm_with_expert.get_vlm_model()
    camera = next(iter(policy.config.image_features))
    width, device = model.connector.modality_projection.proj.out_features, next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        begin_anew(model.vision_model)
        begin_anew(model.connector)
        places = model.vision_model.embeddings.position_embedding.weight
        side = math.isqrt(len(places))
        places.data = (PLACES * 2**0.5 * sincos_positions(side, side, places.shape[1])).to(device)
        model.connector.modality_projection.proj.weight.data.div_(width**0.5)
        _, targets = draw(1, torch.Generator().manual_seed(seed))
        read = nn.Linear(width, targets.shape[1]).to(device)
    parts = nn.ModuleDict({"vision": model.vision_model, "connector": model.connector, "read": read})
    parameters = [*parts.parameters()]
    learned = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    named = parts.named_parameters()
    matrices = [name for name, part in named if name.startswith("vision.encoder.") and part.ndim == 2]
    optimizer = MasterMuon(
        parts,
        lr,
        steps,
        warmup=math.ceil(WARMUP * steps),
        weight_decay=DECAY,
        hidden=dict.fromkeys(matrices, 1),
        muon=MUON,
    )
    generator, errors, spreads = torch.Generator().manual_seed(seed), [], []
    for step in range(steps):
        pictures, targets = (part.to(device) for part in draw(batch, generator))
        (picture,), _ = policy.prepare_images({camera: pictures})
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            tokens = policy.dense(picture)
        tokens = tokens.float() * width**0.5  # (batch, tokens, width), as SmolVLA scales them
        error = (read(tokens) - targets[:, None]).square().mean()
        size = (tokens.square().mean(-1) - 1).square().mean()
        (error + SIZE * size).backward()
        optimizer.step(step)
        optimizer.zero_grad()
        errors.append(float(error.detach()))
        spreads.append(float(targets.var(0).mean()))
        if progress is not None:
            progress(step + 1, steps, f"error {errors[-1]:.3f}")
    for parameter, before in zip(parameters, learned, strict=True):
        parameter.requires_grad_(before)
        parameter.grad = None
    return float(np.mean(errors[-max(1, steps // 10) :]) / np.mean(spreads))
