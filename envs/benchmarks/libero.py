"""LIBERO's tasks: a Panda arm does on a table, in a kitchen or at a desk what a sentence says."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from functools import partial
from typing import Any

import numpy as np

from sparsewm.envs.benchmarks.parts import Part
from sparsewm.envs.benchmarks.physics import PhysicsEnv
from sparsewm.envs.benchmarks.several import SeveralTasks
from sparsewm.envs.physics import load, mujoco
from sparsewm.envs.policies import HeldActions
from sparsewm.envs.simulated import SimulatedGoalEnv
from sparsewm.errors import UserError, needs_extra, suggest

SUITES = ("spatial", "object", "goal", "10", "90")
"""LIBERO's own; those of LIBERO-PRO are known by the names they have there."""

_RADIUS = 0.05  # m, and rad
_WAIT = 10  # steps of rest before an episode begins, as LIBERO's evaluations have them
_SETTLING = 30  # steps until what was put in place rests
_DROPS = (0.02, 0.05, 0.1, 0.2)  # m above its place, from which a thing is let go
_ASIDE = 0.07  # m between two things put in one place
_HAND, _TURN, _GRIP = 7, 9, 2  # numbers of the hand's pose, of the controller's turn, of the grip's command
_OPEN = np.array([0.0] * 6 + [-1.0])


def make(task: str, resolution: int = 112, render_mode: str = "rgb_array") -> SimulatedGoalEnv:
    """The environment `libero/SUITE/N`, for example `libero/spatial/0`; `libero/SUITE` is all of its tasks.

    Raises:
        UserError: no such task, or LIBERO is not installed.
    """
    if "/" in task:
        return LiberoEnv(task, resolution, render_mode)
    one = partial(LiberoEnv, resolution=resolution, render_mode=render_mode)
    tasks = [f"{task}/{number}" for number in range(_suite(task).get_num_tasks())]
    return SeveralTasks(f"libero/{task}", tasks, one, resolution, render_mode)


def _suite(name: str) -> Any:
    """The tasks of a suite, by LIBERO's name or the short one.

    Raises:
        UserError: no such suite, or LIBERO is not installed.
    """
    load()  # before robosuite imports MuJoCo
    with needs_extra("LIBERO's environments", "libero"), _quiet():
        suites = importlib.import_module("libero.libero.benchmark").get_benchmark_dict()
    suite = name if name in suites else f"libero_{name}"
    if suite not in suites:
        near = suggest(name, [*SUITES, *suites])
        raise UserError(f"LIBERO has no suite '{name}'.{near} Its own: {', '.join(SUITES)}")
    with _quiet():
        return suites[suite]()


