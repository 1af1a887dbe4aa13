"""OGBench's manipulation: an arm and cubes, a scene with a drawer and a window, or puzzles of buttons."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sparsewm.envs.benchmarks.parts import Part
from sparsewm.envs.benchmarks.physics import PhysicsEnv
from sparsewm.envs.physics import load, mujoco
from sparsewm.errors import UserError, needs_extra, suggest

TASKS = {
    **{f"cube-{size}": "cube_env:CubeEnv" for size in ("single", "double", "triple", "quadruple", "octuple")},
    "scene": "scene_env:SceneEnv",
    **{f"puzzle-{size}": "puzzle_env:PuzzleEnv" for size in ("3x3", "4x4", "4x5", "4x6")},
}
"""Tasks by name, each with its place in `ogbench.manipspace.envs`."""

_SEEN = ("x", "y", "z", *(f"rotation_{i}" for i in range(9)))  # of the gripper


def make(task: str, resolution: int = 112, **options: Any) -> PhysicsEnv:
    """The environment `ogbench/TASK`.

    Raises:
        UserError: no such task, or OGBench is not installed.
    """
    if task.startswith(("pointmaze-", "antmaze-")):
        from sparsewm.envs.benchmarks.mazes import MazeEnv

        return MazeEnv(task, resolution, **options)
    return OGBenchEnv(task, resolution, **options)


def known(task: str, tasks: Any) -> None:
    """Refuse a task that OGBench has not."""
    if task not in tasks:
        from sparsewm.envs.benchmarks.mazes import TASKS as mazes

        every = [*TASKS, *mazes]
        raise UserError(f"OGBench has no task '{task}'.{suggest(task, every)} Known: {', '.join(every)}")


class OGBenchEnv(PhysicsEnv):
    """A manipulation task of OGBench (Park et al., 2025): a UR5e arm with a gripper over a table.

    ## Action space
    `Box(-1, 1, (5,))`: displacement (x, y, z), turn and opening of the gripper, as OGBench scales them.

    ## Observation space
    `pixels` uint8 (R, R, 3) from OGBench's camera for pictures, without its marks of targets; `proprio`
    float32 (6,): position of the gripper, m, cosine and sine of its turn, how far it is closed.

    ## State
    What OGBench's controller saw last of the gripper (it is one physics step behind), buttons (scene and
    puzzles), and MuJoCo's state.

    ## Success
    OGBench's: every cube within 4 cm of where it is at the goal, drawer and window likewise, every button as
    there. Where the gripper is and how things are turned does not matter.

    ## Start and goal
    Two scenes as OGBench draws them to collect data. 200 environment steps of 0.05 s are its own budget for
    one cube.

    Args:
        task: one of `TASKS`. opaque: draw the arm as it is; OGBench's pictures make it transparent.
    """

    action_low = (-1.0,) * 5
    action_high = (1.0,) * 5
    proprio_names = ("x", "y", "z", "cos_yaw", "sin_yaw", "closed")
    angle_symmetry = 4  # of a cube
    proprio_low = (-np.inf,) * 6
    proprio_high = (np.inf,) * 6
    _viewpoint = "front_pixels"

    def __init__(
        self, task: str, resolution: int = 112, render_mode: str = "rgb_array", opaque: bool = False
    ) -> None:
        known(task, TASKS)
        load()  # before OGBench imports MuJoCo
        with needs_extra("OGBench's environments", "ogbench"):
            module, _, name = TASKS[task].partition(":")
            maker = getattr(importlib.import_module(f"ogbench.manipspace.envs.{module}"), name)
        self.name, self.task = f"ogbench/{task}", task
        self.metadata = {**self.metadata, "render_fps": 20}
        kind = task.partition("-")[2] or task
        looks = "states" if opaque else "pixels"
        self._raw = maker(env_type=kind, ob_type=looks, mode="data_collection", visualize_info=False)
        self._raw._mjcf_model = self._raw.build_mjcf_model()
        self._raw._ob_type = "states"  # from here on: or it would draw at every step
        self._raw.reset(seed=0)
        self._model, self._data = self._raw._model, self._raw._data
        self._buttons = len(getattr(self._raw, "_cur_button_states", ()))
        self._describe((*_SEEN, *(f"button_{i}" for i in range(self._buttons))))
        self._parts = self._rule()
        self._closed = self._joint("ur5e/robotiq/right_driver_joint")[0]
        super().__init__(resolution, render_mode)

    def _rule(self) -> list[Part]:
        cubes = getattr(self._raw, "_num_cubes", 0)
        parts = [Part(f"cube_{i}", self._joint(f"object_joint_{i}", 3), 0.04) for i in range(cubes)]
        if self.task == "scene":
            parts += [Part(name, self._joint(f"{name}_slide"), 0.04) for name in ("drawer", "window")]
        first = len(_SEEN)
        parts += [Part(f"button_{i}", (first + i,), 0.5) for i in range(self._buttons)]
        return [*parts, Part("gripper", (0, 1, 2), 0.04, counts=False)]

    # Physics ----------------------------------------------------------------------------------------------

    def _extra(self) -> np.ndarray:
        site, buttons = self._raw._pinch_site_id, self._raw._cur_button_states if self._buttons else ()
        return np.concatenate([self._data.site_xpos[site], self._data.site_xmat[site], buttons])

    def _fits(self, extra: np.ndarray) -> bool:
        return not self._buttons or np.array_equal(extra[len(_SEEN) :], self._raw._cur_button_states)

    def _prepare(self, extra: np.ndarray) -> None:
        self._raw._cur_button_states = np.rint(extra[len(_SEEN) :]).astype(int)
        self._raw._apply_button_states()  # colours and locks

    def _restore(self, extra: np.ndarray) -> None:
        site = self._raw._pinch_site_id
        self._data.site_xpos[site], self._data.site_xmat[site] = extra[:3], extra[3:12]

    def _advance(self, action: np.ndarray) -> None:
        raw = self._raw
        raw.set_control(action)
        raw.pre_step()
        mujoco.mj_step(self._model, self._data, nstep=raw._n_steps)
        raw.post_step()

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        rotation = np.asarray(state[3:12])
        yaw = np.arctan2(rotation[3], rotation[0])
        closed = np.clip(state[self._closed] / 0.8, 0, 1)
        return np.array([*state[:3], np.cos(yaw), np.sin(yaw), closed], np.float32)

    def shown_state(self, states: np.ndarray) -> dict[str, np.ndarray]:
        """Places of gripper and cubes, m, how cubes are turned about the vertical, and the rest as it is."""
        found = {}
        for part in (self._parts[-1], *self._parts[:-1]):
            if len(part.columns) == 1:
                found[part.name] = states[:, part.columns[0]]
                continue
            for axis, column in zip("xyz", part.columns, strict=True):
                found[f"{part.name}_{axis}"] = states[:, column]
            if part.counts:
                w, x, y, z = states[:, part.columns[-1] + 1 :][:, :4].T  # a free joint's quaternion
                found[f"{part.name}_angle"] = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        return found

    # Starts and scripted data -----------------------------------------------------------------------------

    def sample_state(self) -> np.ndarray:
        raw, before = self._raw, self._read_state()
        raw.np_random = self.np_random
        raw.reset()
        state = self._read_state()
        self._write_state(before)
        return state

    def sample_goal(self) -> np.ndarray:
        """Another scene as OGBench draws it."""
        return self.sample_state()

    def scripted(self, rng: np.random.Generator) -> OracleExploration:
        """OGBench's own oracles, one task after the other, with noise; see `OracleExploration`."""
        return OracleExploration(self, rng)


