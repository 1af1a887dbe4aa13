"""Tokens of pictures as training reads them: kept in a file, or encoded as they are read."""

from __future__ import annotations

import tempfile
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsewm.data.dataset import Dataset
from sparsewm.data.encoding import common_part, encode_missing, encoded
from sparsewm.data.statistics import block_frames, statistics_of
from sparsewm.data.token_file import CACHES, Layout, TokenFile
from sparsewm.encoders import PatchEncoder
from sparsewm.errors import UserError
from sparsewm.files import cache_folder, disk_errors, require_space, size_text
from sparsewm.trees import one_of

REMEDY = "free some space, give `cache` int8 or none, or give `directory` a folder on another disk"

KEPT_BYTES = 1 << 29
"""Memory of the tokens that `EncodedAsRead` keeps, at most."""

_PAGE = 4096
_BATCH = 128


class Tokens(ABC):
    """Raw patch tokens of the pictures of a dataset.

    Attributes:
        shape: (rows, N, D). kind: one of `CACHES`.
        ahead: whether they can be read in a thread beside the one that computes.
        standard: whether they are no longer raw, but in the units of a world model.
    """

    shape: tuple[int, int, int]
    kind: str
    ahead: bool
    standard = False

    @abstractmethod
    def rows(self, rows: np.ndarray) -> Tensor:
        """Tokens of rows (any shape): (*rows.shape, N, D) float16, or float32 where they are kept in int8."""

    def statistics(
        self, rows: np.ndarray, whitening: float = 0.0, samples: int = 8192, seed: int = 0
    ) -> dict[str, Tensor]:
        """`token_statistics` over a sample of `rows`, some frames in memory at a time."""
        picked = sampled_rows(rows, samples, seed)
        step = block_frames(self.shape[1] * self.shape[2])
        starts = range(0, len(picked), step)
        return statistics_of(lambda: (self.rows(picked[i : i + step]) for i in starts), whitening)


class TokenCache(Tokens):
    """Raw patch tokens of rows of a dataset in a memory-mapped file, which has a place for all of them.

    The name of the file carries the hash of the dataset, the encoder's key (its weights, resolution and
    precision) and how compact it is. Another of them is another file. Only the rows that are asked for are
    encoded and take disk; one that is read without having been asked for is encoded then. Every row has a
    checksum. An interrupted encoding goes on where it stopped, and programs that want the same tokens share
    it.

    Args:
        dataset: its pictures. encoder: frozen, on its device.
        directory: where to keep the file; when None, beside the dataset, or in `cache_folder` where that
            cannot be written to.
        progress: called with the rows done and the number of rows that were missing.
        report: called with sentences: before the encoding starts (the place, the disk it takes), how long it
            will take, that others are waited for.
        rows: to be encoded now; all when None.
        kind: float16, or int8, which takes half the disk: a scale per token, beside the mean of its patch.
        whitening: of the tokens, as in `token_statistics`: what the error of int8 is measured by.

    Raises:
        UserError: the disk is full, no folder can be written to, the encoder makes NaN, or int8 rounds off
            too much.
    """

    ahead = True

    def __init__(
        self,
        dataset: Dataset,
        encoder: PatchEncoder,
        directory: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        report: Callable[[str], None] | None = None,
        rows: np.ndarray | None = None,
        kind: str = "float16",
        whitening: float = 0.0,
    ) -> None:
        one_of("kind", kind, CACHES[:2])
        self._dataset, self._encoder, self._whitening = dataset, encoder, whitening
        self._report = report or (lambda _: None)
        self._lock = threading.Lock()
        self.kind, self.shape = kind, (dataset.rows, encoder.tokens, encoder.dim)
        self._layout = Layout(self.shape, kind)
        self._name = token_file_name(dataset, encoder, kind)
        beside = [dataset.path.parent, cache_folder()]
        self._folders = [Path(directory)] if directory is not None else beside
        rows = np.arange(dataset.rows) if rows is None else np.unique(rows)
        self._file = self._open(rows)
        self.encode(rows, progress)

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return self._file.path

    @property
    def values(self) -> np.ndarray:
        """The rows as they lie in the file, those that are missing as zeros."""
        return self._file.values

    def rows(self, rows: np.ndarray) -> Tensor:
        """See `Tokens.rows`."""
        if not self._file.there(rows).all():
            self.encode(rows)
        return self._file.tokens(rows)

    def encode(self, rows: np.ndarray, progress: Callable[[int, int], None] | None = None) -> None:
        """Encode those of these rows that are missing.

        Raises:
            UserError: as the class.
        """
        with self._lock:
            rows = np.unique(rows)
            missing = rows[~self._file.there(rows)]
            if not len(missing):
                return
            if not self._file.writable:
                self._file = self._open(rows)
                missing = rows[~self._file.there(rows)]
            size = size_text(len(missing) * self._layout.row.itemsize)
            self._report(
                f"encoding {len(missing):,} pictures with {self._encoder.name}: tokens take {size} "
                f"in {self.path.parent}"
            )
            self._require_space(self.path, missing)
            with disk_errors(self.path, REMEDY):
                encode_missing(self._file, self._dataset, self._encoder, missing, progress, self._report)

    def _open(self, rows: np.ndarray) -> TokenFile:
        """The file that has these rows, or else one that can get them."""
        found = [TokenFile.find(folder / self._name, self._layout) for folder in self._folders]
        files = [file for file in found if file is not None]
        for file in (*(f for f in files if f.there(rows).all()), *(f for f in files if f.writable)):
            if self.kind == "int8" and file.about["whitening"] != self._whitening:
                common_part(self._encoder, self._dataset, self._layout, self._whitening)
            return file
        path = _writable(self._folders) / self._name
        self._require_space(path, rows)
        common, about = None, {}
        if self.kind == "int8":
            common, error = common_part(self._encoder, self._dataset, self._layout, self._whitening)
            self._report(f"tokens in 8 bits: rounding takes {error:.1%} of their deviation over pictures")
            about = {"whitening": self._whitening, "error": error}
        with disk_errors(path, REMEDY):
            return TokenFile.make(path, self._layout, common, about)

    def _require_space(self, path: Path, rows: np.ndarray) -> None:
        """Room for missing rows, and for the rest of the pages in which stretches of them end."""
        ends = np.count_nonzero(np.diff(rows) > 1) * _PAGE
        require_space(path, len(rows) * self._layout.row.itemsize + ends, REMEDY)


