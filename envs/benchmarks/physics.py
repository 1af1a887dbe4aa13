"""Somebody else's MuJoCo simulation as a simulator of ours: exact states, and pictures of any of them."""

from __future__ import annotations

import atexit
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsewm.envs.benchmarks.meshes import coarse_meshes
from sparsewm.envs.benchmarks.parts import PartedEnv
from sparsewm.envs.physics import NO_GL, mujoco


@dataclass(frozen=True)
class Look:
    """Factors of the model's colours, (N, 3) of geoms and of materials, and of its lights."""

    geoms: np.ndarray
    materials: np.ndarray
    light: float = 1.0


class PhysicsEnv(PartedEnv):
    """A MuJoCo simulation of a benchmark.

    A state is what the benchmark keeps beside the physics (`_extra`, E numbers), then MuJoCo's own:
    positions, velocities, activations, the solver's warm start, controls, and bodies moved by hand where
    `_hands` says that there are some. What is drawn is drawn from a state, in a simulation of its own.

    A subclass makes `_model` and `_data`, then calls `_describe` and `__init__`.
    """

    _model: Any  # mujoco.MjModel
    _data: Any  # mujoco.MjData
    _viewpoint: Any  # camera: name or number
    _scene_option: Any = None  # what is drawn, mujoco.MjvOption
    _hands = False
    _flipped = False  # whether the camera stands on its head
    _shadow = 1024  # side of the shadow map: most of a picture's time by software goes into larger ones
    state_names: tuple[str, ...]

    def _describe(self, extra: tuple[str, ...]) -> None:
        """Say what a state holds, with these names for what the benchmark keeps."""
        kinds = [("qpos", "nq", "QPOS"), ("qvel", "nv", "QVEL"), ("act", "na", "ACT")]
        kinds += [("warmstart", "nv", "WARMSTART"), ("ctrl", "nu", "CTRL")]
        sizes = [(name, getattr(self._model, size), bit) for name, size, bit in kinds]
        if self._hands:
            count = self._model.nmocap
            sizes += [("mocap_pos", 3 * count, "MOCAP_POS"), ("mocap_quat", 4 * count, "MOCAP_QUAT")]
        self._kept = sum(int(getattr(mujoco.mjtState, f"mjSTATE_{bit}")) for _, _, bit in sizes)
        numbers = [f"{name}_{i}" for name, size, _ in sizes for i in range(size)]
        assert len(numbers) == mujoco.mj_stateSize(self._model, self._kept)
        self.state_names = (*extra, *numbers)
        self._first = len(extra)  # column of qpos_0
        self._canvas = mujoco.MjData(self._model)
        self._renderer: Any = None
        self._drawn_at = 0  # px
        self._closing: Callable[[], Any] = lambda: None
        self._model.vis.quality.shadowsize = min(self._shadow, self._model.vis.quality.shadowsize)

    def _joint(self, name: str, size: int = 1) -> tuple[int, ...]:
        """Columns of a joint's first positions."""
        first = self._first + int(self._model.joint(name).qposadr[0])
        return tuple(range(first, first + size))

    # What a subclass writes -------------------------------------------------------------------------------

    @abstractmethod
    def _extra(self) -> np.ndarray:
        """What the benchmark keeps beside the physics, (E,)."""

    def _fits(self, extra: np.ndarray) -> bool:
        """Whether the model is such as the benchmark has it with these (E,)."""
        return True

    def _prepare(self, extra: np.ndarray) -> None:
        """Make it so; before the physics is set."""

    def _restore(self, extra: np.ndarray) -> None:
        """Put back what the benchmark keeps (E,); after the physics is set."""

    # State ------------------------------------------------------------------------------------------------

    def _read_state(self) -> np.ndarray:
        physics = np.empty(len(self.state_names) - self._first)
        mujoco.mj_getState(self._model, self._data, physics, self._kept)
        return np.concatenate([self._extra(), physics])

    def _write_state(self, state: np.ndarray) -> None:
        if np.array_equal(state, self._read_state()):
            return
        extra, physics = state[: self._first], state[self._first :]
        if not self._fits(extra):
            self._prepare(extra)
        mujoco.mj_setState(self._model, self._data, physics, self._kept)
        mujoco.mj_forward(self._model, self._data)
        mujoco.mj_setState(self._model, self._data, physics, self._kept)  # forward moves the warm start
        self._restore(extra)

    # Pictures ---------------------------------------------------------------------------------------------

    def _draw(self, state: np.ndarray, resolution: int) -> np.ndarray:
        if resolution != self._drawn_at:
            self._open_renderer(resolution)
        before = None if self._fits(state[: self._first]) else self._read_state()
        if before is not None:
            self._write_state(state)
        with self._dressed():
            mujoco.mj_setState(self._model, self._canvas, state[self._first :], self._kept)
            mujoco.mj_forward(self._model, self._canvas)
            self._renderer.update_scene(self._canvas, self._viewpoint, self._scene_option)
            picture: np.ndarray = self._renderer.render()
        if before is not None:
            self._write_state(before)
        return np.ascontiguousarray(picture[::-1, ::-1]) if self._flipped else picture

    def _open_renderer(self, resolution: int) -> None:
        self._close_renderer()
        view = self._model.vis.global_
        view.offwidth, view.offheight = max(view.offwidth, resolution), max(view.offheight, resolution)
        try:
            with coarse_meshes(self._model, self._height() / resolution / 2):  # half a pixel
                self._renderer = mujoco.Renderer(self._model, resolution, resolution)
        except Exception as error:  # each GL backend fails in its own way
            raise RuntimeError(NO_GL) from error
        self._drawn_at = resolution
        self._closing = weakref.finalize(self, self._renderer.close)
        atexit.register(self._closing)  # its own hook runs too late: MuJoCo's, which ends GL, goes before

    def _height(self) -> float:
        """How high, in metres, a picture is where the nearest mesh of the model's own pose is."""
        view, model = self._viewpoint, self._model
        meshes = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
        if isinstance(view, mujoco.MjvCamera):
            distance, angle = view.distance, model.vis.global_.fovy
        else:
            camera, pose = model.camera(view).id, mujoco.MjData(model)
            mujoco.mj_kinematics(model, pose)
            mujoco.mj_camlight(model, pose)
            away = np.linalg.norm(pose.geom_xpos[meshes] - pose.cam_xpos[camera], axis=1)
            distance, angle = away.min(initial=np.inf), model.cam_fovy[camera]
        return float(2 * distance * np.tan(np.radians(angle) / 2))

    def _close_renderer(self) -> None:
        self._drawn_at, self._renderer = 0, None
        self._closing()

    def close(self) -> None:
        self._close_renderer()

    @contextmanager
    def _dressed(self) -> Iterator[None]:
        """The model in the present look."""
        look, model = self._look, self._model
        if look is None:
            yield
            return
        colours = [(model.geom_rgba, look.geoms), (model.mat_rgba, look.materials)]
        lights = [model.light_diffuse, model.vis.headlight.diffuse, model.vis.headlight.ambient]
        kept = [array.copy() for array in (model.geom_rgba, model.mat_rgba, *lights)]
        for array, factors in colours:
            array[:, :3] = np.clip(array[:, :3] * factors, 0, 1)
        for light in lights:
            light[:] = np.clip(light * look.light, 0, 1)
        try:
            yield
        finally:
            for array, before in zip((model.geom_rgba, model.mat_rgba, *lights), kept, strict=True):
                array[:] = before

    def _default_look(self) -> Look | None:
        return None

    def _random_look(self, rng: np.random.Generator) -> Look:
        sizes = self._model.ngeom, self._model.nmat
        geoms, materials = (rng.uniform(0.3, 1.4, (size, 3)) for size in sizes)
        return Look(geoms, materials, float(rng.uniform(0.6, 1.3)))
