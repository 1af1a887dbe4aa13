"""Block Push: bring two blocks to their targets with a point effector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

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
from sparsewm.envs.physics import border, mujoco
from sparsewm.envs.simulated import SimulatedGoalEnv
from sparsewm.envs.table import DT, to_pixels

HALF = 0.3  # of the workspace's side, m
REACH = 0.28  # the effector's centre stays within this on both axes, m
BLOCK = 0.035  # half a block's side, m
RADIUS = 0.015  # of the effector, m
STEP = 0.03  # m of displacement at a full action
TARGETS = np.array([(-0.13, 0.14), (0.13, 0.14)])  # middles of the two targets, m
SUCCESS = 0.05  # m

_EXTENT = 0.64  # side of the square that a picture shows, m
_TARGET = 0.05  # half a target's side, m
_SUBSTEPS = 20
_SQUARE = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)

# What blocks may look like when the appearance is random, in units of half a side.
_SHAPES = (
    _SQUARE,
    np.array([(0, 1.3), (-1.2, -0.8), (1.2, -0.8)]),  # triangle
    np.array([(-1.3, -0.6), (1.3, -0.6), (1.3, 0.6), (-1.3, 0.6)]),  # bar
    1.15 * np.array([(math.cos(a), math.sin(a)) for a in np.arange(6) * math.pi / 3]),  # hexagon
    np.array([(-1, -1), (1, -1), (1, 0), (0, 0), (0, 1), (-1, 1)]),  # L
)


@dataclass(frozen=True)
class _Look:
    table: np.ndarray  # texture
    first: Colour  # block
    second: Colour
    targets: tuple[Colour, Colour]
    effector: Colour
    shapes: tuple[np.ndarray, np.ndarray] = (_SQUARE, _SQUARE)
    outline: np.ndarray | None = None  # of the effector; None: a disc
    scale: float = 1.0  # of the effector


_DEFAULT_LOOK = _Look(
    plain((228, 228, 224)), (200, 70, 60), (60, 100, 190), ((240, 196, 190), (190, 206, 240)), (40, 40, 40)
)


class BlockPushEnv(SimulatedGoalEnv):
    """Block Push: a point effector pushes two blocks over a table of 0.6 x 0.6 m.

    ## Description
    After the task of IBC (Florence et al., 2021) and BeT (Shafiullah et al., 2022), on planar MuJoCo: a red
    and a blue block of 7 cm and two targets. Friction with the table is a drag so strong that blocks stop as
    soon as nothing pushes them; effector, blocks and each other touch with friction 0.3. The camera looks
    straight down, x points right, y up, the middle is the origin. The targets are drawn on the table; the
    goal is an image in which the blocks lie on them.

    ## Action space
    `Box(-1, 1, (2,))`: displacement (x, y) of the effector, of radius 1.5 cm, in 0.1 s, in units of 3 cm,
    kept within 0.28 m of the middle. The effector stalls at 20 N.

    ## Observation space
    `pixels` uint8 (R, R, 3), and `proprio` float32 (2,): x and y of the effector, m.

    ## State
    float64 (8,): effector x, y; x, y (m) and angle (rad, [0, 2 pi) after a step that turned it) of the red
    block and of the blue one. Everything starts each step at rest and without remembered contacts, so the
    physics is Markov in the state. `set_state` raises ValueError for positions off the table.

    ## Success
    Both blocks are within 0.05 m of the goal's, at any angle.

    ## Start and goal
    Blocks at random places in the lower half of the table; in the goal the red block lies on the left target
    and the blue one on the right, at random angles, and the effector is anywhere. 150 environment steps by
    default.

    ## Arguments
    `resolution` (112), `render_mode`.

        >>> from sparsewm import envs
        >>> env = envs.make("blockpush")
        >>> observation, info = env.reset(seed=0)
        >>> sorted(env.distance(env.state, env.goal))
        ['blue', 'red']

    ## Version history
    v0: first version.
    """

    name = "blockpush"
    angle_symmetry = 4
    _geometry = ("shapes", "outline", "scale")
    _scenery = Scenery(("table",), ("first", "second", "effector"), ("shapes", "scale"))
    state_names = ("x", "y", "red_x", "red_y", "red_angle", "blue_x", "blue_y", "blue_angle")
    proprio_names = ("x", "y")
    proprio_low = (-HALF, -HALF)
    proprio_high = (HALF, HALF)

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array"):
        super().__init__(resolution, render_mode)
        self._model = mujoco.MjModel.from_xml_string(_xml())
        self._data = mujoco.MjData(self._model)
        self._state = np.array([0.0, -0.25, -0.13, -0.05, 0.0, 0.13, -0.05, 0.0])
        self._table: np.ndarray | None = None  # table and targets, drawn once per look and resolution

    def _read_state(self) -> np.ndarray:
        return self._state

    def _write_state(self, state: np.ndarray) -> None:
        self._state = state.copy()

    def _advance(self, action: np.ndarray) -> None:
        model, data, state = self._model, self._data, self._state
        start = state[:2]
        end = np.clip(start + STEP * action, -REACH, REACH)
        if not _may_touch(start, end, state):
            self._state = np.concatenate([end, state[2:]])
            return
        mujoco.mj_resetData(model, data)
        data.qpos[:] = state
        for step in range(_SUBSTEPS):
            data.ctrl[:] = start + (end - start) * min(1.0, (step + 1) / (_SUBSTEPS - 6))
            mujoco.mj_step(model, data)
        after = data.qpos.copy()
        after[[4, 7]] %= 2 * np.pi
        self._state = after

    def _check_state(self, state: np.ndarray) -> None:
        places = state[[0, 1, 2, 3, 5, 6]]
        if np.abs(places).max() > HALF:
            raise ValueError(
                f"all of a blockpush state is on the table, -{HALF} to {HALF} m; got "
                f"{places.round(3).tolist()}."
            )

    def sample_state(self) -> np.ndarray:
        """Blocks at random places of the lower half, the effector clear of them, float64 (8,)."""
        rng = self.np_random
        while True:
            red, blue = rng.uniform((-0.2, -0.2), (0.2, 0.02), (2, 2))
            effector = rng.uniform(-REACH, REACH, 2)
            clear = min(np.hypot(*(effector - red)), np.hypot(*(effector - blue))) > 1.5 * BLOCK + RADIUS
            if clear and np.hypot(*(red - blue)) > 3 * BLOCK:
                angles = rng.uniform(0, 2 * np.pi, 2)
                return np.array([*effector, *red, angles[0], *blue, angles[1]])

    def sample_goal(self) -> np.ndarray:
        """The red block on the left target, the blue one on the right, float64 (8,)."""
        rng = self.np_random
        while True:
            effector = rng.uniform(-REACH, REACH, 2)
            if np.hypot(*(effector - TARGETS).T).min() > 1.5 * BLOCK + RADIUS:
                angles = rng.uniform(0, 2 * np.pi, 2)
                return np.array([*effector, *TARGETS[0], angles[0], *TARGETS[1], angles[1]])

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        return np.asarray(state[:2], dtype=np.float32).copy()

    def distance(self, state: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        """`red`, `blue`: distance of a block from where the goal has it, m."""
        red, blue = (float(np.hypot(state[i] - goal[i], state[i + 1] - goal[i + 1])) for i in (2, 5))
        return {"red": red, "blue": blue}

    def shortfall(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Both blocks' distances, and 0.3 of the effector's to the block further off, until that is there."""
        away = np.stack([np.hypot(*(states[:, i : i + 2] - goal[i : i + 2]).T) for i in (2, 5)], 1) / SUCCESS
        reach = np.stack([np.hypot(*(states[:, :2] - states[:, i : i + 2]).T) for i in (2, 5)], 1) / SUCCESS
        worse = np.arange(len(states)), away.argmax(1)
        return away.sum(1) + 0.3 * reach[worse] * np.minimum(away[worse], 1.0)

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        return max(self.distance(state, goal).values()) < SUCCESS

    def _default_look(self) -> _Look:
        self._table = None
        return _DEFAULT_LOOK

    def _random_look(self, rng: np.random.Generator) -> _Look:
        self._table = None
        table = random_texture(rng)
        ground = mean_colour(table)
        first = random_colour(rng, away_from=ground)
        second = random_colour(rng, away_from=ground)
        while np.abs(np.subtract(first, second)).sum() < 150:  # two blocks one can tell apart
            second = random_colour(rng, away_from=ground)
        shapes = tuple(_SHAPES[rng.integers(len(_SHAPES))] * rng.uniform(0.8, 1.2) for _ in range(2))
        return _Look(
            table=table,
            first=first,
            second=second,
            targets=(random_colour(rng), random_colour(rng)),
            effector=random_colour(rng, away_from=ground),
            shapes=(shapes[0], shapes[1]),
            outline=random_outline(rng),
            scale=float(rng.uniform(0.8, 1.5)),
        )

    def _draw(self, state: np.ndarray, resolution: int) -> np.ndarray:
        look, scale = self._look, resolution / _EXTENT
        if self._table is None or len(self._table) != resolution:
            self._table = fit(look.table, resolution).copy()
            for middle, colour in zip(TARGETS, look.targets, strict=True):
                draw_polygon(self._table, to_pixels(middle + _TARGET * _SQUARE, resolution, _EXTENT), colour)
        picture = self._table.copy()
        for i, shape, colour in ((2, look.shapes[0], look.first), (5, look.shapes[1], look.second)):
            cos, sin = math.cos(state[i + 2]), math.sin(state[i + 2])
            corners = BLOCK * shape @ np.array([[cos, sin], [-sin, cos]]) + state[i : i + 2]
            draw_polygon(picture, to_pixels(corners, resolution, _EXTENT), colour)
        centre = to_pixels(state[:2], resolution, _EXTENT)
        draw_agent(picture, centre, RADIUS * look.scale * scale, look.effector, look.outline)
        return picture


