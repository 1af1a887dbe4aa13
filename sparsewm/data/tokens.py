"""Encoded tokens of a dataset, computed once and kept beside it in a memory-mapped file."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsewm.data.dataset import Dataset
from sparsewm.encoders import PatchEncoder
from sparsewm.errors import UserError
from sparsewm.files import disk_errors, read_json, require_space, write_json

CHECK_EVERY = 2048  # rows between two notes of progress


class TokenCache:
    """Raw patch tokens of every row of a dataset, float16 (rows, N, D), memory-mapped.

    The name of the file carries the hashes of dataset and encoder: another dataset or another encoder is
    another file. An interrupted build goes on where it stopped.

    Args:
        dataset: its pictures. encoder: frozen, on its device.
        directory: where to keep the file; beside the dataset when None.
        progress: called with the rows done and the number of rows.

    Raises:
        UserError: the disk is full, or the encoder makes NaN.
    """

    def __init__(
        self,
        dataset: Dataset,
        encoder: PatchEncoder,
        directory: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        folder = Path(directory) if directory is not None else dataset.path.parent
        key = f"{dataset.path.stem}.tokens-{dataset.hash[:10]}-{encoder.key}-float16"
        self.path = folder / f"{key}.bin"
        self.shape = (dataset.rows, encoder.tokens, encoder.dim)
        size = 2 * int(np.prod(self.shape))
        if not (self.path.is_file() and self.path.stat().st_size == size):
            self._build(dataset, encoder, progress)
        self.values = np.memmap(self.path, np.float16, "r", shape=self.shape)

    def _build(
        self, dataset: Dataset, encoder: PatchEncoder, progress: Callable[[int, int], None] | None
    ) -> None:
        partial, note = self.path.with_suffix(".partial"), self.path.with_suffix(".partial.json")
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            row_bytes = 2 * int(np.prod(self.shape[1:]))
            done = self._finished_rows(partial, note, row_bytes)
            require_space(self.path, (dataset.rows - done) * row_bytes)
            # written as a plain file: writing to a memory map kills the process where the disk is full
            with open(partial, "r+b" if done else "wb") as file:
                file.truncate(done * row_bytes)
                file.seek(done * row_bytes)
                for start in range(done, dataset.rows, CHECK_EVERY):
                    stop = min(start + CHECK_EVERY, dataset.rows)
                    pixels = dataset.pixels[start:stop]
                    for first in range(0, stop - start, 128):
                        file.write(encode_half(encoder, pixels[first : first + 128]).tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                    write_json(note, {"rows": stop, "shape": self.shape})
                    if progress is not None:
                        progress(stop, dataset.rows)
            partial.replace(self.path)
            note.unlink(missing_ok=True)

    def _finished_rows(self, partial: Path, note: Path, row_bytes: int) -> int:
        """Rows an interrupted build of the same shape has on the disk; 0 where its note does not fit."""
        try:
            found = read_json(note)
            rows = int(found["rows"])
            fits = found["shape"] == list(self.shape) and 0 <= rows * row_bytes <= partial.stat().st_size
        except (UserError, OSError, KeyError, TypeError, ValueError):
            return 0
        return rows if fits else 0

    def rows(self, rows: np.ndarray) -> Tensor:
        """Tokens of rows (any shape): float16 (*rows.shape, N, D)."""
        return torch.from_numpy(self.values[rows])

    def statistics(
        self, rows: np.ndarray, whitening: float = 0.0, samples: int = 8192, seed: int = 0
    ) -> dict[str, Tensor]:
        """`token_statistics` over a sample of `rows`."""
        picked = np.sort(np.random.default_rng(seed).choice(rows, min(samples, len(rows)), replace=False))
        return token_statistics(self.rows(picked).float(), whitening)


WHITENING_FLOOR = 0.01
"""Variance, in units of the mean over directions, below which `token_statistics` amplifies no further."""


def token_statistics(tokens: Tensor, whitening: float = 0.0) -> dict[str, Tensor]:
    """What turns raw tokens into ones a predictor can work with, and these into ones that plans use.

    Tokens of small encoders vary along very few directions, and what a squared error counts is what
    these show: the coarse place of the largest object. A predictor has to see and to learn the rest as well:
    whitening weighs the other directions up. Plans are scored without it, for what is smooth and coarse leads
    further.

    Args:
        tokens: float32 (K, N, D) of K frames.
        whitening: 0 divides every feature by its deviation from the patch's mean; 1 makes all directions
            equally wide, down to `WHITENING_FLOOR`; between them in part.

    Returns:
        `token_mean` (N, D) and `token_map` (D, D), after which the mean square is one:
        ``(tokens - token_mean) @ token_map``; and `cost_map` (D, D) from there to tokens whose features are
        divided by their deviations.
    """
    mean = tokens.mean(0)
    deviations = (tokens - mean).flatten(0, 1).double()
    scale = deviations.square().mean(0).sqrt().clamp_min(1e-4)
    plain = token_map = torch.diag(1 / scale)
    if whitening:
        deviations = deviations / scale
        variances, directions = torch.linalg.eigh(deviations.T @ deviations / len(deviations))
        gains = (variances.clamp_min(0) + WHITENING_FLOOR).pow(-whitening / 2)
        gains = gains / (gains.square() * variances).mean().sqrt().clamp_min(1e-3)
        token_map = token_map @ (directions * gains) @ directions.T
    cost_map = torch.linalg.solve(token_map, plain)
    return {"token_mean": mean, "token_map": token_map.float(), "cost_map": cost_map.float().contiguous()}


@torch.inference_mode()
def encode_half(encoder: PatchEncoder, pixels: np.ndarray) -> np.ndarray:
    """Tokens of frames (B, R, R, 3) in float16 (B, N, D); UserError where that is not finite.

    Not bfloat16: tokens often differ from frame to frame by little beside what they have in common, and its
    eight bits would round that little away.
    """
    half: np.ndarray = encoder.encode(pixels).patches.to("cpu", torch.float16).numpy()
    if not np.isfinite(half).all():
        raise UserError(
            f"encoder '{encoder.name}' makes NaN, infinite or huge tokens: check its weights and --dtype"
        )
    return half


@torch.inference_mode()
def fast_copy(
    encoder: PatchEncoder,
    pixels: np.ndarray,
    dtype: torch.dtype,
    whitening: float = 0.0,
    tolerance: float = 0.1,
) -> PatchEncoder:
    """A copy of a float32 encoder in `dtype`; the encoder itself where rounding would hide what changes.

    Args:
        pixels: uint8 (B, R, R, 3) frames of one dataset, over which tokens are compared.
        whitening: of the tokens, as in `token_statistics`.
        tolerance: largest rounding error, as a share of the tokens' deviation over the frames.
    """
    if dtype == torch.float32:
        return encoder
    copy = deepcopy(encoder).to(dtype)
    found = token_precision(encoder, copy, pixels, whitening)
    return copy if found["error"] <= tolerance * found["deviation"] else encoder


@torch.inference_mode()
def token_precision(
    encoder: PatchEncoder, rounded: PatchEncoder, pixels: np.ndarray, whitening: float = 0.0
) -> dict[str, float]:
    """How much of what tells frames (B, R, R, 3) apart a copy of an encoder in low precision keeps.

    Returns:
        root mean squares, after the map of `token_statistics`: `constant` (what all frames share at a
        patch), `deviation` (from it), `error` (of the copy).
    """
    exact = encoder.encode(pixels).patches.float()
    statistics = token_statistics(exact, whitening)
    common, token_map = statistics["token_mean"], statistics["token_map"]
    parts = {
        "constant": common @ token_map,
        "deviation": (exact - common) @ token_map,
        "error": (rounded.encode(pixels).patches.float() - exact) @ token_map,
    }
    return {name: float(part.square().mean().sqrt()) for name, part in parts.items()}
