"""Scripted policies that see the state and reach a goal, for others to imitate."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np

from sparsewm.envs import blockpush
from sparsewm.envs.paths import shortest_way
from sparsewm.envs.pointmaze import PointMazeEnv
from sparsewm.envs.policies import ExplorationPolicy, PushTExploration, way_round
from sparsewm.envs.pusht import CENTRE, OUTLINE, RADIUS, REACH, rotated
from sparsewm.envs.simulated import SimulatedGoalEnv
from sparsewm.envs.wall import STEP, WallEnv


def expert_policy(env: SimulatedGoalEnv, goal: np.ndarray, rng: np.random.Generator) -> ExplorationPolicy:
    """A policy that goes to a goal state (D,) on a short way and stays there; its noise comes from `rng`.

    An environment of somebody else's may make it, by a method `expert(goal, rng)`.

    Raises ValueError for an environment that has none.
    """
    env = getattr(env, "unwrapped", env)
    if callable(expert := getattr(env, "expert", None)):
        own: ExplorationPolicy = expert(goal, rng)
        return own
    if isinstance(env, PointMazeEnv):
        return PointMazeExpert(env, goal, rng)
    if isinstance(env, WallEnv):
        return WallExpert(env, goal, rng)
    if env.name == "pusht":
        return PushTExpert(env, goal, rng)
    if env.name == "blockpush":
        return BlockPushExpert(goal, rng)
    raise ValueError(
        f"no expert for environment '{env.name}'; known: wall, pointmaze, pointmaze-large, pusht, blockpush."
    )


class PushTExpert(PushTExploration):
    """Pushes the T to its goal push by push, the one that brings it nearest each time, then goes to its own.

    Of pushes from everywhere, those that a T sliding without inertia would follow best are tried in the
    simulator, and the best one is taken, and ended where it is best. Which one that is depends on the state
    alone, for who imitates it cannot see dice.
    """

    NOISE = 1.5
    TRIED = 14  # pushes that are simulated
    LONGEST = 24  # steps of a push
    PACE, PUSH_PACE = 60.0, 50.0  # px to the target
    NEAR = 0.6  # of the success thresholds, where the T is left alone
    HASTE = 0.02  # of a threshold that a step is worth
    SPREAD = 60.0  # px: how far from its centre a T that turns rubs on the table

    def __init__(self, env: SimulatedGoalEnv, goal: np.ndarray, rng: np.random.Generator):
        self._env, self._goal = env, np.asarray(goal, np.float64)
        super().__init__(rng)

    def act(self, state: np.ndarray) -> np.ndarray:
        if self._steps_left <= 0 and not self._way:
            self._aim(np.asarray(state, np.float64))
        return super().act(state)

    def _error(self, states: np.ndarray) -> np.ndarray:
        """Of the T alone in states (K, 7): (K,), in success thresholds."""
        placed = states.copy()
        placed[:, :2] = self._goal[:2]
        return self._env.shortfall(placed, self._goal)

    def _aim(self, state: np.ndarray) -> None:
        agent, block, angle = state[:2], state[2:4], float(state[4])
        now = float(self._error(state[None])[0])
        self._pace, self._push_pace, self._patience = self.PACE, self.PUSH_PACE, 40
        self._turns_with_block = False
        best, chosen = now - 0.05, None
        if now > self.NEAR:
            ways = (
                (way_round(agent, point - direction * (RADIUS + 14), block, angle), direction)
                for point, direction in self._promising(block, angle)
            )
            for way, direction in islice((pair for pair in ways if pair[0]), self.TRIED):
                value, steps = self._try(state, way, direction)
                if value < best:
                    best, chosen = value, (way, direction, steps)
        if chosen is None:  # nothing helps, or the T is there
            self._direction, self._steps_left = np.zeros(2), 1
            self._way = way_round(agent, self._goal[:2], block, angle) or [self._goal[:2]]
        else:
            self._way, self._direction, self._steps_left = chosen

    def _promising(self, block: np.ndarray, angle: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Contacts and directions, the one first that should bring the T nearest to its goal.

        Neighbours of a better one are left out: they would do much the same.
        """
        points, directions = rotated(_CONTACTS, angle) + block, rotated(_DIRECTIONS, angle)
        centre = block + rotated(np.array([CENTRE]), angle)[0]
        arms = points - centre
        torque = arms[:, 0] * directions[:, 1] - arms[:, 1] * directions[:, 0]  # px
        share = 1 / (1 + (torque / self.SPREAD) ** 2)  # of the push that moves the centre
        lengths = np.linspace(8, 120, 15)[:, None]
        turned = angle + lengths * share * torque / self.SPREAD**2  # (15, K)
        moved = centre + (lengths * share)[..., None] * directions
        sine, cosine = np.sin(turned), np.cos(turned)
        moved -= np.stack([-sine * CENTRE[1], cosine * CENTRE[1]], -1)
        states = np.zeros((*turned.shape, 7))
        states[..., 2:4], states[..., 4] = moved, turned
        errors = self._error(states.reshape(-1, 7)).reshape(turned.shape).min(0)
        order = np.argsort(errors, kind="stable").tolist()
        promising: list[tuple[np.ndarray, np.ndarray]] = []
        while order:
            best = order[0]
            promising.append((points[best], directions[best]))
            order = [i for i in order if not _ALIKE[best, i]]
        return promising

    def _try(self, state: np.ndarray, way: list[np.ndarray], direction: np.ndarray) -> tuple[float, int]:
        """Error in the simulator at the best end of a push, and its steps."""
        kept = self._command, self._way, self._direction, self._steps_left, self._patience
        self._way, self._direction, self._steps_left = list(way), direction, self.LONGEST
        value, steps, taken = math.inf, 0, 0
        while self._steps_left > 0:
            self._move(state[:2], float(state[4]))
            action = np.clip(self._command / REACH, -1, 1).astype(np.float32)
            state = self._env.rollout_states(state, action[None, None])[0, -1]
            taken += 1
            if not self._way:
                error = float(self._error(state[None])[0]) + self.HASTE * taken
                if error < value:
                    value, steps = error, self.LONGEST - self._steps_left
                elif error > value + 1:
                    break
        self._command, self._way, self._direction, self._steps_left, self._patience = kept
        return value, steps


