"""Shortest ways around things."""

from __future__ import annotations

import numpy as np

_SEAM = 0.01  # boxes that touch at a corner only let no path through


class ShortestPaths:
    """Shortest ways of a point around boxes, by way of given corners.

    Args:
        boxes: (x low, y low, x high, y high) of each, (W, 4), taken to be 0.01 larger on every side.
        corners: the points (N, 2) where a shortest way can bend, outside of all boxes.
    """

    def __init__(self, boxes: np.ndarray, corners: np.ndarray) -> None:
        self.boxes, self.corners = boxes, corners
        between = self._straight(corners, corners)
        for middle in range(len(between)):  # Floyd and Warshall
            between = np.minimum(between, between[:, middle, None] + between[middle])
        self._between = between  # (N, N)

    def lengths(self, points: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Lengths (K,) of the shortest ways from points (K, 2) to a goal (2,); infinite if there is none."""
        goal = goal[None]
        ends = self._straight(goal, self.corners)
        from_corners = np.min(self._between + ends, 1, initial=np.inf)  # (N,)
        round_corners = self._straight(points, self.corners) + from_corners
        return np.minimum(self._straight(points, goal)[:, 0], np.min(round_corners, 1, initial=np.inf))

    def next_point(self, point: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Where the shortest way from a point (2,) to a goal (2,) first bends, or the goal."""
        if np.isfinite(self._straight(point[None], goal[None])).all():
            return goal
        onwards = np.min(self._between + self._straight(goal[None], self.corners), 1, initial=np.inf)
        lengths = self._straight(point[None], self.corners)[0] + onwards
        return self.corners[lengths.argmin()] if np.isfinite(lengths).any() else goal

    def _straight(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Distances (K, N) between points (K, 2) and (N, 2); infinite where a box is between them."""
        step = ends[None] - starts[:, None]  # (K, N, 2)
        length = np.hypot(step[..., 0], step[..., 1])
        step = np.where(np.abs(step) < 1e-12, 1e-12, step)  # no division by zero
        start = starts[:, None, None]
        low, high = self.boxes[:, :2] - _SEAM, self.boxes[:, 2:] + _SEAM
        first, second = (low - start) / step[:, :, None], (high - start) / step[:, :, None]  # (K, N, W, 2)
        enter = np.minimum(first, second).max(-1)
        leave = np.maximum(first, second).min(-1)
        blocked = ((enter < leave) & (leave > 0) & (enter < 1)).any(-1)
        return np.where(blocked, np.inf, length)


def shortest_way(lengths: np.ndarray) -> list[int]:
    """Places on the shortest way from the first of N places to the last one, the first left out.

    Empty where there is no way.

    Args:
        lengths: between places (N, N); infinite where there is none.
    """
    last = len(lengths) - 1
    # Bellman-Ford from the end: `to_end` is the length of the way from a place, `after` the next one on it
    to_end, after = lengths[last].copy(), np.full(len(lengths), last)
    to_end[last] = 0.0
    for _ in lengths:
        through = lengths + to_end
        better = through.min(1) < to_end - 1e-9
        if not better.any():
            break
        after[better], to_end[better] = through.argmin(1)[better], through.min(1)[better]
    if np.isinf(to_end[0]):
        return []
    way, at = [], 0
    while at != last:
        at = int(after[at])
        way.append(at)
    return way
