"""Any Gymnasium environment with a picture and continuous actions, as the closed loop wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sparsewm.envs.base import GoalEnv, Observation
from sparsewm.envs.view import View
from sparsewm.errors import UserError

Success = Callable[[Any, Any], bool]
"""Tells from the environment's own observation, and from that at the goal, whether the goal is reached."""

THRESHOLD = 0.5  # deviations
_OTHER_PIXELS = 0.01  # share of the picture that may differ between two starts of an episode
_ATTEMPTS = 20  # goals looked for until one is not reached at the start
_OURS = {"goal", "goal_offset"}  # of reset's options


class PixelGoals(GoalEnv):
    """A Gymnasium environment as a `GoalEnv`: pictures, proprioception and goals one can see.

    Pictures come from the observation (all of it, or a key of it) or else from `render()`; proprioception is
    the rest of the observation, flattened: all that is numbers but `achieved_goal` and `desired_goal`.

    A goal is the environment's own, if its `goal_observation()` or `info["goal"]` shows one (a picture, or
    an observation). Or it is given to `reset`: `options={"goal": picture or {"pixels", "proprio"}}`, or
    `options={"goal_offset": n}`, what is seen n steps ahead of the start under `policy`. For the latter the
    episode is begun twice, so `reset(seed)` must always start it in the same way.

    `is_success` is what `success` says, or the environment's method `is_success(observation, goal)`, both
    asked with its own observations (a goal that was given comes as given); else, for its own goals,
    `info["is_success"]` or `info["success"]`; else whether proprioception is nearer to the goal's than
    `threshold`: root mean square over the columns that change, in units of each one's standard deviation on
    the way from start to goal. `info["distance"]["proprio"]` is this distance.

    Args:
        env: made with `render_mode="rgb_array"` if pictures are rendered; `Box` actions (A,) with bounds.
        resolution: shorter side of the pictures, px; larger ones are scaled down. None: as they come.
        pixels: key of the picture in the observation ("a/b" in nested ones), or "render". None: looked for.
        proprio: keys of proprioception, or a function from the observation to it (P,). None: the rest.
        success, threshold: see above.
        policy: acts on the way to goals and in recordings: from observation to action (A,). None: random
            actions, each held for one to four model steps.
        frameskip: environment steps per model step. None: the environment's `frameskip`, else 5.

    Raises:
        UserError: no picture, or other actions.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        resolution: int | None = 112,
        pixels: str | None = None,
        proprio: Sequence[str] | Callable[[Any], np.ndarray] | None = None,
        success: Success | None = None,
        threshold: float = THRESHOLD,
        policy: Callable[[Observation], np.ndarray] | None = None,
        frameskip: int | None = None,
    ) -> None:
        self.env, self.threshold, self._policy = env, threshold, policy
        self.name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        self.metadata = {"render_fps": 10, **env.metadata, "render_modes": ["rgb_array"]}
        self.render_mode = "rgb_array"
        self.frameskip = int(frameskip or self._theirs("frameskip") or GoalEnv.frameskip)
        self.action_space = _box(env.action_space, self.name)
        self._view = View(env, self.name, resolution, pixels, proprio)
        rule = success or self._theirs("is_success")
        self._success: Success | None = rule if callable(rule) else None
        self._scale = np.ones(1)  # of proprioception, see above; 0 where nothing changes
        self._goal: dict[str, Any] | None = None
        self._goal_seen: Any = None  # the same as the environment shows it
        self._seen: Any = None  # its latest observation
        self._own_goal = False
        first = self._see(env.reset(seed=0)[0])
        self.proprio_names = self._view.names(first["proprio"].size)
        self.observation_space = spaces.Dict(  # type: ignore[assignment]  # gymnasium types it too narrowly
            {
                "pixels": spaces.Box(0, 255, first["pixels"].shape, np.uint8),
                "proprio": spaces.Box(-np.inf, np.inf, first["proprio"].shape, np.float32),
            }
        )

    @property
    def instruction(self) -> str | None:  # type: ignore[override]
        """What the environment says of its task."""
        text = self._theirs("instruction")
        return text if isinstance(text, str) else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `options` beside "goal" and "goal_offset" go to the environment.

        Raises:
            UserError: no goal `goal_offset` steps ahead, or none whose success can be told.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        ours = {key: options.pop(key) for key in _OURS & set(options)}
        seed = int(self.np_random.integers(2**31)) if seed is None else seed

        def begin() -> tuple[Observation, dict[str, Any]]:
            seen, info = self.env.reset(seed=seed, options=options or None)
            return self._see(seen), info

        start, info = begin()
        own = None if ours else self._own(info)
        self._own_goal, self._goal = own is not None, None
        if own is not None or "goal" in ours:
            self._goal_seen = ours["goal"] if own is None else own
            self._set_goal(self._as_goal(self._goal_seen), [start])
        elif "goal_offset" in ours:
            start, info = self._look_ahead(start, int(ours["goal_offset"]), seed, begin)
        return start, self._info(start, info)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One environment step. The action (A,) is clipped to the action space; NaN raises ValueError."""
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise ValueError(
                f"{self.name} actions are {self.action_space.shape} finite numbers; got {action}."
            )
        theirs = self.env.action_space
        action = np.clip(action, theirs.low, theirs.high).astype(theirs.dtype)  # type: ignore[attr-defined]
        seen, reward, terminated, truncated, info = self.env.step(action)
        observation = self._see(seen)
        info = self._info(observation, info)
        return observation, float(reward), bool(terminated), bool(truncated), info

    def goal_observation(self) -> dict[str, Any]:
        """What one would observe at this episode's goal.

        Raises:
            UserError: there is none.
        """
        if self._goal is None:
            raise UserError(
                f"{self.name} shows no goal of its own: begin with reset(options={{'goal_offset': n}}), "
                "n steps ahead, or {'goal': picture}"
            )
        return dict(self._goal)

    def exploration(self, rng: np.random.Generator) -> Callable[[Observation], np.ndarray]:
        """The policy given, or random actions, each held for one to four model steps."""
        return self._policy or super().exploration(rng)

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The present picture, as large as the environment draws it, uint8 (H, W, 3)."""
        drawn = self.env.render() if self.env.render_mode == "rgb_array" else None
        return self._view.see(self._seen)["pixels"] if drawn is None else np.asarray(drawn)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _theirs(self, name: str) -> Any:
        """An attribute of the wrapped environment, through its wrappers; None if there is none."""
        return self.env.get_wrapper_attr(name) if self.env.has_wrapper_attr(name) else None

    def _see(self, seen: Any) -> Observation:
        self._seen = seen
        return self._view.see(seen)

    # Goals ------------------------------------------------------------------------------------------------

    def _own(self, info: dict[str, Any]) -> Any:
        """The environment's own goal, None if it shows none."""
        show = self._theirs("goal_observation")
        goal = show() if callable(show) else info.get("goal")
        return goal if isinstance(goal, dict) or getattr(goal, "dtype", None) == np.uint8 else None

    def _as_goal(self, goal: Any) -> dict[str, Any]:
        """A goal as it was given: a picture, our observation or the environment's."""
        if not isinstance(goal, dict):
            return {"pixels": self._view.picture(goal)}
        if set(goal) <= {"pixels", "proprio"} and "pixels" in goal:
            return {**goal, "pixels": self._view.picture(goal["pixels"])}
        if self._view.pixels == "render":
            raise UserError(f"a goal of {self.name} must hold a picture: 'pixels' uint8 (H, W, 3)")
        return dict(self._view.see(goal))

    def _look_ahead(
        self,
        start: Observation,
        steps: int,
        seed: int,
        begin: Callable[[], tuple[Observation, dict[str, Any]]],
    ) -> tuple[Observation, dict[str, Any]]:
        """Make a goal of what is seen `steps` ahead; returns what `begin` does, which is asked once more."""
        if steps < 1:
            raise UserError(f"goal_offset must be at least 1 environment step, got {steps}")
        rng = np.random.default_rng([seed, 1])  # others than the environment draws its start with
        for _ in range(_ATTEMPTS):
            policy, way = self.exploration(rng), [start]
            for _ in range(steps):
                observation, _, terminated, truncated, _ = self.step(policy(way[-1]))
                way.append(observation)
                if terminated or truncated:
                    break
            self._goal_seen = deepcopy(self._seen)
            self._set_goal(dict(way[-1]), way)
            again, info = begin()
            self._same_start(start, again)
            if not self._reached(again, info):
                return again, info
        raise UserError(
            f"all of {_ATTEMPTS} goals {steps} steps ahead in {self.name} are reached at the start already: "
            "raise goal_offset"
        )

    def _same_start(self, first: Observation, again: Observation) -> None:
        # Some environments draw their last action: with proprioception a few other pixels do not matter.
        other = (first["pixels"] != again["pixels"]).any(-1).mean()
        allowed = _OTHER_PIXELS if self._scale.any() else 0.0
        if other > allowed or not np.array_equal(first["proprio"], again["proprio"]):
            raise UserError(
                f"reset(seed) does not start {self.name} in the same way twice, so what lies ahead cannot be "
                "its goal: draw all that is random in reset from self.np_random"
            )

    def _set_goal(self, goal: dict[str, Any], way: list[Observation]) -> None:
        """Make `goal` this episode's; `way` are observations on the way there."""
        self._goal = goal
        self._scale = np.zeros(1)
        if "proprio" in goal:
            goal["proprio"] = np.asarray(goal["proprio"], np.float32)
            seen = np.array([*(seen["proprio"] for seen in way), goal["proprio"]], np.float64)
            self._scale = np.asarray(np.where(np.ptp(seen, 0) > 1e-6, seen.std(0), 0.0))
        if self._success is None and not self._own_goal and not ("proprio" in goal and self._scale.any()):
            raise UserError(
                f"nothing says when a goal of {self.name} is reached: give it a method "
                "is_success(observation, goal), or PixelGoals the argument success"
            )

    def _reached(self, observation: Observation, info: dict[str, Any]) -> bool:
        if self._goal is None:
            return bool(info.get("is_success", info.get("success", False)))
        if self._success is not None:
            return bool(self._success(self._seen, self._goal_seen))
        if self._own_goal and (told := {"is_success", "success"} & set(info)):
            return bool(info[max(told, key=len)])
        return self._away(observation) < self.threshold

    def _away(self, observation: Observation) -> float:
        """Distance of proprioception to the goal's, in deviations; infinite where that says nothing."""
        changes = self._scale > 0
        if self._goal is None or "proprio" not in self._goal or not changes.any():
            return np.inf
        error = (observation["proprio"] - self._goal["proprio"])[changes] / self._scale[changes]
        return float(np.sqrt(np.mean(error**2)))

    def _info(self, observation: Observation, info: dict[str, Any]) -> dict[str, Any]:
        info = {**info, "is_success": self._reached(observation, info)}
        away = self._away(observation)
        info["distance"] = {"proprio": away} if np.isfinite(away) else {}
        return info


def _box(space: spaces.Space[Any], name: str) -> spaces.Box:
    """The action space (A,) in float32, if it is one that is planned in."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
        raise UserError(f"{name} has actions {space}, but only a Box of floating point (A,) is planned in")
    if not space.is_bounded():
        raise UserError(f"{name} has actions without bounds: wrap it in gymnasium's RescaleAction or another")
    return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))
