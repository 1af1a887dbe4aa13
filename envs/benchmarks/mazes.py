"""OGBench's mazes for a point and an ant."""

from __future__ import annotations

import importlib
import math

import numpy as np

from sparsewm.envs.benchmarks.ogbench import known
from sparsewm.envs.benchmarks.parts import Part
from sparsewm.envs.benchmarks.physics import PhysicsEnv
from sparsewm.envs.physics import load, mujoco
from sparsewm.errors import needs_extra

TASKS = tuple(f"{body}maze-{size}" for body in ("point", "ant") for size in ("medium", "large", "giant"))
"""Their names; the one that teleports is no simulator whose steps repeat."""


class MazeEnv(PhysicsEnv):
    """A maze of OGBench (Park et al., 2025) with a point or an ant in it, seen from above.

    ## Action space
    `Box(-1, 1, (A,))`: displacement (x, y) of the point in units of 0.2; torques of the ant's eight joints.

    ## Observation space
    `pixels` uint8 (R, R, 3): the whole maze on OGBench's coloured floor; `proprio` float32: x and y of the
    body in the maze, and of the ant its joints and all velocities.

    ## State
    MuJoCo's.

    ## Success
    OGBench's: the point within 1.0, the ant within 0.5 of the goal's place.

    ## Start and goal
    Two free cells, as OGBench varies them within a cell. 1000 environment steps are OGBench's own budget.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, task: str, resolution: int = 112, render_mode: str = "rgb_array") -> None:
        known(task, TASKS)
        load()  # before OGBench imports MuJoCo
        with needs_extra("OGBench's environments", "ogbench"):
            maker = importlib.import_module("ogbench.locomaze.maze").make_maze_env
        body, _, size = task.partition("maze-")
        self.name = f"ogbench/{task}"
        self._raw = maker(body, "maze", maze_type=size, width=16, height=16, render_mode="rgb_array")
        self._raw.reset(seed=0)
        self._model, self._data = self._raw.model, self._raw.data
        self._viewpoint = self._raw.custom_camera
        self._paint()
        self._describe(())
        axes = ((0,), (1,)) if body == "point" else ((0, 1),)
        place = tuple(i for axis in axes for i in axis)
        self._parts = [Part("place", place, 1.0 if body == "point" else 0.5)]
        count = self._raw.action_space.shape[0]
        self.action_low, self.action_high = (-1.0,) * count, (1.0,) * count
        shown = self._model.nq + (0 if body == "point" else self._model.nv)
        self.proprio_names = self.state_names[:shown]
        self.proprio_low, self.proprio_high = (-np.inf,) * shown, (np.inf,) * shown
        super().__init__(resolution, render_mode)

    def _paint(self) -> None:
        """Colour the floor by place, as OGBench does for pictures, and hide the target."""
        model = self._model
        model.geom("target").rgba[3] = 0.0
        model.geom("target").matid = -1
        texture, material = model.tex("grid"), model.mat("grid")
        height, width = int(texture.height[0]), int(texture.width[0])
        first = int(texture.adr[0])
        pixels = model.tex_data[first : first + 3 * height * width].reshape(height, width, 3)
        across, down = (np.arange(size) * 192 // size for size in (height, width))
        pixels[..., 0], pixels[..., 1], pixels[..., 2] = across[:, None], down[None], 128
        material.texuniform = 0
        material.texrepeat[:] = 1

    def _extra(self) -> np.ndarray:
        return np.empty(0)

    def _advance(self, action: np.ndarray) -> None:
        self._raw.step(action)

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        return np.array(state[: self.proprio_dim], np.float32)

    def sample_state(self) -> np.ndarray:
        raw, before = self._raw, self._read_state()
        cells = np.argwhere(raw.maze_map == 0)
        row, column = cells[self.np_random.integers(len(cells))]
        place = np.array(raw.ij_to_xy((row, column))) + self.np_random.uniform(-1, 1, 2)
        mujoco.mj_resetData(self._model, self._data)
        raw.np_random = self.np_random
        raw.reset_model()
        raw.set_xy(place)
        state = self._read_state()
        self._write_state(before)
        return state

    def sample_goal(self) -> np.ndarray:
        return self.sample_state()

    def scripted(self, rng: np.random.Generator) -> Wanderer | HeldTorques:
        """The point walks from cell to cell; the ant, whose gait OGBench learns, gets random torques."""
        return Wanderer(self, rng) if self.name.startswith("ogbench/point") else HeldTorques(self, rng)


class Wanderer:
    """The point on its shortest ways to random cells, with the noise of OGBench's data."""

    NOISE = 0.5

    def __init__(self, env: MazeEnv, rng: np.random.Generator) -> None:
        self._maze, self._rng = env._raw, rng

    def reset(self, state: np.ndarray) -> None:
        cells = np.argwhere(self._maze.maze_map == 0)
        self._target = np.array(self._maze.ij_to_xy(cells[self._rng.integers(len(cells))]))

    def act(self, state: np.ndarray) -> np.ndarray:
        if math.dist(state[:2], self._target) < 1.0:
            self.reset(state)
        subgoal, _ = self._maze.get_oracle_subgoal(state[:2], self._target)
        way = subgoal - state[:2]
        action = way / max(math.hypot(*way), 1e-6) + self._rng.normal(0, self.NOISE, 2)
        return np.clip(action, -1, 1).astype(np.float32)


class HeldTorques:
    """Random actions, each held for one to four model steps."""

    LONGEST = 4

    def __init__(self, env: MazeEnv, rng: np.random.Generator) -> None:
        self._env, self._rng = env, rng

    def reset(self, state: np.ndarray) -> None:
        self._left = 0

    def act(self, state: np.ndarray) -> np.ndarray:
        if not self._left:
            self._left = self._env.frameskip * int(self._rng.integers(1, self.LONGEST + 1))
            self._action = self._rng.uniform(-1, 1, self._env.action_dim).astype(np.float32)
        self._left -= 1
        return self._action
