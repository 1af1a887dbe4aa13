"""Closed-loop episodes: see, act, see again, until the goal or the end of the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np

from sparsewm.agent import Decision
from sparsewm.config import Rule
from sparsewm.envs import GoalEnv, SimulatedGoalEnv
from sparsewm.evaluation.statistics import quartiles, wilson
from sparsewm.tasks import Task

SHOWN_SIDE = 256
"""Largest side of the pictures that an episode keeps for videos."""

HOLD = 3
"""Environment steps of doing nothing that a strict success outlasts."""


@dataclass
class Episode:
    """What happened in one episode.

    Attributes:
        env: it runs in. task: start and goal. goal: the goal's observation.
        observation, info: what the environment gave last. looked: whether the observation is of now; where
            the actor did not look, it is older.
        states: every environment step, (steps + 1) x (D,), where the environment tells.
        frames: pictures (H, W, 3) of every environment step, small; empty where nobody wants them.
        actions: those between, steps x (A,).
        success_step: environment steps until the goal was first reached; None: it was not.
        strict_step: until it was first reached such that `HOLD` steps of doing nothing later it is so by
            strict thresholds; None: it was not.
        distances: what the environment says of the distance to the goal, first and last.
        remaining: distance to the goal at every environment step, of a simulator in units of its success
            thresholds; where frames are kept and a distance is known.
        decisions: one per re-plan.
    """

    env: GoalEnv
    task: Task
    goal: dict[str, Any]
    observation: dict[str, np.ndarray]
    info: dict[str, Any]
    looked: bool = True
    states: list[np.ndarray] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    success_step: int | None = None
    strict_step: int | None = None
    distances: list[dict[str, float]] = field(default_factory=list)
    remaining: list[float] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        """What travels between processes: all but the environment."""
        return self.__dict__ | {"env": None}

    @property
    def steps(self) -> int:
        """Environment steps taken."""
        return len(self.actions)

    @property
    def success(self) -> bool:
        """Whether the goal was reached."""
        return self.success_step is not None

    @property
    def strict(self) -> bool:
        """Whether the goal was reached and stayed so."""
        return self.strict_step is not None

    @property
    def simulator(self) -> SimulatedGoalEnv:
        """Its environment, where that is a simulator whose states can be set."""
        assert isinstance(self.env, SimulatedGoalEnv)
        return self.env

    @property
    def seconds_per_plan(self) -> list[float]:
        """Seconds of every decision."""
        return [decision.seconds for decision in self.decisions]

    @property
    def seconds_per_iteration(self) -> list[float]:
        """Seconds of every iteration of every decision."""
        return [spent for decision in self.decisions for spent in decision.seconds_per_iteration]

    def see(self, observation: dict[str, np.ndarray], info: dict[str, Any], keep_frame: bool) -> None:
        """Take in what the environment gave."""
        self.observation, self.info = observation, info
        if "state" in info:
            self.states.append(np.asarray(info["state"]))
        if info.get("is_success", False):
            self.success_step = self.steps if self.success_step is None else self.success_step
            if self.strict_step is None and isinstance(self.env, SimulatedGoalEnv) and self._stays():
                self.strict_step = self.steps
        if info.get("distance"):  # none is known where there is nothing but a picture
            self.distances = [*self.distances[:1], dict(info["distance"])]
        if keep_frame:
            self.frames.append(small(observation["pixels"]))
            if isinstance(self.env, SimulatedGoalEnv):
                self.remaining.append(float(self.env.shortfall(self.states[-1][None], self.env.goal)[0]))
            elif info.get("distance"):
                self.remaining.append(float(next(iter(info["distance"].values()))))

    def _stays(self) -> bool:
        """Whether the simulator stays at the goal; it is left as it is."""
        env = self.simulator
        still = np.tile(env.idle_action(), (1, HOLD, 1))
        return env.is_strict_success(env.rollout_states(self.states[-1], still)[0, -1], env.goal)

    def wait_there(self, over: bool) -> None:
        """Do nothing at the goal of an environment that has no states to try it in: does it stay there?

        Args:
            over: the environment ended the episode and takes no more steps; it is taken at its word.
        """
        info = self.info
        for _ in range(HOLD):
            if over:
                break
            _, _, terminated, truncated, info = self.env.step(self.env.idle_action())
            over = terminated or truncated
        if info.get("is_success", False):
            self.strict_step = self.success_step


class Actor(Protocol):
    """Acts for a batch of episodes."""

    def begin(self, episodes: Sequence[Episode]) -> None:
        """New episodes."""

    def act(self, episodes: Sequence[Episode], active: np.ndarray) -> Sequence[np.ndarray]:
        """Actions (n, A) of every active episode to execute now, by their numbers; may note decisions."""

    def looks(self, left: int) -> bool:
        """Whether it wants to see what follows a step, `left` steps before it decides again."""

    def observe(self, number: int, episode: Episode) -> None:
        """One environment step of an episode was taken; its observation is old where it does not look."""


def run_episodes(
    envs: Sequence[GoalEnv],
    tasks: Sequence[Task],
    actor: Actor,
    max_steps: int,
    on_plan: Callable[[int, int, Episode], None] | None = None,
    on_episode: Callable[[int, Episode], None] | None = None,
    frames: float = 0,
    rule: Rule = "arrival",
) -> list[Episode]:
    """Run the tasks, as many at a time as there are environments.

    An episode succeeds at the first environment step that counts as success; it ends there, when the
    environment ends it, or after `max_steps`. What is done does not depend on `max_steps` before: an episode
    of fewer steps is the beginning of a longer one.

    Args:
        envs: one for each episode of a batch. max_steps: environment steps an episode may take.
        on_plan: called with (episode, re-plan, episode so far) after every decision; on_episode: with
            (episode, what happened) at the end.
        frames: of so many episodes, the first ones, the picture of every step is kept; `math.inf`: of all.
        rule: "strict" goes on after the first success until it is a strict one. Where no simulator can try
            whether it is, all episodes end on arrival, and the environment is left alone there.
    """
    finished: list[Episode] = []
    for first in range(0, len(tasks), len(envs)):
        kept = [first + i < frames for i in range(len(envs))]
        group = [_begun(env, task, keep) for env, task, keep in zip(envs, tasks[first:], kept, strict=False)]
        ended, over = [_there(episode, rule) for episode in group], [False] * len(group)
        actor.begin(group)
        decision = 0
        while not all(ended):
            active = np.flatnonzero(~np.array(ended))
            for i, actions in zip(active, actor.act(group, active), strict=True):
                episode = group[i]
                actions = actions[: max_steps - episode.steps]
                for left, action in zip(reversed(range(len(actions))), actions, strict=True):
                    action = np.asarray(action, np.float32)
                    looks = kept[i] or actor.looks(left)
                    observation, info, over[i] = _step(episode, action, looks)
                    episode.actions.append(action)
                    episode.see(observation, info, kept[i])
                    ended[i] = _there(episode, rule) or over[i] or episode.steps >= max_steps
                    if ended[i]:
                        break
                    actor.observe(int(i), episode)
                if on_plan is not None:
                    on_plan(first + int(i), decision, episode)
            decision += 1
        for i, episode in enumerate(group):
            if episode.success and not isinstance(episode.env, SimulatedGoalEnv):
                episode.wait_there(over[i])
            if on_episode is not None:
                on_episode(first + i, episode)
        finished += group
    return finished


def _step(
    episode: Episode, action: np.ndarray, looks: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any], bool]:
    """One environment step: what is observed, what was observed last where nobody looks; info; is it over?"""
    env = episode.env
    if not looks and isinstance(env, SimulatedGoalEnv):
        episode.looked = False
        return episode.observation, env.advance(action), False
    episode.looked = True
    observation, _, terminated, truncated, info = env.step(action)
    return observation, info, terminated or truncated


def _begun(env: GoalEnv, task: Task, frames: bool) -> Episode:
    observation, info = env.reset(seed=task.seed, options=task.options)
    episode = Episode(env, task, env.goal_observation(), observation, info)
    episode.see(observation, info, frames)
    return episode


def _there(episode: Episode, rule: Rule) -> bool:
    strict = rule == "strict" and isinstance(episode.env, SimulatedGoalEnv)
    return episode.strict if strict else episode.success


def small(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) of at most `SHOWN_SIDE` pixels a side."""
    scale = SHOWN_SIDE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def summarize(environment: str, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Success rates with their 95% Wilson intervals, timings, and one entry per episode."""
    entries = []
    for episode in episodes:
        entry: dict[str, Any] = {
            "success": episode.success,
            "success_step": episode.success_step,
            "strict": episode.strict,
            "strict_step": episode.strict_step,
            "steps": episode.steps,
            "seed": episode.task.seed,
        }
        if episode.task.frozen is not None:
            entry["task"] = episode.task.frozen
        if episode.distances:
            for name, found in (
                ("distance", episode.distances[-1]),
                ("initial_distance", episode.distances[0]),
            ):
                entry[name] = {key: round(float(value), 4) for key, value in found.items()}
        entries.append(entry)
    result: dict[str, Any] = success_rate([entry["success"] for entry in entries])
    result["strict"] = success_rate([entry["strict"] for entry in entries])
    times = [episode.seconds_per_plan for episode in episodes]
    result |= {
        "seconds_per_iteration": quartiles([s for one in episodes for s in one.seconds_per_iteration]),
        "seconds_per_plan": quartiles([s for spent in times for s in spent]),
        "seconds_per_episode": quartiles([sum(spent) for spent in times if spent]),
        "actions_per_second": actions_per_second(episodes),
        "per_episode": entries,
    }
    if environment == "pusht":
        moved = [entry["success"] for entry in entries if object_moves(entry["initial_distance"])]
        result["moved"] = {"episodes": len(moved), **success_rate(moved)}
    return result


def success_rate(successes: Sequence[bool]) -> dict[str, Any]:
    """`success_rate` and `success_ci95` (Wilson) of episodes."""
    count = sum(successes)
    return {
        "success_rate": count / max(1, len(successes)),
        "success_ci95": list(wilson(count, len(successes))),
    }


def actions_per_second(episodes: Sequence[Episode]) -> float | None:
    """Environment steps executed per second of planning: the control frequency that planning sustains."""
    spent = sum(sum(episode.seconds_per_plan) for episode in episodes)
    return sum(episode.steps for episode in episodes if episode.decisions) / spent if spent else None


def deadline_report(episodes: Sequence[Episode], deadline_ms: float) -> dict[str, Any]:
    """How plans kept a deadline: share in time, and by how much the others were late."""
    times = [1000 * seconds for episode in episodes for seconds in episode.seconds_per_plan]
    late = [spent - deadline_ms for spent in times if spent > deadline_ms]
    return {
        "deadline_ms": deadline_ms,
        "plans": len(times),
        "in_time": 1 - len(late) / max(1, len(times)),
        "overshoot_ms": {"median": float(np.median(late)), "max": max(late)} if late else None,
    }


def object_moves(distance: dict[str, float]) -> bool:
    """Whether a goal of PushT asks for more than moving the disc: the T by over 20 px or 20 degrees."""
    return distance["block"] > 20 or distance["angle"] > np.pi / 9
