"""Scripted policies that see the state and explore, for varied data."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from sparsewm.envs import blockpush, table
from sparsewm.envs.paths import shortest_way
from sparsewm.envs.pointmaze import PointMazeEnv
from sparsewm.envs.pusht import BAR, CENTRE, HIGH, LOW, OUTLINE, RADIUS, REACH, STEM, rotated
from sparsewm.envs.simulated import SimulatedGoalEnv
from sparsewm.envs.wall import WallEnv


class ExplorationPolicy(Protocol):
    """What data collection needs: `reset(state)` when an episode starts, then `act(state)` for each step."""

    def reset(self, state: np.ndarray) -> None:
        """Start an episode in a state (D,)."""

    def act(self, state: np.ndarray) -> np.ndarray:
        """Action float32 (A,) inside the action space for a state (D,)."""


def exploration_policy(env: SimulatedGoalEnv, rng: np.random.Generator) -> ExplorationPolicy:
    """The exploration policy of an environment, its own where it has a method `scripted(rng)` that makes one.

    All its randomness comes from `rng`.

    Raises ValueError for an environment that has none.
    """
    env = getattr(env, "unwrapped", env)
    if callable(scripted := getattr(env, "scripted", None)):
        own: ExplorationPolicy = scripted(rng)
        return own
    if env.name == "pusht":
        return PushTExploration(rng)
    if env.name == "wall":
        assert isinstance(env, WallEnv)
        return WallExploration(rng, env.wall_x, env.door_y)
    if isinstance(env, PointMazeEnv):
        return PointMazeExploration(rng)
    if env.name in ("rope", "granular"):
        return TableExploration(rng, gather=0.5 if env.name == "granular" else 0.0)
    if env.name == "blockpush":
        return BlockPushExploration(rng)
    raise ValueError(
        f"no exploration policy for environment '{env.name}'; known: pusht, wall, pointmaze, rope, granular, "
        "blockpush."
    )


class HeldActions:
    """Another policy, interrupted by what planners try: Gaussian actions, each held for a model step.

    A planner asks its world model about such actions wherever it stands. A model of purposeful motion alone
    has never seen a hasty or glancing contact, imagines that the object follows, and the planner finds
    just that.

    Args:
        policy: acts in between. rng: of the interruptions. frameskip: environment steps of a model step.
        size: of an action. share: of the steps that are such actions, in [0, 1).
    """

    LONGEST = 3  # model steps of an interruption

    def __init__(
        self,
        policy: ExplorationPolicy,
        rng: np.random.Generator,
        frameskip: int,
        size: int,
        share: float = 0.5,
    ):
        if not 0 <= share < 1:
            raise ValueError(f"the share of held actions must be at least 0 and below 1, got {share:g}")
        self._policy, self._rng, self._frameskip, self._size = policy, rng, frameskip, size
        length = frameskip * (1 + self.LONGEST) / 2
        self._start = min(1.0, share / (1 - share) / length)  # chance of one, a step
        self._left = 0

    def reset(self, state: np.ndarray) -> None:
        self._policy.reset(state)
        self._left = 0

    def act(self, state: np.ndarray) -> np.ndarray:
        rng = self._rng
        if self._left == 0 and rng.random() < self._start:
            self._left = self._frameskip * int(rng.integers(1, self.LONGEST + 1))
            self._deviation = rng.uniform(0.1, 0.6)
        if self._left == 0:
            return self._policy.act(state)
        if self._left % self._frameskip == 0:
            self._action = np.clip(rng.normal(0, self._deviation, self._size), -1, 1).astype(np.float32)
        self._left -= 1
        return self._action.copy()


class PushTExploration:
    """Pushes of the T from all sides, each followed by another, with free motions between.

    A push: choose a point of the T's outline and a direction into it, go round the T to a place before it,
    then press on for a while. Places that cannot be reached (beyond a wall) are left out, and a T that is far
    from the middle is mostly pushed back. Actions are smoothed and noisy.
    """

    NOISE = 4.0  # px, of the target

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self.reset(np.zeros(7))

    def reset(self, state: np.ndarray) -> None:
        self._command: np.ndarray = np.zeros(2)  # smoothed offset of the target, px
        self._noise: np.ndarray = np.zeros(2)
        self._way: list[np.ndarray] = []  # points (2,) still to pass before the push, px
        self._steps_left = 0  # of the push
        self._pace = self._push_pace = 0.0
        self._direction: np.ndarray = np.zeros(
            2
        )  # of the push: unit vector, in the T's frame if it turns with the T
        self._turns_with_block = False

    def act(self, state: np.ndarray) -> np.ndarray:
        agent, block, angle = state[:2], state[2:4], float(state[4])
        if self._steps_left <= 0:
            self._choose(agent, block, angle)
        self._move(agent, angle)
        self._noise = 0.6 * self._noise + self._rng.normal(0, self.NOISE, 2)
        return np.clip((self._command + self._noise) / REACH, -1, 1).astype(np.float32)

    def _move(self, agent: np.ndarray, angle: float) -> None:
        """Turn the command along the way, or into the push at its end."""
        self._patience -= 1
        if self._way and np.hypot(*(self._way[0] - agent)) < (30 if len(self._way) > 1 else 14):
            self._way.pop(0)
        if self._way and self._patience > 0:
            offset = self._way[0] - agent
            length = math.hypot(*offset)
            pace = self._pace if len(self._way) > 1 else min(self._pace, 12 + length)  # slow down at the end
            wanted = pace * offset / max(length, 1e-6)
        else:
            self._way = []
            self._steps_left -= 1
            turn = angle if self._turns_with_block else 0.0
            wanted = self._push_pace * rotated(self._direction[None], turn)[0]
        self._command += 0.7 * (wanted - self._command)

    def _choose(self, agent: np.ndarray, block: np.ndarray, angle: float) -> None:
        """The next thing to do: mostly a push, at times a free motion."""
        rng = self._rng
        self._pace, self._push_pace = rng.uniform(0.4, 1.0) * np.array([70, rng.uniform(25, 70)])
        self._steps_left, self._patience = int(rng.integers(4, 17)), 40
        self._turns_with_block = bool(rng.random() < 0.5)
        if rng.random() > 0.06:
            for point, direction in self._contacts(block, angle):
                way = way_round(agent, point - direction * (RADIUS + 14), block, angle)
                if way:
                    sideways = rng.normal(0, 0.2) * np.array([-direction[1], direction[0]])
                    self._direction = direction + sideways
                    if self._turns_with_block:
                        self._direction = rotated(self._direction[None], -angle)[0]
                    self._way = way
                    return
        self._way, self._steps_left = [rng.uniform(LOW, HIGH, 2)], 1
        self._direction, self._turns_with_block = np.zeros(2), False
        self._patience = int(rng.integers(4, 13))

    def _contacts(self, block: np.ndarray, angle: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Points (2,) on the T's outline and unit directions (2,) into it, the preferred ones first."""
        rng = self._rng
        corners = rotated(OUTLINE, angle) + block
        sides = np.roll(corners, -1, 0) - corners
        lengths = np.hypot(*sides.T)
        home = (LOW + HIGH) / 2 - (block + rotated(np.array([CENTRE]), angle)[0])
        far = max(0.0, (math.hypot(*home) - 60) / 60)  # how much it matters to get back to the middle
        contacts, scores = [], []
        for side in rng.choice(len(OUTLINE), size=12, p=lengths / lengths.sum()):
            along = sides[side] / lengths[side]
            inward = np.array([-along[1], along[0]])  # the outline goes round with its inside on this hand
            direction = rotated(inward[None], rng.normal(0, 0.25))[0]
            contacts.append((corners[side] + rng.random() * sides[side], direction))
            scores.append(far * (direction @ home) / max(math.hypot(*home), 1e-6) + rng.gumbel())
        return [contacts[i] for i in np.argsort(scores)[::-1]]


