"""The file of a dataset's tokens: a place for every row, which rows are there, and how they are checked."""

from __future__ import annotations

import json
import os
import weakref
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sparsewm.files import hold, locked_file, release

Cache = Literal["float16", "int8", "none"]
CACHES: tuple[Cache, ...] = get_args(Cache)
"""How tokens are kept: in 16 bits, in 8, or not at all."""

CHECKED_BYTES = 1 << 29
"""Bytes that are compared with their checksums, at most, when a file is opened."""

CLAIMED_ROWS = 128
"""Rows that one process claims at a time; the same in all that share a file."""

_LARGEST = float(np.finfo(np.float16).max)
_MAGIC = b"sparsewm tokens2"
_WHOLE = b"sparsewm tokens1"  # of earlier versions: all rows, checksums of blocks


@dataclass(frozen=True)
class Layout:
    """How tokens lie in a file.

    Attributes:
        shape: (rows, N, D). kind: float16 or int8.
    """

    shape: tuple[int, int, int]
    kind: str = "float16"

    @cached_property
    def row(self) -> np.dtype[Any]:
        """The tokens of one picture."""
        _, patches, size = self.shape
        if self.kind == "float16":
            return np.dtype((np.float16, (patches, size)))
        return np.dtype([("scale", np.float16, (patches,)), ("values", np.int8, (patches, size))])

    @property
    def dtype(self) -> torch.dtype:
        """What is packed, and what is unpacked again."""
        return torch.float16 if self.kind == "float16" else torch.float32

    @property
    def end(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.row.itemsize

    def pack(self, tokens: Tensor, common: Tensor | None) -> np.ndarray:
        """Tokens (B, N, D) as rows (B,) of the file.

        Args:
            common: (N + 1, D) what 8 bits need not hold: what each patch shows on average, and in the last
                row the deviation of each feature.
        """
        if common is None:
            half: np.ndarray = tokens.to("cpu", torch.float16).numpy()
            return half
        units = (tokens.float().cpu() - common[:-1]) / common[-1]
        scale = (units.abs().amax(-1) / 127).clamp_max(_LARGEST).half()
        steps = units / torch.where(scale > 0, scale.float(), 1.0)[..., None]
        rows = np.empty(len(tokens), self.row)
        rows["scale"] = scale.numpy()
        rows["values"] = steps.round_().clamp_(-127, 127).to(torch.int8).numpy()
        return rows

    def unpack(self, rows: np.ndarray, common: Tensor | None) -> Tensor:
        """Rows of the file (any shape) as tokens (*shape, N, D): float16, or float32 of 8 bits."""
        if common is None:
            return torch.from_numpy(rows)
        scale = torch.from_numpy(np.ascontiguousarray(rows["scale"])).float()
        values = torch.from_numpy(np.ascontiguousarray(rows["values"])).float()
        return torch.addcmul(common[:-1], values.mul_(scale[..., None]), common[-1])


class TokenFile:
    """Tokens of the rows of a dataset on disk; some may be missing.

    Rows lie in their order, and a row that is missing takes no disk. Behind them lies a checksum of each, 0
    where it is missing, then what 8 bits need not hold, a description in JSON, its length in eight bytes and
    a magic word. A checksum is written when its row is safely on disk. So a process that
    dies loses what it had not written, and nothing else.

    Attributes:
        path: where it lies. layout: how. writable: whether rows can be added.
        values: the rows, memory-mapped. common: as in `Layout.pack`, None in 16 bits.
        about: what was said of it when it was made.
    """

    def __init__(self, path: Path, layout: Layout, file: IO[bytes]) -> None:
        """Map a file that lies at `path`; ValueError where it is none of this layout."""
        self.path, self.layout, self._file = path, layout, file
        trailer, start, magic = _trailer(file)
        rows, patches, size = layout.shape
        if trailer["shape"] != list(layout.shape):
            raise ValueError("another shape")
        self.about: dict[str, Any] = trailer.get("about", {})
        self.values: np.ndarray = np.memmap(file, layout.row, "r", shape=(rows,))
        self.common: Tensor | None = None
        self._block, self._checksums = CLAIMED_ROWS, None
        weakref.finalize(self, file.close)
        if magic == _WHOLE:
            self.writable = False
            self._block, self._whole = int(trailer["block"]), list(trailer["checksums"])
            if (layout.kind, trailer["rows"], start) != ("float16", rows, layout.end) or len(
                self._whole
            ) != -(-rows // self._block):
                raise ValueError("an unfinished file")
            return
        numbers = (patches + 1) * size * (layout.kind == "int8")
        if trailer["kind"] != layout.kind or start != layout.end + 4 * (rows + numbers):
            raise ValueError("another layout")
        self.writable = file.writable()
        self._checksums = np.memmap(file, "<u4", "r", offset=layout.end, shape=(rows,))
        if numbers:
            common = np.memmap(file, "<f4", "r", offset=layout.end + 4 * rows, shape=(patches + 1, size))
            self.common = torch.from_numpy(np.array(common))

    @classmethod
    def find(cls, path: Path, layout: Layout) -> TokenFile | None:
        """The file at a path, open; None where there is none, of this layout and undamaged."""
        for mode in ("r+b", "rb"):
            try:
                file = open(path, mode, buffering=0)  # noqa: SIM115  (kept open)
            except OSError:
                continue
            try:
                found = cls(path, layout, file)
                if found._is_sound():
                    return found
            except (OSError, KeyError, TypeError, ValueError, IndexError):
                pass
            file.close()
            return None
        return None

    @classmethod
    def make(
        cls,
        path: Path,
        layout: Layout,
        common: Tensor | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> TokenFile:
        """The file at a path, or a new one without rows if there is none that is sound."""
        with locked_file(path.with_suffix(".partial"), lambda: None) as (file, fresh):
            try:
                found = cls.find(path, layout)  # another program may have made it meanwhile
                if found is None:
                    file.truncate(0)
                    file.truncate(layout.end + 4 * layout.shape[0])
                    file.seek(0, os.SEEK_END)
                    if common is not None:
                        file.write(common.numpy().astype("<f4").tobytes())
                    trailer = {"shape": layout.shape, "kind": layout.kind, "about": dict(about or {})}
                    content = json.dumps(trailer).encode()
                    file.write(content + len(content).to_bytes(8, "little") + _MAGIC)
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(fresh, path)
            finally:
                fresh.unlink(missing_ok=True)
        found = found or cls.find(path, layout)
        assert found is not None
        return found

    def there(self, rows: np.ndarray) -> np.ndarray:
        """Whether rows (any shape) are in the file."""
        if self._checksums is None:
            return np.ones(rows.shape, bool)
        found: np.ndarray = self._checksums[rows] != 0
        return found

    def tokens(self, rows: np.ndarray) -> Tensor:
        """Tokens (*shape, N, D) of rows (any shape) that are there."""
        return self.layout.unpack(np.take(self.values, rows, axis=0), self.common)

    def blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """Ascending rows in blocks that can be claimed."""
        return np.split(rows, np.flatnonzero(np.diff(rows // CLAIMED_ROWS)) + 1)

    def claim(self, block: np.ndarray, wait: bool = False) -> bool:
        """Claim a block against other processes until `give_up`, or until this process dies."""
        return hold(self._file, int(block[0]) // CLAIMED_ROWS, wait)

    def give_up(self, block: np.ndarray) -> None:
        """Let others have a block."""
        release(self._file, int(block[0]) // CLAIMED_ROWS)

    def write(self, rows: np.ndarray, content: np.ndarray) -> list[int]:
        """Write packed rows of ascending numbers; their checksums, for `note`."""
        size = self.layout.row.itemsize
        for first, last in _runs(rows):
            self._put(size * int(rows[first]), content[first:last])
        return [_checksum(row) for row in content]

    def note(self, rows: np.ndarray, checksums: list[int]) -> None:
        """Let written rows count as there, after they are safely on disk."""
        os.fsync(self._file.fileno())
        content = np.array(checksums, "<u4")
        for first, last in _runs(rows):
            self._put(self.layout.end + 4 * int(rows[first]), content[first:last])

    def _put(self, offset: int, content: np.ndarray) -> None:
        # written as a plain file: writing to a memory map kills the process where the disk is full
        self._file.seek(offset)
        left = memoryview(content.tobytes())
        while left:
            left = left[self._file.write(left) :]

    def _is_sound(self) -> bool:
        """Whether the rows that are there are as written, checked in blocks from the first to the last."""
        rows = self.layout.shape[0]
        there = np.arange(rows) if self._checksums is None else np.flatnonzero(self._checksums)
        blocks = np.unique(there // self._block)
        most = max(2, CHECKED_BYTES // (self._block * self.layout.row.itemsize))
        for i in np.unique(np.linspace(0, len(blocks) - 1, min(most, len(blocks))).astype(int)):
            start = int(blocks[i]) * self._block
            part = self.values[start : start + self._block]
            if self._checksums is None:
                if zlib.crc32(part.tobytes()) != self._whole[int(blocks[i])]:
                    return False
                continue
            for row, expected in zip(part, self._checksums[start : start + self._block], strict=True):
                if expected and _checksum(row) != expected:
                    return False
        return True


def _trailer(file: IO[bytes]) -> tuple[dict[str, Any], int, bytes]:
    """The description at the end of a file, the byte at which it begins, and its magic word."""
    foot = len(_MAGIC) + 8
    file.seek(-foot, os.SEEK_END)
    length, magic = int.from_bytes(file.read(8), "little"), file.read(len(_MAGIC))
    if magic not in (_MAGIC, _WHOLE) or length > 1 << 30:
        raise ValueError("no file of tokens")
    start = file.seek(-foot - length, os.SEEK_END)
    return json.loads(file.read(length)), start, magic


def _runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """Where rows that follow one another begin and end in an ascending list."""
    edges = [0, *(np.flatnonzero(np.diff(rows) > 1) + 1).tolist(), len(rows)]
    return [(first, last) for first, last in pairwise(edges) if last > first]


def _checksum(row: np.ndarray) -> int:
    return zlib.crc32(row.tobytes()) or 1  # 0 says that a row is missing
