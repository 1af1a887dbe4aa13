"""Recorded episodes of any format, as training reads them: columns in memory, pictures decoded when asked.

Rows of all episodes lie one after another. Row t of an episode holds the observation at t and the action
taken there; the last row of an episode has a zero action, since none was taken.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparsewm.data.checks import are_bounds, damaged_numbers, matrix
from sparsewm.data.frames import Frames
from sparsewm.errors import UserError

LARGEST_SIDE = 1 << 14
"""Pixels of a picture's side, at most."""


WITHOUT_PICTURES = (
    "it was recorded without pictures: it teaches what to do to a policy that reads the state, beside "
    "`reader_data` with pictures, and nothing else"
)
"""The obstacle of a dataset whose attribute `pictures` is none."""


class Dataset(ABC):
    """Recorded episodes.

    A reader of a format is a subclass. Its constructor takes `(source, cameras=())`, a path or whatever the
    format calls a dataset and the names of cameras to show, and hands everything to this one; it implements
    `recognizes`. Columns are cast, missing ones filled in, and everything is checked here. Faults that a
    dataset can be opened with are collected in `obstacles`; `open_dataset` refuses those.

    Args:
        path: where it lies; its name is the dataset's, and token caches are kept beside it.
        lengths: (E,) rows of each episode.
        action: (rows, A) raw units; NaN in the last row of an episode means that none was taken.
        pixels: the pictures.
        proprio: (rows, P) raw units, or None. state: (rows, D) full state of a simulator, or None.
        attributes: what the dataset says of itself: `environment`, `frameskip`, `policy`, ...
        fps: rows a second, a number above 0, if known.
        action_names, proprio_names: names of the numbers, if known.
        cameras: those shown in `pixels`, from left to right. available_cameras: all there are.
        action_low, action_high: (A,) bounds of actions if declared (and finite), else the range of the data.
        obstacles: what the reader has found already: why training must refuse the dataset.

    Attributes:
        lengths, offsets: int64 (E,) rows of each episode, and its first row.
        action: float32 (rows, A). proprio: float32 (rows, P), one column of zeros where `has_proprio` is
            False. state: float64 (rows, D) or None.
        declared_bounds: whether `action_low` and `action_high` are declared ones.
        obstacles: why training must refuse it, empty for a sound one.
        has_pictures: False where it was recorded without; their sides are 0 then.
    """

    stride: int = 1  # windows start at every so many-th row of an episode: fewer pictures to encode

    def __init__(
        self,
        path: str | Path,
        *,
        lengths: Sequence[int] | np.ndarray,
        action: np.ndarray,
        pixels: Frames,
        proprio: np.ndarray | None = None,
        state: np.ndarray | None = None,
        attributes: Mapping[str, Any] | None = None,
        fps: Any = None,
        action_names: Sequence[str] = (),
        proprio_names: Sequence[str] = (),
        cameras: Sequence[str] = ("camera",),
        available_cameras: Sequence[str] = (),
        action_low: np.ndarray | None = None,
        action_high: np.ndarray | None = None,
        obstacles: Sequence[str] = (),
    ) -> None:
        self.path, self.pixels = Path(path), pixels
        if self.path.name in ("", ".."):  # `.` and `..` have neither a name nor a place beside them
            self.path = Path(os.path.abspath(path))
        self.obstacles = list(obstacles)
        self.attributes = plain_attributes(attributes or {})
        self.fps = self._checked_rate(fps)
        self.cameras = tuple(cameras)
        self.available_cameras = tuple(available_cameras) or self.cameras
        self.lengths = np.asarray(lengths).astype(np.int64)
        if (self.lengths < 0).any():
            bad = int(np.flatnonzero(self.lengths < 0)[0])
            self.obstacles.append(f"episode {bad} has a negative length, {self.lengths[bad]}")
            self.lengths = np.maximum(self.lengths, 0)
        self.offsets = np.cumsum(self.lengths) - self.lengths
        action = matrix(self.path, "action", action)
        proprio = None if proprio is None else matrix(self.path, "proprio", proprio)
        state = None if state is None else matrix(self.path, "state", state)
        self.has_proprio = proprio is not None and proprio.shape[1] > 0
        if proprio is None or not self.has_proprio:
            proprio = np.zeros((len(action), 1), np.float32)
        columns: dict[str, np.ndarray | None] = {"action": action, "proprio": proprio, "state": state}
        total = sum(self.lengths.tolist())  # whatever a file claims: int64 may wrap round to what is there
        counts: dict[int, list[str]] = {}
        for name, values in [*columns.items(), ("pixels", pixels)]:
            if values is not None and len(values) != total:
                counts.setdefault(len(values), []).append(f"'{name}'")
        for count, names in counts.items():
            which = "columns" if len(names) > 1 else "column"
            self.obstacles.append(
                f"{which} {', '.join(names)}: {count} rows, but the episodes need {total}: it is incomplete"
            )
        if total == 0:
            self.obstacles.append("it holds no rows: collect some")
        self.has_pictures = self.attributes.get("pictures") != "none"
        if not self.has_pictures:
            self.obstacles.append(WITHOUT_PICTURES)
        elif min(pixels.shape[1:3]) < 1 and not obstacles:
            self.obstacles.append(f"its pictures have size {pixels.shape[1]} x {pixels.shape[2]}")
        if max(pixels.shape[1:3]) > LARGEST_SIDE:
            self.obstacles.append(
                f"its pictures have size {pixels.shape[1]} x {pixels.shape[2]}: no side may be above "
                f"{LARGEST_SIDE}"
            )
        action = np.array(action, np.float64)  # a copy: the last rows are changed
        if len(action) == total:
            action[self.last_rows] = 0
            columns["action"] = action
        for name, values in columns.items():
            if values is not None:
                self.obstacles += damaged_numbers(name, np.asarray(values, np.float64))
        with np.errstate(over="ignore", invalid="ignore"):
            self.action = action.astype(np.float32)
            self.proprio = np.asarray(proprio).astype(np.float32)
            self.state = None if state is None else np.asarray(state).astype(np.float64)
        self.action_names = named(action_names, "action", self.action.shape[1])
        self.proprio_names = named(proprio_names, "proprio", self.proprio.shape[1])
        self.declared_bounds = are_bounds(action_low, action_high, self.action.shape[1])
        if self.declared_bounds:
            self.action_low, self.action_high = (np.asarray(b, np.float32) for b in (action_low, action_high))
        else:
            some = self.action[self.acting] if self.rows else np.zeros((1, self.action.shape[1]), np.float32)
            self.action_low, self.action_high = some.min(0), some.max(0)

    def _checked_rate(self, fps: Any) -> float | None:
        """Rows a second; what is none, or a frameskip that is none, becomes an obstacle."""
        fps, frameskip = _plain_value(fps), self.attributes.get("frameskip")
        good = isinstance(fps, (int, float)) and fps is not True and 0 < fps < math.inf
        if fps is not None and not good:
            self.obstacles.append(f"fps must be a number above 0, is {fps!r}: write another or leave it out")
        if frameskip is not None and (type(frameskip) is not int or frameskip < 1):
            self.obstacles.append(
                f"frameskip must be a whole number above 0, is {frameskip!r}: write another or leave it out"
            )
        return float(fps) if good else None

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether an existing file or folder looks like this format; quick, raises nothing."""

    @property
    def rows(self) -> int:
        """Number of rows of all episodes."""
        return len(self.action)

    @property
    def episodes(self) -> int:
        """Number of episodes E."""
        return len(self.lengths)

    @property
    def last_rows(self) -> np.ndarray:
        """The last row of each episode that has any."""
        some = self.lengths > 0
        return (self.offsets + self.lengths - 1)[some]

    @property
    def acting(self) -> np.ndarray:
        """Whether an action was taken, bool (rows,): not in an episode's last row; all if none is left."""
        mask = np.ones(self.rows, bool)
        last = self.last_rows
        mask[last[(last >= 0) & (last < self.rows)]] = False
        return mask if mask.any() else ~mask

    def columns(self) -> dict[str, str]:
        """Type and shape of everything that is there, for `sparsewm inspect`."""
        held: dict[str, Any] = {"pixels": self.pixels, "action": self.action}
        held |= {"proprio": self.proprio} if self.has_proprio else {}
        held |= {"state": self.state} if self.state is not None else {}
        return {name: f"{values.dtype} {values.shape}" for name, values in held.items()}

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of lengths, all numbers, and a picture from the middle of every episode."""
        digest = hashlib.sha256()
        for values in (self.lengths, self.action, self.proprio, self.state):
            if values is not None:
                digest.update(f"{values.shape}".encode())
                digest.update(np.ascontiguousarray(values).tobytes())
        middle = (self.offsets + self.lengths // 2)[self.lengths > 0]
        digest.update(self.pixels.fingerprint(np.union1d(middle, self._sample())))
        return digest.hexdigest()

    @cached_property
    def earlier_hash(self) -> str:
        """The hash as it was at first, by which checkpoints of that time know the dataset.

        It leaves out proprioception beside a state, and most pictures. Splits are drawn from it, so that what
        was held out of those checkpoints still is.
        """
        digest = hashlib.sha256()
        for values in (self.lengths, self.action, self.proprio if self.state is None else self.state):
            digest.update(np.ascontiguousarray(values).tobytes())
        for row in self._sample():
            digest.update(np.ascontiguousarray(self.pixels[row]).tobytes())
        return digest.hexdigest()

    def _sample(self) -> np.ndarray:
        return np.linspace(0, self.rows - 1, 16).astype(int)

    def check(self, pictures: bool = True) -> None:
        """Raise a `UserError` with all obstacles in one sentence, if there are any.

        Args:
            pictures: whether it is one that there are none.
        """
        found = [one for one in self.obstacles if pictures or one != WITHOUT_PICTURES]
        if found:
            raise UserError(f"{self.path} cannot be used: {'; '.join(found)}")

    def split(self, held_out: float = 0.05, shortest: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Episode numbers for training and for validation, ascending: a random choice, always the same.

        Args:
            held_out: share of the episodes that is held out, one at least.
            shortest: rows an episode must have to be held out; shorter ones are left to training.

        Raises:
            UserError: too few episodes are long enough.
        """
        long = self.lengths >= shortest
        count = max(1, round(held_out * int(long.sum())))
        if count >= long.sum():
            which = f"{self.episodes} episode(s)"
            if shortest > 1:
                which += f", {int(long.sum())} of them with {shortest} rows or more"
            raise UserError(
                f"{self.path} has {which}, too few to hold some out: collect more"
                + (" or longer ones" if shortest > 1 else "")
            )
        draw = random.Random(self.earlier_hash)  # the same on every machine, with every version of NumPy
        order = np.argsort([draw.random() for _ in range(self.episodes)])
        held = np.sort(order[long[order]][:count])
        return np.setdiff1d(np.arange(self.episodes), held), held

    def rows_of(self, episodes: np.ndarray) -> np.ndarray:
        """Rows int64 (n,) of the given episodes, one after another; every `stride`-th of each."""
        parts = [np.arange(self.offsets[e], self.offsets[e] + self.lengths[e], self.stride) for e in episodes]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def statistics(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Mean and deviation, float32 (P,) and (A,), of proprioception over rows and of the actions there."""
        found = {}
        acting = rows[self.acting[rows]]
        for name, some in (("proprio", rows), ("action", acting if len(acting) else rows)):
            values = getattr(self, name)[some].astype(np.float64)
            found[f"{name}_mean"] = values.mean(0).astype(np.float32)
            found[f"{name}_std"] = values.std(0).astype(np.float32)
        return found

    def close(self) -> None:
        """Release what is open."""
        self.pixels.close()


def environment_name(value: object) -> str:
    """The short name of an environment of ours spelled in any way (`Wall`, `sparsewm/Wall-v0`, bytes)."""
    from sparsewm.envs import canonical

    return canonical(value.decode(errors="replace") if isinstance(value, bytes) else str(value))


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with Python's own strings and numbers, and the environment by its short name.

    Arrays of one element are that element, and a frameskip of 2.0 is 2.
    """
    plain = {key: _plain_value(value) for key, value in attributes.items()}
    if plain.get("environment") is not None:
        plain["environment"] = environment_name(plain["environment"])
    skip = plain.get("frameskip")
    if isinstance(skip, float) and skip.is_integer():
        plain["frameskip"] = int(skip)
    return plain


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def named(names: Sequence[str], kind: str, size: int) -> tuple[str, ...]:
    """`names` if there are `size` of them, else made-up ones."""
    return tuple(names) if len(names) == size else tuple(f"{kind}_{i}" for i in range(size))