# Corners of a way round the T at a safe distance, in its frame.
_AROUND = np.array([(-84, -24), (84, -24), (84, 54), (39, 144), (-39, 144), (-84, 54)], dtype=np.float64)


def way_round(start: np.ndarray, end: np.ndarray, block: np.ndarray, angle: float) -> list[np.ndarray]:
    """Points (2,) of the shortest way from `start` past the T to `end` that stays on the table.

    Empty where there is none. The points are `end` and, before it, corners of a hexagon round the T.
    """
    corners = rotated(_AROUND, angle) + block
    corners = corners[(corners >= LOW).all(1) & (corners <= HIGH).all(1)]
    if end.min() < LOW or end.max() > HIGH:
        return []
    points = np.concatenate([[start], corners, [end]])
    first, second = np.triu_indices(len(points), 1)
    fractions = np.linspace(0, 1, 24)[:, None, None]
    paths = points[first] + fractions * (points[second] - points[first])  # (24, edges, 2)
    room = np.full(len(first), RADIUS + 3.0)
    room[first == 0] = min(RADIUS + 3.0, _clearances(start, block, angle) - 0.5)  # one at the T may leave it
    open_edges = (_clearances(paths, block, angle) > room).all(0)
    lengths = np.full((len(points), len(points)), math.inf)
    lengths[first[open_edges], second[open_edges]] = np.hypot(*(points[second] - points[first])[open_edges].T)
    return [points[i] for i in shortest_way(np.minimum(lengths, lengths.T))]


