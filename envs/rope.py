"""Rope: bring a rope into the pose and shape of the goal, push by push."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sparsewm.envs.appearance import Colour, mean_colour, plain, random_colour, random_texture
from sparsewm.envs.looks import Scenery
from sparsewm.envs.physics import border
from sparsewm.envs.table import DT, HALF, SHIFT, TableEnv, fixed_point

SEGMENTS = 20
LENGTH = 0.025  # of a segment, m
RADIUS = 0.014
REACHABLE = HALF - 0.08  # starts and goals stay inside, so that the pusher gets behind the rope
_BEND = 1.2  # rad, the most two neighbouring segments can bend


@dataclass(frozen=True)
class _Look:
    table: np.ndarray  # texture
    border: Colour
    particle: Colour  # the rope
    thickness: float = 1.0  # relative


_DEFAULT_LOOK = _Look(plain((236, 228, 212)), (120, 100, 80), (190, 60, 50))


class RopeEnv(TableEnv):
    """Rope: a rope of 0.5 m on a table of 1 x 1 m is pushed into the goal's pose.

    ## Description
    After the rope of DINO-WM (Zhou et al., 2024), on MuJoCo: 20 capsules of 25 mm joined by hinges with
    bending stiffness and dry friction, so that a bent rope springs back in part. It cannot pass through
    itself. The physics is planar; friction with the table is a strong drag, so the rope lies still unless
    pushed. The camera looks straight down, x points right, y up, the table's middle is the origin. The
    pusher is not in the picture, for pictures are taken when it is raised.

    ## Action space
    `Box(-1, 1, (4,))`: one push, from (x0, y0) to (x1, y1) in units of 0.45 m. A ball of 2 cm radius is
    lowered, moved straight at 0.8 m/s, and raised; then the rope comes to rest. The pusher stalls at 20 N.

    ## Observation space
    `pixels` uint8 (R, R, 3), and `proprio` float32 (2,): where the pusher was raised, m.

    ## State
    float64 (44,): x, y of the 21 ends of segments along the rope, then of the pusher, all in m. The rope is
    at rest between pushes. `set_state` raises ValueError for points off the table or segments of another
    length.

    ## Success
    Chamfer distance of the 21 points to the goal's below 0.03 m. `shortfall`, what the oracle minimises, is
    the mean distance of each point to its own place, whichever end comes first: under the
    Chamfer distance single pushes got stuck just above the threshold.

    ## Start and goal
    A random, mildly curved rope; the goal is the same rope turned by up to 90 degrees and moved by up to 0.2
    m on each axis. 20 pushes by default.

    ## Arguments
    `resolution` (112), `render_mode`.

        >>> from sparsewm import envs
        >>> env = envs.make("rope")
        >>> observation, info = env.reset(seed=0)
        >>> env.action_dim
        4

    ## Version history
    v0: first version.
    """

    name = "rope"
    threshold = 0.03
    _geometry = ("thickness",)
    _scenery = Scenery(("table",), ("particle",), ("thickness",))
    state_names = (
        *(f"{axis}{i}" for i in range(SEGMENTS + 1) for axis in "xy"),
        "pusher_x",
        "pusher_y",
    )

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array"):
        super().__init__(resolution, render_mode)
        self._state[:-2:2] = (np.arange(SEGMENTS + 1) - SEGMENTS / 2) * LENGTH

    def _xml(self) -> str:
        chain = ""
        for i in range(SEGMENTS):
            joints = (
                '<joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 1 0"/><joint type="hinge"/>'
                if i == 0
                else f'<joint type="hinge" stiffness="0.012" frictionloss="0.006" damping="0.0005" '
                'solimpfriction="0.9999 0.9999 0.001" '
                f'range="-{_BEND} {_BEND}"/>'
            )
            chain += (
                f'<body name="segment{i}" pos="{LENGTH if i else 0} 0 0">{joints}'
                f'<geom type="capsule" fromto="0 0 0 {LENGTH} 0 0" size="{RADIUS}" mass="0.005" '
                'conaffinity="3"/>'
            )
        chain += "</body>" * SEGMENTS
        near = "".join(f'<exclude body1="segment{i}" body2="segment{i + 2}"/>' for i in range(SEGMENTS - 2))
        return f"""
        <mujoco>
          <compiler autolimits="true" angle="radian"/>
          <option timestep="{DT}" gravity="0 0 0" viscosity="3" integrator="implicitfast" iterations="20"/>
          <size memory="8M"/>
          <default><joint axis="0 0 1"/><geom condim="1" solref="0.01 1"/></default>
          <worldbody>
            {border(HALF)}
            {chain}
            <body><joint name="push" type="slide" axis="1 0 0"/>
              <geom name="pusher" type="sphere" size="0.02" mass="0.05" contype="2" conaffinity="0"/></body>
          </worldbody>
          <contact>{near}</contact>
          <actuator><position joint="push" kp="400" dampratio="1" forcerange="-20 20"/></actuator>
        </mujoco>"""

    def _coordinates(self, particles: np.ndarray) -> np.ndarray:
        along = np.diff(particles, axis=0)
        headings = np.arctan2(along[:, 1], along[:, 0])
        bends = (np.diff(headings) + np.pi) % (2 * np.pi) - np.pi
        return np.concatenate([particles[0], headings[:1], bends])

    def _positions(self) -> np.ndarray:
        return _chain(self._data.qpos[:2], np.cumsum(self._data.qpos[2:-1]))

    def _check_state(self, state: np.ndarray) -> None:
        super()._check_state(state)
        lengths = np.hypot(*np.diff(state[:-2].reshape(-1, 2), axis=0).T)
        if np.abs(lengths - LENGTH).max() > 1e-4:
            raise ValueError(
                f"a rope's points are {LENGTH} m from one to the next; got {lengths.min():.4f} to "
                f"{lengths.max():.4f} m."
            )

    def shortfall(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        ropes, places = states[:, :-2].reshape(len(states), -1, 2), goal[:-2].reshape(-1, 2)
        either = [np.linalg.norm(ropes - order, axis=-1).mean(1) for order in (places, places[::-1])]
        return np.minimum(*either) / self.threshold

    def sample_state(self) -> np.ndarray:
        """A random rope of mild curvature, at rest, float64 (44,)."""
        rng = self.np_random
        while True:
            steps = np.linspace(0, 1, SEGMENTS)
            phase = np.pi * rng.uniform(0.5, 2.0) * steps + rng.uniform(0, 2 * np.pi)
            wave = rng.normal(0, 0.6) * np.sin(phase)
            headings = rng.uniform(-np.pi, np.pi) + rng.normal(0, 0.8) * steps + wave
            rope = _chain(np.zeros(2), headings)
            rope += rng.uniform(-0.3, 0.3, 2) - rope.mean(0)
            if np.abs(rope).max() < REACHABLE:
                return self._settled(rope)

    def sample_goal(self) -> np.ndarray:
        """The rope as it lies, turned by up to 90 degrees and moved, float64 (44,)."""
        rng, rope = self.np_random, self._state[:-2].reshape(-1, 2)
        middle = rope.mean(0)
        while True:
            angle = rng.uniform(-np.pi / 2, np.pi / 2)
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            goal = (rope - middle) @ turn + middle + rng.uniform(-0.2, 0.2, 2)
            if np.abs(goal).max() < max(REACHABLE, np.abs(rope).max()):
                return self._settled(goal)

    def _default_look(self) -> _Look:
        self._table = None
        return _DEFAULT_LOOK

    def _random_look(self, rng: np.random.Generator) -> _Look:
        self._table = None
        table = random_texture(rng)
        rope = random_colour(rng, away_from=mean_colour(table))
        return _Look(table, random_colour(rng), rope, float(rng.uniform(0.7, 1.6)))

    def _cover(self, mask: np.ndarray, points: np.ndarray, scale: float) -> None:
        thickness = max(1, round(2 * RADIUS * self._look.thickness * scale))
        cv2.polylines(mask, [fixed_point(points)], False, 255, thickness, cv2.LINE_8, SHIFT)


def _chain(start: np.ndarray, headings: np.ndarray) -> np.ndarray:
    """Points (S + 1, 2) of a chain that starts at (2,) and whose segments have headings (S,)."""
    along = LENGTH * np.stack([np.cos(headings), np.sin(headings)], 1)
    return np.concatenate([[start], start + np.cumsum(along, axis=0)])
