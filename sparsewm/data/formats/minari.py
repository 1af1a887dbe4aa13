"""Datasets of Minari, read by Minari: those on this machine that hold pictures.

A picture is an array of bytes (H, W, 3), (3, H, W) or (H, W, 1) among the observations or the recorded infos.
What counts as proprioception, unless it is named: `proprio`; else all numbers among the observations but
goals (`desired_goal`, `achieved_goal`) and, beside others, `state`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsewm.data.dataset import Dataset
from sparsewm.data.frames import Frames, ReadFrames, choose_cameras, side_by_side
from sparsewm.errors import UserError, needs_extra

_GOALS = ("desired_goal", "achieved_goal")


class MinariData(Dataset):
    """A dataset of Minari.

    Opening it reads every episode once, since Minari reads whole episodes only.

    Args:
        source: its folder, or its name (`minari list local`).
        cameras: observations to show, `a/b` inside of others; needed where there are several.
        proprio: names of observations that make up proprioception; see above when empty.
        fps: rows a second, which the format does not say.
        progress: called with the number of episodes read and that of all.

    Raises:
        UserError: no such dataset, damaged, without pictures, with actions that are no numbers, an unknown
            camera or observation.
    """

    def __init__(
        self,
        source: str | Path,
        cameras: Sequence[str] = (),
        proprio: Sequence[str] = (),
        fps: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._minari, path = _open(source)
        space = self._minari.action_space
        if not hasattr(space, "low"):
            raise UserError(
                f"actions of {source} are {space}, not numbers in a Box: only those can be planned"
            )
        self._kept: tuple[int, dict[str, np.ndarray]] | None = None
        total = int(self._minari.total_episodes)
        lengths, actions, numbers = [], [], []
        pictures: dict[str, tuple[int, ...]] = {}
        for number in range(total):
            action, leaves = self._episode(source, number)
            rows = len(action) + 1
            if number == 0:
                pictures = {k: shape for k, v in leaves.items() if (shape := _picture_shape(v)) is not None}
                if not pictures:
                    raise UserError(
                        f"{source} holds no pictures: record it anew with pixels among the observations, "
                        "e.g. with gymnasium.wrappers.AddRenderObservation"
                    )
                shown, obstacles = choose_cameras(source, list(pictures), cameras)
                senses = self._senses(source, leaves, proprio)
            needed = [*senses, *pictures, *(k for k in ("state",) if k in leaves)]
            short = [k for k in needed if k not in leaves or len(leaves[k]) != rows]
            if short:
                raise UserError(
                    f"episode {number} of {source} has {len(action)} actions, so {rows} of '{short[0]}' are "
                    "needed: record the dataset again"
                )
            lengths.append(rows)
            actions.append(np.concatenate([action, np.zeros_like(action[:1])]))
            numbers.append({k: leaves[k].reshape(rows, -1) for k in (*senses, "state") if k in leaves})
            if progress is not None:
                progress(number + 1, total)
        if not total:
            raise UserError(f"{source} holds no episodes: record some")
        episode = np.repeat(np.arange(total), lengths)
        step = np.arange(len(episode)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        parts = [self._frames(source, name, pictures[name], episode, step) for name in shown]
        bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
        state = all("state" in n and n["state"].dtype.kind in "fiu" for n in numbers)
        super().__init__(
            path,
            lengths=lengths,
            action=np.concatenate(actions),
            pixels=side_by_side(parts),
            proprio=np.concatenate([np.concatenate([n[k] for k in senses], 1) for n in numbers])
            if senses
            else None,
            state=np.concatenate([n["state"] for n in numbers]) if state else None,
            attributes={
                "format": "minari",
                **({"environment": spec.id} if (spec := self._minari.env_spec) is not None else {}),
            },
            fps=None if fps is None else float(fps),
            proprio_names=[
                f"{k}_{i}" if numbers[0][k].shape[1] > 1 else k
                for k in senses
                for i in range(numbers[0][k].shape[1])
            ],
            cameras=shown,
            available_cameras=list(pictures),
            obstacles=obstacles,
            action_low=space.low.ravel() if bounded else None,
            action_high=space.high.ravel() if bounded else None,
        )

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with `metadata.json` and the data beside it, or in its `data/`."""
        return _data_path(path) is not None

    @staticmethod
    def _senses(source: object, leaves: Mapping[str, np.ndarray], proprio: Sequence[str]) -> list[str]:
        known = [
            k
            for k, v in leaves.items()
            if v.dtype.kind in "fiu" and v.ndim <= 2 and not k.startswith("infos/")
        ]
        unknown = [name for name in proprio if name not in known]
        if unknown:
            raise UserError(f"{source} has no numbers '{unknown[0]}': it has {', '.join(known) or 'none'}")
        if proprio or "proprio" in known:
            return list(proprio) or ["proprio"]
        rest = [name for name in known if name not in _GOALS]
        return [name for name in rest if name != "state"] or rest

    def _episode(self, source: object, number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Actions (T, A) of an episode, and all its observations and infos by name."""
        try:
            episode = self._minari[number]
        except Exception as error:  # whatever HDF5, PIL or pyarrow say of a damaged file
            raise UserError(
                f"episode {number} of {source} is damaged ({error}): copy the dataset again"
            ) from None
        leaves: dict[str, np.ndarray] = {}
        _flatten(episode.observations, "", leaves)
        _flatten(episode.infos or {}, "infos", leaves)
        if "infos/state" in leaves:
            leaves.setdefault("state", leaves["infos/state"])
        action = np.asarray(episode.actions)
        return action.reshape(len(action), -1), leaves

    def _frames(
        self, source: object, name: str, shape: tuple[int, ...], episode: np.ndarray, step: np.ndarray
    ) -> Frames:
        def read(rows: np.ndarray) -> np.ndarray:
            parts = []
            for run in np.split(rows, np.flatnonzero(np.diff(episode[rows])) + 1):
                number = int(episode[run[0]])
                if self._kept is None or self._kept[0] != number:
                    self._kept = number, self._episode(source, number)[1]
                pictures = self._kept[1][name][step[run]]
                if pictures.shape[-1] not in (1, 3):
                    pictures = pictures.transpose(0, 2, 3, 1)
                parts.append(np.broadcast_to(pictures, (*pictures.shape[:3], 3)))
            return np.concatenate(parts)

        return ReadFrames((len(episode), *shape), source, read)


def _data_path(path: Path) -> Path | None:
    return next((p for p in (path, path / "data") if (p / "metadata.json").is_file()), None)


def _open(source: str | Path) -> tuple[Any, Path]:
    """The dataset, opened by Minari, and its folder."""
    with needs_extra("datasets of Minari", "data"):
        import minari
    path = Path(source).expanduser()
    found = _data_path(path)
    try:
        if found is not None:
            return minari.MinariDataset(found), path
        opened = minari.load_dataset(str(source))
    except FileNotFoundError:
        raise UserError(
            f"no dataset of Minari called {source} on this machine: minari list local shows those there are, "
            f"minari download {source} fetches it"
        ) from None
    except Exception as error:  # whatever Minari, Gymnasium or HDF5 say of a damaged or foreign dataset
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"Minari cannot open {source} ({said}): copy it again") from None
    return opened, Path(opened.storage.data_path).parent


def _flatten(value: Any, name: str, leaves: dict[str, np.ndarray]) -> None:
    """All arrays of nested dictionaries and tuples by name, `a/b`; a lone array is called observation."""
    if isinstance(value, (Mapping, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            _flatten(inner, f"{name}/{key}" if name else str(key), leaves)
    elif isinstance(value, np.ndarray) and value.ndim:
        leaves[name or "observation"] = value


def _picture_shape(values: np.ndarray) -> tuple[int, ...] | None:
    """(H, W, 3) if an array (T, ...) is pictures."""
    if values.dtype != np.uint8 or values.ndim != 4:
        return None
    if values.shape[3] in (1, 3):
        return (values.shape[1], values.shape[2], 3)
    return (values.shape[2], values.shape[3], 3) if values.shape[1] in (1, 3) else None