def _clearances(points: np.ndarray, block: np.ndarray, angle: float) -> np.ndarray:
    """Distances (...) of points (..., 2) to the T."""
    local = (points - block) @ np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    away = []
    for x_low, x_high, y_low, y_high in (BAR, STEM):
        outside = np.maximum(np.maximum((x_low, y_low) - local, local - (x_high, y_high)), 0.0)
        away.append(np.hypot(outside[..., 0], outside[..., 1]))
    return np.minimum(*away)


class WallExploration:
    """Walks with momentum; about half of the time the dot is on its way through the door."""

    def __init__(self, rng: np.random.Generator, wall_x: float = 32.0, door_y: float = 30.0):
        self._rng, self._wall_x, self._door_y = rng, wall_x, door_y
        self.reset(np.zeros(2))

    def reset(self, state: np.ndarray) -> None:
        self._heading = self._rng.uniform(-np.pi, np.pi)
        self._speed = self._rng.uniform(0.4, 1.3)
        self._way: list[np.ndarray] = []
        self._last = np.full(2, np.inf)

    def act(self, state: np.ndarray) -> np.ndarray:
        rng = self._rng
        if not self._way and rng.random() < 0.04:
            self._way = self._through_the_door(state)
        if self._way and np.hypot(*(self._way[0] - state)) < 3.0:
            self._way.pop(0)
        if self._way:
            to = self._way[0] - state
            turn = math.remainder(math.atan2(to[1], to[0]) - self._heading, 2 * math.pi)
            self._heading += 0.7 * turn + rng.normal(0, 0.15)
        else:
            self._heading += rng.normal(0, 0.35)
            if np.hypot(*(state - self._last)) < 0.3:  # against a wall
                self._heading = rng.uniform(-np.pi, np.pi)
        self._speed = float(np.clip(self._speed + rng.normal(0, 0.15), 0.2, 1.4))
        self._last = state.copy()
        action = self._speed * np.array([math.cos(self._heading), math.sin(self._heading)])
        return np.clip(action + rng.normal(0, 0.1, 2), -1, 1).astype(np.float32)

    def _through_the_door(self, state: np.ndarray) -> list[np.ndarray]:
        """Points (2,) to go to: before the door, behind it, and somewhere in the other room."""
        side = 1.0 if state[0] < self._wall_x else -1.0
        before, behind = (np.array([self._wall_x + s * side * 7, self._door_y]) for s in (-1, 1))
        there = np.array([self._wall_x + side * self._rng.uniform(8, 26), self._rng.uniform(4, 60)])
        return [before, behind, there]


