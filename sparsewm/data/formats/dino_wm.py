"""Datasets of DINO-WM: tensors of all episodes, padded to the longest, and a file of pictures for each.

======================================  ==================================================================
file                                    what
======================================  ==================================================================
states.pth                              (episodes, steps, D)
rel_actions.pth, abs_actions.pth        PushT: (episodes, steps, 2) in px; relative ones are those it uses
actions.pth                             other environments: (episodes, steps, A)
velocities.pth                          PushT: (episodes, steps, 2) of the disc
seq_lengths.pkl or .pth                 rows of each episode; without it all are as long as the actions
obses/episode_000.mp4 or .pth           pictures; (T, H, W, 3) or (T, 3, H, W), 0 to 255 or 0 to 1
======================================  ==================================================================

As in DINO-WM, PushT's actions are in units of 100 px, its proprioception is the disc's position and velocity,
and its state is followed by the velocity, as our PushT has it; elsewhere proprioception is the state.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsewm.data.dataset import Dataset
from sparsewm.data.frames import Frames, as_bytes, brightness
from sparsewm.data.relative import make_relative
from sparsewm.errors import UserError

_SCALE = 100.0  # px, PushT
_SAMPLED = 16  # episodes that tell whether pictures of floats are from 0 to 1
_SAFE = {
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "torch._utils": {"_rebuild_tensor_v2"},
    "collections": {"OrderedDict"},
}
"""What a pickled list of numbers may be made of."""


class DinoWMData(Dataset):
    """A folder of DINO-WM, e.g. `pusht_noise/train`.

    Args:
        path: the folder. cameras: "camera" or nothing: there is one.
        actions: "relative", "absolute" (PushT has both), or whichever there is when None.
        environment: where it was recorded; "pusht" clips relative actions to what our PushT takes.
        fps: rows a second, which the format does not say.
        progress: called with the number of videos looked at and that of all.

    Raises:
        UserError: no such folder, files missing or damaged, sizes that do not fit, an unknown camera.
    """

    def __init__(
        self,
        path: str | Path,
        cameras: Sequence[str] = (),
        actions: str | None = None,
        environment: str | None = None,
        fps: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        path = Path(path)
        if actions not in (None, "relative", "absolute"):
            raise UserError(f"actions must be relative or absolute, got {actions}")
        if unknown := [name for name in cameras if name != "camera"]:
            raise UserError(f"{path} has no camera '{unknown[0]}': it has camera")
        if not (path / "states.pth").is_file():
            inside = [child.parent.name for child in sorted(path.glob("*/states.pth"))]
            advice = f"give {path / inside[0]}" if inside else "give the folder of a dataset of DINO-WM"
            raise UserError(f"no states.pth in {path}: {advice}")
        states = _tensor(path / "states.pth")
        pusht = any((path / f"{kind}_actions.pth").is_file() for kind in ("rel", "abs"))
        names = {"relative": ["rel_actions.pth"], "absolute": ["abs_actions.pth"]}
        wanted = names[actions] if actions else ["rel_actions.pth", "actions.pth", "abs_actions.pth"]
        file = next((path / name for name in wanted if (path / name).is_file()), None)
        if file is None:
            raise UserError(f"no {' or '.join(wanted)} in {path}: copy the dataset again")
        action = _tensor(file)
        tensors = {"states.pth": states, file.name: action}
        if (path / "velocities.pth").is_file():
            tensors["velocities.pth"] = _tensor(path / "velocities.pth")
        lengths = _lengths(path, len(action), action.shape[1])
        for name, values in tensors.items():
            if len(values) != len(lengths) or values.shape[1] < lengths.max(initial=0):
                raise UserError(
                    f"{path / name} is {tuple(values.shape)}, the lengths of its {len(lengths)} episodes "
                    f"need ({len(lengths)}, {lengths.max(initial=0)}, ...): copy the dataset again"
                )
        flat = {name: _rows(values, lengths) for name, values in tensors.items()}
        state = flat["states.pth"]
        proprio = state[:, :2] if pusht else state
        if "velocities.pth" in flat:
            proprio = np.concatenate([proprio, flat["velocities.pth"]], 1)
            state = np.concatenate([state, flat["velocities.pth"]], 1)
        relative = file.name == "rel_actions.pth"
        numbers = flat[file.name] / _SCALE if relative else flat[file.name]
        attributes: dict[str, Any] = {"format": "dino_wm", "environment": environment}
        low = high = None
        if environment == "pusht" and relative:
            clipped = np.clip(numbers, -1, 1)
            attributes["actions_clipped"] = float((clipped != numbers).any(1).mean())
            numbers, low, high = clipped, np.full(2, -1.0), np.ones(2)
        super().__init__(
            path,
            lengths=lengths,
            action=numbers,
            pixels=_pictures(path / "obses", lengths, progress),
            proprio=proprio,
            state=state,
            attributes={key: value for key, value in attributes.items() if value is not None},
            fps=None if fps is None else float(fps),
            proprio_names=("agent_x", "agent_y", "agent_vx", "agent_vy")[: proprio.shape[1]] if pusht else (),
            action_low=low,
            action_high=high,
        )
        if environment == "pusht" and not relative:
            make_relative(self, _SCALE)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with `states.pth`, or whose folders have one."""
        return (path / "states.pth").is_file() or any(path.glob("*/states.pth"))


