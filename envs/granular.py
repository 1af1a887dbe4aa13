"""Granular: gather a pile of grains and bring it to its place with a flat pusher."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sparsewm.envs.appearance import (
    Colour,
    mean_colour,
    plain,
    random_colour,
    random_outline,
    random_texture,
)
from sparsewm.envs.looks import Scenery
from sparsewm.envs.physics import border
from sparsewm.envs.table import DT, HALF, SHIFT, TableEnv, fixed_point

GRAINS = 64
RADIUS = 0.016  # m


@dataclass(frozen=True)
class _Look:
    table: np.ndarray  # texture
    border: Colour
    particle: Colour  # the grains
    outline: np.ndarray | None = None  # None: a disc
    scale: float = 1.0  # of the grains


_DEFAULT_LOOK = _Look(plain((222, 226, 232)), (90, 96, 110), (60, 110, 70))


class GranularEnv(TableEnv):
    """Granular: 64 grains on a table of 1 x 1 m are gathered and moved with a flat pusher.

    ## Description
    After the granular environment of DINO-WM (Zhou et al., 2024), on MuJoCo: 64 round grains of 32 mm that
    push each other. The physics is planar; friction with the table is a strong drag, so grains lie still
    unless pushed. The camera looks straight down, x points right, y up, the table's middle is the origin.
    The pusher is not in the picture, for pictures are taken when it is raised.

    ## Action space
    `Box(-1, 1, (4,))`: one push, from (x0, y0) to (x1, y1) in units of 0.45 m. A plate 18 cm wide, across
    the direction of the push, is lowered (it moves aside what is under it), moved straight at 0.8 m/s, and
    raised; then the grains come to rest. The pusher stalls at 30 N.

    ## Observation space
    `pixels` uint8 (R, R, 3), and `proprio` float32 (2,): where the pusher was raised, m.

    ## State
    float64 (130,): x, y of the 64 grains, then of the pusher, all in m. Grains are at rest between pushes.
    `set_state` raises ValueError for grains off the table or inside each other.

    ## Success
    Chamfer distance of the grains to the goal's below 0.03 m.

    ## Start and goal
    A loose round pile at a random place; the goal is the same pile scaled to 0.6 to 0.9 and moved by up to
    0.15 m on each axis. 20 pushes by default.

    ## Arguments
    `resolution` (112), `render_mode`.

        >>> from sparsewm import envs
        >>> env = envs.make("granular")
        >>> observation, info = env.reset(seed=0)
        >>> env.state_dim
        130

    ## Version history
    v0: first version.
    """

    name = "granular"
    threshold = 0.03
    _geometry = ("outline", "scale")
    _scenery = Scenery(("table",), ("particle",), ("scale",))
    state_names = (*(f"{axis}{i}" for i in range(GRAINS) for axis in "xy"), "pusher_x", "pusher_y")

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array"):
        super().__init__(resolution, render_mode)
        side = int(np.ceil(np.sqrt(GRAINS)))
        grid = (np.stack(np.divmod(np.arange(GRAINS), side), 1) - (side - 1) / 2) * 2.5 * RADIUS
        self._state[:-2] = grid.ravel()

    def _xml(self) -> str:
        slides = "".join(f'<joint type="slide" axis="{axis}" damping="0.2"/>' for axis in ("1 0 0", "0 1 0"))
        grain = f'<geom type="sphere" size="{RADIUS}" mass="0.004" conaffinity="3"/>'
        return f"""
        <mujoco>
          <compiler autolimits="true" angle="radian"/>
          <option timestep="{DT}" gravity="0 0 0" integrator="implicitfast" iterations="20"/>
          <size memory="16M"/>
          <default><geom condim="1" solref="0.01 1"/></default>
          <worldbody>
            {border(HALF)}
            {f"<body>{slides}{grain}</body>" * GRAINS}
            <body><joint name="push" type="slide" axis="1 0 0"/>
              <geom name="pusher" type="box" size="0.012 0.09 0.02" mass="0.05" contype="2"
                conaffinity="0"/></body>
          </worldbody>
          <actuator><position joint="push" kp="400" dampratio="1" forcerange="-30 30"/></actuator>
        </mujoco>"""

    def _coordinates(self, particles: np.ndarray) -> np.ndarray:
        return particles.ravel()

    def _positions(self) -> np.ndarray:
        return self._data.qpos[:-1].reshape(-1, 2).copy()

    def _check_state(self, state: np.ndarray) -> None:
        super()._check_state(state)
        grains = state[:-2].reshape(-1, 2)
        away = np.hypot(*(grains[:, None] - grains).transpose(2, 0, 1)) + np.eye(GRAINS)
        if away.min() < RADIUS:
            raise ValueError(
                f"grains are {2 * RADIUS} m wide and cannot lie {away.min():.4f} m from each other."
            )

    def sample_state(self) -> np.ndarray:
        """A loose pile at a random place, at rest, float64 (130,)."""
        rng = self.np_random
        reach = rng.uniform(0.24, 0.32)
        middle = rng.uniform(reach + 0.04 - HALF, HALF - reach - 0.04, 2)
        grains: list[np.ndarray] = []
        while len(grains) < GRAINS:
            angle, away = rng.uniform(0, 2 * np.pi), reach * np.sqrt(rng.random())
            grain = middle + away * np.array([np.cos(angle), np.sin(angle)])
            if all(np.hypot(*(grain - other)) > 2 * RADIUS for other in grains):
                grains.append(grain)
        return self._settled(np.array(grains))

    def sample_goal(self) -> np.ndarray:
        """The pile as it lies, scaled to 0.6 to 0.9 and moved, grains apart and at rest, float64 (130,)."""
        rng, grains = self.np_random, self._state[:-2].reshape(-1, 2)
        middle = grains.mean(0)
        while True:
            goal = (grains - middle) * rng.uniform(0.6, 0.9) + middle + rng.uniform(-0.15, 0.15, 2)
            if np.abs(goal).max() < max(HALF - 0.05, np.abs(grains).max()):
                return self._settled(goal)

    def _default_look(self) -> _Look:
        self._table = None
        return _DEFAULT_LOOK

    def _random_look(self, rng: np.random.Generator) -> _Look:
        self._table = None
        table = random_texture(rng)
        grain = random_colour(rng, away_from=mean_colour(table))
        return _Look(table, random_colour(rng), grain, random_outline(rng), float(rng.uniform(0.8, 1.6)))

    def _cover(self, mask: np.ndarray, points: np.ndarray, scale: float) -> None:
        look, radius = self._look, RADIUS * self._look.scale * scale
        if look.outline is not None:
            for grain in points[:, None] + radius * look.outline:
                cv2.fillPoly(mask, [fixed_point(grain)], 255, cv2.LINE_8, SHIFT)
            return
        for x, y in fixed_point(points).tolist():
            cv2.circle(mask, (x, y), round(radius * (1 << SHIFT)), 255, -1, cv2.LINE_8, SHIFT)
