"""Datasets of Diffusion Policy: zarr arrays in `data/`, the ends of the episodes in `meta/episode_ends`.

Every four-dimensional array is a camera; of numbers, `action` is needed. What counts as proprioception,
unless it is named: `agent_pos`; else all arrays called `robot...` without velocities; else `state`, of which
PushT's five numbers give the first two, the disc's position (the other three are the T's).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsewm.data.dataset import Dataset
from sparsewm.data.frames import Frames, ReadFrames, as_bytes, brightness, choose_cameras, side_by_side
from sparsewm.data.relative import make_relative
from sparsewm.errors import UserError, needs_extra
from sparsewm.trees import at_least

_PUSHT_FPS, _PUSHT_SCALE = 10.0, 100.0

_SAMPLED = 16
"""Chunks of pictures, over all rows, that tell whether floats are from 0 to 1."""

_BLOSC_HEADER = 16
"""Bytes before a chunk that Blosc packed; the last four are the size of the whole chunk."""


class DiffusionPolicyData(Dataset):
    """A replay buffer of Diffusion Policy.

    Args:
        path: a folder `NAME.zarr`, or a `.zarr.zip`.
        cameras: arrays of pictures to show; needed where there are several.
        proprio: arrays that make up proprioception, `NAME` or `NAME:n` for the first n columns; see above
            when empty.
        fps: rows a second; the format does not say, 10 is that of all its published datasets.
        environment: "pusht" reads a recording of PushT the way our PushT acts: relative actions, a state of
            seven numbers and proprioception of four. The disc's velocity, which the file lacks, follows from
            positions and targets, since each episode starts at rest.
        pictures: "recorded", or "rendered" for those that our environment draws of the recorded states.
        resolution: side of rendered pictures.

    Raises:
        UserError: no such zarr, arrays that are missing or damaged, an unknown camera or array, or a file
            that does not move as PushT does.
    """

    def __init__(
        self,
        path: str | Path,
        cameras: Sequence[str] = (),
        proprio: Sequence[str] = (),
        fps: float = 10.0,
        environment: str | None = None,
        pictures: str = "recorded",
        resolution: int = 112,
    ) -> None:
        at_least(1, resolution=resolution)
        if environment not in (None, "pusht"):
            raise UserError(f"environment must be pusht, got {environment}: leave it out")
        if pictures not in ("recorded", "rendered"):
            raise UserError(f"pictures must be recorded or rendered, got {pictures}")
        if pictures == "rendered" and environment is None:
            raise UserError("rendered pictures need an environment that draws them: give environment as well")
        path = Path(path)
        data, ends = _open(path)
        if len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any():
            raise UserError(f"meta/episode_ends of {path} must ascend from above 0: copy the dataset again")
        rows = int(ends[-1])
        for name, array in data.items():
            if array.shape[:1] != (rows,):
                raise UserError(
                    f"data/{name} of {path} has {array.shape[0] if array.ndim else 0} rows, "
                    f"meta/episode_ends needs {rows}: the dataset is incomplete, copy it again"
                )
        available = [name for name, a in data.items() if a.ndim == 4 and 3 in (a.shape[1], a.shape[3])]
        shown, obstacles = choose_cameras(path, available, cameras)
        chosen = list(proprio) or _proprio(data)
        columns = [self._column(path, data, name) for name in chosen]
        names = [
            name for key, values in zip(chosen, columns, strict=True) for name in _names(key, values.shape[1])
        ]
        if chosen == ["state:2"] and not proprio:
            names = ["agent_x", "agent_y"]
        action = self._column(path, data, "action")
        state = self._column(path, data, "state") if "state" in data and data["state"].ndim == 2 else None
        numbers = np.concatenate(columns, 1) if columns else None
        attributes: dict[str, Any] = {"format": "diffusion_policy"}
        pixels = side_by_side([_frames(path, data[name]) for name in shown])
        if environment == "pusht":
            state = _pusht_state(path, state, action, ends)
            numbers, names, fps = (
                state[:, [0, 1, 5, 6]],
                ["agent_x", "agent_y", "agent_vx", "agent_vy"],
                _PUSHT_FPS,
            )
            attributes["environment"] = "pusht"
            if pictures == "rendered":
                pixels, shown, available = _rendered(path, state, resolution), ["rendered"], ["rendered"]
        super().__init__(
            path,
            lengths=np.diff(ends, prepend=0),
            action=action,
            pixels=pixels,
            proprio=numbers,
            state=state,
            attributes=attributes,
            fps=float(fps),
            proprio_names=names,
            cameras=shown,
            available_cameras=available,
            obstacles=obstacles,
        )
        if environment == "pusht":
            make_relative(self, _PUSHT_SCALE)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with `meta/episode_ends`, or a `.zarr.zip`."""
        return path.name.endswith(".zarr.zip") or (path / "meta" / "episode_ends").is_dir()

    @staticmethod
    def _column(path: Path, data: dict[str, Any], name: str) -> np.ndarray:
        name, _, count = name.partition(":")
        array = data.get(name)
        if array is None or array.ndim not in (1, 2) or not (count == "" or count.isdecimal()):
            numbers = ", ".join(key for key, a in data.items() if a.ndim in (1, 2))
            raise UserError(
                f"{path} has no numbers '{name}{count and ':' + count}' in data/: it has {numbers}"
            )
        try:
            values = np.asarray(array[:], np.float64).reshape(array.shape[0], -1)
        except Exception as error:  # whatever a codec says of a damaged chunk
            raise UserError(f"data/{name} of {path} is damaged ({error}): copy the dataset again") from None
        return values[:, : int(count)] if count else values


