"""Meta-World's tasks: a Sawyer arm does one of fifty things on a table."""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from typing import Any

import numpy as np

from sparsewm.envs.benchmarks.parts import Part
from sparsewm.envs.benchmarks.physics import PhysicsEnv
from sparsewm.envs.benchmarks.several import SeveralTasks
from sparsewm.envs.physics import load, mujoco
from sparsewm.envs.simulated import SimulatedGoalEnv
from sparsewm.errors import UserError, needs_extra, suggest

_LOOKS = 18  # numbers that Meta-World observes at a time: hand, gripper, two objects with their turns
_RADIUS = 0.05  # m, Meta-World's own of a target
_LONGEST = 500  # steps of a task, Meta-World's own
_AFTER = 10  # steps the expert goes on after the goal, so that the picture shows it well within
_ATTEMPTS = 20  # tasks drawn until the expert solves one


MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
"""The ten tasks of Meta-World's MT10."""


def make(task: str, resolution: int = 112, render_mode: str = "rgb_array") -> SimulatedGoalEnv:
    """The environment `metaworld/TASK`, for example `metaworld/reach-v3`; `metaworld/mt10` is ten of them.

    Raises:
        UserError: no such task, or Meta-World is not installed.
    """
    if task == "mt10":
        one = partial(MetaWorldEnv, resolution=resolution, render_mode=render_mode)
        return SeveralTasks("metaworld/mt10", MT10, one, resolution, render_mode)
    return MetaWorldEnv(task, resolution, render_mode)


