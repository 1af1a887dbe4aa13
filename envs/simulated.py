"""What the environments of this package offer: a simulator that can be set, drawn and run ahead."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sparsewm.bodies import shown_numbers
from sparsewm.envs.appearance import Camera, Colour, mean_colour
from sparsewm.envs.base import GoalEnv, Observation
from sparsewm.envs.looks import GREY, KINDS, OF_SCENE, Look, Scenery
from sparsewm.errors import UserError

_ATTEMPTS = 100  # starts or goals drawn until the start is no success


class SimulatedGoalEnv(GoalEnv):
    """A `GoalEnv` whose state can be read, set, drawn and simulated ahead, and whose goal is a state.

    Observations are `{"pixels": uint8 (R, R, 3), "proprio": float32 (P,)}`; actions are a finite `Box` (A,).
    The reward is 1.0 in states that count as success and 0.0 elsewhere. Episodes never end by themselves: a
    closed loop stops at success or when its steps are spent (`gymnasium.make` adds a time limit,
    `envs.max_episode_steps`). `info` holds `state`, `goal`, `is_success` and `distance`.
    The state is Markov: after `set_state(s)` an environment does bit for bit what any in state `s` does.

    A subclass gives the class attributes below, the action space as `action_low` and `action_high`, and the
    abstract methods; `_look` is whatever its `_draw` needs to know about colours and shapes. It may have
    scripted policies of its own, made by `scripted(rng)` for recordings and by `expert(goal, rng)`
    (`sparsewm.envs.policies.ExplorationPolicy`).

    Arguments:
        resolution: side of the square observation in pixels, 16 to 2048.
        render_mode: only "rgb_array" (`render()` returns the same picture as the observation).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    state_names: tuple[str, ...]
    angle_symmetry: ClassVar[int] = 1  # how many angles of a body look the same: of a square, 4
    state_dim: int  # D, counted from the names
    proprio_dim: int  # P, likewise
    proprio_low: tuple[float, ...]  # bounds of the observation space
    proprio_high: tuple[float, ...]
    _geometry: ClassVar[tuple[str, ...]] = ()  # fields of the look that are shapes, not colours
    _scenery = Scenery()  # fields of the look
    action_low: tuple[float, ...] = (-1.0, -1.0)
    action_high: tuple[float, ...] = (1.0, 1.0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.state_dim = len(getattr(cls, "state_names", ()))  # a base class of several has none
        cls.proprio_dim = len(getattr(cls, "proprio_names", ()))

    def __init__(self, resolution: int = 112, render_mode: str = "rgb_array"):
        if isinstance(resolution, bool) or int(resolution) != resolution or not 16 <= resolution <= 2048:
            raise ValueError(f"resolution must be a whole number from 16 to 2048 (px), not {resolution!r}.")
        if render_mode != "rgb_array":
            raise ValueError(f'render_mode must be "rgb_array", not {render_mode!r}.')
        self.resolution = int(resolution)
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(  # type: ignore[assignment]  # gymnasium types it too narrowly
            {
                "pixels": spaces.Box(0, 255, (self.resolution, self.resolution, 3), np.uint8),
                "proprio": spaces.Box(
                    np.array(self.proprio_low, np.float32), np.array(self.proprio_high, np.float32)
                ),
            }
        )
        self.action_space = spaces.Box(
            np.array(self.action_low, np.float32), np.array(self.action_high, np.float32)
        )
        self.goal: np.ndarray = np.zeros(self.state_dim)
        self._camera: Camera | None = None
        self._looks: tuple[Look, ...] = ()
        self._look_seed = 0
        self._behind = GREY
        self._look: Any = self._default_look()

    # What a subclass writes -------------------------------------------------------------------------------

    @abstractmethod
    def _read_state(self) -> np.ndarray:
        """State (D,) of the simulation."""

    @abstractmethod
    def _write_state(self, state: np.ndarray) -> None:
        """Put the simulation into a checked state (D,)."""

    @abstractmethod
    def _advance(self, action: np.ndarray) -> None:
        """One environment step with an action float64 (A,) inside the action space."""

    @abstractmethod
    def _draw(self, state: np.ndarray, resolution: int) -> np.ndarray:
        """Picture uint8 (resolution, resolution, 3) of a state in the present look, before the camera."""

    @abstractmethod
    def _default_look(self) -> Any:
        """Colours and shapes of the environment as it is."""

    @abstractmethod
    def _random_look(self, rng: np.random.Generator) -> Any:
        """Random colours, textures and shapes."""

    @abstractmethod
    def sample_state(self) -> np.ndarray:
        """A valid random state float64 (D,), drawn from `self.np_random`."""

    @abstractmethod
    def sample_goal(self) -> np.ndarray:
        """A valid random goal state float64 (D,) from `self.np_random`; may depend on the present state."""

    @abstractmethod
    def proprio_of(self, state: np.ndarray) -> np.ndarray:
        """Proprioception float32 (P,) in a state (D,), raw units."""

    @abstractmethod
    def distance(self, state: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        """How far a state (D,) is from a goal (D,), by name, in the units of the state."""

    @abstractmethod
    def shortfall(self, states: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Distance float64 (K,) of states (K, D) to a goal (D,), in units of the success thresholds.

        What has to be left alone for a while to reach the goal may weigh less, as the disc in PushT.

        It is what a planner with the true simulator (the oracle) minimises.
        """

    @abstractmethod
    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        """Whether a state (D,) counts as having reached a goal (D,)."""

    def shown_state(self, states: np.ndarray) -> dict[str, np.ndarray]:
        """What a picture shows of states (N, D): numbers (N,) by name, places and angles (`sparsewm.bodies`).

        Policies that read the state are told these. Usually all numbers of the state but velocities.
        """
        return shown_numbers(self.state_names, states)

    def task_of(self, state: np.ndarray) -> str | None:
        """The name of the task that a state (D,) is of, where an environment has several; None elsewhere."""
        return None

    def instruction_of(self, state: np.ndarray) -> str | None:
        """What the task of a state (D,) says in words; None where nothing is said."""
        return self.instruction

    def is_strict_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        """Whether a state (D,) has reached a goal (D,) by strict thresholds; the usual ones by default."""
        return self.is_success(state, goal)

    def _check_state(self, state: np.ndarray) -> None:
        """Raise ValueError where a finite state (D,) is impossible. By default all are possible."""

    # What a user calls ------------------------------------------------------------------------------------

    @property
    def state(self) -> np.ndarray:
        """The present state, float64 (D,); a copy."""
        return np.array(self._read_state(), dtype=np.float64)

    def set_state(self, state: np.ndarray) -> None:
        """Put the environment into `state` (D,) exactly. Raises ValueError on a wrong shape or NaN."""
        self._write_state(self._valid_state(state))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. `options` may give the start `state` (D,) and the `goal` state (D,).

        A start or goal that is drawn is drawn again where the start would count as success already.
        """
        super().reset(seed=seed)
        if self._looks:
            self.dress(self._looks, int(self.np_random.integers(2**31)) if seed is None else seed)
        options = options or {}
        unknown = sorted(set(options) - {"state", "goal"})
        if unknown:
            raise ValueError(f"reset options are 'state' and 'goal', not {', '.join(map(repr, unknown))}.")
        state, goal = options.get("state"), options.get("goal")
        self.set_state(self.sample_state() if state is None else state)
        self.goal = self._valid_state(self.sample_goal() if goal is None else goal)
        if state is None or goal is None:
            self._part(draw_state=goal is not None)
        return self._observe(), self._info()

    def goal_observation(self) -> Observation:
        """The observation one would have in the goal state."""
        return self.render_state(self.goal)

    def advance(self, action: np.ndarray) -> dict[str, Any]:
        """A `step` without its picture, which takes longest where software draws: only its `info`."""
        self._advance(self._valid_actions(action, 1))
        return self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One environment step. The action (A,) is clipped to the action space; NaN raises ValueError."""
        info = self.advance(action)
        return self._observe(), float(info["is_success"]), False, False, info

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The present picture, uint8 (R, R, 3)."""
        return self._picture(self._read_state(), self.resolution)

    def render_state(self, state: np.ndarray, resolution: int | None = None) -> Observation:
        """The observation one would have in `state` (D,); the simulation stays as it is."""
        state = self._valid_state(state)
        return {
            "pixels": self._picture(state, self.resolution if resolution is None else int(resolution)),
            "proprio": self.proprio_of(state),
        }

    def render_states(self, states: np.ndarray, resolution: int | None = None) -> np.ndarray:
        """Pictures uint8 (K, R, R, 3) of states (K, D); the simulation stays as it is."""
        side = self.resolution if resolution is None else int(resolution)
        pictures = np.empty((len(states), side, side, 3), np.uint8)
        for picture, state in zip(pictures, states, strict=True):
            picture[:] = self._picture(self._valid_state(state), side)
        return pictures

    def rollout_states(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """States float64 (S, T+1, D) that S action sequences (S, T, A) lead to from `state` (D,).

        Physics only, no pictures; the environment stays as it is. Actions are clipped to the action space.
        """
        state = self._valid_state(state)
        actions = self._valid_actions(actions, 3)
        before = self.state
        states = np.empty((actions.shape[0], actions.shape[1] + 1, self.state_dim))
        states[:, 0] = state
        for trajectory, sequence in zip(states, actions, strict=True):
            self._write_state(state)
            for t, action in enumerate(sequence):
                self._advance(action)
                trajectory[t + 1] = self._read_state()
        self._write_state(before)
        return states

    def randomize_appearance(self, rng: np.random.Generator | None, keep_geometry: bool = False) -> None:
        """Draw a random look (colours, textures, shapes, camera), or with None restore the default one.

        With `keep_geometry`, shapes and the camera's position stay and only colours and textures change: two
        looks of one geometry share nothing but where things are. Physics and states are unaffected: this
        is for pretraining encoders on varied pictures.
        """
        if rng is None:
            self._look, self._camera = self._default_look(), None
            return
        look, camera = self._random_look(rng), Camera.random(rng)
        if keep_geometry:
            look = self._same_geometry(look, self._look)
            camera = replace(self._camera or Camera.still(), tone=camera.tone, border=camera.border)
        self._look, self._camera = look, camera

    def dress(self, looks: Sequence[Look], seed: int = 0) -> None:
        """Show other looks; none: the usual one again. Physics and states are unaffected.

        Args:
            looks: all at once; from now on every `reset` draws their colours and places anew by its seed.
            seed: that draws them now.

        Raises:
            UserError: nothing of that kind is in its pictures.
        """
        for look in looks:
            if look.kind not in self.looks:
                raise UserError(
                    f"{self.name} has no {look.kind} of its own to change: choose {', '.join(self.looks)}"
                )
        self._looks, self._look_seed = tuple(looks), seed
        self._look, self._camera = self._default_look(), None
        for look in looks:
            if look.kind in OF_SCENE:
                self._look = self._changed(look, np.random.default_rng([seed, KINDS.index(look.kind)]))
        self._behind = self._background_colour()

    @property
    def looks(self) -> tuple[str, ...]:
        """Kinds of looks that it can show."""
        return tuple(kind for kind in KINDS if kind not in OF_SCENE or getattr(self._scenery, kind))

    # How it is done ---------------------------------------------------------------------------------------

    def _same_geometry(self, look: Any, shown: Any) -> Any:
        """A look with the shapes of the one that is shown."""
        return replace(look, **{name: getattr(shown, name) for name in self._geometry})

    def _changed(self, look: Look, rng: np.random.Generator) -> Any:
        """The present look of the scene with one change."""
        changed, fields = self._look, getattr(self._scenery, look.kind)
        if look.kind == "size":
            return replace(changed, **{name: self._resized(name, 1 + look.degree) for name in fields})
        others = [name for name in ("background", "object") if name != look.kind]
        beside = [
            mean_colour(np.array(getattr(changed, name)))
            for kind in others
            for name in getattr(self._scenery, kind)
        ]
        for name in fields:
            own = getattr(changed, name)
            colour: Any = look.colour(np.array(own), rng, beside)
            if isinstance(own, tuple):
                colour = tuple(int(part) for part in colour)
                beside.append(colour)
            changed = replace(changed, **{name: colour})
        return changed

    def _background_colour(self) -> Colour:
        """Mean colour of the scene's background in the present look; grey where none is known."""
        names = self._scenery.background
        return mean_colour(np.array(getattr(self._look, names[0]))) if names else GREY

    def _resized(self, name: str, factor: float) -> Any:
        """A field of the look that is a size or a shape, or several, that many times as large."""
        value = getattr(self._look, name)
        return tuple(factor * one for one in value) if isinstance(value, tuple) else factor * value

    def _part(self, draw_state: bool) -> None:
        """Draw the goal, or the start, until the start is no success."""
        for _ in range(_ATTEMPTS):
            if not self.is_success(self.state, self.goal):
                return
            if draw_state:
                self.set_state(self.sample_state())
            else:
                self.goal = self._valid_state(self.sample_goal())
        raise ValueError(
            f"{_ATTEMPTS} {'starts' if draw_state else 'goals'} drawn for {self.name} were all success at "
            "once: give others by `options`."
        )

    def _picture(self, state: np.ndarray, resolution: int) -> np.ndarray:
        picture = self._draw(state, resolution)
        picture = picture if self._camera is None else self._camera.shoot(picture)
        for look in self._looks:
            rng = np.random.default_rng([self._look_seed, KINDS.index(look.kind)])
            picture = look.shoot(picture, rng, self._behind)
        return picture

    def _observe(self) -> Observation:
        state = self._read_state()
        return {"pixels": self._picture(state, self.resolution), "proprio": self.proprio_of(state)}

    def _info(self) -> dict[str, Any]:
        state = self.state
        return {
            "state": state,
            "goal": self.goal.copy(),
            "is_success": self.is_success(state, self.goal),
            "distance": self.distance(state, self.goal),
        }

    def _valid_state(self, state: np.ndarray) -> np.ndarray:
        state = np.array(state, dtype=np.float64)
        if state.shape != (self.state_dim,):
            names = ", ".join(self.state_names)
            raise ValueError(
                f"a {self.name} state has shape ({self.state_dim},), {names}; got shape {state.shape}."
            )
        if not np.isfinite(state).all():
            raise ValueError(f"a {self.name} state must be finite; got {state.tolist()}.")
        self._check_state(state)
        return state

    def _valid_actions(self, actions: np.ndarray, ndim: int) -> np.ndarray:
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim != ndim or actions.shape[-1] != self.action_dim:
            wanted = {1: f"({self.action_dim},)", 3: f"(S, T, {self.action_dim})"}[ndim]
            raise ValueError(f"{self.name} actions have shape {wanted}; got {actions.shape}.")
        if not np.isfinite(actions).all():
            raise ValueError(f"{self.name} actions must be finite; got NaN or infinity.")
        return np.clip(actions, self.action_low, self.action_high)
