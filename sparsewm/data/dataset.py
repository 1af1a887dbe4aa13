"""Offline datasets: one HDF5 file, a column per field, the rows of all episodes one after another.

The layout is stable-worldmodel's, so files pass both ways. Row t of an episode holds the observation at t and
the action taken there; the last row of an episode has a zero action, since none was taken.

====================  ==========================  ==========================================================
column                dtype, shape                what
====================  ==========================  ==========================================================
pixels                uint8 (T, R, R, 3)          camera picture
action                float32 (T, A)              environment action, raw units
proprio               float32 (T, P)              proprioception, raw units
state                 float64 (T, D)              full simulator state
ep_len, ep_offset     int64 (E,)                  rows of each episode, and its first row
====================  ==========================  ==========================================================
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from sparsewm.errors import UserError
from sparsewm.files import atomic_path

COLUMNS = {
    "pixels": (np.uint8, 4),
    "action": (np.float32, 2),
    "proprio": (np.float32, 2),
    "state": (np.float64, 2),
}
"""Required columns: dtype and number of dimensions."""


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
    """Writes a dataset episode by episode; the file appears under its name only when it is complete.

    Use as a context manager: an error or an interruption inside the block leaves nothing behind.

    Args:
        path: the `.h5` file.
        attributes: what the file says of itself: `environment`, `frameskip`, `seed`, ...
        temporary: name until then, on the same disk (see `atomic_path`).
    """

    def __init__(
        self, path: str | Path, attributes: Mapping[str, Any], temporary: Path | None = None
    ) -> None:
        self.path, self.attributes, self.temporary = Path(path), dict(attributes), temporary
        self.lengths: list[int] = []
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

        Raises:
            ValueError: a column is missing, or has another dtype, shape or length than it must have.
        """
        assert self._file is not None, "use DatasetWriter as a context manager"
        rows = len(episode["action"]) if "action" in episode else 0
        for name, (dtype, ndim) in COLUMNS.items():
            if name not in episode:
                raise ValueError(f"the episode lacks the column '{name}'")
            values = episode[name]
            if values.dtype != dtype or values.ndim != ndim or len(values) != rows or rows == 0:
                raise ValueError(
                    f"column '{name}' must be {np.dtype(dtype)} with {ndim} dimensions and {rows} rows, "
                    f"got {values.dtype} {values.shape}"
                )
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
            if column.shape[1:] != values.shape[1:]:
                raise ValueError(f"column '{name}' has rows of {column.shape[1:]}, got {values.shape[1:]}")
            column.resize(len(column) + rows, axis=0)
            column[-rows:] = values
        self._disk.check()
        self.lengths.append(rows)


class Dataset:
    """A dataset file, opened and checked.

    Args:
        path: the `.h5` file.
        environment: name it must have been recorded in, if given.

    Attributes:
        attributes: what the file says of itself. lengths, offsets: (E,) rows and first row of the episodes.
        action, proprio, state: whole columns in memory.

    Raises:
        UserError: no such file, truncated, a column missing or of wrong shape or dtype, numbers that are not
            finite, or another environment.
    """

    def __init__(self, path: str | Path, environment: str | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(
                f"no dataset at {self.path}: record one with sparsewm collect, or give --dataset its path"
            )
        try:
            self._file = h5py.File(self.path, "r")
            self._check_columns()
            self.action = self._file["action"][:]
            self.proprio = self._file["proprio"][:]
            self.state = self._file["state"][:]
        except OSError as error:
            raise UserError(
                f"{self.path} is truncated or no HDF5 file ({error}): copy or collect it again"
            ) from None
        self.attributes = {
            key: value.item() if isinstance(value, np.generic) else value
            for key, value in self._file.attrs.items()
        }
        self.lengths = self._file["ep_len"][:].astype(np.int64)
        self.offsets = self._file["ep_offset"][:].astype(np.int64)
        self._check_rows()
        found = self.attributes.get("environment")
        if environment is not None and found not in (None, environment):
            raise UserError(
                f"{self.path} was recorded in {found}, not {environment}: give --env {found} or another "
                "--dataset"
            )

    def _check_columns(self) -> None:
        for name in (*COLUMNS, "ep_len", "ep_offset"):
            if name not in self._file:
                raise UserError(
                    f"{self.path} lacks the column '{name}' (it has {', '.join(sorted(self._file))}): "
                    "add it, or collect the dataset with sparsewm collect"
                )
        for name in ("ep_len", "ep_offset"):
            column = self._file[name]
            if column.ndim != 1 or column.dtype.kind not in "iu":
                raise UserError(
                    f"'{name}' of {self.path} must be int64 (episodes,), is {column.dtype} {column.shape}: "
                    "convert it"
                )
        for name, (dtype, ndim) in COLUMNS.items():
            column = self._file[name]
            good = column.ndim == ndim and column.dtype == dtype and (ndim != 4 or column.shape[-1] == 3)
            if not good:
                shape = "(rows, height, width, 3)" if ndim == 4 else "(rows, size)"
                raise UserError(
                    f"column '{name}' of {self.path} must be {np.dtype(dtype)} {shape}, is {column.dtype} "
                    f"{column.shape}: convert it"
                )

    def _check_rows(self) -> None:
        total = int(self.lengths.sum())
        for name in COLUMNS:
            if len(self._file[name]) != total:
                raise UserError(
                    f"column '{name}' of {self.path} has {len(self._file[name])} rows, the episodes need "
                    f"{total}: the file is incomplete, collect or copy it again"
                )
        if (
            not np.array_equal(self.offsets, np.concatenate([[0], np.cumsum(self.lengths)[:-1]]))
            or total == 0
        ):
            raise UserError(
                f"ep_offset and ep_len of {self.path} do not fit together: collect or convert it again"
            )
        for name in ("action", "proprio", "state"):
            bad = np.argwhere(~np.isfinite(getattr(self, name)))
            if len(bad):
                raise UserError(
                    f"column '{name}' of {self.path} is not finite in row {bad[0][0]}: remove that episode"
                )

    @property
    def rows(self) -> int:
        """Number of rows of all episodes."""
        return len(self.action)

    @property
    def episodes(self) -> int:
        """Number of episodes E."""
        return len(self.lengths)

    @property
    def pixels(self) -> h5py.Dataset:
        """The pixel column on disk, uint8 (rows, R, R, 3)."""
        return self._file["pixels"]

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of lengths, actions, states and a sample of the pictures."""
        digest = hashlib.sha256()
        for values in (self.lengths, self.action, self.state):
            digest.update(np.ascontiguousarray(values).tobytes())
        for row in np.linspace(0, self.rows - 1, 16).astype(int):
            digest.update(self.pixels[row].tobytes())
        return digest.hexdigest()

    def split(self, held_out: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
        """Episode numbers for training and for validation, which is the last `held_out` of the file."""
        count = max(1, round(held_out * self.episodes))
        if count >= self.episodes:
            raise UserError(
                f"{self.path} has {self.episodes} episode(s), too few to hold some out: collect more"
            )
        order = np.arange(self.episodes)
        return order[:-count], order[-count:]

    def close(self) -> None:
        """Release the file."""
        self._file.close()
