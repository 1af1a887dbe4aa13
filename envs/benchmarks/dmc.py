"""dm_control's Reacher, with goals as stable-worldmodel gives them: a pose of the arm."""

from __future__ import annotations

import numpy as np

from sparsewm.envs.benchmarks.parts import Part
from sparsewm.envs.benchmarks.physics import PhysicsEnv
from sparsewm.envs.physics import mujoco
from sparsewm.errors import UserError, needs_extra

REPEAT = 2  # control steps of an environment step, as in stable-worldmodel


def make(task: str, resolution: int = 112, render_mode: str = "rgb_array") -> ReacherEnv:
    """The environment `dmc/reacher`.

    Raises:
        UserError: another task, or dm_control is not installed.
    """
    if task != "reacher":
        raise UserError(f"of dm_control's tasks only dmc/reacher is known here, not '{task}'")
    return ReacherEnv(resolution, render_mode)


class ReacherEnv(PhysicsEnv):
    """dm_control's Reacher: an arm of two links in the plane, seen from above.

    ## Action space
    `Box(-1, 1, (2,))`: torques of shoulder and wrist, held for two control steps of 0.02 s.

    ## Observation space
    `pixels` uint8 (R, R, 3) without the target; `proprio` float32 (6,): cosine and sine of both angles, and
    their velocities, rad/s.

    ## State
    MuJoCo's: angles, velocities, warm start, torques.

    ## Success
    Both angles less than 0.05 rad from the goal's (stable-worldmodel's `qpos_match`; ours does not tell whole
    turns of the shoulder apart, which no picture shows). How fast the arm moves does not matter.

    ## Start and goal
    Angles at random, as dm_control draws them, at rest.
    """

    name = "dmc/reacher"
    proprio_names = (
        "cos_shoulder",
        "sin_shoulder",
        "cos_wrist",
        "sin_wrist",
        "shoulder_speed",
        "wrist_speed",
    )
    proprio_low = (-1.0,) * 4 + (-np.inf,) * 2
    proprio_high = (1.0,) * 4 + (np.inf,) * 2
    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    _viewpoint = 0

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array") -> None:
        with needs_extra("dm_control's environments", "dmc"):
            from dm_control.suite import reacher
        # its own Physics asks MuJoCo 4 for what is no longer there; the model alone needs nothing of it
        self._model = mujoco.MjModel.from_xml_string(*reacher.get_model_and_assets())
        self._data = mujoco.MjData(self._model)
        self._model.mat("target").rgba[3] = 0.0
        self._describe(())
        self._parts = [Part(name, self._joint(name), 0.05, angle=True) for name in ("shoulder", "wrist")]
        super().__init__(resolution, render_mode)

    def _extra(self) -> np.ndarray:
        return np.empty(0)

    def _advance(self, action: np.ndarray) -> None:
        self._data.ctrl[:] = action
        mujoco.mj_step(self._model, self._data, REPEAT)

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        cosine, sine = np.cos(state[:2]), np.sin(state[:2])
        return np.array([cosine[0], sine[0], cosine[1], sine[1], *state[2:4]], np.float32)

    def sample_state(self) -> np.ndarray:
        state = np.zeros(self.state_dim)
        low, high = self._model.jnt_range[1]
        state[:2] = self.np_random.uniform((-np.pi, low), (np.pi, high))
        return state

    def sample_goal(self) -> np.ndarray:
        return self.sample_state()

    def scripted(self, rng: np.random.Generator) -> RandomTorques:
        """Uniformly random torques at every step, as in stable-worldmodel's data."""
        return RandomTorques(rng)


class RandomTorques:
    """Uniformly random actions, a new one at every step."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def reset(self, state: np.ndarray) -> None:
        """Every action is drawn afresh."""

    def act(self, state: np.ndarray) -> np.ndarray:
        return self._rng.uniform(-1, 1, 2).astype(np.float32)
