"""Episodes in Wall, small, as several tests run them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsewm.evaluation.episodes import Episode
from sparsewm.tasks import Task


class Straight:
    """Goes straight to the goal at full speed, `steps` environment steps per decision."""

    def __init__(self, steps: int = 5) -> None:
        self.steps = steps
        self.asked: list[list[int]] = []

    def begin(self, episodes: Sequence[Episode]) -> None:
        """Nothing to prepare."""

    def looks(self, left: int) -> bool:
        return False

    def observe(self, number: int, episode: Episode) -> None:
        """Nothing to remember."""

    def act(self, episodes: Sequence[Episode], active: np.ndarray) -> list[np.ndarray]:
        self.asked.append(active.tolist())
        ways = [episodes[i].info["goal"] - episodes[i].states[-1] for i in active]
        return [np.tile(way / np.abs(way).max(), (self.steps, 1)) for way in ways]


def room_task(distance: float, seed: int = 0) -> Task:
    """Start and goal in the left room, `distance` units apart."""
    return Task(seed, np.array([15.0, 8.0]), np.array([15.0, 8.0 + distance]))
