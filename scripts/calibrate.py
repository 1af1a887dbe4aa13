"""Calibrate thresholds and budgets: doing nothing and acting at random must fail, the oracle must succeed.

Example:

    python -m scripts.calibrate --environments rope granular blockpush --episodes 60

The oracle is the planner of `configs/` on the true simulator with the true distance. For Rope and Granular
the Chamfer threshold is varied too; the one in the environment's class is marked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.common import launch, typed_command
from scripts.lab.states import make_simulator
from sparsewm.config import PlanConfig, TaskSet
from sparsewm.envs.table import TableEnv
from sparsewm.evaluation.actors import Nothing, Oracle, RandomActions
from sparsewm.evaluation.episodes import Actor, run_episodes
from sparsewm.evaluation.statistics import wilson
from sparsewm.files import write_json
from sparsewm.tasks import make_tasks


@dataclass
class Arguments:
    """Success of doing nothing, random actions and the oracle."""

    environments: tuple[str, ...] = ("rope", "granular", "blockpush")
    """Environments."""
    scales: tuple[float, ...] = (1.0,)
    """Thresholds of particle environments, as multiples of their own."""
    episodes: int = 60
    """Episodes per cell."""
    seed: int = 0
    """Seed of tasks and candidates."""
    tasks: TaskSet = "drawn"
    """Tasks: drawn, or a frozen set, validation or test."""
    output: Path = Path("results/calibration.json")
    """JSON file."""


def actors(config: PlanConfig) -> dict[str, Actor]:
    """Yardsticks by name."""
    return {"nothing": Nothing(), "random": RandomActions(), "oracle": Oracle(config.checked())}


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in arguments.environments:
        env, config = make_simulator(name), PlanConfig.of(name)
        config = config.updated(tasks=arguments.tasks)
        tasks = make_tasks(env, arguments.episodes, arguments.seed, config.goal)
        for scale in arguments.scales if isinstance(env, TableEnv) else (1.0,):
            if isinstance(env, TableEnv):
                env.threshold = scale * type(env).threshold  # type: ignore[misc]  # of this one environment
            for who, actor in actors(config).items():
                started = time.time()
                episodes = run_episodes([env], tasks, actor, config.goal.max_steps)
                successes = sum(episode.success for episode in episodes)
                plans = [len(episode.decisions) for episode in episodes if episode.success]
                row = {
                    "environment": name,
                    "threshold": getattr(env, "threshold", None),
                    "scale": scale,
                    "actor": who,
                    "max_steps": config.goal.max_steps,
                    "tasks": arguments.tasks,
                    "episodes": len(episodes),
                    "success_rate": successes / len(episodes),
                    "success_ci95": list(wilson(successes, len(episodes))),
                    "strict_rate": sum(episode.strict for episode in episodes) / len(episodes),
                    "plans_to_success": float(np.median(plans)) if plans else None,
                    "seconds": round(time.time() - started, 1),
                }
                rows.append(row)
                print(row, flush=True)
                write_json(
                    arguments.output, {"command": typed_command(), "seed": arguments.seed, "rows": rows}
                )


if __name__ == "__main__":
    launch(main, Arguments)