class PointMazeExploration:
    """Forces that persist for a while, with noise; a ball that is stuck at a wall is pushed elsewhere."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self.reset(np.zeros(4))

    def reset(self, state: np.ndarray) -> None:
        self._steps, self._steps_left = 0, 0
        self._force: np.ndarray = np.zeros(2)

    def act(self, state: np.ndarray) -> np.ndarray:
        rng = self._rng
        stuck = self._steps > 3 and math.hypot(*state[2:4]) < 0.1
        if stuck or self._steps_left == 0:
            self._steps, self._steps_left = 0, int(rng.integers(4, 20))
            direction = rng.uniform(-np.pi, np.pi)
            self._force = rng.uniform(0.2, 1.3) * np.array([math.cos(direction), math.sin(direction)])
        self._steps, self._steps_left = self._steps + 1, self._steps_left - 1
        return np.clip(self._force + rng.normal(0, 0.15, 2), -1, 1).astype(np.float32)


class TableExploration:
    """Pushes that start beside a particle and mostly go through it; far ones are pushed back to the middle.

    Args:
        gather: share of the pushes that go towards the middle of all particles.
    """

    def __init__(self, rng: np.random.Generator, gather: float = 0.0):
        self._rng, self._gather = rng, gather

    def reset(self, state: np.ndarray) -> None:
        """Every push is drawn afresh."""

    def act(self, state: np.ndarray) -> np.ndarray:
        rng, particles = self._rng, state[:-2].reshape(-1, 2)
        if rng.random() < 0.1:
            return rng.uniform(-1, 1, 4).astype(np.float32)
        particle = particles[rng.integers(len(particles))]
        middle = particles.mean(0)
        away = float(np.abs(particle).max()) / table.REACH  # near the border: back to the middle of the table
        if rng.random() < away**3:
            to = rng.normal(0, 0.1, 2) - particle
        elif rng.random() < self._gather:
            to = middle + rng.normal(0, 0.05, 2) - particle
        else:
            to = rng.normal(0, 1, 2)
        direction = rotated((to / max(math.hypot(*to), 1e-6))[None], rng.normal(0, 0.2))[0]
        start = particle - rng.uniform(0.03, 0.12) * direction + rng.normal(0, 0.01, 2)
        end = particle + rng.uniform(0.0, 0.3) * direction
        push = np.concatenate([start, end]) / table.REACH
        return np.clip(push, -1, 1).astype(np.float32)


class BlockPushExploration:
    """Pushes of both blocks from all sides, often towards the targets, with free motions between.

    A push: choose a block and a direction, go round it to a place behind it, press on for a while.
    """

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self.reset(np.zeros(8))

    def reset(self, state: np.ndarray) -> None:
        self._way: list[np.ndarray] = []  # points (2,) still to pass before the push, m
        self._steps_left = 0  # of the push
        self._patience = 0
        self._pace = 1.0
        self._direction: np.ndarray = np.zeros(2)
        self._noise: np.ndarray = np.zeros(2)

    def act(self, state: np.ndarray) -> np.ndarray:
        effector = state[:2]
        if self._steps_left <= 0:
            self._choose(state)
        self._patience -= 1
        if self._way and math.hypot(*(self._way[0] - effector)) < 0.012:
            self._way.pop(0)
        if self._way and self._patience > 0:
            offset = (self._way[0] - effector) / blockpush.STEP
            wanted = offset / max(1.0, math.hypot(*offset))
        else:
            self._way = []
            self._steps_left -= 1
            wanted = self._pace * self._direction
        self._noise = 0.6 * self._noise + self._rng.normal(0, 0.08, 2)
        return np.clip(wanted + self._noise, -1, 1).astype(np.float32)

    def _choose(self, state: np.ndarray) -> None:
        rng, effector = self._rng, state[:2]
        self._pace, self._steps_left, self._patience = rng.uniform(0.4, 1.0), int(rng.integers(3, 12)), 30
        if rng.random() < 0.1:
            self._way, self._direction = [rng.uniform(-blockpush.REACH, blockpush.REACH, 2)], np.zeros(2)
            return
        i = int(rng.integers(2))
        block = state[2 + 3 * i : 4 + 3 * i]
        to = rng.normal(0, 1, 2)
        if rng.random() < 0.4:
            to = blockpush.TARGETS[i if rng.random() < 0.8 else 1 - i] - block
        far = float(np.abs(block).max()) / blockpush.HALF  # near the border: back to the middle
        if rng.random() < far**3:
            to = rng.normal(0, 0.08, 2) - block
        direction = rotated((to / max(math.hypot(*to), 1e-6))[None], rng.normal(0, 0.15))[0]
        across = np.array([-direction[1], direction[0]])
        behind = block - 0.075 * direction + rng.normal(0, 0.012) * across
        if np.abs(behind).max() > blockpush.REACH:  # cannot get there
            self._way, self._direction = [rng.uniform(-0.2, 0.2, 2)], np.zeros(2)
            self._steps_left = 1
            return
        self._way = [behind]
        if (effector - block) @ direction > -0.03:  # in front of it: round the nearer side
            side = 1.0 if (effector - block) @ across > 0 else -1.0
            beside = np.clip(block + side * 0.09 * across, -blockpush.REACH, blockpush.REACH)
            self._way.insert(0, beside)
        self._direction = direction
