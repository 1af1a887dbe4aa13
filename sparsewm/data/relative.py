"""Actions that say where to go, as steps from where one is: what planners search best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparsewm.data.dataset import Dataset
from sparsewm.errors import UserError


def relative_actions(
    action: np.ndarray, position: np.ndarray, scale: float | None = None
) -> tuple[np.ndarray, float, float]:
    """Absolute targets as steps from the present position, in units of `scale`, clipped to [-1, 1].

    Args:
        action: (rows, A) targets. position: (rows, A) where one was, in the same units.
        scale: what a full action means, in those units; the longest step when None, so that nothing is
            clipped.

    Returns:
        Actions float32 (rows, A), the scale, and the share of rows that were clipped.
    """
    step = np.asarray(action, np.float64) - np.asarray(position, np.float64)
    if scale is None:
        scale = float(np.abs(step).max(initial=0.0)) or 1.0
    if not 0 < scale < math.inf:
        raise UserError(f"relative must be a number above 0, got {scale:g}")
    step /= scale
    clipped = float((np.abs(step) > 1).any(1).mean()) if len(step) else 0.0
    return np.clip(step, -1, 1).astype(np.float32), scale, clipped


def make_relative(dataset: Dataset, scale: float | str = "auto", position: Sequence[str] = ()) -> None:
    """Turn a dataset's absolute targets into relative actions, in place; its attributes say how.

    `actions` is then "relative", `action_scale` the scale, `actions_clipped` the share of rows clipped.

    Args:
        dataset: whose proprioception holds what the actions are targets of.
        scale: what a full action means, or "auto" for the longest step.
        position: names of those columns of proprioception, one for each action; the first ones when empty.

    Raises:
        UserError: proprioception lacks them.
    """
    size = dataset.action.shape[1]
    try:
        wanted = None if scale == "auto" else float(scale)
    except ValueError:
        raise UserError(f"relative must be a number or auto, got '{scale}'") from None
    names = list(position) or list(dataset.proprio_names[:size])
    missing = [name for name in names if name not in dataset.proprio_names]
    if missing or len(names) != size or not dataset.has_proprio:
        raise UserError(
            f"relative actions need {size} columns of proprioception to start from, got "
            f"{', '.join(names) or 'none'} of {', '.join(dataset.proprio_names)}: name them as position"
        )
    columns = [dataset.proprio_names.index(name) for name in names]
    rows = np.setdiff1d(np.arange(dataset.rows), dataset.last_rows)
    steps, unit, clipped = relative_actions(dataset.action[rows], dataset.proprio[rows][:, columns], wanted)
    dataset.action = np.zeros_like(dataset.action)
    dataset.action[rows] = steps
    dataset.action_low, dataset.action_high = np.full(size, -1, np.float32), np.ones(size, np.float32)
    dataset.declared_bounds = True
    dataset.attributes.update(actions="relative", action_scale=unit, actions_clipped=clipped)