def _pictures(folder: Path, lengths: np.ndarray, progress: Callable[[int, int], None] | None) -> Frames:
    """Pictures of `episode_000.mp4` and following, or of tensors `episode_000.pth`."""
    suffix = ".pth" if (folder / "episode_000.pth").is_file() else ".mp4"
    files = [folder / f"episode_{episode:03d}{suffix}" for episode in range(len(lengths))]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise UserError(f"{missing} is missing: copy the dataset again")
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(len(episode)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if suffix == ".pth":
        return _TensorFrames(folder, files, episode, step)
    from sparsewm.data.videos import VideoFrames

    return VideoFrames(folder, files, episode, step, progress=progress)


class _TensorFrames(Frames):
    """Pictures kept as one tensor an episode; the last one read stays in memory."""

    def __init__(self, folder: Path, files: list[Path], episode: np.ndarray, step: np.ndarray) -> None:
        self._files, self._episode, self._step = files, episode, step
        self._kept: tuple[int, np.ndarray] | None = None
        some = np.unique(np.linspace(0, len(files) - 1, _SAMPLED).astype(int)).tolist()
        self._factor = brightness(_tensor(files[number], ndim=4) for number in some) if files else 1.0
        super().__init__((len(episode), *(self._load(0).shape[1:] if len(episode) else (0, 0, 3))), folder)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `Frames.read`."""
        runs = np.split(rows, np.flatnonzero(np.diff(self._episode[rows])) + 1)
        return np.concatenate([self._load(int(self._episode[run[0]]))[self._step[run]] for run in runs])

    def _load(self, episode: int) -> np.ndarray:
        """All pictures uint8 (T, H, W, 3) of an episode."""
        if self._kept is None or self._kept[0] != episode:
            file, steps = self._files[episode], int((self._episode == episode).sum())
            values = _tensor(file, ndim=4)
            if values.shape[3] != 3:
                values = values.transpose(0, 2, 3, 1)
            if values.shape[3] != 3 or len(values) < steps:
                raise UserError(
                    f"{file} must hold pictures ({steps}, height, width, 3), has {values.shape}: copy it "
                    "again"
                )
            self._kept = episode, as_bytes(values, self._factor)
        return self._kept[1]


def _tensor(path: Path, ndim: int = 3) -> np.ndarray:
    """A tensor of a `.pth` file, loaded without running anything that is in it."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch says in many ways that a file is damaged or holds objects
        said = str(error).partition("\n")[0][:200]
        raise UserError(f"{path} is damaged or holds more than a tensor ({said}): copy it again") from None
    if not isinstance(found, torch.Tensor) or found.ndim != ndim:
        what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise UserError(f"{path} must hold a tensor of {ndim} dimensions, has {what}: copy it again")
    return found.numpy() if found.dtype != torch.bfloat16 else found.float().numpy()


def _rows(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows (rows, n) of padded episodes (E, T, n)."""
    return values[np.arange(values.shape[1]) < lengths[:, None]].astype(np.float64)


class _Numbers(pickle.Unpickler):
    """Reads lists and arrays of numbers, and nothing that runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda data: torch.load(io.BytesIO(data), weights_only=True)
        if name in _SAFE.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _lengths(path: Path, episodes: int, steps: int) -> np.ndarray:
    """Rows of each episode."""
    if (path / "seq_lengths.pkl").is_file():
        file = path / "seq_lengths.pkl"
        try:
            content = file.read_bytes()
            for opcode, argument, _ in pickletools.genops(content):
                if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
                    raise pickle.UnpicklingError("it remembers more than it holds")  # gigabytes for nothing
            found = _Numbers(io.BytesIO(content)).load()
        except Exception as error:  # a damaged pickle fails in all kinds of ways
            raise UserError(
                f"{file} is damaged or holds more than numbers ({error}): copy it again"
            ) from None
    elif (path / "seq_lengths.pth").is_file():
        file = path / "seq_lengths.pth"
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # see `_tensor`
            said = str(error).partition("\n")[0][:200]
            raise UserError(f"{file} is damaged or holds more than numbers ({said}): copy it again") from None
    else:
        return np.full(episodes, steps, np.int64)
    try:
        lengths = np.asarray(found)
    except (ValueError, TypeError):  # lists of unequal lists
        lengths = np.empty((0, 0))
    whole = lengths.ndim == 1 and lengths.dtype.kind in "iuf" and np.isfinite(lengths).all()
    if not whole or (lengths != np.rint(lengths)).any() or (np.abs(lengths) > 2**53).any():
        raise UserError(f"{file} must hold the length of each episode: copy it again")
    return lengths.astype(np.int64)