def _check_chunks(array: Any, path: Path) -> None:
    """Refuse an array of which chunks are missing or cut off, which zarr reads as other numbers.

    A missing one counts as its fill value, and Blosc does not look how long one is. A zip has checksums.
    """
    missing = array.nchunks - array.nchunks_initialized
    if missing:
        raise UserError(
            f"{array.path} of {path} lacks {missing} of its {array.nchunks} chunks: copy the dataset again, "
            "or write those of zeros, too (zarr's write_empty_chunks)"
        )
    # zarr 2, the last for Python 3.10, has one compressor and no shards
    codecs = array.compressors if hasattr(array, "compressors") else (array.compressor,)
    packed = bool(codecs) and "blosc" in type(codecs[-1]).__name__.lower()
    if not packed or not path.is_dir() or getattr(array, "shards", None):
        return
    for file in (path / array.path).rglob("*"):
        if file.name.startswith(".") or file.name == "zarr.json" or not file.is_file():
            continue
        with file.open("rb") as chunk:
            header = chunk.read(_BLOSC_HEADER)
        size = file.stat().st_size
        if len(header) < _BLOSC_HEADER or int.from_bytes(header[-4:], "little") != size:
            raise UserError(
                f"{array.path} of {path} is damaged (chunk {file.name} is cut off): copy the dataset again"
            )


