"""PushT: a disc pushes a T-shaped block over a table."""

from __future__ import annotations

import atexit
import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import pymunk

from sparsewm.envs.appearance import (
    Colour,
    draw_agent,
    draw_polygon,
    fit,
    mean_colour,
    plain,
    random_colour,
    random_outline,
    random_texture,
)
from sparsewm.envs.looks import Scenery
from sparsewm.envs.simulated import SimulatedGoalEnv

SIZE = 512.0
RADIUS = 15.0  # of the agent
REACH = 100.0  # px of target displacement at a full action
LOW, HIGH = 22.0, 489.0  # the agent's centre stays here: a disc touching the walls
MAX_SPEED = 1000.0  # of the agent in a state one may set, px/s

_WALL_LOW, _WALL_HIGH = 7.0, 504.0  # inner faces of the walls
_SUBSTEPS, _DT = 10, 0.01
_KP, _KV = 100.0, 20.0

# The T in its own frame: bar and stem as (x low, x high, y low, y high), centre of gravity, outline (8, 2).
BAR, STEM = (-60.0, 60.0, 0.0, 30.0), (-15.0, 15.0, 30.0, 120.0)
CENTRE = (0.0, 45.0)
OUTLINE = np.array(
    [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], dtype=np.float64
)
_BOUND = 77.0  # radius round the centre of gravity that holds the whole T

# What the T may look like when the appearance is random: outlines in the T's frame, centred on CENTRE.
_BLOCKS = (
    OUTLINE,
    np.array([(-45, 0), (-15, 0), (-15, 80), (45, 80), (45, 110), (-45, 110)], dtype=np.float64),  # L
    np.array([(-60, 30), (60, 30), (60, 60), (-60, 60)], dtype=np.float64),  # bar
    np.array([(-40, 5), (40, 5), (40, 85), (-40, 85)], dtype=np.float64),  # square
    np.array([(0, -15), (60, 85), (-60, 85)], dtype=np.float64),  # triangle
    np.array(
        [(-60, 15), (15, 15), (15, 45), (60, 45), (60, 75), (-15, 75), (-15, 45), (-60, 45)], np.float64
    ),  # Z
)


@dataclass(frozen=True)
class _Look:
    table: np.ndarray  # texture
    wall: Colour | None
    block: Colour
    agent: Colour
    block_outline: np.ndarray  # (V, 2)
    agent_outline: np.ndarray | None = None  # None: a disc
    agent_scale: float = 1.0


_DEFAULT_LOOK = _Look(
    table=plain((255, 255, 255)),
    wall=(211, 211, 211),
    block=(119, 136, 153),
    agent=(65, 105, 225),
    block_outline=OUTLINE,
)