def _contact_grid() -> tuple[np.ndarray, np.ndarray]:
    """Points (K, 2) along the T's outline and unit directions (K, 2) into it, in its frame."""
    points, directions = [], []
    for start, end in zip(OUTLINE, np.roll(OUTLINE, -1, 0), strict=True):
        side = end - start
        length = math.hypot(*side)
        for fraction in (np.arange(round(length / 10)) + 0.5) / round(length / 10):
            for turn in (-0.3, 0.0, 0.3):
                points.append(start + fraction * side)
                directions.append(rotated(np.array([[-side[1], side[0]]]) / length, turn)[0])
    return np.stack(points), np.stack(directions)


_CONTACTS, _DIRECTIONS = _contact_grid()
_ALIKE = (np.linalg.norm(_CONTACTS[:, None] - _CONTACTS, axis=-1) < 22) & (_DIRECTIONS @ _DIRECTIONS.T > 0.8)


class PointMazeExpert:
    """Runs along the shortest way through the maze, brakes where it bends and at the goal."""

    BRAKING = 18.0  # cells/s^2 it counts on, of the 24 of full force
    TOP = 4.0  # cells/s

    def __init__(self, env: PointMazeEnv, goal: np.ndarray, rng: np.random.Generator):
        self._paths, self._goal, self._rng = env._maze.paths, goal[:2], rng
        self._noise: np.ndarray = np.zeros(2)

    def reset(self, state: np.ndarray) -> None:
        self._noise = np.zeros(2)

    def act(self, state: np.ndarray) -> np.ndarray:
        way = self._paths.next_point(state[:2], self._goal) - state[:2]
        length = max(math.hypot(*way), 1e-6)
        velocity = min(self.TOP, math.sqrt(2 * self.BRAKING * length)) * way / length
        self._noise = 0.8 * self._noise + self._rng.normal(0, 0.1, 2)
        return np.clip(0.5 * (velocity - state[2:4]) + self._noise, -1, 1).astype(np.float32)


class WallExpert:
    """Walks straight to the goal, or to the door first where the goal is in the other room."""

    def __init__(self, env: WallEnv, goal: np.ndarray, rng: np.random.Generator):
        self._wall_x, self._door_y, self._goal, self._rng = env.wall_x, env.door_y, goal, rng

    def reset(self, state: np.ndarray) -> None:
        """Where to go depends on the present state alone."""

    def act(self, state: np.ndarray) -> np.ndarray:
        side = math.copysign(1.0, self._goal[0] - self._wall_x)
        beyond = (state[0] - self._wall_x) * side  # the wall, in the goal's direction
        target = self._goal
        if beyond < 5:
            through = beyond > 0 or abs(state[1] - self._door_y) < 1.5
            target = np.array([self._wall_x + (7 if through else -7) * side, self._door_y])
        way = target - state
        pace = 1 / max(STEP, math.hypot(*way))
        return np.clip(pace * way + self._rng.normal(0, 0.05, 2), -1, 1).astype(np.float32)


