"""A table on which a pusher executes one straight push per action: what Rope and Granular share."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import cv2
import numpy as np

from sparsewm.envs.appearance import Colour, draw_polygon, fit
from sparsewm.envs.physics import mujoco
from sparsewm.envs.simulated import SimulatedGoalEnv

HALF = 0.5  # of the table's side, m
REACH = 0.45  # the pusher's centre stays within this on both axes, m
DT = 0.005  # of a physics step, s
EXTENT = 1.08  # side of the square that a picture shows, m

_PACE = 0.004  # m of push per physics step
_LOWERING = 10  # steps in which the pusher grows to its size, moving aside what is under it
_ARRIVING = 8  # steps the pusher's controller may lag behind
_SETTLING = 100  # steps at most until everything rests
_REST = 5e-5  # m per step, below which the particles rest
_FINER = 4  # particles are drawn this much finer, for exact edges
SHIFT = 4  # cv2 drawing coordinates in 1/16 pixel


class TableEnv(SimulatedGoalEnv):
    """Particles on a table of 1 x 1 m with a border, and a pusher that is lowered, moved and raised.

    The physics is planar MuJoCo. Friction with the table is a drag so strong that things stop as soon as
    nothing pushes them. A push starts and ends at rest, so the particles' positions are the whole state; and
    it is a function of state and action alone: no solver state is carried over.

    A subclass gives the model (with bodies first, then the pusher), the particles' positions, and looks.
    """

    frameskip = 1
    action_low = (-1.0, -1.0, -1.0, -1.0)
    action_high = (1.0, 1.0, 1.0, 1.0)
    proprio_names = ("pusher_x", "pusher_y")
    proprio_low = (-HALF, -HALF)
    proprio_high = (HALF, HALF)
    threshold: ClassVar[float]  # Chamfer distance of a success, m

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array"):
        super().__init__(resolution, render_mode)
        self._model = mujoco.MjModel.from_xml_string(self._xml())
        self._data = mujoco.MjData(self._model)
        self._pusher = self._model.geom("pusher").id
        self._pusher_size = self._model.geom_size[self._pusher].copy()
        self._state = np.zeros(self.state_dim)
        self._table: np.ndarray | None = None  # table and border, drawn once per look and resolution

    # What a subclass writes -------------------------------------------------------------------------------

    @abstractmethod
    def _xml(self) -> str:
        """The MuJoCo model."""

    @abstractmethod
    def _coordinates(self, particles: np.ndarray) -> np.ndarray:
        """Joint positions of particles (N, 2), all but the pusher's."""

    @abstractmethod
    def _positions(self) -> np.ndarray:
        """Particles (N, 2) of the simulation."""

    @abstractmethod
    def _cover(self, mask: np.ndarray, points: np.ndarray, scale: float) -> None:
        """Set to 255 what particles at points (N, 2) in pixels cover; `scale` is pixels per metre."""

    # Physics ----------------------------------------------------------------------------------------------

    def _read_state(self) -> np.ndarray:
        return self._state

    def _write_state(self, state: np.ndarray) -> None:
        self._state = state.copy()

    def _advance(self, action: np.ndarray) -> None:
        start, end = REACH * action[:2], REACH * action[2:]
        self._place(self._state[:-2].reshape(-1, 2))
        arrived = self._push(start, end)
        self._settle()
        self._state = np.concatenate([self._positions().ravel(), arrived])

    def idle_action(self) -> np.ndarray:
        """A push of no length, in the corner furthest from the particles."""
        corners = np.array([(x, y) for x in (-1.0, 1.0) for y in (-1.0, 1.0)], np.float32)
        away = np.linalg.norm(REACH * corners[:, None] - self._state[:-2].reshape(-1, 2), axis=-1).min(1)
        return np.tile(corners[away.argmax()], 2)

    def _place(self, particles: np.ndarray) -> None:
        """Put particles (N, 2) on the table, at rest and without a past."""
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:-1] = self._coordinates(particles)

    def _push(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Lower the pusher at `start` (2,), move it to `end` (2,), raise it; returns where that was (2,)."""
        model, data, pusher = self._model, self._data, self._pusher
        way = end - start
        length, yaw = math.hypot(*way), math.atan2(way[1], way[0])
        body = model.geom_bodyid[pusher]
        model.body_pos[body, :2] = start
        model.body_quat[body] = (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
        model.geom_contype[pusher] = 2  # as the models' bodies expect
        for step in range(_LOWERING):
            self._grow((step + 1) / _LOWERING)
            mujoco.mj_step(model, data)
        steps = max(1, math.ceil(length / _PACE))
        for step in range(steps + _ARRIVING):
            data.ctrl[0] = length * min(1.0, (step + 1) / steps)
            mujoco.mj_step(model, data)
        model.geom_contype[pusher] = 0
        return np.clip(start + data.qpos[-1] * np.array([math.cos(yaw), math.sin(yaw)]), -HALF, HALF)

    def _grow(self, share: float) -> None:
        """Give the pusher this share of its thickness."""
        size = self._pusher_size * np.array([share, 1.0, 1.0])
        self._model.geom_size[self._pusher] = size
        self._model.geom_rbound[self._pusher] = np.linalg.norm(size)

    def _settle(self) -> None:
        """Let everything come to rest, without the pusher."""
        before = self._positions()
        for _ in range(_SETTLING):
            mujoco.mj_step(self._model, self._data)
            now = self._positions()
            if np.abs(now - before).max() < _REST:
                return
            before = now

    def _settled(self, particles: np.ndarray) -> np.ndarray:
        """A state (D,) with particles (N, 2) after they have come to rest, and the pusher at the middle."""
        self._model.geom_contype[self._pusher] = 0
        self._place(particles)
        self._settle()
        return np.concatenate([self._positions().ravel(), np.zeros(2)])

    def _check_state(self, state: np.ndarray) -> None:
        if np.abs(state).max() > HALF + 0.01:
            raise ValueError(
                f"all of a {self.name} state is on the table, -{HALF} to {HALF} m; got "
                f"{np.abs(state).max():.3f} m."
            )

    # Goals ------------------------------------------------------------------------------------------------

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        return np.asarray(state[-2:], dtype=np.float32).copy()

    def distance(self, state: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        """`chamfer`: mean distance of a particle to the nearest one of the other state, both ways, m."""
        return {"chamfer": float(chamfer(np.asarray(state)[None, :-2], np.asarray(goal)[:-2])[0])}

    def shortfall(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return chamfer(states[:, :-2], goal[:-2]) / self.threshold

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        return self.distance(state, goal)["chamfer"] < self.threshold

    # Pictures ---------------------------------------------------------------------------------------------

    def _draw(self, state: np.ndarray, resolution: int) -> np.ndarray:
        if self._table is None or len(self._table) != resolution:
            self._table = _draw_table(self._look.table, self._look.border, resolution)
        finer = _FINER if resolution <= 512 else 1
        mask = np.zeros((finer * resolution, finer * resolution), np.uint8)
        points = to_pixels(state[:-2].reshape(-1, 2), finer * resolution, EXTENT)
        self._cover(mask, points, finer * resolution / EXTENT)
        share = cv2.resize(mask, (resolution, resolution), interpolation=cv2.INTER_AREA)[..., None] / 255
        return np.rint(self._table + share * (np.array(self._look.particle) - self._table)).astype(np.uint8)


def chamfer(clouds: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Chamfer distances (K,) of point clouds (K, 2N) to one (2M,): mean nearest distance, both ways."""
    clouds, goal = clouds.reshape(len(clouds), -1, 2), goal.reshape(-1, 2)
    away = np.sqrt(((clouds[:, :, None] - goal) ** 2).sum(-1))  # (K, N, M)
    return (away.min(2).mean(1) + away.min(1).mean(1)) / 2


def fixed_point(points: np.ndarray) -> np.ndarray:
    """Pixel coordinates (..., 2) as cv2 takes them with `SHIFT`; (0, 0) is the corner of the corner pixel."""
    return np.rint((points - 0.5) * (1 << SHIFT)).astype(np.int32)


def to_pixels(points: np.ndarray, resolution: int, extent: float) -> np.ndarray:
    """Pixel coordinates (..., 2) of table points (..., 2): x right, y up, the middle at the origin."""
    return (points * (1, -1) / extent + 0.5) * resolution


def _draw_table(texture: np.ndarray, border: Colour, resolution: int) -> np.ndarray:
    picture = fit(texture, resolution).copy()
    table, edge = HALF / EXTENT, 0.51
    for quarter in range(4):
        strip = np.array([(-edge, -edge), (edge, -edge), (edge, -table), (-edge, -table)])
        for _ in range(quarter):
            strip = strip @ np.array([[0.0, 1.0], [-1.0, 0.0]])
        draw_polygon(picture, (strip + 0.5) * resolution, border)
    return picture
