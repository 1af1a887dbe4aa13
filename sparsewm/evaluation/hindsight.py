"""Recorded moments to imagine from, and the action sequences that compete there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsewm.data import Dataset
from sparsewm.errors import UserError
from sparsewm.model.interface import Interface
from sparsewm.model.world_model import WorldModel
from sparsewm.observations import same_aspect
from sparsewm.training.start import check_sizes
from sparsewm.trees import at_least


@dataclass(frozen=True)
class Cases:
    """Recorded moments to imagine from, and the action sequences that compete there.

    Attributes:
        rows: int64 (W,) present rows of the dataset. episodes: (W,) theirs.
        depth: (W,) model frames before the present one that the model sees.
        others: int64 (W, K - 1) first rows of action sequences from other episodes.
    """

    rows: np.ndarray
    episodes: np.ndarray
    depth: np.ndarray
    others: np.ndarray


def draw_cases(
    dataset: Dataset,
    episodes: np.ndarray,
    model: WorldModel,
    *,
    horizon: int,
    ranked: int,
    windows: int,
    candidates: int,
    seed: int,
) -> Cases:
    """Draw moments and competitors; models of one history and frameskip get the same ones.

    Args:
        episodes: those to draw moments from, evenly over their rows; all there are, where these are fewer.
        model: says how many frames it sees, and how far apart they are.
        horizon: model steps that must follow a moment. ranked: those of an action sequence.
        windows: W, moments. candidates: K, action sequences; K - 1 come from any other episodes.

    Raises:
        UserError: no episode is long enough, or there are too few others.
    """
    at_least(1, windows=windows)
    at_least(2, candidates=candidates)
    frameskip = model.frameskip
    rng = np.random.default_rng([seed, 28])
    starts = _starts(dataset, episodes, horizon * frameskip)
    if not len(starts):
        longest = int(dataset.lengths[episodes].max(initial=0))
        raise UserError(
            f"no episode of {dataset.path} is long enough: `horizon` {horizon} needs "
            f"{horizon * frameskip + 1} rows, the longest of these {len(episodes)} has {longest}: lower it, "
            "or judge longer episodes"
        )
    rows = np.sort(rng.choice(starts, min(windows, len(starts)), replace=False))
    of = np.searchsorted(dataset.offsets, rows, "right") - 1
    depth = np.minimum((rows - dataset.offsets[of]) // frameskip, model.history - 1)
    every = _starts(dataset, np.arange(dataset.episodes), ranked * frameskip)
    others = np.empty((len(rows), candidates - 1), np.int64)
    for i, episode in enumerate(of):
        first = np.searchsorted(every, dataset.offsets[episode])
        own = np.searchsorted(every, dataset.offsets[episode] + dataset.lengths[episode]) - first
        if len(every) - own < candidates - 1:
            raise UserError(
                f"{dataset.path} has {len(every) - own} action sequences in other episodes, too few for "
                f"`candidates` {candidates}: lower it, or record more episodes"
            )
        drawn = rng.choice(len(every) - own, candidates - 1, replace=False)
        others[i] = every[np.where(drawn < first, drawn, drawn + own)]
    return Cases(rows, of, depth, others)


def check_looks(
    model: WorldModel, dataset: Dataset, picture: tuple[int, int], cameras: tuple[str, ...]
) -> None:
    """Raise a `UserError` where a dataset has other numbers, pictures or cameras than a model was trained on.

    Args:
        picture: (height, width) it was trained on. cameras: likewise, empty if that is not known.
    """
    check_sizes(model, dataset)
    shown = dataset.cameras
    renamed = len(shown) == len(cameras) == 1 and cameras[0] not in dataset.available_cameras
    if cameras and shown != cameras and not renamed:
        raise UserError(
            f"{dataset.path} shows {', '.join(shown)}, the checkpoint was trained on {', '.join(cameras)}: "
            "name its `cameras` in that order"
        )
    height, width = dataset.pixels.shape[1:3]
    if not same_aspect(np.empty((height, width, 0)), picture):
        raise UserError(
            f"pictures of {dataset.path} are {height} x {width} (height x width), of another aspect ratio "
            f"than the {picture[0]} x {picture[1]} the checkpoint was trained on: give another dataset or "
            "checkpoint"
        )


def warnings(dataset: Dataset, shown: Interface) -> list[str]:
    """What is odd about a dataset, seen by a model that was shown other data; a sentence each."""
    found = []
    if dataset.fps and shown.fps and abs(dataset.fps / shown.fps - 1) > 0.02:
        found.append(
            f"{dataset.path} has {dataset.fps:g} rows a second, what the checkpoint was trained on "
            f"{shown.fps:g}: a model step spans another time"
        )
    low, high = np.asarray(shown.action_low), np.asarray(shown.action_high)
    margin = 1e-3 * (high - low) + 1e-6
    action = dataset.action[dataset.acting]
    outside = ((action < low - margin) | (action > high + margin)).any(1).mean()
    if outside > 0.01:
        found.append(
            f"{100 * outside:.0f}% of the actions of {dataset.path} are outside the bounds the checkpoint "
            "knows, and are ranked at these: are they in other units?"
        )
    return found


def held_out(model: WorldModel, dataset: Dataset) -> np.ndarray:
    """The episodes that a training on this dataset keeps for validation, ascending."""
    horizon = model.metadata.get("training", {}).get("horizon")
    frames = 1 if horizon is None else model.history + int(horizon)
    return dataset.split(shortest=(frames - 1) * model.frameskip + 1)[1]


def _starts(dataset: Dataset, episodes: np.ndarray, steps: int) -> np.ndarray:
    """Rows of episodes after which so many actions were taken, ascending."""
    found = [dataset.offsets[e] + np.arange(max(0, dataset.lengths[e] - steps)) for e in np.sort(episodes)]
    return np.concatenate([np.zeros(0, np.int64), *found])
