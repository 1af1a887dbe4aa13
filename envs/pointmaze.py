"""PointMaze: a force-driven ball in a maze."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from sparsewm.envs.appearance import (
    Colour,
    draw_agent,
    fit,
    mean_colour,
    plain,
    random_colour,
    random_outline,
    random_texture,
)
from sparsewm.envs.looks import Scenery
from sparsewm.envs.paths import ShortestPaths
from sparsewm.envs.physics import NO_GL, load, mujoco
from sparsewm.envs.simulated import SimulatedGoalEnv

RADIUS = 0.1  # of the ball
MAX_SPEED = 5.0  # per axis, at the start of a step
SUCCESS = 0.5  # distance that counts as reached
SPEED_LIMIT = 10.0  # per axis, of a state one may set; force and rebounds go beyond MAX_SPEED, seen up to 6.8

_DRAWN_RADIUS = 0.2  # of the ball: the original shows a marker of this size, twice the ball that collides
_LEAST_PIXELS = 4.5 / 112  # the drawn radius is at least this fraction of the picture
_MARGIN = 0.15  # of wall around the inner area in the picture
_SLACK = 0.08  # contacts are soft: how far a ball may sink into a wall; seen up to 0.067


@dataclass(frozen=True)
class _Look:
    floor: np.ndarray  # texture
    wall: np.ndarray  # texture
    ball: Colour
    outline: np.ndarray | None = None  # None: a disc
    scale: float = 1.0  # of the ball


# The colours of gymnasium-robotics' scene, the marker of the ball brightened.
_DEFAULT_LOOK = _Look(floor=plain((38, 64, 89)), wall=plain((178, 128, 77)), ball=(120, 235, 110))


class PointMazeEnv(SimulatedGoalEnv):
    """PointMaze: a ball is pushed by a force through a maze; it has inertia.

    ## Description
    The physics of gymnasium-robotics' PointMaze (the maintained D4RL maze2d): its MuJoCo model of the ball,
    its maps and walls, one MuJoCo step of 0.01 s per environment step. Cells are 1 x 1, the maze's middle is
    at the origin, x points right, y up. At full force the ball has its top speed of 5 after 21 steps; from
    rest, 25 steps reach 0.75 cells and 100 steps 4.7; the U maze is 6 cells long. The goal is not drawn.

    ## Action space
    `Box(-1, 1, (2,))`: force (x, y); 1 accelerates by 24 cells/s^2.

    ## Observation space
    `pixels` uint8 (R, R, 3), and `proprio` float32 (4,): the state.

    ## State
    float64 (4,): x, y, velocity x, y. `set_state` raises ValueError for positions in a wall or outside the
    maze and for velocities beyond 10 per axis. A step first clips the velocity to 5 per axis, as in the
    original. The physics is Markov in the state: the contact solver starts afresh in each step, where the
    original continues from its last solution (200 steps agree to 1e-9).

    ## Success
    The ball is nearer than 0.5 to the goal's position, at any velocity.

    ## Start and goal
    Uniform over the free floor and at rest, the goal at least 1 away from the start. 130 environment steps by
    default. In one of five episodes in the U maze the goal lies across a wall such that every way there first
    leads away from it: a planner whose cost is the straight distance stays at the wall. `distance` gives the
    length of the shortest path too, and `shortfall`, what the oracle minimises, is that.

    ## Pictures
    The inner area of the maze from straight above, with a margin of 0.15 of the outer walls. MuJoCo draws the
    walls, once per resolution in a process, in a GL context that is closed again; the ball is drawn on top:
    anti-aliased, its radius 0.2 as the original's marker, or 4% of the picture's side where that is more.
    Raises RuntimeError where MuJoCo finds no OpenGL; all but drawing works without.

    ## Arguments
    `resolution` (112), `render_mode`, `maze` ("umaze", "medium" or "large").

        >>> from sparsewm import envs
        >>> env = envs.make("pointmaze", maze="medium")
        >>> observation, info = env.reset(seed=0)
        >>> observation["proprio"].shape
        (4,)

    ## Version history
    v0: first version.
    """

    name = "pointmaze"
    _geometry = ("outline", "scale")
    _scenery = Scenery(("floor",), ("ball",), ("scale",))
    state_names = ("x", "y", "vx", "vy")
    proprio_names = ("x", "y", "vx", "vy")
    proprio_low = (-6.0, -6.0, -SPEED_LIMIT, -SPEED_LIMIT)  # the large maze reaches from -5 to 5
    proprio_high = (6.0, 6.0, SPEED_LIMIT, SPEED_LIMIT)

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array", maze: str = "umaze"):
        super().__init__(resolution, render_mode)
        self.maze = maze
        self._maze = _load_maze(maze)
        self._model = _build_model(maze)
        self._data = mujoco.MjData(self._model)
        self._data.qpos[:] = self._maze.cells[0]
        self._scene: np.ndarray | None = None  # floor and walls, drawn once per look and resolution

    def _read_state(self) -> np.ndarray:
        return np.concatenate([self._data.qpos, self._data.qvel])

    def _write_state(self, state: np.ndarray) -> None:
        self._data.qpos[:], self._data.qvel[:] = state[:2], state[2:]

    def _advance(self, action: np.ndarray) -> None:
        data = self._data
        data.qvel[:] = np.clip(data.qvel, -MAX_SPEED, MAX_SPEED)
        data.qacc_warmstart[:] = 0.0
        data.ctrl[:] = action
        mujoco.mj_step(self._model, data)

    def rollout_states(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        state, actions = self._valid_state(state), self._valid_actions(actions, 3)
        states = np.empty((actions.shape[0], actions.shape[1] + 1, 4))
        states[:, 0] = state
        before = self._read_state()
        model, data, step = self._model, self._data, mujoco.mj_step
        position, velocity, warm_start, force = data.qpos, data.qvel, data.qacc_warmstart, data.ctrl
        for trajectory, sequence in zip(states, actions, strict=True):
            position[:], velocity[:] = state[:2], state[2:]
            for t, action in enumerate(sequence, start=1):
                vx, vy = velocity.tolist()
                if not (-MAX_SPEED <= vx <= MAX_SPEED and -MAX_SPEED <= vy <= MAX_SPEED):
                    velocity[:] = np.clip(velocity, -MAX_SPEED, MAX_SPEED)
                warm_start[:] = 0.0
                force[:] = action
                step(model, data)
                row = trajectory[t]
                row[:2] = position
                row[2:] = velocity
        self._write_state(before)
        return states

    def _check_state(self, state: np.ndarray) -> None:
        if not self._maze.is_free(state[:2], RADIUS - _SLACK):
            raise ValueError(
                f"a pointmaze state must be on the floor of the {self.maze} maze; got {state.tolist()}."
            )
        if np.abs(state[2:]).max() > SPEED_LIMIT:
            raise ValueError(
                f"a pointmaze state has velocities up to {SPEED_LIMIT:g} per axis; got {state.tolist()}."
            )

    def sample_state(self) -> np.ndarray:
        """A position, uniform over the free floor, at rest; float64 (4,)."""
        while True:
            cell = self._maze.cells[self.np_random.integers(len(self._maze.cells))]
            position = cell + self.np_random.uniform(-0.5, 0.5, 2)
            if self._maze.is_free(position, RADIUS):
                return np.concatenate([position, np.zeros(2)])

    def sample_goal(self) -> np.ndarray:
        """A random position at rest, float64 (4,), at least 1 away from the ball."""
        here = self._read_state()
        while True:
            goal = self.sample_state()
            if np.hypot(*(goal - here)[:2]) >= 1.0:
                return goal

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        return np.asarray(state, dtype=np.float32).copy()

    def distance(self, state: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        """`position`: as the crow flies; `path`: the shortest way through the maze."""
        path = self._maze.paths.lengths(np.asarray(state)[None, :2], np.asarray(goal)[:2])
        return {"position": float(np.hypot(state[0] - goal[0], state[1] - goal[1])), "path": float(path[0])}

    def shortfall(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return self._maze.paths.lengths(states[:, :2], goal[:2]) / SUCCESS

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        return bool(np.hypot(state[0] - goal[0], state[1] - goal[1]) < SUCCESS)

    def _default_look(self) -> _Look:
        self._scene = None
        return _DEFAULT_LOOK

    def _random_look(self, rng: np.random.Generator) -> _Look:
        self._scene = None
        floor, wall = random_texture(rng), random_texture(rng)
        ball = random_colour(rng, away_from=mean_colour(floor))
        return _Look(floor, wall, ball, random_outline(rng), float(rng.uniform(0.7, 1.5)))

    def _draw(self, state: np.ndarray, resolution: int) -> np.ndarray:
        look, extent = self._look, self._maze.extent
        if self._scene is None or len(self._scene) != resolution:
            floor, wall = fit(look.floor, resolution), fit(look.wall, resolution).astype(np.float64)
            cover = _wall_cover(self.maze, resolution)[..., None]
            self._scene = np.rint(floor + cover * (wall - floor)).astype(np.uint8)
        picture = self._scene.copy()
        centre = (state[:2] * (1, -1) / extent + 0.5) * resolution
        radius = max(_DRAWN_RADIUS / extent, _LEAST_PIXELS) * look.scale * resolution
        draw_agent(picture, centre, radius, look.ball, look.outline)
        return picture


class PointMazeLargeEnv(PointMazeEnv):
    """PointMaze in the large maze: 12 x 9 cells, ways of up to 20, 600 environment steps.

    All else is as in `PointMazeEnv`.

        >>> from sparsewm import envs
        >>> envs.make("pointmaze-large").maze
        'large'

    ## Version history
    v0: first version.
    """

    name = "pointmaze-large"

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array", maze: str = "large"):
        super().__init__(resolution, render_mode, maze)


class _Maze:
    """Geometry of a map: 1 for a wall, 0 for floor, row 0 on top (as in `gymnasium_robotics.envs.maze.maps`).

    Attributes:
        cells: middles of the free cells (C, 2).
        boxes: walls as (x low, y low, x high, y high), (W, 4); neighbours in a row are one box.
        extent: side of the square that a picture shows.
        size: width and height of the map.
        paths: shortest ways of the ball's centre.
    """

    def __init__(self, rows: list[list[int]]):
        grid = np.array(rows)
        height, width = grid.shape
        self.size = (width, height)
        self.extent = max(width, height) - 2 + 2 * _MARGIN
        row, column = np.nonzero(grid == 0)
        self.cells = np.stack([column + 0.5 - width / 2, height / 2 - row - 0.5], 1)
        boxes = []
        for i in range(height):
            edges = np.flatnonzero(np.diff(grid[i] == 1, prepend=False, append=False))
            boxes += [
                (a - width / 2, height / 2 - i - 1, b - width / 2, height / 2 - i)
                for a, b in edges.reshape(-1, 2)
            ]
        self.boxes = np.array(boxes)
        # A shortest path bends only at the corners that walls push out into the floor.
        corners = []
        for i in range(1, height):
            for j in range(1, width):
                walls = np.argwhere(grid[i - 1 : i + 1, j - 1 : j + 1] == 1)
                if len(walls) == 1:
                    down, right = 0.5 - walls[0]  # away from the wall
                    corners.append((j - width / 2 + 2 * RADIUS * right, height / 2 - i - 2 * RADIUS * down))
        self.paths = ShortestPaths(self.boxes, np.array(corners).reshape(-1, 2))

    def is_free(self, position: np.ndarray, clearance: float) -> bool:
        """Whether a point (2,) is in the maze and at least `clearance` away from every wall."""
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        away = np.maximum(np.maximum(low - position, position - high), 0.0)
        inside = bool((np.abs(position) < np.array(self.size) / 2).all())
        return inside and bool((np.hypot(away[:, 0], away[:, 1]) >= clearance).all())


def _maps() -> tuple[dict[str, list[list[int]]], Path]:
    """The maps by name, and the folder of gymnasium-robotics' models."""
    load()  # before gymnasium-robotics imports it
    with redirect_stderr(io.StringIO()):  # on import it prints news about its other environments
        import gymnasium_robotics
        from gymnasium_robotics.envs.maze.maps import LARGE_MAZE, MEDIUM_MAZE, U_MAZE
    folder = Path(gymnasium_robotics.__file__).parent / "envs" / "assets"
    return {"umaze": U_MAZE, "medium": MEDIUM_MAZE, "large": LARGE_MAZE}, folder


