"""Wall: a dot that must find the door to the other room."""

from __future__ import annotations

from dataclasses import dataclass

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
from sparsewm.envs.simulated import SimulatedGoalEnv

SIZE = 64.0
RADIUS = 2.5  # of the dot
HALF_WALL = 2.0  # half the thickness of the wall
HALF_DOOR = 4.0  # how far from the door's middle the dot's centre may pass
STEP = 2.0  # displacement of a full action
BORDER = 1.0  # width of the drawn border; the dot stops where it touches it

_LOW, _HIGH = BORDER + RADIUS, SIZE - BORDER - RADIUS
_REACH = HALF_WALL + RADIUS  # centre of a dot that touches the wall is this far from the wall's middle
_TOUCH = 0.02  # how much smaller the wall is for paths, more than `ShortestPaths` adds


@dataclass(frozen=True)
class _Look:
    floor: np.ndarray  # texture
    wall: np.ndarray  # texture
    dot: Colour
    outline: np.ndarray | None = None  # None: a disc
    scale: float = 1.0  # of the dot


_DEFAULT_LOOK = _Look(floor=plain((245, 245, 245)), wall=plain((60, 60, 60)), dot=(220, 40, 40))


class WallEnv(SimulatedGoalEnv):
    """Wall: a dot in two rooms of a 64 x 64 world, joined by a door.

    ## Description
    After the environment of DINO-WM (Zhou et al., 2024). A wall at `wall_x`, 4 units thick, divides the
    world; its door is at `door_y`. The other room can only be reached through it. x points right, y down.

    ## Action space
    `Box(-1, 1, (2,))`: displacement (x, y) in units of 2. The dot, of radius 2.5, stops at wall and border:
    the part of the displacement that is blocked is lost, the rest is kept (x moves first, then y).

    ## Observation space
    `pixels` uint8 (R, R, 3), and `proprio` float32 (2,): x and y of the dot, in world units.

    ## State
    float64 (2,): x and y of the dot. `set_state` raises ValueError for positions in the wall or the border.

    ## Success
    The dot's centre is nearer than 4.5 units to the goal's.

    ## Start and goal
    Uniform over the free floor. The goal is in the room the dot is not in. 100 environment steps by default.
    `shortfall`, what the oracle minimises, is the length of the shortest way, through the door.

    ## Arguments
    `resolution` (112), `render_mode`, `wall_x` (32.0; 16 to 48) and `door_y` (30.0; 9 to 55).

        >>> from sparsewm import envs
        >>> env = envs.make("wall", door_y=20.0)
        >>> observation, info = env.reset(seed=0)
        >>> observation["pixels"].shape
        (112, 112, 3)

    ## Version history
    v0: first version.
    """

    name = "wall"
    _geometry = ("outline", "scale")
    _scenery = Scenery(("floor",), ("dot",), ("scale",))
    state_names = ("x", "y")
    proprio_names = ("x", "y")
    proprio_low = (0.0, 0.0)
    proprio_high = (SIZE, SIZE)

    def __init__(
        self,
        resolution: int = 112,
        render_mode: str = "rgb_array",
        wall_x: float = 32.0,
        door_y: float = 30.0,
    ):
        if not 16.0 <= wall_x <= 48.0:
            raise ValueError(f"wall_x must be from 16 to 48, so that both rooms have floor; got {wall_x}.")
        if not 9.0 <= door_y <= 55.0:
            raise ValueError(f"door_y must be from 9 to 55, so that the door is in the world; got {door_y}.")
        super().__init__(resolution, render_mode)
        self.wall_x, self.door_y = float(wall_x), float(door_y)
        self._position = np.array([self.wall_x / 2, SIZE / 2])
        self._scene: np.ndarray | None = None  # floor and wall, drawn once per look and resolution
        # Where the wall keeps the dot's centre out, a little smaller: a dot may touch it.
        left, right = self.wall_x - _REACH + _TOUCH, self.wall_x + _REACH - _TOUCH
        above, below = self.door_y - HALF_DOOR - _TOUCH, self.door_y + HALF_DOOR + _TOUCH
        boxes = [(left, -SIZE, right, above), (left, below, right, 2 * SIZE)]
        ends = (self.door_y - HALF_DOOR, self.door_y + HALF_DOOR)
        corners = [(x, y) for x in (self.wall_x - _REACH, self.wall_x + _REACH) for y in ends]
        self._paths = ShortestPaths(np.array(boxes), np.array(corners))

    def _read_state(self) -> np.ndarray:
        return self._position

    def _write_state(self, state: np.ndarray) -> None:
        self._position = state.copy()

    def _advance(self, action: np.ndarray) -> None:
        self._position = self._move(self._position, action)

    def _move(self, position: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Positions (..., 2) after one step with actions (..., 2)."""
        x, y = position[..., 0], position[..., 1]
        new_x, new_y = x + STEP * action[..., 0], y + STEP * action[..., 1]
        new_x = np.minimum(np.maximum(new_x, _LOW), _HIGH)
        left, right = self.wall_x - _REACH, self.wall_x + _REACH
        beside_door = np.abs(y - self.door_y) > HALF_DOOR
        stopped = np.where(x < self.wall_x, np.minimum(new_x, left), np.maximum(new_x, right))
        new_x = np.where(beside_door, stopped, new_x)
        in_door = np.abs(new_x - self.wall_x) < _REACH
        top = np.where(in_door, self.door_y - HALF_DOOR, _LOW)
        bottom = np.where(in_door, self.door_y + HALF_DOOR, _HIGH)
        return np.stack([new_x, np.minimum(np.maximum(new_y, top), bottom)], -1)

    def rollout_states(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        state, actions = self._valid_state(state), self._valid_actions(actions, 3)
        states = np.empty((actions.shape[0], actions.shape[1] + 1, 2))
        states[:, 0] = state
        for t in range(actions.shape[1]):
            states[:, t + 1] = self._move(states[:, t], actions[:, t])
        return states

    def _is_free(self, position: np.ndarray, slack: float = 0.0) -> bool:
        x, y = position
        inside = _LOW - slack <= min(x, y) and max(x, y) <= _HIGH + slack
        clear = abs(x - self.wall_x) >= _REACH - slack or abs(y - self.door_y) <= HALF_DOOR + slack
        return bool(inside and clear)

    def _check_state(self, state: np.ndarray) -> None:
        if not self._is_free(state, slack=1e-3):  # room for a float32 round trip
            raise ValueError(
                f"a wall state must be on the free floor, {_LOW} to {_HIGH} in x and y and clear of the wall "
                f"at x = {self.wall_x}; got {state.tolist()}."
            )

    def sample_state(self) -> np.ndarray:
        while True:
            position = self.np_random.uniform(_LOW, _HIGH, 2)
            if self._is_free(position):
                return position

    def sample_goal(self) -> np.ndarray:
        """A random position float64 (2,) in the room the dot is not in."""
        start_is_left = self._position[0] < self.wall_x
        while True:
            goal = self.sample_state()
            in_room = abs(goal[0] - self.wall_x) >= _REACH
            if in_room and (goal[0] < self.wall_x) != start_is_left:
                return goal

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        return np.asarray(state, dtype=np.float32).copy()

    def distance(self, state: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        """`position`: as the crow flies; `path`: the shortest way, through the door where it has to be."""
        path = self._paths.lengths(np.asarray(state)[None], np.asarray(goal))
        return {"position": float(np.hypot(state[0] - goal[0], state[1] - goal[1])), "path": float(path[0])}

    def shortfall(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return self._paths.lengths(states, goal) / 4.5

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        return self.distance(state, goal)["position"] < 4.5

    def _default_look(self) -> _Look:
        self._scene = None
        return _DEFAULT_LOOK

    def _random_look(self, rng: np.random.Generator) -> _Look:
        self._scene = None
        floor, wall = random_texture(rng), random_texture(rng)
        dot = random_colour(rng, away_from=mean_colour(floor))
        return _Look(floor, wall, dot, random_outline(rng), float(rng.uniform(0.7, 1.5)))

    def _draw(self, state: np.ndarray, resolution: int) -> np.ndarray:
        if self._scene is None or len(self._scene) != resolution:
            self._scene = self._draw_scene(resolution)
        picture = self._scene.copy()
        scale = resolution / SIZE
        look = self._look
        draw_agent(picture, state * scale, RADIUS * look.scale * scale, look.dot, look.outline)
        return picture

    def _draw_scene(self, resolution: int) -> np.ndarray:
        """Floor, border and wall, uint8 (R, R, 3), with exact coverage at the wall's edges."""
        edges = np.arange(resolution + 1) * SIZE / resolution

        def cover(low: float, high: float) -> np.ndarray:
            """How much (0 to 1) of each pixel row or column lies between two world coordinates, (R,)."""
            return np.diff(np.clip(edges, low, high)) * resolution / SIZE

        across = cover(self.wall_x - HALF_WALL, self.wall_x + HALF_WALL)
        gap = HALF_DOOR + RADIUS
        along = 1 - cover(self.door_y - gap, self.door_y + gap)
        inner = cover(BORDER, SIZE - BORDER)
        mask = 1 - (1 - np.outer(along, across)) * np.outer(inner, inner)
        floor, wall = fit(self._look.floor, resolution), fit(self._look.wall, resolution)
        return np.rint(floor + mask[..., None] * (wall.astype(np.float64) - floor)).astype(np.uint8)
