"""stable-worldmodel's TwoRoom, and the names of its other two benchmarks that are somebody else's."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from sparsewm.envs.appearance import Colour, mean_colour
from sparsewm.envs.benchmarks.parts import Part, PartedEnv
from sparsewm.envs.looks import Look, Scenery
from sparsewm.errors import UserError, needs_extra, suggest

TASKS = ("tworoom", "cube", "reacher")  # the last is another name of dm_control's (`envs.canonical`)


def make(task: str, resolution: int = 112, render_mode: str = "rgb_array") -> PartedEnv:
    """The environment `swm/tworoom`; `swm/cube` is OGBench's with an opaque arm.

    Raises:
        UserError: another task, or what it needs is not installed.
    """
    if task == "cube":
        from sparsewm.envs.benchmarks.ogbench import OGBenchEnv

        return OGBenchEnv("cube-single", resolution, render_mode, opaque=True)
    if task != "tworoom":
        raise UserError(
            f"of stable-worldmodel there is no '{task}'.{suggest(task, TASKS)} Known: {', '.join(TASKS)}"
        )
    return TwoRoomEnv(resolution, render_mode)


class TwoRoomEnv(PartedEnv):
    """stable-worldmodel's TwoRoom: a disc in two rooms with a door between them; 224 px wide.

    ## Action space
    `Box(-1, 1, (2,))`: displacement (x, y) in units of 5 px.

    ## Observation space
    `pixels` uint8 (R, R, 3), drawn at 224 px and scaled down; `proprio` float32 (2,): x and y, px.

    ## State
    float64 (2,): x and y of the disc, px.

    ## Success
    Nearer than 16 px to the goal.

    ## Start and goal
    Uniform over both rooms.
    """

    name = "swm/tworoom"
    state_names = ("x", "y")
    proprio_names = ("x", "y")
    proprio_low = (0.0, 0.0)
    proprio_high = (224.0, 224.0)
    _scenery = Scenery(("background",), ("agent",))

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array") -> None:
        with needs_extra("stable-worldmodel's environments", "tworoom"):
            from stable_worldmodel.envs.two_room.env import TwoRoomEnv as Theirs
        self._raw = Theirs()
        self._raw.reset(seed=0)
        self._parts = [Part("position", (0, 1), math.nextafter(16.0, 0.0))]
        super().__init__(resolution, render_mode)

    def _read_state(self) -> np.ndarray:
        return self._raw.agent_position.numpy().astype(np.float64)

    def _write_state(self, state: np.ndarray) -> None:
        self._raw._set_state(state)

    def _advance(self, action: np.ndarray) -> None:
        self._raw.step(action)

    def _valid_state(self, state: np.ndarray) -> np.ndarray:
        return super()._valid_state(state).astype(np.float32).astype(np.float64)  # as it is simulated

    def _draw(self, state: np.ndarray, resolution: int) -> np.ndarray:
        before = self._read_state()
        self._write_state(state)
        picture: np.ndarray = self._raw.render()
        self._write_state(before)
        if len(picture) == resolution:
            return np.ascontiguousarray(picture)
        kind = cv2.INTER_AREA if resolution < len(picture) else cv2.INTER_LINEAR
        return cv2.resize(picture, (resolution, resolution), interpolation=kind)

    def _check_state(self, state: np.ndarray) -> None:
        if not 0 <= state.min() <= state.max() <= 224:
            raise ValueError(f"a {self.name} state is from 0 to 224 px; got {state.tolist()}.")

    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        return np.array(state, np.float32)

    def sample_state(self) -> np.ndarray:
        low, high = self._raw.BORDER_SIZE, self._raw.IMG_SIZE - self._raw.BORDER_SIZE - 1
        while True:
            state = self.np_random.uniform(low, high, 2).astype(np.float32)
            if self._raw._constrain_agent_not_in_wall(state):
                return state.astype(np.float64)

    def sample_goal(self) -> np.ndarray:
        return self.sample_state()

    def _default_look(self) -> dict[str, np.ndarray]:
        return self._repaint({})

    def _random_look(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return self._repaint({name: rng.integers(0, 256, 3) for name in _PAINTED})

    def _changed(self, look: Look, rng: np.random.Generator) -> dict[str, np.ndarray]:
        colours = dict(self._look)
        for name in getattr(self._scenery, look.kind):
            own = np.array(self._raw.variation_space[name]["color"].init_value)
            colours[name] = look.colour(own, rng)
        return self._repaint(colours)

    def _background_colour(self) -> Colour:
        own = self._raw.variation_space["background"]["color"].init_value
        return mean_colour(np.array(self._look.get("background", own)))

    def _repaint(self, colours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Give the parts these colours, the others their own."""
        for name in _PAINTED:
            paint = self._raw.variation_space[name]["color"]
            paint.set_value(np.array(colours.get(name, paint.init_value), np.uint8))
        return colours

    def scripted(self, rng: np.random.Generator) -> NoisyExpert:
        """stable-worldmodel's expert on its way to random targets, as it collects its data."""
        return NoisyExpert(self, rng)


_PAINTED = ("background", "wall", "door", "agent")


class NoisyExpert:
    """stable-worldmodel's `ExpertPolicy` with the noise of its data; at a target it gets another one.

    Its script also asks for repeated actions, of which its version 0.1.1 makes none.
    """

    NOISE = 2.0

    def __init__(self, env: TwoRoomEnv, rng: np.random.Generator) -> None:
        from stable_worldmodel.envs.two_room.expert_policy import ExpertPolicy

        self._env, self._rng = env, rng
        self._policy: Any = ExpertPolicy(action_noise=self.NOISE)
        self._policy.set_env(env._raw)
        self._policy.rng = rng

    def reset(self, state: np.ndarray) -> None:
        self._target = self._draw_target()

    def act(self, state: np.ndarray) -> np.ndarray:
        if self._env.is_success(state, self._target):
            self._target = self._draw_target()
        action = self._policy.get_action({"state": state, "goal_state": self._target})
        return np.asarray(action, np.float32)

    def _draw_target(self) -> np.ndarray:
        before, self._env.np_random = self._env.np_random, self._rng
        target = self._env.sample_state()
        self._env.np_random = before
        return target
