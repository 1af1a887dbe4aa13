"""Encoded tokens of a dataset, computed once and kept beside it in a memory-mapped file."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.data.dataset import Dataset
from sparsewm.data.statistics import block_frames, statistics_of, token_statistics
from sparsewm.encoders import PatchEncoder
from sparsewm.errors import UserError
from sparsewm.files import disk_errors, locked_file, read_json, require_space, size_text
from sparsewm.kernels import flushed

CHECK_EVERY = 2048
"""Rows between two notes of progress at most, each with a checksum of what was written."""

BLOCK_BYTES = 1 << 25
"""The same in bytes."""

CHECKED_BYTES = 1 << 29
"""Bytes that are compared with their checksums, at most, when a finished file is opened."""

REMEDY = "free some space or give `directory` a folder on another disk"

_MAGIC = b"sparsewm tokens1"
_BATCH = 128


class TokenCache:
    """Raw patch tokens of every row of a dataset, float16 (rows, N, D), memory-mapped.

    The name of the file carries the hash of the dataset and the encoder's key: its weights, resolution and
    precision. Another of them is another file. Checksums at its end tell a whole file from an unfinished or
    damaged one. An interrupted build goes on where it stopped; of several programs that want the same tokens
    one encodes while the others wait.

    Args:
        dataset: its pictures. encoder: frozen, on its device.
        directory: where to keep the file; when None, beside the dataset, or in `cache_folder` where that
            cannot be written to.
        progress: called with the rows done and the number of rows.
        report: called with a sentence before the encoding starts (the place, the disk it takes), or waits.

    Raises:
        UserError: the disk is full, no folder can be written to, or the encoder makes NaN.
    """

    def __init__(
        self,
        dataset: Dataset,
        encoder: PatchEncoder,
        directory: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._report = report or (lambda _: None)
        self.shape = (dataset.rows, encoder.tokens, encoder.dim)
        self._row_bytes = token_bytes(1, encoder)
        self._block = max(1, min(CHECK_EVERY, BLOCK_BYTES // self._row_bytes))
        name = f"{dataset.path.stem}.tokens-{dataset.hash[:10]}-{encoder.key}.bin"
        folders = [Path(directory)] if directory is not None else [dataset.path.parent, cache_folder()]
        found = [folder / name for folder in folders if self._is_whole(folder / name)]
        self.path = found[0] if found else _writable(folders) / name
        if not found:
            self._build(dataset, encoder, progress)
        self.values = np.memmap(self.path, np.float16, "r", shape=self.shape)

    def rows(self, rows: np.ndarray) -> Tensor:
        """Tokens of rows (any shape): float16 (*rows.shape, N, D)."""
        return torch.from_numpy(self.values[rows])

    def statistics(
        self, rows: np.ndarray, whitening: float = 0.0, samples: int = 8192, seed: int = 0
    ) -> dict[str, Tensor]:
        """`token_statistics` over a sample of `rows`, some frames in memory at a time."""
        picked = np.sort(np.random.default_rng(seed).choice(rows, min(samples, len(rows)), replace=False))
        step = block_frames(self.shape[1] * self.shape[2])
        starts = range(0, len(picked), step)
        return statistics_of(lambda: (self.rows(picked[i : i + step]) for i in starts), whitening)

    def _build(
        self, dataset: Dataset, encoder: PatchEncoder, progress: Callable[[int, int], None] | None
    ) -> None:
        """Encode what is missing into a file that no other process writes to, and rename it at the end."""
        waiting = f"another program encodes the same pictures: waiting for {self.path}"
        with (
            disk_errors(self.path, REMEDY),
            locked_file(self.path.with_suffix(".partial"), lambda: self._report(waiting)) as (file, partial),
        ):
            note = partial.with_name(partial.name + ".json")
            if not self._is_whole(self.path):  # else another program has finished it meanwhile
                self._encode(dataset, encoder, file, note, progress)
                os.replace(partial, self.path)
            partial.unlink(missing_ok=True)
            note.unlink(missing_ok=True)

    def _encode(
        self,
        dataset: Dataset,
        encoder: PatchEncoder,
        file: IO[bytes],
        note: Path,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        record = self._record(file, note)
        done: int = record["rows"]
        left = (dataset.rows - done) * self._row_bytes
        self._report(
            f"encoding {dataset.rows - done:,} pictures with {encoder.name}: tokens take {size_text(left)} "
            f"in {self.path.parent}"
        )
        require_space(self.path, left, REMEDY)
        # written as a plain file: writing to a memory map kills the process where the disk is full
        file.truncate(done * self._row_bytes)
        file.seek(done * self._row_bytes)
        for start in range(done, dataset.rows, self._block):
            stop, checksum = min(start + self._block, dataset.rows), 0
            for first in range(start, stop, _BATCH):
                rows = slice(first, min(first + _BATCH, stop))
                try:
                    pixels = dataset.pixels[rows]
                except OSError as error:
                    raise UserError(
                        f"cannot read pictures {rows.start} to {rows.stop} of {dataset.path} ({error}): "
                        "record or copy it again"
                    ) from None
                content = encode_half(encoder, pixels).tobytes()
                checksum = zlib.crc32(content, checksum)
                file.write(content)
            _to_disk(file)
            record["rows"] = stop
            record["checksums"].append(checksum)
            fresh = note.with_suffix(".new")
            fresh.write_text(json.dumps(record))
            fresh.replace(note)
            if progress is not None:
                progress(stop, dataset.rows)
        trailer = json.dumps(record).encode()
        file.write(trailer + len(trailer).to_bytes(8, "little") + _MAGIC)
        _to_disk(file)

    def _record(self, file: IO[bytes], note: Path) -> dict[str, Any]:
        """What an interrupted build has finished; nothing where its note or its rows are not as written."""
        fresh = {"shape": list(self.shape), "block": self._block, "rows": 0, "checksums": []}
        try:
            found: dict[str, Any] = read_json(note)
            same = all(found[key] == fresh[key] for key in ("shape", "block"))
            return found if same and self._holds(file, found) else fresh
        except (UserError, OSError, KeyError, TypeError, ValueError, IndexError):
            return fresh

    def _is_whole(self, path: Path) -> bool:
        """Whether a file holds all rows, as far as its trailer and its checksums tell."""
        foot = len(_MAGIC) + 8
        try:
            with open(path, "rb") as file:
                file.seek(-foot, os.SEEK_END)
                length, magic = int.from_bytes(file.read(8), "little"), file.read()
                if magic != _MAGIC or length > 1 << 30:
                    return False
                start = file.seek(-foot - length, os.SEEK_END)
                record = json.loads(file.read(length))
                right = record["shape"] == list(self.shape) and record["rows"] == self.shape[0]
                return bool(right and start == self.shape[0] * self._row_bytes and self._holds(file, record))
        except (OSError, KeyError, TypeError, ValueError, IndexError):
            return False

    def _holds(self, file: IO[bytes], record: dict[str, Any]) -> bool:
        """Whether a file holds the rows of a record, checked in blocks from the first to the last."""
        rows, block, checksums = record["rows"], record["block"], record["checksums"]
        if len(checksums) != -(-rows // block):
            return False
        most = max(2, CHECKED_BYTES // (block * self._row_bytes))
        for i in np.unique(np.linspace(0, len(checksums) - 1, min(most, len(checksums))).astype(int)):
            file.seek(int(i) * block * self._row_bytes)
            content = file.read((min(int(i + 1) * block, rows) - int(i) * block) * self._row_bytes)
            if zlib.crc32(content) != checksums[i]:
                return False
        return True


def token_bytes(rows: int, encoder: PatchEncoder) -> int:
    """Disk that the tokens of so many pictures take, in bytes."""
    return 2 * rows * encoder.tokens * encoder.dim


def cache_folder() -> Path:
    """Where tokens go if not beside their dataset: $SPARSEWM_CACHE, or in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SPARSEWM_CACHE") or Path(user) / "sparsewm")


def _writable(folders: list[Path]) -> Path:
    """The first of these folders in which a file can be made; missing ones are made."""
    reasons = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError as error:
            reasons.append(f"{folder} ({error.strerror})")
    raise UserError(f"tokens cannot be written to {' or '.join(reasons)}: give `directory` a folder that can")


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@flushed()
@torch.inference_mode()
def encode_half(encoder: PatchEncoder, pixels: np.ndarray) -> np.ndarray:
    """Tokens of frames (B, R, R, 3) in float16 (B, N, D); UserError where that is not finite.

    Not bfloat16: tokens often differ from frame to frame by little beside what they have in common, and its
    eight bits would round that little away.
    """
    half: np.ndarray = encoder.encode(pixels).patches.to("cpu", torch.float16).numpy()
    if not np.isfinite(half).all():
        raise UserError(
            f"encoder '{encoder.name}' makes NaN, infinite or huge tokens: check its weights and precision"
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
