"""What a dataset holds, and what training would do with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsewm.data.dataset import Dataset
from sparsewm.data.frames import resized
from sparsewm.data.oddities import warnings
from sparsewm.data.windows import count_windows
from sparsewm.errors import UserError

SHEET = (8, 8)
"""Episodes and pictures of each on a contact sheet, at most."""


def describe(dataset: Dataset, frames: int, frameskip: int, tokens: int, dim: int) -> dict[str, Any]:
    """A dataset in words and numbers that JSON knows, None for those it does not; also one that training
    would refuse.

    Args:
        dataset: opened, checked or not.
        frames: model frames of a training window (history + horizon).
        frameskip: environment steps between two of them.
        tokens, dim: N and D of the encoder's tokens of a frame.

    Returns:
        `columns` (dtype and shape of everything that is there), `numbers` (range, mean, deviation of each
        number of action, proprioception and state), `obstacles`, `warnings`, and, where nothing stands in the
        way, `training`.
    """
    lengths = dataset.lengths
    some = lengths if len(lengths) else np.zeros(1, np.int64)
    height, width = dataset.pixels.shape[1:3]
    obstacles = list(dataset.obstacles)
    found: dict[str, Any] = {
        "path": str(dataset.path),
        "format": type(dataset).__name__,
        "attributes": {k: v for k, v in dataset.attributes.items() if isinstance(v, (str, int, float))},
        "episodes": dataset.episodes,
        "rows": int(lengths.sum()),
        "length": {"min": int(some.min()), "median": float(np.median(some)), "max": int(some.max())},
        "fps": dataset.fps,
        "picture": [int(height), int(width)],
        "cameras": list(dataset.cameras),
        "available_cameras": list(dataset.available_cameras),
        "has_proprio": dataset.has_proprio,
        "columns": dataset.columns(),
        "numbers": {
            name: numbers(values, getattr(dataset, f"{name}_names", ()))
            for name, values in (
                ("action", dataset.action[dataset.acting]),
                ("proprio", dataset.proprio if dataset.has_proprio else None),
                ("state", dataset.state),
            )
            if values is not None
        },
        "warnings": [],
        "training": None,
    }
    try:
        found["warnings"] = [] if obstacles else warnings(dataset)
        found["training"] = None if obstacles else training(dataset, frames, frameskip, tokens, dim)
    except UserError as error:
        obstacles.append(str(error))
    found["obstacles"] = obstacles
    plain: dict[str, Any] = _finite(found)
    return plain


def _finite(value: Any) -> Any:
    """Nested values, None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def training(dataset: Dataset, frames: int, frameskip: int, tokens: int, dim: int) -> dict[str, Any]:
    """What training would do with a dataset; `UserError` where it would refuse."""
    shortest = (frames - 1) * frameskip + 1
    train, held_out = dataset.split(shortest=shortest)
    windows = [int(count_windows(dataset, frames, frameskip, part).sum()) for part in (train, held_out)]
    return {
        "frameskip": frameskip,
        "window_frames": frames,
        "window_rows": shortest,
        "train_episodes": len(train),
        "held_out_episodes": len(held_out),
        "train_windows": windows[0],
        "held_out_windows": windows[1],
        "too_short_episodes": int((dataset.lengths < shortest).sum()),
        "frames_encoded": dataset.rows,
        "tokens_per_frame": tokens,
        "token_size": dim,
        "token_cache_bytes": 2 * dataset.rows * tokens * dim,
    }


def numbers(values: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Range, mean and deviation of each number of a column (rows, n), over its finite values."""
    found = []
    for i, column in enumerate(np.asarray(values, np.float64).T):
        finite = column[np.isfinite(column)]
        row: dict[str, Any] = {"name": names[i] if i < len(names) else f"state_{i}"}
        row |= {"not_finite": len(column) - len(finite), "constant": False}
        if len(finite):
            row["constant"] = bool(finite.min() == finite.max())
            for name in ("min", "max", "mean", "std"):
                with np.errstate(over="ignore", invalid="ignore"):
                    row[name] = float(getattr(finite, name)())
        found.append(row)
    return found


def contact_sheet(dataset: Dataset, height: int = 96) -> np.ndarray | None:
    """Pictures of some episodes, one row each, from their first frame to their last: uint8 (H, W, 3).

    None where there are no pictures; those that cannot be read are red.
    """
    rows, (tall, wide) = len(dataset.pixels), dataset.pixels.shape[1:3]
    long = np.flatnonzero((dataset.lengths > 0) & (dataset.offsets + dataset.lengths <= rows))
    if len(long) == 0 or min(tall, wide) == 0:
        return None
    width = max(1, round(wide * height / tall))
    strips = []
    for episode in long[np.unique(np.linspace(0, len(long) - 1, SHEET[0]).astype(int))]:
        first, last = dataset.offsets[episode], dataset.offsets[episode] + dataset.lengths[episode] - 1
        strip = np.full((SHEET[1], height, width, 3), 255, np.uint8)
        for i, row in enumerate(np.unique(np.linspace(first, last, SHEET[1]).astype(int))):
            try:
                strip[i] = resized(dataset.pixels[row : row + 1], height, width)[0]
            except UserError:
                strip[i] = (200, 0, 0)
        framed = np.pad(strip, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        strips.append(np.concatenate(list(framed), 1))
    return np.concatenate(strips)