class EncodedAsRead(Tokens):
    """Tokens that are encoded when they are read; those read last stay in memory.

    Args:
        dataset: its pictures. encoder: frozen, on its device, where the tokens stay.
    """

    kind, ahead = "none", False

    def __init__(self, dataset: Dataset, encoder: PatchEncoder) -> None:
        self._dataset, self._encoder = dataset, encoder
        self.shape = (dataset.rows, encoder.tokens, encoder.dim)
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._most = KEPT_BYTES // token_bytes(1, encoder)

    def rows(self, rows: np.ndarray) -> Tensor:
        """See `Tokens.rows`; on the encoder's device."""
        unique, place = np.unique(rows, return_inverse=True)
        missing = np.array([row for row in unique.tolist() if row not in self._kept], np.int64)
        for first in range(0, len(missing), _BATCH):
            part = missing[first : first + _BATCH]
            tokens = encoded(self._encoder, self._dataset.pixels[part])
            self._kept |= {row: one.clone() for row, one in zip(part.tolist(), tokens, strict=True)}
        for row in unique.tolist():
            self._kept.move_to_end(row)
        found = torch.stack([self._kept[row] for row in unique.tolist()])
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        numbers = torch.from_numpy(place.reshape(-1)).to(found.device)
        return found[numbers].reshape(*rows.shape, *self.shape[1:])


def tokens_of(
    dataset: Dataset,
    encoder: PatchEncoder,
    cache: str = "float16",
    directory: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
    rows: np.ndarray | None = None,
    whitening: float = 0.0,
) -> Tokens:
    """The tokens of a dataset, kept as `cache` says, one of `CACHES`; the rest as in `TokenCache`."""
    one_of("cache", cache, CACHES)
    if cache == "none":
        return EncodedAsRead(dataset, encoder)
    return TokenCache(dataset, encoder, directory, progress, report, rows, cache, whitening)


def sampled_rows(rows: np.ndarray, samples: int = 8192, seed: int | list[int] = 0) -> np.ndarray:
    """The rows int64 (samples,), ascending, that statistics are taken over; all where there are fewer."""
    picked: np.ndarray = np.random.default_rng(seed).choice(rows, min(samples, len(rows)), replace=False)
    return np.sort(picked)


def token_file_name(dataset: Dataset, encoder: PatchEncoder, kind: str = "float16") -> str:
    """The name of the file that holds the tokens of a dataset."""
    compact = "" if kind == "float16" else f"-{kind}"
    return f"{dataset.path.stem}.tokens-{dataset.hash[:10]}-{encoder.key}{compact}.bin"


def token_bytes(rows: int, encoder: PatchEncoder, kind: str = "float16") -> int:
    """Disk that the tokens of so many pictures take, in bytes."""
    return rows * Layout((rows, encoder.tokens, encoder.dim), kind).row.itemsize


def _writable(folders: Sequence[Path]) -> Path:
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