def rotated(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (V, 2) turned by `angle` radians (from x towards y)."""
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def clearance(x: float, y: float, block_x: float, block_y: float, angle: float) -> float:
    """Distance in px from a point to the T at a pose; 0 inside it."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = x - block_x, y - block_y
    x, y = cos * x + sin * y, cos * y - sin * x  # in the T's frame
    best = math.inf
    for x_low, x_high, y_low, y_high in (BAR, STEM):
        away_x = max(x_low - x, 0.0, x - x_high)
        away_y = max(y_low - y, 0.0, y - y_high)
        best = min(best, away_x * away_x + away_y * away_y)
    return math.sqrt(best)


_ALIVE: WeakSet[PushTEnv] = WeakSet()


@atexit.register
def _free_bodies() -> None:
    """Free what pymunk made while it can: a program's last environments outlive it, and it complains then."""
    for env in list(_ALIVE):
        for name in ("_space", "_agent", "_block", "_bodies", "_shapes"):
            env.__dict__.pop(name, None)


class PushTEnv(SimulatedGoalEnv):
    """PushT: a disc pushes a T-shaped block over a table of 512 x 512 px.

    ## Description
    The task of Diffusion Policy (Chi et al., 2023) with bodies as in gym-pusht, the goal being any pose of
    disc and T, as in DINO-WM. x points right, y down; angles turn from x towards y. The goal is not drawn.

    ## Action space
    `Box(-1, 1, (2,))`: target of the disc relative to where it is, in units of 100 px, kept inside the walls.
    A PD controller (gains 100 and 20) follows the target for 0.1 s in 10 substeps; a constant action moves
    the disc by about 40% of it per step.

    ## Observation space
    `pixels` uint8 (R, R, 3), and `proprio` float32 (4,): position (px) and velocity (px/s) of the disc.

    ## State
    float64 (7,): disc x, y; T x, y (middle of the bar's outer edge) and angle in radians; disc velocity x, y.
    `set_state` raises ValueError for a disc outside 0 to 512 px or faster than 1000 px/s. The physics is
    Markov in the state: the T starts every step at rest (in the original, too, it stops as soon as nothing
    pushes it) and no contact is remembered. Steps that push the T leave its angle in [0, 2 pi).

    ## Success
    The error of (disc x, y, T x, y) has a norm below 20 px, and the T's angle is within 20 degrees; strictly,
    below 10 px and within 10 degrees.

    ## Start and goal
    Random positions in which the T lies inside the walls and the disc does not touch it. Evaluations take
    the goal some steps ahead in a trajectory. 150 environment steps by default.

    ## Arguments
    `resolution` (112), `render_mode`.

        >>> from sparsewm import envs
        >>> env = envs.make("pusht")
        >>> observation, info = env.reset(seed=0)
        >>> observation["proprio"].shape
        (4,)

    ## Version history
    v0: first version.
    """

    name = "pusht"
    _geometry = ("block_outline", "agent_outline", "agent_scale")
    _scenery = Scenery(("table",), ("block", "agent"), ("block_outline", "agent_scale"))
    state_names = ("agent_x", "agent_y", "block_x", "block_y", "block_angle", "agent_vx", "agent_vy")
    proprio_names = ("agent_x", "agent_y", "agent_vx", "agent_vy")
    proprio_low = (0.0, 0.0, -MAX_SPEED, -MAX_SPEED)
    proprio_high = (SIZE, SIZE, MAX_SPEED, MAX_SPEED)

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array"):
        super().__init__(resolution, render_mode)
        space = pymunk.Space()
        self._agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self._block, tee = _tee()
        ground = pymunk.Body(body_type=pymunk.Body.STATIC)
        corners = [(5, 5), (506, 5), (506, 506), (5, 506)]
        walls = [
            pymunk.Segment(ground, a, b, 2) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)
        ]
        self._bodies = [ground, self._agent, self._block]
        self._shapes = [*walls, pymunk.Circle(self._agent, RADIUS), *tee]
        space.add(*self._bodies, *self._shapes)
        self._space = space
        _ALIVE.add(self)
        self._state = (256.0, 400.0, 256.0, 300.0, 0.0, 0.0, 0.0)
        self._table: np.ndarray | None = None  # table and walls, drawn once per look and resolution

    def _read_state(self) -> np.ndarray:
        return np.array(self._state)

    def _write_state(self, state: np.ndarray) -> None:
        self._state = tuple(state.tolist())

    def _check_state(self, state: np.ndarray) -> None:
        if not (min(state[:2]) >= 0 and max(state[:2]) <= SIZE and max(abs(state[5:])) <= MAX_SPEED):
            raise ValueError(
                f"a pusht state has the agent inside 0 to {SIZE:.0f} px and no faster than {MAX_SPEED:.0f} "
                f"px/s; got {state.tolist()}."
            )

    def _advance(self, action: np.ndarray) -> None:
        x, y, block_x, block_y, angle, vx, vy = self._state
        xs, vx_end = _follow(x, vx, float(action[0]))
        ys, vy_end = _follow(y, vy, float(action[1]))
        if _may_touch(xs, ys, block_x, block_y, angle):
            block_x, block_y, angle = self._push(xs, ys, block_x, block_y, angle)
        self._state = (xs[-1], ys[-1], block_x, block_y, angle, vx_end, vy_end)

    def _push(
        self, xs: list[float], ys: list[float], block_x: float, block_y: float, angle: float
    ) -> tuple[float, float, float]:
        """Pose of the T after the disc went along (xs, ys), each (substeps + 1,)."""
        agent, block = self._agent, self._block
        # Nothing of an earlier step may be remembered. A new space has no contacts, and numbers the shapes
        # afresh (the numbers decide the order in which contacts are solved); a step of it without shapes uses
        # up the correction velocity that the solver kept for the block.
        self._space.remove(*self._bodies, *self._shapes)
        self._space = space = pymunk.Space()
        space.damping = 0.0
        space.add(*self._bodies)
        space.step(_DT)
        agent.position = xs[0], ys[0]
        block.angle = angle  # before the position: it turns the T round its centre of gravity
        block.position = block_x, block_y
        block.velocity = 0.0, 0.0
        block.angular_velocity = 0.0
        # The space looks ahead of moving shapes, so the velocity, too, has to be set before they enter.
        agent.velocity = (xs[1] - xs[0]) / _DT, (ys[1] - ys[0]) / _DT
        space.add(*self._shapes)
        for i in range(_SUBSTEPS):
            agent.velocity = (xs[i + 1] - xs[i]) / _DT, (ys[i + 1] - ys[i]) / _DT
            space.step(_DT)
        position = block.position
        return position.x, position.y, block.angle % (2 * math.pi)

    def sample_state(self) -> np.ndarray:
        while True:
            agent = self.np_random.uniform(50, 450, 2)
            angle = self.np_random.uniform(0, 2 * np.pi)
            corners = rotated(OUTLINE, angle) + self.np_random.uniform(0, SIZE, 2)
            x, y = corners[:2].mean(0)  # middle of the bar's outer edge
            fits = corners.min() > _WALL_LOW + 3 and corners.max() < _WALL_HIGH - 3
            if fits and clearance(agent[0], agent[1], x, y, angle) > RADIUS + 2:
                return np.array([*agent, x, y, angle, 0.0, 0.0])

    def sample_goal(self) -> np.ndarray:
        return self.sample_state()

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        return np.array([state[0], state[1], state[5], state[6]], dtype=np.float32)

    def distance(self, state: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        """`position`: norm of the error of disc and T in px; `angle` in radians; `agent`, `block` in px."""
        agent = math.hypot(state[0] - goal[0], state[1] - goal[1])
        block = math.hypot(state[2] - goal[2], state[3] - goal[3])
        turn = abs((float(state[4] - goal[4]) + math.pi) % (2 * math.pi) - math.pi)
        return {"position": math.hypot(agent, block), "angle": turn, "agent": agent, "block": block}

    def shortfall(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        # The disc's error weighs little: one that waits at its goal beside a misplaced T must get away again.
        error = (states[:, :4] - goal[:4]) * np.array([0.25, 0.25, 1.0, 1.0])
        turn = np.abs((states[:, 4] - goal[4] + np.pi) % (2 * np.pi) - np.pi)
        return np.linalg.norm(error, axis=1) / 20.0 + turn / (np.pi / 9)

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        error = self.distance(state, goal)
        return error["position"] < 20.0 and error["angle"] < math.pi / 9

    def is_strict_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        error = self.distance(state, goal)
        return error["position"] < 10.0 and error["angle"] < math.pi / 18

    def _default_look(self) -> _Look:
        self._table = None
        return _DEFAULT_LOOK

    def _resized(self, name: str, factor: float) -> Any:
        if name == "block_outline":
            return factor * (self._look.block_outline - CENTRE) + CENTRE
        return super()._resized(name, factor)

    def _random_look(self, rng: np.random.Generator) -> _Look:
        self._table = None
        table = random_texture(rng)
        ground = mean_colour(table)
        outline = _BLOCKS[rng.integers(len(_BLOCKS))]
        size = rng.uniform(0.75, 1.25, 2) * (rng.choice([-1, 1]), 1)
        return _Look(
            table=table,
            wall=random_colour(rng) if rng.random() < 0.5 else None,
            block=random_colour(rng, away_from=ground),
            agent=random_colour(rng, away_from=ground),
            block_outline=(outline - CENTRE) * size + CENTRE,
            agent_outline=random_outline(rng),
            agent_scale=float(rng.uniform(0.8, 1.5)),
        )

    def _draw(self, state: np.ndarray, resolution: int) -> np.ndarray:
        if self._table is None or len(self._table) != resolution:
            self._table = self._draw_table(resolution)
        picture, look, scale = self._table.copy(), self._look, resolution / SIZE
        draw_polygon(picture, (rotated(look.block_outline, state[4]) + state[2:4]) * scale, look.block)
        radius = RADIUS * look.agent_scale * scale
        draw_agent(picture, state[:2] * scale, radius, look.agent, look.agent_outline)
        return picture

    def _draw_table(self, resolution: int) -> np.ndarray:
        table, wall = fit(self._look.table, resolution), self._look.wall
        if wall is not None:
            for low, high in ((3, 7), (504, 508)):
                strip = np.array([(3, low), (508, low), (508, high), (3, high)]) * resolution / SIZE
                draw_polygon(table, strip, wall)
                draw_polygon(table, strip[:, ::-1], wall)
        return table


def _tee() -> tuple[pymunk.Body, list[pymunk.Shape]]:
    """The T and its bar and stem, which both count with the bar's mass and moment of inertia."""
    bar = [(-60, 30), (60, 30), (60, 0), (-60, 0)]
    stem = [(-15, 30), (-15, 120), (15, 120), (15, 30)]
    body = pymunk.Body(1, 2 * pymunk.moment_for_poly(1, bar))
    body.center_of_gravity = CENTRE
    return body, [pymunk.Poly(body, bar), pymunk.Poly(body, stem)]


def _follow(start: float, velocity: float, action: float) -> tuple[list[float], float]:
    """One axis of the disc under PD control: positions (substeps + 1,) and the final velocity.

    The disc is kinematic (nothing stops it), so its path does not depend on the T. It never goes further out
    than the walls, or than where it started if that was outside.
    """
    low, high = min(LOW, start), max(HIGH, start)
    target = min(max(start + REACH * action, LOW), HIGH)
    path = [start]
    position = start
    for _ in range(_SUBSTEPS):
        velocity += (_KP * (target - position) - _KV * velocity) * _DT
        position += velocity * _DT
        if not low <= position <= high:
            position, velocity = min(max(position, low), high), 0.0
        path.append(position)
    return path, velocity


def _may_touch(xs: list[float], ys: list[float], block_x: float, block_y: float, angle: float) -> bool:
    """Whether a disc going along (xs, ys) may touch the T, or the T touches a wall: else the T stays put."""
    cos, sin = math.cos(angle), math.sin(angle)
    centre_x, centre_y = block_x - sin * CENTRE[1], block_y + cos * CENTRE[1]
    low, high = _WALL_LOW + 1, _WALL_HIGH - 1
    if min(centre_x, centre_y) - _BOUND < low or max(centre_x, centre_y) + _BOUND > high:
        corners = [(block_x + cos * x - sin * y, block_y + sin * x + cos * y) for x, y in OUTLINE.tolist()]
        if min(map(min, corners)) < low or max(map(max, corners)) > high:
            return True
    reach = RADIUS + 5.0  # the disc is never further than 5 px from a point of its path, at any speed
    return any(
        math.hypot(x - centre_x, y - centre_y) < _BOUND + reach
        and clearance(x, y, block_x, block_y, angle) < reach
        for x, y in zip(xs, ys, strict=True)
    )
