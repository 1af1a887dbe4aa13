"""Success and distance by the parts of a state that a benchmark's rule names."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsewm.envs.simulated import SimulatedGoalEnv

_GUIDE = 0.1  # weight of parts that do not count, beside those that do


@dataclass(frozen=True)
class Part:
    """Columns of a state that are compared with the goal's, all of them together.

    Attributes:
        name: of the distance. columns: of the state. threshold: their distance where the goal counts as
            reached, in their unit. angle: they are angles, rad, whole turns apart alike. counts: whether the
            rule asks for it; what does not count only guides the oracle, as where the gripper is.
    """

    name: str
    columns: tuple[int, ...]
    threshold: float
    angle: bool = False
    counts: bool = True

    def away(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Euclidean distances (K,) of states (K, D) to a goal (D,)."""
        columns = list(self.columns)
        error = states[:, columns] - goal[columns]
        if self.angle:
            error = (error + np.pi) % (2 * np.pi) - np.pi
        return np.linalg.norm(error, axis=-1)


class PartedEnv(SimulatedGoalEnv, ABC):
    """A simulator whose goal is reached when each part of the state that counts is within its threshold.

    A subclass sets `_parts`, `state_names` and `proprio_names` before it calls `__init__`.
    """

    _parts: Sequence[Part]

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array") -> None:
        self.state_dim, self.proprio_dim = len(self.state_names), len(self.proprio_names)
        super().__init__(resolution, render_mode)

    def distance(self, state: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        """The distance of each part, in its unit."""
        state, goal = np.asarray(state), np.asarray(goal)
        return {part.name: float(part.away(state[None], goal)[0]) for part in self._parts}

    def shortfall(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        total = np.zeros(len(states))
        for counts, weight in ((True, 1.0), (False, _GUIDE)):
            parts = [part for part in self._parts if part.counts == counts]
            for part in parts:
                total += weight * part.away(states, goal) / part.threshold / len(parts)
        return total

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        away = self.distance(state, goal)
        return all(away[part.name] <= part.threshold for part in self._parts if part.counts)