class OracleExploration:
    """OGBench's Markovian oracles, each task followed by another one, with the noise of stable-worldmodel.

    The noise of an episode is Gaussian, of a deviation drawn from 0 to `NOISE` (three times that for the
    turn, ten times for the opening), as in the "noisy" data of OGBench and in stable-worldmodel's.
    """

    NOISE = 0.1
    MIN_NORM = 0.4  # of a way's length as the oracle shapes it

    def __init__(self, env: OGBenchEnv, rng: np.random.Generator) -> None:
        self._env, self._rng = env, rng
        closed = {"gripper_always_closed": True} if env.task.startswith("puzzle") else {}
        self._oracles = {
            kind: _oracle(kind)(env=env._raw, min_norm=self.MIN_NORM, **(closed if kind == "button" else {}))
            for kind in _kinds(env)
        }

    def reset(self, state: np.ndarray) -> None:
        self._deviation = self._rng.uniform(0, self.NOISE)
        self._env.set_state(state)
        self._next()

    def act(self, state: np.ndarray) -> np.ndarray:
        self._env.set_state(state)
        if self._oracle.done:
            self._next()
        scale = self._deviation * np.array([1, 1, 1, 3, 10])
        action = np.asarray(self._oracle.select_action(None, self._info())) + self._rng.normal(0, scale)
        return np.clip(action, -1, 1).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        raw = self._env._raw
        mujoco.mj_rnePostConstraint(raw._model, raw._data)  # contact forces: what the gripper holds
        return raw.compute_ob_info()

    def _next(self) -> None:
        """Draw the next task and give it to its oracle."""
        raw = self._env._raw
        raw.np_random = self._rng
        raw.set_new_target(return_info=False)
        info = self._info()
        self._oracle = self._oracles[info["privileged/target_task"]]
        with _global_numpy(self._rng):
            self._oracle.reset(None, info)


def _kinds(env: OGBenchEnv) -> tuple[str, ...]:
    if env.task == "scene":
        return ("cube", "button", "drawer", "window")
    return ("button",) if env.task.startswith("puzzle") else ("cube",)


def _oracle(kind: str) -> Callable[..., Any]:
    module = importlib.import_module(f"ogbench.manipspace.oracles.markov.{kind}_markov")
    oracle: Callable[..., Any] = getattr(module, f"{kind.capitalize()}MarkovOracle")
    return oracle


@contextmanager
def _global_numpy(rng: np.random.Generator) -> Iterator[None]:
    """NumPy's global generator, which the oracles draw from, seeded from `rng` and then as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(rng.integers(2**31)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