def _open(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Arrays in `data/` by name, and the ends of the episodes."""
    with needs_extra("datasets of Diffusion Policy", "data"):
        import zarr
        from zarr.storage import ZipStore
    try:
        store: Any = ZipStore(path, mode="r") if path.is_file() else str(path)
        group = zarr.open_group(store, mode="r")
        data = dict(sorted(group["data"].arrays()))  # type: ignore[union-attr]
        last = group["meta/episode_ends"]
        for array in (*data.values(), last):
            _check_chunks(array, path)
        ends = np.asarray(last[:], np.int64)  # type: ignore[index]
    except UserError:
        raise
    except Exception as error:  # whatever zarr says of a damaged or foreign folder
        raise UserError(
            f"{path} is damaged or no dataset of Diffusion Policy ({error or type(error).__name__}): it "
            "needs data/ and meta/episode_ends; copy it again"
        ) from None
    return data, ends


def _proprio(data: dict[str, Any]) -> list[str]:
    """What counts as proprioception, see the module."""
    numbers = {name: array for name, array in data.items() if array.ndim == 2}
    if "agent_pos" in numbers:
        return ["agent_pos"]
    robot = [name for name in numbers if name.startswith("robot") and not re.search(r"vel(ocity)?$", name)]
    if robot or "state" not in numbers:
        return sorted(robot)
    return ["state:2" if _is_pusht(numbers) else "state"]


def _names(key: str, size: int) -> list[str]:
    name = key.partition(":")[0]
    return [f"{name}_{i}" for i in range(size)] if size > 1 else [name]


def _is_pusht(numbers: dict[str, Any]) -> bool:
    return numbers["state"].shape[1] == 5 and "action" in numbers and numbers["action"].shape[1] == 2


def _frames(path: Path, array: Any) -> Frames:
    """A camera: uint8, or floats from 0 to 255 or 0 to 1; (rows, H, W, 3) or (rows, 3, H, W)."""
    channels_first = array.shape[3] != 3
    shape = (array.shape[0], array.shape[2], array.shape[3], 3) if channels_first else array.shape
    size = array.chunks[0]
    last: dict[
        int, np.ndarray
    ] = {}  # the chunk decoded last: it holds more rows than are asked for at a time

    def decoded(number: int) -> np.ndarray:
        return np.asarray(array[number * size : (number + 1) * size])

    some = np.unique(np.linspace(0, (array.shape[0] - 1) // size, _SAMPLED).astype(int)).tolist()
    try:  # not by the chunk that is read first: it may be dark
        factor = 1.0 if array.dtype == np.uint8 else brightness(decoded(number) for number in some)
    except Exception as error:  # whatever a codec says of a damaged chunk
        raise UserError(f"{array.path} of {path} is damaged ({error}): copy the dataset again") from None

    def chunk(number: int) -> np.ndarray:
        if number not in last:
            pictures = as_bytes(decoded(number), factor)
            last.clear()
            last[number] = pictures.transpose(0, 2, 3, 1) if channels_first else pictures
        return last[number]

    def read(rows: np.ndarray) -> np.ndarray:
        numbers, starts = np.unique(rows // size, return_index=True)
        parts = np.split(rows, starts[1:])
        return np.concatenate(
            [chunk(int(n))[part - n * size] for n, part in zip(numbers, parts, strict=True)]
        )

    return ReadFrames(shape, path, read)


def _pusht_state(path: Path, state: np.ndarray | None, target: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """PushT's state (rows, 7) out of the recorded five numbers: the velocity is what the controller made.

    A PD controller moves the disc to its target: ten substeps are linear in position, velocity and target.
    """
    if state is None or state.shape[1] != 5 or target.shape[1] != 2:
        raise UserError(f"{path} is no recording of PushT: its state must be 5 numbers and its action 2")
    unit = np.eye(2)  # columns: away from the target by 1 px; moving at 1 px/s
    position, velocity = unit[0], unit[1]
    for _ in range(10):
        velocity = velocity + (-100.0 * position - 20.0 * velocity) * 0.01
        position = position + velocity * 0.01
    result = np.concatenate([state, np.zeros((len(state), 2))], 1)
    worst = 0.0
    for first, end in zip(np.concatenate([[0], ends[:-1]]).tolist(), ends.tolist(), strict=True):
        speed = np.zeros(2)
        for row in range(first, end - 1):
            away = state[row, :2] - target[row]
            found = target[row] + position[0] * away + position[1] * speed
            worst = max(worst, float(np.abs(found - state[row + 1, :2]).max()))
            speed = velocity[0] * away + velocity[1] * speed
            result[row + 1, 5:] = speed
    if worst > 1.0:
        raise UserError(
            f"{path} does not move as PushT does ({worst:.0f} px away from it in one step): leave out "
            "environment"
        )
    return result


def _rendered(path: Path, state: np.ndarray, resolution: int) -> Frames:
    """Pictures that our PushT draws of states (rows, 7)."""
    from sparsewm import envs

    env = envs.make_simulated("pusht", resolution=int(resolution))

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack([env.render_state(state[row])["pixels"] for row in rows.tolist()])

    return ReadFrames((len(state), int(resolution), int(resolution), 3), path, read)