class BlockPushExpert:
    """Pushes one block after the other straight to its goal, then goes to its own.

    Everything follows from the present state: which block is next, round which side of the blocks it goes to
    the place behind it, and whether it is there and presses on. The next block is the one that makes the
    whole way shorter, unless the other one is in its way.
    """

    NOISE = 0.05  # of an action
    PACE, PUSH_PACE = 0.9, 0.5  # of a full action
    NEAR = 0.015  # m from its goal, where a block is left alone
    CLEAR = 0.07  # m between the middles of effector and block on a way past it
    BEHIND = 0.082  # m from a block's middle to where a push begins
    CONE = 0.45  # rad off the line through block and goal, within which it presses on
    SLOWER = 0.6  # m of way that a metre of pushing takes longer
    IN_THE_WAY = 0.5  # m of way that a block in another one's way is worth
    _RING = BEHIND * np.array([(math.cos(a), math.sin(a)) for a in 2 * math.pi * np.arange(10) / 10])

    def __init__(self, goal: np.ndarray, rng: np.random.Generator):
        self._goal, self._rng = np.asarray(goal, np.float64), rng
        self._noise: np.ndarray = np.zeros(2)

    def reset(self, state: np.ndarray) -> None:
        self._noise = np.zeros(2)

    def act(self, state: np.ndarray) -> np.ndarray:
        self._noise = 0.6 * self._noise + self._rng.normal(0, self.NOISE, 2)
        return np.clip(self._wanted(np.asarray(state, np.float64)) + self._noise, -1, 1).astype(np.float32)

    def _wanted(self, state: np.ndarray) -> np.ndarray:
        effector, blocks, goals = state[:2], state[[[2, 3], [5, 6]]], self._goal[[[2, 3], [5, 6]]]
        lengths = np.hypot(*(goals - blocks).T)
        directions = (goals - blocks) / np.maximum(lengths, 1e-9)[:, None]
        starts = blocks - self.BEHIND * directions  # of pushes
        left = [i for i in (0, 1) if lengths[i] > self.NEAR]
        if not left:
            return self._towards(self._way_round(effector, self._goal[:2], blocks)[0] - effector)
        ways = {
            i: []
            if self._behind(effector, blocks[i], directions[i])
            else self._way_round(effector, starts[i], blocks)
            for i in left
        }
        costs = {
            i: np.hypot(*np.diff([effector, *ways[i]], axis=0).T).sum() + self.SLOWER * lengths[i]
            for i in left
        }
        for i, j in ((0, 1), (1, 0)) if len(left) == 2 else ():
            barred = [
                _to_segments(blocks[j], blocks[i], goals[i]),
                _to_segments(goals[i], blocks[j], goals[j]),
            ]
            costs[i] += math.hypot(*(goals[i] - self.BEHIND * directions[i] - starts[j]))
            costs[i] += self.IN_THE_WAY * sum(float(room < 2.6 * blockpush.BLOCK) for room in barred)
        i = min(costs, key=costs.__getitem__)
        if ways[i]:
            return self._towards(ways[i][0] - effector)
        return self._press(effector - blocks[i], directions[i], lengths[i])

    def _press(self, offset: np.ndarray, direction: np.ndarray, length: float) -> np.ndarray:
        """On towards the goal, and back towards the line through block and goal."""
        across = np.array([-direction[1], direction[0]])
        gap = max(0.0, -(offset @ direction) - blockpush.BLOCK - blockpush.RADIUS)
        pace = min(self.PUSH_PACE, (length + gap) / blockpush.STEP)
        return pace * direction - np.clip(0.7 / blockpush.STEP * (offset @ across), -0.4, 0.4) * across

    def _behind(self, effector: np.ndarray, block: np.ndarray, direction: np.ndarray) -> bool:
        offset = block - effector
        distance = math.hypot(*offset)
        return distance < self.BEHIND + 0.012 and offset @ direction > math.cos(self.CONE) * distance

    def _towards(self, offset: np.ndarray) -> np.ndarray:
        offset = offset / blockpush.STEP
        return offset * min(1.0, self.PACE / max(math.hypot(*offset), 1e-9))

    def _way_round(self, start: np.ndarray, end: np.ndarray, blocks: np.ndarray) -> list[np.ndarray]:
        """Points (2,) of the shortest way past both blocks, `end` last; straight where there is none."""
        end = np.clip(end, -blockpush.REACH, blockpush.REACH)
        corners = np.concatenate(blocks[:, None] + self._RING)
        points = np.concatenate([[start], corners[(np.abs(corners) <= blockpush.REACH).all(1)], [end]])
        lengths = np.hypot(*(points[:, None] - points).transpose(2, 0, 1))
        for block in blocks:
            room = np.full(len(points), self.CLEAR)  # less at the ends, where they are nearer
            room[[0, -1]] = np.minimum(self.CLEAR, np.hypot(*(points[[0, -1]] - block).T) - 1e-3)
            blocked = _to_segments(block, points[:, None], points) <= np.minimum(room[:, None], room)
            lengths[blocked] = math.inf
        return [points[i] for i in shortest_way(lengths)] or [end]


def _to_segments(point: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Distances (...) of a point (2,) to segments from `starts` to `ends` (..., 2)."""
    ways = ends - starts
    along = ((point - starts) * ways).sum(-1) / np.maximum((ways**2).sum(-1), 1e-12)
    offsets = point - starts - np.clip(along, 0, 1)[..., None] * ways
    return np.hypot(offsets[..., 0], offsets[..., 1])