class LiberoEnv(PhysicsEnv):
    """A task of LIBERO (Liu et al., 2023) or LIBERO-PRO, as its policies of LeRobot see it.

    ## Action space
    `Box(-1, 1, (7,))`: displacement (x, y, z) and turn of the hand, and whether the gripper closes.

    ## Observation space
    `pixels` uint8 (R, R, 3) from the camera agentview, mirrored as in LeRobot; `proprio` float32 (8,): the
    hand's position, m, its turn as an axis times an angle, rad, and the places of both fingers, m.

    ## State
    The hand's pose, the turn that the controller holds, the grip's command, what glows, whether the task is
    solved, and MuJoCo's state.

    ## Success
    LIBERO's own where the goal solves the task, as those of `reset` do; for another goal, hand and things
    within 5 cm, and doors, drawers and knobs within 0.05 (rad or m), of where they are there.

    ## Start and goal
    One of LIBERO's 50 initial states of the task, ten steps of rest later. There are no demonstrations: the
    goal is that state with what the task names put in its place from above, the arm where it was.

    Attributes:
        instruction: what the task says.
    """

    action_low = (-1.0,) * 7
    action_high = (1.0,) * 7
    proprio_names = ("x", "y", "z", "turn_x", "turn_y", "turn_z", "left_finger", "right_finger")
    proprio_low = (-np.inf,) * 8
    proprio_high = (np.inf,) * 8
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    _viewpoint = "agentview"

    def __init__(self, task: str, resolution: int = 112, render_mode: str = "rgb_array") -> None:
        name, _, number = task.partition("/")
        tasks = _suite(name)
        with _quiet():
            wrapper = importlib.import_module("libero.libero.envs.env_wrapper")
            self._turns: Any = importlib.import_module("robosuite.utils.transform_utils")
        self.name = f"libero/{task}"
        before = np.random.get_state()  # noqa: NPY002  (LIBERO draws from NumPy's own)
        np.random.seed(0)  # noqa: NPY002
        try:
            with _quiet():
                count = tasks.get_num_tasks()
                if not (number.isdecimal() and int(number) < count):
                    raise UserError(f"the tasks of LIBERO's {name} are {name}/0 to {name}/{count - 1}")
                self._starts = tasks.get_task_init_states(int(number))
                path = tasks.get_task_bddl_file_path(int(number))
                options = {"has_offscreen_renderer": False, "use_camera_obs": False, "ignore_done": True}
                self._raw = wrapper.ControlEnv(path, hard_reset=False, **options).env
        except FileNotFoundError as error:
            raise UserError(f"{self.name} lacks initial states ({error}): take another task") from None
        finally:
            np.random.set_state(before)  # noqa: NPY002
        self._raw.visualize(dict.fromkeys(self._raw._visualizations, False))  # as its `reset` does
        self.instruction = str(tasks.get_task(int(number)).language)
        self._model, self._data = self._raw.sim.model._model, self._raw.sim.data._data
        self._robot = self._raw.robots[0]
        self._eye, self._palm = self._robot.eef_site_id, self._robot.robot_model.eef_name
        self._fingers = [int(self._model.joint(one).qposadr[0]) for one in self._robot.gripper.joints]
        shown = [self._raw.get_object(one) for one in getattr(self._raw, "visualization_sites_list", ())]
        sites = [site for one in shown for site, _ in one.object_properties["vis_site_names"].values()]
        self._glowing = [self._model.site(site).id for site in sites]
        self._scene_option = mujoco.MjvOption()
        self._scene_option.geomgroup[0] = 0  # shapes of collisions
        self._watch()
        extra = [f"hand_{i}" for i in range(_HAND)] + [f"turn_{i}" for i in range(_TURN)]
        extra += [f"grip_{i}" for i in range(_GRIP)] + [f"glow_{i}" for i in range(len(sites))]
        self._describe((*extra, "solved"))
        things = self._raw.objects_dict
        self._parts = [Part("hand", (0, 1, 2), _RADIUS)]
        self._parts += [Part(one, self._joint(things[one].joints[-1], 3), _RADIUS) for one in things]
        for fixture in self._raw.fixtures_dict.values():
            self._parts += [Part(joint, self._joint(joint), _RADIUS) for joint in fixture.joints]
        super().__init__(resolution, render_mode)

    # Physics ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Note where the hand is and whether the task is solved."""
        palm = self._data.body(self._palm).xquat[[1, 2, 3, 0]]
        self._hand = np.concatenate([self._data.site_xpos[self._eye], palm])
        self._solved = bool(self._raw._check_success())

    def _extra(self) -> np.ndarray:
        grip = np.broadcast_to(self._robot.gripper.current_action, _GRIP)
        turn = np.ravel(self._robot.controller.goal_ori)
        return np.concatenate([self._hand, turn, grip, self._glow(), [float(self._solved)]])

    def _glow(self) -> np.ndarray:
        """What glows, (G,) 0 or 1."""
        return (self._model.site_rgba[self._glowing, 3] > 0).astype(np.float64)

    def _fits(self, extra: np.ndarray) -> bool:
        return np.array_equal(extra[_HAND + _TURN + _GRIP : -1], self._glow())

    def _prepare(self, extra: np.ndarray) -> None:
        self._model.site_rgba[self._glowing, 3] = extra[_HAND + _TURN + _GRIP : -1]

    def _restore(self, extra: np.ndarray) -> None:
        hand, turn, grip, _ = np.split(extra, np.cumsum([_HAND, _TURN, _GRIP]))
        self._hand, self._solved = hand.copy(), bool(extra[-1] > 0.5)
        self._robot.controller.goal_ori = turn.reshape(3, 3).copy()
        self._robot.controller.new_update = True  # else it goes on with what it saw last
        self._robot.gripper.current_action = grip.copy()

    def _advance(self, action: np.ndarray) -> None:
        self._raw.step(action)
        self._watch()

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        fingers = state[[self._first + place for place in self._fingers]]
        turn = self._turns.quat2axisangle(state[3:_HAND].copy())
        return np.concatenate([state[:3], turn, fingers]).astype(np.float32)

    def _draw(self, state: np.ndarray, resolution: int) -> np.ndarray:
        return np.ascontiguousarray(super()._draw(state, resolution)[:, ::-1])

    # Goals ------------------------------------------------------------------------------------------------

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        solved = self._first - 1
        return bool(state[solved] > 0.5) if goal[solved] > 0.5 else super().is_success(state, goal)

    def sample_state(self) -> np.ndarray:
        before = self._read_state()
        start = self._starts[int(self.np_random.integers(len(self._starts)))]
        data, sizes = self._data, (self._model.nq, self._model.nv)
        mujoco.mj_resetData(self._model, data)
        _, data.qpos[:], data.qvel[:] = np.split(start, np.cumsum([1, sizes[0]]))
        mujoco.mj_forward(self._model, data)
        self._robot.controller.update(force=True)
        self._robot.controller.reset_goal()
        self._robot.gripper.current_action = np.zeros(_GRIP)
        for _ in range(_WAIT):
            self._advance(_OPEN)
        state = self._read_state()
        self._write_state(before)
        return state

    def sample_goal(self) -> np.ndarray:
        """The present state with what the task names put in its place.

        Raises:
            ValueError: it does not stay there.
        """
        start = self._read_state()
        for drop in _DROPS:
            self._put(drop)
            for _ in range(_SETTLING):
                self._advance(_OPEN)
            goal = self._read_state()
            self._write_state(start)
            if goal[self._first - 1] > 0.5:
                return goal
        raise ValueError(
            f"what {self.name} asks for does not stay where it is put: give a goal by options, or goals "
            "from a trajectory."
        )

    def _put(self, drop: float) -> None:
        """Open, close and turn what the task names, and let things go this far above their places."""
        raw, data = self._raw, self._data
        goals = raw.parsed_problem["goal_state"]
        for word, *things in goals:
            if word in ("open", "close", "turnon", "turnoff"):
                ranges = raw.get_object(things[0]).object_properties["articulation"][f"default_{word}_ranges"]
                raw.object_states_dict[things[0]].set_joint(float(np.mean(ranges)))
        mujoco.mj_forward(self._model, data)  # a drawer takes the place in it along
        places = [things[1] for _, *things in goals if len(things) == 2]
        counts: dict[str, int] = {}
        for word, *things in goals:
            if len(things) == 2 and word in ("on", "in"):
                thing, place = things
                where = np.array(raw.object_states_dict[place].get_geom_state()["pos"])
                if places.count(place) > 1:
                    where[0] += _ASIDE * (counts.get(place, 0) - (places.count(place) - 1) / 2)
                    counts[place] = counts.get(place, 0) + 1
                joint = data.joint(raw.get_object(thing).joints[-1])
                joint.qpos[:3], joint.qvel[:] = where + np.array([0, 0, drop]), 0
                mujoco.mj_forward(self._model, data)

    # Data -------------------------------------------------------------------------------------------------

    def scripted(self, rng: np.random.Generator) -> HeldActions:
        """Noise: Gaussian actions, each held for one to three model steps. There are no demonstrations."""
        return HeldActions(_Rest(), rng, self.frameskip, 7, share=0.9)


class _Rest:
    """Does nothing."""

    def reset(self, state: np.ndarray) -> None:
        """There is nothing to begin."""

    def act(self, state: np.ndarray) -> np.ndarray:
        return np.zeros(7, np.float32)


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what LIBERO and robosuite print when they are imported and made."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