@cache
def _load_maze(maze: str) -> _Maze:
    maps, _ = _maps()
    if maze not in maps:
        raise ValueError(f"maze must be one of {', '.join(maps)}; got {maze!r}.")
    return _Maze(maps[maze])


def _build_model(maze: str) -> mujoco.MjModel:
    """gymnasium-robotics' ball with the walls its maze builder adds.

    Its own builder goes through a file in the temporary folder named by the time, which parallel workers can
    take from each other; here the text goes to MuJoCo directly.
    """
    maps, folder = _maps()
    root = ET.parse(folder / "point" / "point.xml").getroot()
    world = root.find("worldbody")
    assert world is not None
    rows = maps[maze]
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell == 1:
                x, y = j + 0.5 - len(row) / 2, len(rows) / 2 - i - 0.5
                ET.SubElement(
                    world, "geom", name=f"block_{i}_{j}", type="box", pos=f"{x} {y} 0.2", size="0.5 0.5 0.2"
                )
    return mujoco.MjModel.from_xml_string(ET.tostring(root, encoding="unicode"))


@lru_cache(maxsize=16)
def _wall_cover(maze: str, resolution: int) -> np.ndarray:
    """How much (0 to 1) of each pixel is wall, float64 (R, R), drawn by MuJoCo from straight above."""
    geometry, model = _load_maze(maze), _build_model(maze)
    finer = max(1, min(4, 4096 // resolution))  # edges to a quarter of a pixel
    side = finer * resolution
    for g in range(model.ngeom):
        model.geom_matid[g] = -1
        model.geom_rgba[g] = float(model.geom_type[g] == mujoco.mjtGeom.mjGEOM_BOX)  # white, or not there
    model.site_rgba[:] = 0.0
    headlight, view, quality = model.vis.headlight, model.vis.global_, model.vis.quality
    headlight.ambient[:], headlight.diffuse[:], headlight.specular[:] = 1.0, 0.0, 0.0
    view.offwidth = view.offheight = side
    view.fovy = geometry.extent  # of an orthographic camera: the height of what it sees
    quality.offsamples = quality.shadowsize = 0
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = mujoco.MjvCamera()
    camera.orthographic = 1
    camera.lookat[:], camera.distance, camera.azimuth, camera.elevation = 0.0, 10.0, 90.0, -90.0
    try:
        renderer = mujoco.Renderer(model, side, side)
    except Exception as error:  # each GL backend fails in its own way
        raise RuntimeError(NO_GL) from error
    try:
        renderer.scene.flags[:] = 0  # no shadows, reflections, sky, haze
        renderer.update_scene(data, camera)
        picture = renderer.render()
    finally:
        renderer.close()
    cover = picture[..., 0].reshape(resolution, finer, resolution, finer).mean((1, 3)) / 255
    # Where the map is not square the picture goes beyond it: wall as well.
    away = np.abs((np.arange(resolution) + 0.5) / resolution - 0.5) * geometry.extent
    pixel = geometry.extent / resolution
    cover[away > geometry.size[1] / 2 - pixel] = 1.0
    cover[:, away > geometry.size[0] / 2 - pixel] = 1.0
    cover.setflags(write=False)
    return cover
