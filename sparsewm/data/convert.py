"""A dataset in another format, episode by episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsewm.data.dataset import Dataset
from sparsewm.data.frames import resized
from sparsewm.data.writer import DatasetWriter
from sparsewm.errors import UserError
from sparsewm.files import check_unwritten

Progress = Callable[[int, int], None]
Resize = Callable[[np.ndarray], np.ndarray]
BLOCK = 64  # pictures brought to another size together
_OF_THE_SOURCE = ("format", "seed", "steps", "version")
"""Attributes that are not true of what is written: `collect` would take it for its own recording."""


def write_hdf5(
    views: Mapping[str, Dataset],
    path: Path,
    episodes: np.ndarray,
    size: Resize = np.asarray,
    progress: Progress | None = None,
    **attributes: Any,
) -> None:
    """Write episodes as an HDF5 file, ours and stable-worldmodel's; it appears when complete.

    Args:
        views: the same dataset seen by each camera to write, by the camera's name.
        path: the file; must not exist. episodes: their numbers, of none that is empty.
        size: brings pictures (n, H, W, 3) to the size they are written in.
        progress: called with the episodes done and wanted.
        attributes: what the file says of itself besides what the dataset does.
    """
    if path.exists():
        raise UserError(f"{path} exists: delete it, or write to another place")
    check_unwritten(path)
    dataset = next(iter(views.values()))
    said: dict[str, Any] = {
        k: v
        for k, v in dataset.attributes.items()
        if isinstance(v, (str, int, float)) and k not in _OF_THE_SOURCE
    }
    said["resolution"] = min(size(dataset.pixels[:1]).shape[1:3])
    said["action_names"] = list(dataset.action_names)
    if dataset.has_proprio:
        said["proprio_names"] = list(dataset.proprio_names)
    if dataset.fps is not None:
        said["fps"] = dataset.fps
    if dataset.declared_bounds:
        said |= {"action_low": dataset.action_low, "action_high": dataset.action_high}
    columns = {name: "pixels" if len(views) == 1 else f"pixels.{name}" for name in views}
    with DatasetWriter(path, said | attributes) as writer:
        for done, episode in enumerate(episodes.tolist(), 1):
            first, stop = dataset.offsets[episode], dataset.offsets[episode] + dataset.lengths[episode]
            part = {
                columns[name]: np.concatenate(
                    [size(view.pixels[row : min(row + BLOCK, stop)]) for row in range(first, stop, BLOCK)]
                )
                for name, view in views.items()
            }
            part["action"] = dataset.action[first:stop]
            if dataset.has_proprio:
                part["proprio"] = dataset.proprio[first:stop]
            if dataset.state is not None:
                part["state"] = dataset.state[first:stop]
            writer.append(part)
            if progress is not None:
                progress(done, len(episodes))


def chosen_episodes(dataset: Dataset, episodes: Sequence[int]) -> np.ndarray:
    """Numbers of episodes to convert: those given, which must exist, or all; empty ones are left out."""
    for episode in episodes:
        if not 0 <= episode < dataset.episodes:
            raise UserError(f"`episodes` must be from 0 to {dataset.episodes - 1}, got {episode}")
    chosen = np.asarray(episodes, int) if len(episodes) else np.arange(dataset.episodes)
    return chosen[dataset.lengths[chosen] > 0]


def resizer(resolution: Sequence[int]) -> Resize:
    """What brings pictures (n, H, W, 3) to a resolution.

    Args:
        resolution: (height, width); or one number, the shorter side, which keeps their shape; or nothing.
    """
    if len(resolution) > 2 or any(side < 1 for side in resolution):
        raise UserError(f"`resolution` must be one or two numbers from 1 up, got {tuple(resolution)}")

    def resize(pictures: np.ndarray) -> np.ndarray:
        if not resolution:
            return pictures
        height, width = pictures.shape[1:3]
        scale = resolution[0] / min(height, width)
        sides = resolution if len(resolution) == 2 else (round(height * scale), round(width * scale))
        return resized(pictures, *sides)

    return resize
