"""What pictures show of recorded states: which numbers, and how present and goal lie to a body."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ON_THE_TABLE, FROM_BODIES = (1,), (1, 2)  # periods over four units of length


def shown(names: Sequence[str]) -> tuple[str, ...]:
    """Those of a state's numbers that a picture shows: velocities, `vx` and `vy`, it does not."""
    return tuple(name for name in names if not name.endswith(("vx", "vy")))


def seen_from_bodies(
    states: np.ndarray,
    goals: np.ndarray,
    names: Sequence[str],
    symmetry: int = 1,
    scale: tuple[np.ndarray, float] | None = None,
) -> Tensor:
    """What one picture of present and goal shows: above all how everything lies to a body that turns.

    Which push a T needs depends on where its goal and the agent lie in its own frame, hardly on where it is.
    Told where all is on the table, a policy would have to learn to turn, which takes it long.

    Args:
        states, goals: (N, D). names: of their numbers, as `visible` reads them; x and y of a name are a
            place, with an angle of the same name a body that turns. Without any the first place is one.
        symmetry: how many angles of such a body look the same (`GoalEnv.angle_symmetry`). With more than one
            nothing shows which way it is turned: all is seen from its place, along the table's axes, and
            angles are told times so many.
        scale: middle (2,) of the table and the unit of length; None: mean and deviation of these places.

    Returns:
        (N, T): places on the table and seen from every body, the nearer ones finely, and directions. What
        is 0 whatever the state, such as the place of a body seen from itself, is among it.
    """
    columns = {name: i for i, name in enumerate(names)}
    stems = [name[:-1] for name in names if name.endswith("x") and not name.endswith("vx")]
    both = [np.asarray(part, np.float64) for part in (states, goals)]

    def place(part: np.ndarray, stem: str) -> np.ndarray:
        return part[:, [columns[stem + "x"], columns[stem + "y"]]]

    turning = [stem for stem in stems if stem + "angle" in columns]
    everywhere = np.stack([place(part, stem) for part in both for stem in stems])  # (2 places, N, 2)
    middle, unit = scale or (everywhere.mean((0, 1)), max(float(everywhere.std(1).mean()), 1e-6))
    seen = [waves((everywhere - middle) / unit, ON_THE_TABLE)]
    for stem in turning or stems[:1]:
        angles = [part[:, columns[stem + "angle"]] if turning else np.zeros(len(part)) for part in both]
        turn = angles[0] if symmetry == 1 else np.zeros(len(states))
        cosine, sine = np.cos(turn)[:, None], np.sin(turn)[:, None]
        away = (everywhere - place(both[0], stem)) / unit
        x, y = away[..., :1], away[..., 1:]
        seen.append(waves(np.concatenate([cosine * x + sine * y, cosine * y - sine * x], -1), FROM_BODIES))
        turns = [times * (angles[1] - angles[0]) for times in (1, 2, 3)] if symmetry == 1 else []
        for angle in (*angles, *turns):
            seen.append(np.stack([np.sin(symmetry * angle), np.cos(symmetry * angle)], -1)[None])
    flat = np.concatenate([part.transpose(1, 0, 2).reshape(len(states), -1) for part in seen], 1)
    return torch.from_numpy(flat.astype(np.float32))


def waves(places: np.ndarray, periods: Sequence[float]) -> np.ndarray:
    """Places (..., 2) and sines and cosines of so many periods over four units."""
    waves = [wave(math.pi / 2 * often * places) for often in periods for wave in (np.sin, np.cos)]
    return np.concatenate([places, *waves], -1)
