"""Encoding the pictures of a dataset: shared among processes, and in a precision that keeps what changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from sparsewm.data.dataset import Dataset
from sparsewm.data.statistics import token_statistics
from sparsewm.data.token_file import Layout, TokenFile
from sparsewm.encoders import PatchEncoder
from sparsewm.errors import UserError
from sparsewm.kernels import flushed

NOTED_ROWS = 2048
"""Rows that are encoded between two notes of progress, at most."""

NOTED_BYTES = 1 << 25
"""The same in bytes."""

NOTED_SECONDS = 2.0
"""The same in time, about: what a process that is killed has encoded in vain."""

TOLD_SECONDS = 20.0
"""How long encoding must take for an estimate to be told."""

_BATCH = 128
_SAMPLE = 64


def encode_missing(
    file: TokenFile,
    dataset: Dataset,
    encoder: PatchEncoder,
    rows: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> None:
    """Encode rows that a file lacks; processes that want the same ones share the work.

    A process claims some rows, encodes them, writes them and claims others. Where others hold all that is
    left it waits, and encodes what they have left when they died.

    Args:
        rows: ascending numbers. progress: called with the rows done, by anybody, and the number of rows.
        report: called with how long the rest will take, and before others are waited for.
    """
    report = report or (lambda _: None)
    limit = max(1, min(NOTED_ROWS, NOTED_BYTES // file.layout.row.itemsize))
    most = min(_BATCH, limit)
    left = file.blocks(rows)
    busy: list[np.ndarray] = []
    done, started, waited, estimated = 0, time.monotonic(), False, False
    while left or busy:
        if not left:
            if not waited:
                report(f"other programs encode the rest of the same pictures: waiting for {file.path}")
                waited = True
            file.claim(busy[0], wait=True)
            file.give_up(busy[0])
            left, busy = busy, []
        begun = time.monotonic()
        held: list[np.ndarray] = []
        missing = np.zeros(0, np.int64)
        try:
            while left and len(missing) < most:
                block = left.pop(0)
                if not file.there(block).all():
                    if not file.claim(block):
                        busy.append(block)
                        continue
                    held.append(block)
                    missing = np.concatenate([missing, block[~file.there(block)]])
                done += len(block)
            checksums: list[int] = []
            for first in range(0, len(missing), _BATCH):
                part = missing[first : first + _BATCH]
                tokens = encoded(encoder, _pictures(dataset, part), file.layout.dtype)
                checksums += file.write(part, file.layout.pack(tokens, file.common))
            if len(missing):
                file.note(missing, checksums)
        finally:
            for block in held:
                file.give_up(block)
        most = min(limit, 2 * most) if time.monotonic() - begun < NOTED_SECONDS else max(1, most // 2)
        if progress is not None:
            progress(done, len(rows))
        seconds = (time.monotonic() - started) * (len(rows) / max(done, 1) - 1)
        if done and seconds > TOLD_SECONDS and not estimated:
            report(f"the rest takes about {seconds / 60:.1f} min")
        estimated = estimated or done > 0


def _pictures(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    try:
        return dataset.pixels[rows]
    except OSError as error:
        raise UserError(
            f"cannot read pictures {rows[0]} to {rows[-1]} of {dataset.path} ({error}): "
            "record or copy it again"
        ) from None


@flushed()
@torch.inference_mode()
def encoded(encoder: PatchEncoder, pixels: np.ndarray, dtype: torch.dtype = torch.float16) -> Tensor:
    """Tokens of frames (B, R, R, 3) in `dtype` (B, N, D), where the encoder is.

    Not bfloat16: tokens often differ from frame to frame by little beside what they have in common, and its
    eight bits would round that little away.

    Raises:
        UserError: they are of another shape than the encoder promises, or not finite.
    """
    tokens = encoder.encode(pixels).patches.to(dtype)
    shape = (len(pixels), encoder.tokens, encoder.dim)
    if tuple(tokens.shape) != shape:
        raise UserError(
            f"encoder '{encoder.name}' makes tokens of shape {tuple(tokens.shape)}, its resolution, patch "
            f"and dim say {shape}: correct it"
        )
    if not torch.isfinite(tokens).all():
        raise UserError(
            f"encoder '{encoder.name}' makes NaN, infinite or huge tokens: check its weights and precision"
        )
    return tokens


def fast_copy(
    encoder: PatchEncoder,
    pixels: np.ndarray,
    dtype: torch.dtype,
    whitening: float = 0.0,
    tolerance: float = 0.1,
    report: Callable[[str], None] | None = None,
) -> PatchEncoder:
    """A copy of a float32 encoder in `dtype`; the encoder itself where rounding would hide what changes.

    Args:
        pixels: uint8 (B, R, R, 3) frames of one dataset, over which tokens are compared.
        whitening: of the tokens, as in `token_statistics`.
        tolerance: largest rounding error, as a share of the tokens' deviation over the frames.
        report: called with a sentence on what was found.
    """
    if dtype == torch.float32:
        return encoder
    copy = deepcopy(encoder).to(dtype)
    found = token_precision(encoder, copy, pixels, whitening)
    fits = found["error"] <= tolerance * found["deviation"]
    if report is not None:
        name, share = str(dtype).removeprefix("torch."), found["error"] / max(found["deviation"], 1e-30)
        used = name if fits else "float32"
        report(f"{name} moves tokens by {share:.1%} of what tells pictures apart: encoding in {used}")
    return copy if fits else encoder


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


@torch.inference_mode()
def common_part(
    encoder: PatchEncoder, dataset: Dataset, layout: Layout, whitening: float = 0.0, tolerance: float = 0.1
) -> tuple[Tensor, float]:
    """What tokens of 8 bits need not hold, as `Layout.pack` takes it, and the error of what they hold.

    The error is a root mean square as in `token_precision`, as a share of the deviation over some frames.

    Raises:
        UserError: it is above `tolerance`.
    """
    rows = np.unique(np.linspace(0, dataset.rows - 1, _SAMPLE).astype(int))
    exact = encoded(encoder, _pictures(dataset, rows), torch.float32).cpu()
    statistics = token_statistics(exact, whitening)
    mean, token_map = statistics["token_mean"], statistics["token_map"]
    deviation = (exact - mean).square().mean((0, 1)).sqrt()
    deviation = deviation.clamp_min(max(1e-6, 0.01 * float(deviation.square().mean().sqrt())))
    common = torch.cat([mean, deviation[None]])
    rounded = layout.unpack(layout.pack(exact, common), common)
    error, spread = (
        float((part @ token_map).square().mean().sqrt()) for part in (rounded - exact, exact - mean)
    )
    share = error / max(spread, 1e-9)
    if share > tolerance:
        raise UserError(
            f"8 bits round off {share:.0%} of what tells the tokens of encoder '{encoder.name}' apart, "
            f"{tolerance:.0%} at most is harmless: give `cache` float16 or none"
        )
    return common, share
