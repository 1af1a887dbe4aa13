"""Pictures of a dataset, decoded when they are asked for."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from sparsewm.errors import UserError

_OVERSHOT = 13
"""Levels of 255 that pictures of floats may lie beyond their range: resizing overshoots at edges."""


class Frames(ABC):
    """Pictures uint8 (rows, H, W, 3) that behave like an array: `frames[7]`, `frames[3:9]`, `frames[rows]`.

    A reader implements `read`. Rows may be given in any order and more than once.

    Args:
        shape: (rows, H, W, 3). source: what holds them, for messages.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, shape: Sequence[int], source: object) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.source = source

    @abstractmethod
    def read(self, rows: np.ndarray) -> np.ndarray:
        """Pictures uint8 (n, H, W, 3) of rows (n,), which are ascending and each there once."""

    def fingerprint(self, rows: np.ndarray) -> bytes:
        """What these rows (n,), ascending, are told from other pictures by; the same in a copy elsewhere."""
        digest = hashlib.sha256()
        for first in range(0, len(rows), 64):
            digest.update(np.ascontiguousarray(self[rows[first : first + 64]]).tobytes())
        return digest.digest()

    def close(self) -> None:  # noqa: B027  (most have nothing to close)
        """Release what is open."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            return self._read(np.arange(*rows.indices(len(self))))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        wanted = np.where(rows < 0, rows + len(self), rows).astype(np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"rows must be from 0 to {len(self) - 1}, got {rows.min()} to {rows.max()}")
        unique, place = np.unique(wanted, return_inverse=True)
        return self._read(unique)[place.reshape(wanted.shape)]

    def _read(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) == 0:
            return np.zeros((0, *self.shape[1:]), np.uint8)
        if len(rows) > 1 and rows[1] < rows[0]:
            return self._read(rows[::-1])[::-1]
        try:
            return self.read(rows)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # whatever a decoder says of a damaged file
            raise UserError(
                f"pictures of {self.source} cannot be read in rows {rows[0]} to {rows[-1]} ({error}): the "
                "file is damaged; copy it again, or leave that episode out"
            ) from None


class ReadFrames(Frames):
    """Pictures that a function reads: rows (n,) ascending -> uint8 (n, H, W, 3)."""

    def __init__(
        self, shape: Sequence[int], source: object, reader: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        super().__init__(shape, source)
        self.reader = reader

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `Frames.read`."""
        return self.reader(rows)


class SideBySide(Frames):
    """Several cameras in one picture, from left to right, each resized to the height of the first."""

    def __init__(self, cameras: Sequence[Frames]) -> None:
        self.cameras = list(cameras)
        rows, height = self.cameras[0].shape[:2]
        self.widths = [max(1, round(c.shape[2] * height / c.shape[1])) for c in self.cameras]
        super().__init__((rows, height, sum(self.widths), 3), self.cameras[0].source)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `Frames.read`."""
        height = self.shape[1]
        parts = [
            resized(camera[rows], height, width)
            for camera, width in zip(self.cameras, self.widths, strict=True)
        ]
        return np.concatenate(parts, 2)

    def fingerprint(self, rows: np.ndarray) -> bytes:
        """See `Frames.fingerprint`."""
        return b"".join(camera.fingerprint(rows) for camera in self.cameras)

    def close(self) -> None:
        """Release what is open."""
        for camera in self.cameras:
            camera.close()


def choose_cameras(
    source: object, available: Sequence[str], cameras: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The cameras to show, and as obstacles what has to be said for them.

    Args:
        source: the dataset, for messages. available: all there are, one at least. cameras: those asked for.

    Raises:
        UserError: one that is not there, or none at all.
    """
    if not available:
        raise UserError(f"{source} holds no pictures: record it with a camera")
    unknown = [name for name in cameras if name not in available]
    if unknown:
        raise UserError(f"{source} has no camera '{unknown[0]}': it has {', '.join(available)}")
    if cameras or len(available) == 1:
        return list(cameras or available), []
    several = f"it has several cameras, name those to show with `cameras`: {', '.join(available)}"
    return list(available[:1]), [several]


def brightness(some: Iterable[np.ndarray]) -> float:
    """What makes bytes of pictures: 255 if some of them, floats, are all from 0 to 1, else 1."""
    return 255.0 if all(one.dtype.kind in "fb" and one.max(initial=0) <= 1 for one in some) else 1.0


def as_bytes(pictures: np.ndarray, factor: float) -> np.ndarray:
    """Pictures times a factor as uint8.

    Raises:
        ValueError: they are too dark or too bright for it, or not finite.
    """
    if pictures.dtype == np.uint8:
        return pictures
    values = np.rint(factor * pictures)
    if not (values.min(initial=0) >= -_OVERSHOT and values.max(initial=0) <= 255 + _OVERSHOT):
        raise ValueError(
            f"their numbers are from {pictures.min():g} to {pictures.max():g}, not from 0 to {255 / factor:g}"
        )
    return np.clip(values, 0, 255).astype(np.uint8)


def side_by_side(cameras: Sequence[Frames]) -> Frames:
    """One camera as it is, several in one picture."""
    return cameras[0] if len(cameras) == 1 else SideBySide(cameras)


def resized(pictures: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pictures uint8 (n, H, W, 3) in another size, by areas where they shrink."""
    if pictures.shape[1:3] == (height, width):
        return pictures
    shrinks = height * width < pictures.shape[1] * pictures.shape[2]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    result = np.empty((len(pictures), height, width, 3), np.uint8)
    for picture, target in zip(pictures, result, strict=True):
        target[:] = cv2.resize(picture, (width, height), interpolation=way)
    return result
