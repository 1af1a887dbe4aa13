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
from sparsewm.envs import GoalEnv
from sparsewm.envs.table import TableEnv
from sparsewm.evaluation.closed_loop import Policy, RandomActions, Still, make_tasks, run_episodes
from sparsewm.evaluation.oracle import oracle
from sparsewm.evaluation.statistics import wilson
from sparsewm.files import write_json
from sparsewm.settings import environment_settings, make_env


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
    output: Path = Path("results/calibration.json")
    """JSON file."""


def policies(env: GoalEnv, seed: int) -> dict[str, Policy]:
    """Yardsticks by name."""
    planned = oracle(env, environment_settings(env.name).plan, seed)
    return {"none": Still(env), "random_actions": RandomActions(env), "oracle": planned}


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in arguments.environments:
        env, settings = make_env(name), environment_settings(name).plan
        tasks = make_tasks(
            env, arguments.episodes, arguments.seed, settings.goal_source, settings.goal_offset
        )
        for scale in arguments.scales if isinstance(env, TableEnv) else (1.0,):
            if isinstance(env, TableEnv):
                env.threshold = scale * type(env).threshold  # type: ignore[misc]  # of this one environment
            for selection, policy in policies(env, arguments.seed).items():
                started = time.time()
                traces = run_episodes(env, tasks, policy, settings.budget)
                successes = sum(trace.success for trace in traces)
                plans = [len(trace.plans) for trace in traces if trace.success]
                row = {
                    "environment": name,
                    "threshold": getattr(env, "threshold", None),
                    "scale": scale,
                    "selection": selection,
                    "budget": settings.budget,
                    "episodes": len(traces),
                    "success_rate": successes / len(traces),
                    "success_ci95": list(wilson(successes, len(traces))),
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
