"""What the page shows and does, without the page: one visitor's environment, agent and goal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from sparsewm import envs
from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.demo.goals import PLACES, goal_at
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.model.checkpoint import load, pretrained_path, shipped
from sparsewm.model.problem import LatentProblem
from sparsewm.model.world_model import WorldModel
from sparsewm.planners import PLANNERS
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.report.video import dim_dropped
from sparsewm.settings import told

ENCODERS = ("embedded", "dinov2_vits14")
MOST_DROPPED, CANDIDATES, ITERATIONS, SEEDS = 0.9, (4, 256), (1, 10), 10_000
"""Bounds of what a visitor may ask for."""


@lru_cache(maxsize=2)
def world_model(env: str, encoder: str) -> WorldModel:
    """The shipped world model of an environment, loaded once.

    Raises:
        UserError: there is none on this encoder, or the encoder's weights are missing.
    """
    if encoder != "embedded" and env not in shipped(encoder):
        raise UserError(f"no world model of {env} on {encoder} is shipped: choose embedded")
    device = choose_device("auto")
    path = pretrained_path(env, None if encoder == "embedded" else encoder)
    return load(path, device, choose_dtype("auto", device, planning=True))


class Watched:
    """A planning problem that remembers the costs of every iteration's candidates."""

    def __init__(self, problem: LatentProblem) -> None:
        self.problem = problem
        self.costs: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.problem, name)

    def cost(self, actions: Tensor) -> Tensor:
        costs = self.problem.cost(actions)
        self.costs.append(costs.detach().float().cpu().numpy()[0])
        return costs


@dataclass
class Shown:
    """One moment of an episode.

    Attributes:
        scene, kept: pictures uint8 (H, W, 3): what is seen, and that with the dropped patches darkened.
        imagined: pictures (T, R, R, 3) of what the plan in force leads to; None: no decoder.
        costs: of the candidates of each iteration of the plan in force.
        text: what happened, in a line.
        done: whether the episode is over.
    """

    scene: np.ndarray
    kept: np.ndarray
    imagined: np.ndarray | None = None
    costs: list[np.ndarray] = field(default_factory=list)
    text: str = ""
    done: bool = False


def checked(drop: float, planner: str, candidates: float, iterations: float) -> dict[str, Any]:
    """Settings of a plan, refused where they are out of bounds.

    Raises:
        UserError: they are.
    """
    if planner not in PLANNERS.names() or ":" in planner:
        raise UserError(f"`planner` is one of {', '.join(PLANNERS.names())}")
    for name, value, (low, high) in (
        ("drop", drop, (0.0, MOST_DROPPED)),
        ("candidates", candidates, CANDIDATES),
        ("iterations", iterations, ITERATIONS),
    ):
        _check_bounds(name, value, low, high)
    return {
        "drop": float(drop),
        "planner": planner,
        "candidates": int(candidates),
        "iterations": int(iterations),
    }


def _check_bounds(name: str, value: Any, low: float, high: float) -> None:
    """Refuse what is no number from `low` to `high`: a field that is cleared sends None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError(f"`{name}` lies between {low:g} and {high:g}, got {value}")


class Session:
    """One visitor's episode.

    Args:
        env: name of an environment with a shipped world model. encoder: of it.
        seed: of start and goal.

    Raises:
        UserError: no such environment or world model, or a seed out of bounds.
    """

    def __init__(self, env: str = "wall", encoder: str = "embedded", seed: float = 0) -> None:
        if env not in PLACES:
            raise UserError(f"`env` is one of {', '.join(PLACES)}")
        if encoder not in ENCODERS:
            raise UserError(f"`encoder` is one of {', '.join(ENCODERS)}")
        _check_bounds("seed", seed, 0, SEEDS - 1)
        self.model = world_model(env, encoder)
        made = envs.make(env)
        assert isinstance(made, SimulatedGoalEnv)
        self.env: SimulatedGoalEnv = made
        self.usual = PlanConfig.of(env)
        self.seed, self.steps = int(seed), 0
        self.observation, self.info = self.env.reset(seed=self.seed)
        self._start, self._first = self.env.state, self.env.goal.copy()
        self._config: PlanConfig | None = None
        self.agent: Agent | None = None
        self.episode = 0  # how often the episode has begun anew
        self._turn = threading.Lock()  # a visitor may begin anew while another thread steps the environment

    @property
    def goal_picture(self) -> np.ndarray:
        """The goal, uint8 (R, R, 3)."""
        return self.env.goal_observation()["pixels"]

    def set_goal(self, across: float, down: float, degrees: float) -> None:
        """Another goal, by a place in the picture; the episode begins anew.

        Raises:
            UserError: the goal cannot be there.
        """
        base = self.env.goal if self.env.name == "blockpush" else self._first
        self.restart(goal_at(self.env, base, across, down, degrees))

    def restart(self, goal: np.ndarray | None = None) -> Shown:
        """Back to the start, to a goal (D,) or the present one."""
        with self._turn:
            options = {"state": self._start, "goal": self.env.goal.copy() if goal is None else goal}
            self.observation, self.info = self.env.reset(seed=self.seed, options=options)
            self.steps, self._config, self.agent = 0, None, None
            self.episode += 1
        return Shown(self.observation["pixels"], self.observation["pixels"], text="ready")

    def plan(self, drop: float, planner: str, candidates: float, iterations: float) -> Iterator[Shown]:
        """One decision, then its steps one by one, as executed; it ends where the episode begins anew.

        Raises:
            UserError: a setting is out of bounds.
        """
        config = self.usual.updated(**checked(drop, planner, candidates, iterations)).checked()
        limit = config.goal.max_steps
        if self.info["is_success"] or self.steps >= limit:
            yield self._shown(np.arange(self.model.patches), None, [], "the episode is over: start again")
            return
        episode = self.episode
        if config != self._config:
            self._begin(config)
        agent, watched = self.agent, list[Watched]()
        assert agent is not None

        def watch(problem: LatentProblem) -> Watched:
            watched.append(Watched(problem))
            return watched[-1]

        agent.watch = watch
        actions = agent.act(self.observation)
        decision, costs = agent.decisions[0], watched[-1].costs
        assert decision is not None and decision.kept is not None
        kept, imagined = decision.kept, decision.imagined
        text = f"{1000 * decision.seconds:.0f} ms a decision, {len(kept)} of {self.model.patches} tokens, "
        text += f"cost {decision.cost:.3f}"
        if self.episode == episode:
            yield self._shown(kept, imagined, costs, text)
        for action in actions:
            with self._turn:
                if self.episode != episode:
                    return
                self.observation, _, _, _, self.info = self.env.step(action)
                agent.observe(self.observation, action)
                self.steps += 1
            moment = self._shown(kept, imagined, costs, text)
            yield moment
            if moment.done:
                return

    def _begin(self, config: PlanConfig) -> None:
        """Go on with other settings, from what is seen now."""
        self._config = config
        self.agent = Agent(self.model, config)
        texts = [told(config.proposals.instruction, self.env)]
        self.agent.reset(self.env.goal_observation(), seeds=[self.seed], instructions=texts)

    def _shown(
        self, kept: np.ndarray, imagined: np.ndarray | None, costs: list[np.ndarray], text: str
    ) -> Shown:
        picture = self.observation["pixels"]
        reached = bool(self.info["is_success"])
        over = reached or self.steps >= self.usual.goal.max_steps
        state = "reached" if reached else f"step {self.steps} of {self.usual.goal.max_steps}"
        dimmed = dim_dropped(picture, kept, self.model.config.grid)
        return Shown(picture, dimmed, imagined, costs, f"{state}; {text}", over)
