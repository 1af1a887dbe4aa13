"""The cost of a grid of actions, as the world model imagines it and as the simulator knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.evaluation.simulator import SimulatorProblem, TrueDistance
from sparsewm.evaluation.statistics import spearman
from sparsewm.model.world_model import WorldModel
from sparsewm.settings import told
from sparsewm.tasks import Task

SIDE = 21
"""Actions along each axis of the grid."""


@dataclass
class Landscape:
    """Costs over two numbers of an action.

    Attributes:
        names: of the two numbers. values: (2, K) those tried.
        costs: (K, K) each, by their titles, the second number along the rows; the true distance last.
        held: whether the action is held for the whole horizon; otherwise the other numbers are those of a
            plan.
        goal, scene: pictures uint8 (H, W, 3).
    """

    names: tuple[str, str]
    values: np.ndarray
    costs: dict[str, np.ndarray]
    held: bool
    scene: np.ndarray
    goal: np.ndarray

    def content(self) -> dict[str, Any]:
        """What is written to landscape.json, with the rank correlation of each cost with the last one."""
        *_, truth = self.costs.values()
        return {
            "names": list(self.names),
            "values": self.values.tolist(),
            "held": self.held,
            "costs": {name: cost.tolist() for name, cost in self.costs.items()},
            "rank_correlation_with_truth": {
                name: spearman(cost.ravel(), truth.ravel()) for name, cost in list(self.costs.items())[:-1]
            },
        }


def make_landscape(
    model: WorldModel, config: PlanConfig, env: SimulatedGoalEnv, task: Task, side: int = SIDE
) -> Landscape:
    """Costs at the start of a task: of all tokens, of those that the configuration keeps, and the truth.

    Where an action has two numbers, they are held for the whole horizon. Where it has more, a plan is made,
    and two of them are changed: the last two, where a push ends.

    Args:
        config: half of the tokens are dropped where it drops none.

    Raises:
        UserError: an action has a single number.
    """
    size = env.action_dim
    if size < 2:
        raise UserError("a landscape needs actions of two numbers or more")
    observation, _ = env.reset(seed=task.seed, options=task.options)
    goal = env.goal_observation()
    agents = []
    for drop in dict.fromkeys((0.0, config.tokens.drop or 0.5)):
        agent = Agent(model, config.updated(tokens={"drop": drop}))
        agent.reset(goal, seeds=[task.seed], instructions=[told(config.proposals.instruction, env)])
        agents.append(agent)
    problem = agents[-1].problem(observation)
    held, first = size == 2, size - 2
    space = env.action_space
    low, high = (bound[first:].astype(np.float64) for bound in (space.low, space.high))
    values = np.linspace(low, high, side).T  # (2, K)
    grid = np.stack(np.meshgrid(*values), -1).reshape(-1, 2)  # (K * K, 2), the second number by rows
    count = problem.action_dim // size
    base = np.zeros((problem.horizon, count, size), np.float32)
    if not held:
        agents[-1].act(observation)
        decision = agents[-1].decisions[0]
        assert decision is not None
        base = decision.plan.reshape(problem.horizon, count, size)
    tried = np.repeat(base[None], len(grid), 0)
    tried[:, slice(None) if held else 0, :, first:] = grid[:, None, None] if held else grid[:, None]
    actions = torch.from_numpy(tried.reshape(1, len(grid), problem.horizon, -1))
    costs = {}
    for agent in agents:
        imagined = problem if agent is agents[-1] else agent.problem(observation)
        kept = imagined.kept
        name = f"all {kept} tokens" if kept == model.patches else f"{kept} of {model.patches} tokens"
        costs[name] = imagined.cost(actions.to(imagined.device))[0].float().cpu().numpy().reshape(side, side)
    truth = SimulatorProblem(
        env,
        [env.state],
        TrueDistance(env, [env.goal]),
        problem.horizon,
        action_repeat=count == 1,
        frame=config.cost.frame,
    )
    costs["true distance"] = truth.cost(actions)[0].numpy().reshape(side, side)
    names = (f"action {first}", f"action {first + 1}")
    return Landscape(names, values, costs, held, observation["pixels"], goal["pixels"])