def _may_touch(start: np.ndarray, end: np.ndarray, state: np.ndarray) -> bool:
    """Whether the effector comes near a block, or blocks touch each other or the border: else they stay."""
    red, blue = state[2:4], state[5:7]
    reach = math.sqrt(2) * BLOCK + 0.002
    if np.hypot(*(red - blue)) < 2 * reach or max(np.abs(red).max(), np.abs(blue).max()) > HALF - reach:
        return True
    way = end - start
    length = max(float(way @ way), 1e-12)
    for block in (red, blue):
        nearest = start + np.clip((block - start) @ way / length, 0, 1) * way
        if np.hypot(*(block - nearest)) < reach + RADIUS:
            return True
    return False


def _xml() -> str:
    slides = (
        '<joint type="slide" axis="1 0 0" damping="2.5"/><joint type="slide" axis="0 1 0" damping="2.5"/>'
    )
    turn = '<joint type="hinge" axis="0 0 1" damping="0.002"/>'
    box = f'<geom type="box" size="{BLOCK} {BLOCK} {BLOCK}" mass="0.05" conaffinity="3"/>'
    return f"""
    <mujoco>
      <compiler autolimits="true" angle="radian"/>
      <option timestep="{DT}" gravity="0 0 0" integrator="implicitfast" iterations="20"/>
      <default><geom condim="3" friction="0.3" solref="0.01 1"/></default>
      <worldbody>
        {border(HALF)}
        <body>
          <joint name="x" type="slide" axis="1 0 0"/>
          <joint name="y" type="slide" axis="0 1 0"/>
          <geom type="capsule" fromto="0 0 -0.03 0 0 0.03" size="{RADIUS}" mass="0.05" contype="2"
            conaffinity="0"/>
        </body>
        <body>{slides}{turn}{box}</body>
        <body>{slides}{turn}{box}</body>
      </worldbody>
      <actuator>
        <position joint="x" kp="400" dampratio="1" forcerange="-20 20"/>
        <position joint="y" kp="400" dampratio="1" forcerange="-20 20"/>
      </actuator>
    </mujoco>"""
