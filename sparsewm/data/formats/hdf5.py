"""One HDF5 file: a column per field, the rows of all episodes one after another. Read and written.

The layout is stable-worldmodel's (compared with release 0.1.1), so files pass both ways. Row t of an episode
holds the observation at t and the action taken there; the last row of an episode has no action.

=====================  =========================  ============================================================
column                 dtype, shape               what
=====================  =========================  ============================================================
pixels                 uint8 (T, H, W, 3)         camera picture; further cameras as `pixels.NAME`
action                 float32 (T, A)             environment action, raw units
proprio                float32 (T, P)             proprioception, raw units; may be missing
state                  float64 (T, D)             full simulator state; may be missing
ep_len, ep_offset      int64 (E,)                 rows of each episode, and its first row
episode_idx, step_idx  int64 (T,)                 number of the episode, and of the row within it
=====================  =========================  ============================================================

Files of others may hold other number types, NaN as the action of an episode's last row, and further columns.
Attributes of the file that are read: `environment`, `frameskip`, `fps`, `action_low`, `action_high`,
`action_names`, `proprio_names`, `policy`.

Columns are compressed with Zstandard: programs of others `import hdf5plugin` before they open such a file
with h5py, or set `HDF5_PLUGIN_PATH` to the folder `hdf5plugin.PLUGIN_PATH`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (reads compressed columns)
import numpy as np

from sparsewm.data.dataset import Dataset
from sparsewm.data.frames import Frames, ReadFrames, choose_cameras, side_by_side
from sparsewm.errors import UserError
from sparsewm.files import size_text
from sparsewm.memory import free_memory

_COPIES = 3  # of a column, while it is checked
_LARGEST_CHUNK = 1 << 30  # bytes; HDF5 takes memory for a whole one, whatever it holds
_MUCH = 1 << 26  # bytes of a column that is looked for in the file before it is read
_CLAIMED = 10_000_000  # rows that are stood in for where actions are missing, at most
_PLAIN = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM, h5py.h5t.STRING)  # types of attributes
_DAMAGED = (KeyError, OSError, OverflowError, RuntimeError, TypeError, ValueError)  # what h5py raises


def attributes_of(file: h5py.File) -> dict[str, Any]:
    """What a file says of itself in numbers and texts, by name.

    Attributes of other types are not looked at: on a damaged one HDF5 2.0 crashes.
    """
    plain = [name for name in file.attrs if file.attrs.get_id(name).get_type().get_class() in _PLAIN]
    said = {name: file.attrs[name] for name in plain}
    return {name: value for name, value in said.items() if not isinstance(value, h5py.Empty)}


def _stored(column: h5py.Dataset) -> int:
    """Bytes of those numbers that a file holds, before they were compressed; the others are read as zeros."""
    if column.chunks is None:
        return int(column.id.get_storage_size())
    return int(column.id.get_num_chunks()) * math.prod(column.chunks) * int(column.dtype.itemsize)


class HDF5Dataset(Dataset):
    """A dataset file in the layout above, ours or stable-worldmodel's.

    Args:
        path: the file. cameras: names of those to show: "pixels", or NAME for a column `pixels.NAME`;
            needed where there are several.

    Raises:
        UserError: no HDF5 file, truncated, open elsewhere, or a camera that is not there.
    """

    def __init__(self, path: str | Path, cameras: Sequence[str] = ()) -> None:
        self._source, self._faults = Path(path), []
        try:
            self._file = h5py.File(self._source, "r")
        except OSError as error:
            if "unable to lock" in str(error):
                raise UserError(
                    f"{path} is open elsewhere ({error}): wait until the other program is done, or set "
                    "HDF5_USE_FILE_LOCKING=FALSE if it only reads"
                ) from None
            raise UserError(
                f"{path} is truncated or no HDF5 file ({error}): copy or collect it again"
            ) from None
        try:
            said = attributes_of(self._file)
            lengths = self._lengths()
            action = self._numbers("action", required=True)
            proprio = self._numbers("proprio")
            if proprio is None and "proprio" not in self._file:
                proprio = self._numbers("observation")
            state = self._numbers("state")
            available = self._cameras(said.get("pictures") != "none")
            rows = self._held()  # not what lengths say: they may say anything
            shown: list[str] = []
            if available:
                shown, several = choose_cameras(path, list(available), cameras)
                self._faults += several
            parts = [self._frames(available[name]) for name in shown]
        except _DAMAGED as error:
            self._file.close()
            raise UserError(f"{path} is damaged ({error}): copy or collect it again") from None
        none = ReadFrames((rows, 0, 0, 3), path, lambda rows: np.zeros((len(rows), 0, 0, 3), np.uint8))
        if action is None and rows > _CLAIMED:  # a column may claim any number of rows, and hold none
            self._file.close()
            faults = "; ".join(self._faults)
            raise UserError(f"{path} is damaged ({faults}; {rows} rows): copy or collect it again")
        if len({len(part) for part in parts}) > 1:
            self._faults.append(f"its cameras have {', '.join(str(len(part)) for part in parts)} rows")
        super().__init__(
            path,
            lengths=lengths,
            action=np.zeros((rows, 1), np.float32) if action is None else action,
            pixels=side_by_side(parts) if parts else none,
            proprio=proprio,
            state=state,
            attributes=said,
            fps=said.get("fps"),
            action_names=_texts(said.get("action_names", ())),
            proprio_names=_texts(said.get("proprio_names", ())),
            cameras=shown,
            available_cameras=list(available),
            action_low=said.get("action_low"),
            action_high=said.get("action_high"),
            obstacles=self._faults,
        )

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """An existing file that ends in .h5 or .hdf5, or is HDF5 inside."""
        return path.is_file() and (path.suffix in (".h5", ".hdf5") or bool(h5py.is_hdf5(path)))

    def columns(self) -> dict[str, str]:
        """Type and shape of everything in the file."""
        return {
            name: f"{thing.dtype} {thing.shape}" if isinstance(thing, h5py.Dataset) else "group"
            for name, thing in self._things().items()
        }

    def _names(self) -> list[str]:
        """Of all columns and groups; what is no text names nothing of ours."""
        return [name for name in self._file if isinstance(name, str)]

    def _things(self) -> dict[str, Any]:
        """All columns and groups by name."""
        found = {}
        for name in self._names():
            with contextlib.suppress(*_DAMAGED):  # links that lead nowhere
                found[name] = self._file[name]
        return found

    def _column(self, name: str, required: bool = False) -> h5py.Dataset | None:
        """The column on disk; None, with a fault where it ought to be, if there is none."""
        link = self._file.get(name, getlink=True)
        if link is None:
            if required:
                has = ", ".join(sorted(self._names())) or "nothing"
                self._faults.append(f"it lacks the column '{name}' (it has {has})")
            return None
        try:
            column = self._file[name]
        except _DAMAGED:
            place = getattr(link, "filename", None) or getattr(link, "path", "?")
            self._faults.append(f"column '{name}' is a link to {place}, which is not there")
            return None
        if not isinstance(column, h5py.Dataset):
            self._faults.append(f"'{name}' is a group, not a column")
            return None
        if column.shape is None:
            self._faults.append(f"column '{name}' is empty")
            return None
        chunk = math.prod(column.chunks or (0,)) * column.dtype.itemsize
        if chunk > _LARGEST_CHUNK:
            self._faults.append(f"column '{name}' lies in chunks of {size_text(chunk)}: write smaller ones")
            return None
        for source in column.virtual_sources() if column.is_virtual else []:
            # HDF5 itself shows zeros in place of a file that is missing
            if source.file_name != "." and not (self._source.parent / source.file_name).is_file():
                self._faults.append(f"column '{name}' is made of {source.file_name}, which is not there")
                return None
        return column

    def _values(self, name: str, column: h5py.Dataset) -> np.ndarray | None:
        size = math.prod(column.shape) * column.dtype.itemsize
        if _COPIES * size > (free := free_memory()):
            self._faults.append(
                f"column '{name}' {column.shape} takes {size_text(size)}, where {size_text(free)} of memory "
                "are free"
            )
            return None
        if size > _MUCH and 2 * _stored(column) < size:
            self._faults.append(
                f"column '{name}' {column.shape} claims {size_text(size)}, most of which is not in the file"
            )
            return None
        try:
            values: np.ndarray = column[()]
        except _DAMAGED as error:
            self._faults.append(f"column '{name}' is damaged ({error}): copy the file again")
            return None
        return values

    def _numbers(self, name: str, required: bool = False) -> np.ndarray | None:
        """A column of numbers (rows, n); (rows,) is read as (rows, 1)."""
        column = self._column(name, required)
        if column is None:
            return None
        if column.ndim not in (1, 2) or column.dtype.kind not in "fiub" or 0 in column.shape[1:]:
            if required or name != "observation":
                self._faults.append(
                    f"column '{name}' must be numbers (rows, size), is {column.dtype} {column.shape}"
                )
            return None
        values = self._values(name, column)
        return values if values is None or values.ndim == 2 else values[:, None]

    def _held(self) -> int:
        """Rows of the longest column of more than one number a row."""
        columns = [c for c in self._things().values() if isinstance(c, h5py.Dataset) and c.ndim > 1]
        return max((len(c) for c in columns), default=0)

    def _lengths(self) -> np.ndarray:
        """Rows of the episodes, from `ep_len` or, without it, from `episode_idx`."""
        unknown = np.array([self._held()])  # as if all were one episode
        derived = "ep_len" not in self._file and "episode_idx" in self._file
        name = "episode_idx" if derived else "ep_len"
        column = self._column(name, required=True)
        if column is None:
            return unknown
        if column.ndim != 1 or column.dtype.kind not in "iu":
            self._faults.append(f"'{name}' must be int64 (episodes,), is {column.dtype} {column.shape}")
            return unknown
        values = self._values(name, column)
        if values is None:
            return unknown
        if derived:
            starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))[: len(values)]
            return np.diff(np.append(starts, len(values)))
        lengths: np.ndarray = values.astype(np.int64)
        offsets = self._column("ep_offset")
        found = None if offsets is None else self._values("ep_offset", offsets)
        if found is not None and not np.array_equal(found, np.cumsum(lengths) - lengths):
            self._faults.append("ep_offset and ep_len do not fit together")
        return lengths

    def _cameras(self, needed: bool = True) -> dict[str, h5py.Dataset]:
        """Columns of pictures by the camera's name."""
        names = [name for name in self._names() if name.startswith("pixels.")]
        if "pixels" in self._file or (needed and not names):
            names.insert(0, "pixels")
        found = {}
        for name in names:
            column = self._column(name, required=True)
            if column is None:
                continue
            if column.ndim != 4 or column.dtype != np.uint8 or column.shape[-1] != 3:
                self._faults.append(
                    f"column '{name}' must be uint8 (rows, height, width, 3), is {column.dtype} "
                    f"{column.shape}"
                )
                continue
            if 0 in column.shape:
                self._faults.append(f"pictures of column '{name}' have the shape {column.shape}")
                continue
            found[name.removeprefix("pixels.")] = column
        return found

    def _frames(self, column: h5py.Dataset) -> Frames:
        def read(rows: np.ndarray) -> np.ndarray:
            runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
            return np.concatenate([column[run[0] : run[-1] + 1] for run in runs])

        return ReadFrames(column.shape, self._source, read)

    def close(self) -> None:
        """Release the file."""
        super().close()
        self._file.close()


def _texts(values: Any) -> list[str]:
    """Names out of an attribute: an array of texts or bytes, or one text with commas."""
    if isinstance(values, (str, bytes)):
        values = (values.decode(errors="replace") if isinstance(values, bytes) else values).split(",")
    return [
        v.decode(errors="replace") if isinstance(v, bytes) else str(v)
        for v in np.asarray(values).ravel().tolist()
    ]
