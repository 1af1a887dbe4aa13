"""Writes the HDF5 files that `sparsewm.data.formats.hdf5` describes and reads."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from sparsewm.files import atomic_path

COLUMNS = {
    "pixels": (np.uint8, 4),
    "action": (np.float32, 2),
    "proprio": (np.float32, 2),
    "state": (np.float64, 2),
}
"""What `DatasetWriter` takes: dtype and number of dimensions. The last two may be missing."""


class _Disk(io.FileIO):
    """A file that keeps its first failed write in `error`: HDF5 crashes where it meets a full disk."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while self.error is None and len(rest):
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def flush(self) -> None:
        """Nothing is buffered."""

    def check(self) -> None:
        """Raise the error of an earlier write."""
        if self.error is not None:
            raise self.error


class DatasetWriter:
    """Writes an HDF5 dataset episode by episode; the file appears under its name only when it is complete.

    Use as a context manager: an error or an interruption inside the block leaves nothing behind.

    Args:
        path: the `.h5` file.
        attributes: what the file says of itself: `environment`, `frameskip`, `seed`, ...; with `pictures`
            none it needs none.
        temporary: name until then, on the same disk (see `atomic_path`).
    """

    def __init__(
        self, path: str | Path, attributes: Mapping[str, Any], temporary: Path | None = None
    ) -> None:
        self.path, self.attributes, self.temporary = Path(path), dict(attributes), temporary
        self.lengths: list[int] = []
        self._columns: list[str] = []
        self._file: h5py.File | None = None

    def __enter__(self) -> DatasetWriter:
        self._atomic = atomic_path(self.path, self.temporary)
        self._disk = _Disk(self._atomic.__enter__(), "w+")
        self._file = h5py.File(self._disk, "w")
        self._file.attrs.update(self.attributes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._file is not None
        try:
            if kind is None:
                lengths = np.array(self.lengths, np.int64)
                self._file["ep_len"] = lengths
                self._file["ep_offset"] = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
            self._file.close()
        except Exception as failure:  # once a write has failed, HDF5 fails in all kinds of ways
            if kind is None:
                kind, error, trace = type(failure), failure, failure.__traceback__
        finally:
            self._disk.close()
        if (failed := self._disk.error) is not None:  # the cause of whatever followed
            kind, error, trace = type(failed), failed, failed.__traceback__
        return self._atomic.__exit__(kind, error, trace)

    def append(self, episode: Mapping[str, np.ndarray]) -> None:
        """Add one whole episode: arrays with equal numbers of rows, one per column.

        `action` and `pixels` (or `pixels.NAME` of several cameras) are needed, `proprio` and `state` have the
        types of `COLUMNS`, others are kept as they are; all episodes have the same columns.

        Raises:
            ValueError: a column is missing, or has another dtype, shape or length than it must have.
        """
        assert self._file is not None, "use DatasetWriter as a context manager"
        rows = len(episode["action"]) if "action" in episode else 0
        pictures = [name for name in episode if name == "pixels" or name.startswith("pixels.")]
        needed = [] if pictures or self.attributes.get("pictures") == "none" else ["pixels"]
        for name in ["action", *needed, *self._columns]:
            if name not in episode:
                raise ValueError(f"the episode lacks the column '{name}'")
        episode = dict(episode)
        types = COLUMNS | dict.fromkeys(pictures, COLUMNS["pixels"])
        for name, (dtype, ndim) in types.items():
            if name not in episode:
                continue
            values = episode[name]
            if values.dtype != dtype or values.ndim != ndim or len(values) != rows or rows == 0:
                raise ValueError(
                    f"column '{name}' must be {np.dtype(dtype)} with {ndim} dimensions and {rows} rows, "
                    f"got {values.dtype} {values.shape}"
                )
        if self.lengths and (new := set(episode) - set(self._columns)):
            raise ValueError(f"the first episode had no column '{min(new)}'")
        for name, values in episode.items():  # before any column grows
            self._check_column(name, values, rows)
        self._columns = list(episode)
        episode.setdefault("episode_idx", np.full(rows, len(self.lengths), np.int64))
        episode.setdefault("step_idx", np.arange(rows, dtype=np.int64))
        for name, values in episode.items():
            if name not in self._file:
                chunk = min(rows, 26) if values.ndim == 4 else 1024
                self._file.create_dataset(
                    name,
                    (0, *values.shape[1:]),
                    values.dtype,
                    maxshape=(None, *values.shape[1:]),
                    chunks=(chunk, *values.shape[1:]),
                    **hdf5plugin.Zstd(clevel=1),
                )
            column = self._file[name]
            column.resize(len(column) + rows, axis=0)
            column[-rows:] = values
        self._disk.check()
        self.lengths.append(rows)

    def _check_column(self, name: str, values: np.ndarray, rows: int) -> None:
        """Raise a ValueError for a column that HDF5 does not keep, or that is unlike that of the others."""
        assert self._file is not None
        if values.shape[:1] != (rows,):
            raise ValueError(f"column '{name}' must have {rows} rows, got the shape {values.shape}")
        try:
            h5py.h5t.py_create(values.dtype, logical=True)
        except TypeError as error:
            raise ValueError(f"column '{name}' cannot be kept: {error}") from None
        if name not in self._file:
            return
        column = self._file[name]
        if column.shape[1:] != values.shape[1:]:
            raise ValueError(f"column '{name}' has rows of {column.shape[1:]}, got {values.shape[1:]}")
        if column.dtype != values.dtype:
            raise ValueError(f"column '{name}' is {column.dtype}, got {values.dtype}")
