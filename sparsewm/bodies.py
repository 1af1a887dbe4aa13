"""What pictures show of recorded states: which numbers, and how present and goal lie to a body."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsewm.errors import UserError

ON_THE_TABLE, FROM_BODIES = (1,), (1, 2)  # periods over four units of length


def shown(names: Sequence[str]) -> tuple[str, ...]:
    """Those of a state's numbers that a picture shows: velocities, `vx`, `vy` and `vz`, it does not."""
    return tuple(name for name in names if not re.search(r"v[xyz]\d*$", name))


def shown_numbers(names: Sequence[str], states: np.ndarray) -> dict[str, np.ndarray]:
    """What a picture shows of states (N, D), by name, float64 (N,) each."""
    return {name: np.asarray(states[:, list(names).index(name)], np.float64) for name in shown(names)}


def is_angle(name: str) -> bool:
    """Whether a number of a state is an angle, in radians."""
    return re.search(r"angle\d*$", name) is not None


class Body(NamedTuple):
    """Columns of a state: a place, and the angle of what is there, None where it does not turn.

    The third coordinate of a place, up from the table, is None where nothing leaves it.
    """

    x: int
    y: int
    angle: int | None
    z: int | None = None

    @property
    def place(self) -> list[int]:
        """Columns of the place, two or three."""
        return [self.x, self.y] if self.z is None else [self.x, self.y, self.z]


def bodies(
    names: Sequence[str], remedy: str = "give another environment, or leave the state out"
) -> list[Body]:
    """The bodies that a state names: `NAMEx`, `NAMEy` and perhaps `NAMEz` are a place, `NAMEangle` its angle.

    A number may follow: `x3`, `y3` and `angle3`. Velocities are left out, as by `shown`.

    Raises:
        UserError: there is no place, a number is of none, or some places have a height and others none;
            `remedy` ends the sentence.
    """
    seen = set(shown(names))
    columns = {name: i for i, name in enumerate(names) if name in seen}
    found, used = list[Body](), set[str]()
    for name in columns:
        place = re.fullmatch(r"(.*)x(\d*)", name)
        y, z, angle = (f"{place[1]}{part}{place[2]}" if place else "" for part in ("y", "z", "angle"))
        if y in columns:
            found.append(Body(columns[name], columns[y], columns.get(angle), columns.get(z)))
            used |= {name, y, z, angle}
    if not found:
        raise UserError(
            f"what reads the state needs places (x and y) in it, and `env` names "
            f"{_some(list(columns)) or 'nothing'}: {remedy}"
        )
    if unused := [name for name in columns if name not in used]:
        raise UserError(
            f"what reads the state reads places (x and y) and the angles there; of what `env` names "
            f"{_some(unused)} would be left out: {remedy}"
        )
    if len({body.z is None for body in found}) > 1:
        raise UserError(f"of what `env` names some places have a height (z) and others none: {remedy}")
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


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
        states, goals: (N, D). names: of their numbers, as `bodies` reads them. Where no body turns, all is
            seen from the first.
        symmetry: how many angles of such a body look the same (`GoalEnv.angle_symmetry`). With more than one
            nothing shows which way it is turned: all is seen from its place, along the table's axes, and
            angles are told times so many.
        scale: middle (2,) or (3,) of the places and the unit of length; None: mean and deviation of these.

    Returns:
        (N, T): places on the table and seen from every body, the nearer ones finely, and directions. What
        is 0 whatever the state, such as the place of a body seen from itself, is among it.
    """
    there = bodies(names)
    both = [np.asarray(part, np.float64) for part in (states, goals)]
    turning = [body for body in there if body.angle is not None]
    everywhere = np.stack([part[:, body.place] for part in both for body in there])  # (2 bodies, N, 2 or 3)
    middle, unit = scale or (everywhere.mean((0, 1)), max(float(everywhere.std(1).mean()), 1e-6))
    seen = [waves((everywhere - middle) / unit, ON_THE_TABLE)]
    for body in turning or there[:1]:
        angles = [np.zeros(len(part)) if body.angle is None else part[:, body.angle] for part in both]
        turn = angles[0] if symmetry == 1 else np.zeros(len(states))
        cosine, sine = np.cos(turn)[:, None], np.sin(turn)[:, None]
        away = (everywhere - both[0][:, body.place]) / unit
        x, y, z = away[..., :1], away[..., 1:2], away[..., 2:]
        turned = np.concatenate([cosine * x + sine * y, cosine * y - sine * x, z], -1)
        seen.append(waves(turned, FROM_BODIES))
        turns = [times * (angles[1] - angles[0]) for times in (1, 2, 3)] if symmetry == 1 else []
        for angle in (*angles, *turns):
            seen.append(np.stack([np.sin(symmetry * angle), np.cos(symmetry * angle)], -1)[None])
    flat = np.concatenate([part.transpose(1, 0, 2).reshape(len(states), -1) for part in seen], 1)
    return torch.from_numpy(flat.astype(np.float32))


def waves(places: np.ndarray, periods: Sequence[float]) -> np.ndarray:
    """Places (..., d) and sines and cosines of so many periods over four units."""
    waves = [wave(math.pi / 2 * often * places) for often in periods for wave in (np.sin, np.cos)]
    return np.concatenate([places, *waves], -1)