class MetaWorldEnv(PhysicsEnv):
    """A task of Meta-World (Yu et al., 2019; McLean et al., 2025), seen as LeRobot sees it.

    ## Action space
    `Box(-1, 1, (4,))`: displacement (x, y, z) of the hand, and how strongly the gripper closes.

    ## Observation space
    `pixels` uint8 (R, R, 3) from the camera corner2, moved near and turned upright as in LeRobot; `proprio`
    float32 (4,): position of the hand, m, and how far the gripper is open.

    ## State
    The random numbers of the task (where things and the target are), what Meta-World observed last, whether
    it counts as success, and MuJoCo's state.

    ## Success
    Meta-World's own where the goal solves the task, as those drawn with `reset` do; for another goal, hand
    and objects within 5 cm of where they are there.

    ## Start and goal
    A task as Meta-World draws it that its scripted expert solves, and the state ten steps after the expert
    has solved it.
    """

    action_low = (-1.0,) * 4
    action_high = (1.0,) * 4
    proprio_names = ("x", "y", "z", "open")
    proprio_low = (-np.inf,) * 4
    proprio_high = (np.inf,) * 4
    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012
    _viewpoint = "corner2"
    _hands = True
    _flipped = True
    _shadow = 256

    def __init__(self, task: str, resolution: int = 112, render_mode: str = "rgb_array") -> None:
        load()  # before Meta-World imports MuJoCo
        with needs_extra("Meta-World's environments", "metaworld"):
            tasks = importlib.import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS
            experts = importlib.import_module("metaworld.policies").ENV_POLICY_MAP
        if task not in tasks:
            raise UserError(
                f"Meta-World has no task '{task}'.{suggest(task, [*tasks, 'mt10'])} Known: mt10, "
                f"{', '.join(tasks)}"
            )
        self.name = f"metaworld/{task}"
        self.instruction = task.rpartition("-")[0].replace("-", " ")
        self._expert: Any = experts[task]()
        self._raw = tasks[task]()
        self._raw._set_task_called = self._raw.seeded_rand_vec = True
        self._raw._partially_observable = False
        self._model, self._data = self._raw.model, self._raw.data
        self._model.cam_pos[self._model.camera("corner2").id] = (0.75, 0.075, 0.7)
        self._count = self._raw._random_reset_space.low.size
        self._drawn: tuple[np.ndarray, np.ndarray] | None = None  # start and goal
        self._begin(self._random_numbers(np.random.default_rng(0)))
        seen = tuple(f"seen_{i}" for i in range(_LOOKS))
        self._describe((*(f"random_{i}" for i in range(self._count)), *seen, "solved"))
        first, size = self._count, self._raw._get_pos_objects().size
        self._parts = [
            Part(name, tuple(range(first + at, first + at + 3)), _RADIUS)
            for name, at in (("hand", 0), ("object", 4), ("second_object", 11))
            if at < 4 + 7 * (size // 3)
        ]
        super().__init__(resolution, render_mode)

    # Physics ----------------------------------------------------------------------------------------------

    def _extra(self) -> np.ndarray:
        return np.concatenate([self._raw._last_rand_vec, self._seen, [float(self._solved)]])

    def _fits(self, extra: np.ndarray) -> bool:
        return np.array_equal(extra[: self._count], self._raw._last_rand_vec)

    def _prepare(self, extra: np.ndarray) -> None:
        self._begin(extra[: self._count])

    def _random_numbers(self, rng: np.random.Generator) -> np.ndarray:
        """Those of another task, as Meta-World draws them."""
        self._raw._freeze_rand_vec, self._raw.np_random = False, rng
        self._raw.reset()
        numbers: np.ndarray = self._raw._last_rand_vec
        return numbers

    def _begin(self, numbers: np.ndarray) -> None:
        """Begin the task of these random numbers."""
        raw = self._raw
        raw._freeze_rand_vec, raw._last_rand_vec = True, np.array(numbers, np.float64)
        raw.reset()
        mujoco.mj_forward(self._model, self._data)  # it observes where things were before
        raw._prev_obs = raw._get_curr_obs_combined_no_goal()
        observation = raw._get_obs()
        self._seen = observation[:_LOOKS].copy()
        _, info = raw.evaluate_state(observation, np.zeros(4, np.float32))
        self._solved = bool(info["success"])

    def _restore(self, extra: np.ndarray) -> None:
        self._seen, self._solved = extra[self._count : -1].copy(), bool(extra[-1] > 0.5)

    def _advance(self, action: np.ndarray) -> None:
        self._raw.curr_path_length = 0  # Meta-World counts steps and refuses the 501st
        observation, _, _, _, info = self._raw.step(action)
        self._seen, self._solved = observation[:_LOOKS].copy(), bool(info["success"])

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        return np.array(state[self._count : self._count + 4], np.float32)

    def shown_state(self, states: np.ndarray) -> dict[str, np.ndarray]:
        """Places of the hand and of the objects, m, as Meta-World observes them."""
        return {
            f"{part.name}_{axis}": states[:, column]
            for part in self._parts
            for axis, column in zip("xyz", part.columns, strict=True)
        }

    # Goals ------------------------------------------------------------------------------------------------

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        solved = self._first - 1
        return bool(state[solved] > 0.5) if goal[solved] > 0.5 else super().is_success(state, goal)

    def sample_state(self) -> np.ndarray:
        before = self._read_state()
        for _ in range(_ATTEMPTS):
            self._begin(self._random_numbers(self.np_random))
            start = self._read_state()
            if (goal := self._solution()) is not None:
                break
        else:
            raise ValueError(f"the expert solves none of {_ATTEMPTS} tasks drawn for {self.name}.")
        self._drawn = start, goal
        self._write_state(before)
        return start

    def sample_goal(self) -> np.ndarray:
        """Where the expert has solved the present task; of a task of its own where it does not."""
        state = self._read_state()
        if self._drawn is None or not np.array_equal(self._drawn[0], state):
            goal = self._solution()
            self._write_state(state)
            if goal is not None:
                return goal
            self.sample_state()
        assert self._drawn is not None
        return self._drawn[1]

    def _solution(self) -> np.ndarray | None:
        """The state (D,) in which the expert has solved the present task; None where it does not."""
        for _ in range(_LONGEST):
            self._advance(self.expert_action(self._seen))
            if self._solved:
                break
        else:
            return None
        solved = self._read_state()
        for _ in range(_AFTER):
            self._advance(self.expert_action(self._seen))
        return self._read_state() if self._solved else solved

    # Scripted data ----------------------------------------------------------------------------------------

    def expert_action(self, seen: np.ndarray) -> np.ndarray:
        """What Meta-World's scripted policy does where it observes these (18,) in the present task."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says at every step that its actions are clipped
            action = self._expert.get_action(np.concatenate([seen, seen, self._raw._target_pos]))
        return np.clip(action, -1, 1)

    def scripted(self, rng: np.random.Generator) -> ScriptedExpert:
        """Meta-World's expert with noise."""
        return ScriptedExpert(self, rng, 0.5)

    def expert(self, goal: np.ndarray, rng: np.random.Generator) -> ScriptedExpert:
        """Meta-World's expert with a little noise."""
        return ScriptedExpert(self, rng, 0.1)


class ScriptedExpert:
    """Meta-World's scripted policy with Gaussian noise, of a deviation drawn for each episode.

    Args:
        noise: the largest deviation, of an action.
    """

    def __init__(self, env: MetaWorldEnv, rng: np.random.Generator, noise: float) -> None:
        self._env, self._rng, self._noise = env, rng, noise

    def reset(self, state: np.ndarray) -> None:
        self._deviation = self._rng.uniform(0, self._noise)

    def act(self, state: np.ndarray) -> np.ndarray:
        env = self._env
        if not env._fits(state):
            env.set_state(state)
        action = env.expert_action(state[env._count : env._first - 1])
        return np.clip(action + self._rng.normal(0, self._deviation, 4), -1, 1).astype(np.float32)
