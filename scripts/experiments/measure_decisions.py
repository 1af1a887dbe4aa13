"""How long a decision takes by our rollout, at several shares of the tokens, and by DINO-WM's of all of them.

Example (about two minutes on one core):

    python -m scripts.experiments.measure_decisions --output results/decisions

Every way scores the same candidates from the first frame of the same episode, in turns, in one process, with
the settings the environment is planned with. Counted is the time of the processor, in one thread, so that
other programs disturb it less. The picture is encoded once for all; DINO-WM itself encodes it anew for every
candidate.

Beside our times stands the success that the same weights reach in results/eval. DINO-WM's rollout forgets
what has left its window, so its success may be another one; it was not measured. Writes decisions.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scripts.common import launch, typed_command
from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.errors import UserError
from sparsewm.evaluation.dino_wm import WindowRollout
from sparsewm.evaluation.machine import machine
from sparsewm.evaluation.run import prepare
from sparsewm.evaluation.statistics import quartiles
from sparsewm.files import write_json
from sparsewm.kernels import flushed
from sparsewm.model import Latent, LatentProblem, load_pretrained
from sparsewm.model.checkpoint import checkpoint_hash, pretrained_path
from sparsewm.precision import fastest_dtype

CPU = torch.device("cpu")
CELLS = Path("results/eval/cells")


@dataclass
class Arguments:
    """Time of a decision, and success."""

    env: str = "pusht"
    """Environment with a shipped world model."""
    drops: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.9)
    """Fractions of the tokens that ours drops."""
    repeats: int = 5
    """Timed iterations of each."""
    output: Path = Path("results/decisions")
    """Folder of decisions.json."""


def success(env: str, drop: float, weights: str) -> dict[str, Any]:
    """What the cell of results/eval says that these weights reach.

    Raises:
        UserError: there is none of these weights.
    """
    path = CELLS / f"{env}-random-drop{drop:g}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"request": {}}
    if content["request"].get("weights") != weights:
        raise UserError(f"{path} holds no success of the shipped weights: give other `drops`")
    kept = ("success_rate", "success_ci95", "episodes")
    return {"cell": path.as_posix()} | {name: content[name] for name in kept}


Way = tuple[dict[str, Any], Callable[[], Any]]
"""What is timed, in words, and an iteration of it."""


def ways(env: str, drops: tuple[float, ...]) -> tuple[list[Way], int]:
    """All ways, and how many iterations a decision has."""
    config = PlanConfig.of(env).updated(device="cpu", imagine=False)
    ready = prepare(config)
    task = ready.tasks[0]
    observation, _ = ready.envs[0].reset(seed=task.seed, options=task.options)
    goal = ready.envs[0].goal_observation()
    fast, exact = (load_pretrained(env, CPU, dtype) for dtype in (fastest_dtype(CPU), torch.float32))

    def problem_at(drop: float) -> LatentProblem:
        agent = Agent(fast, config.updated(drop=drop))
        agent.reset(goal)
        return agent.problem(observation)

    every = problem_at(0.0)
    count = ready.config.search.candidates
    noise = torch.randn(1, count, *every.mean.shape, generator=torch.Generator().manual_seed(0))
    actions = (every.mean + every.std * noise).clamp(every.low, every.high)
    executed, patches = every.executed(actions)[0], torch.arange(fast.patches)
    start = Latent(*(x.expand(count, *x.shape[1:]) for x in (every.start.tokens, every.start.proprio)))

    def ours(problem: LatentProblem) -> None:
        problem.resample(0)
        problem.cost(actions)

    def theirs(window: WindowRollout) -> None:
        window.cost(start, every.goal, executed, patches, config.cost.proprio_weight)

    found: list[Way] = []
    for drop in drops:
        problem = problem_at(drop)
        words = {"rollout": "sparsewm", "dtype": name_of(fastest_dtype(CPU)), "drop": drop}
        found.append((words | {"tokens": problem.kept}, partial(ours, problem)))
    for dtype in (torch.bfloat16, torch.float32):
        words = {"rollout": "DINO-WM", "dtype": name_of(dtype), "drop": 0.0, "tokens": fast.patches}
        found.append((words, partial(theirs, WindowRollout(exact, dtype=dtype))))
    return found, ready.config.search.iterations


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@flushed()
def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    weights = checkpoint_hash(pretrained_path(arguments.env))
    reached = [success(arguments.env, drop, weights) for drop in arguments.drops]
    found, iterations = ways(arguments.env, arguments.drops)
    rows, works = zip(*found, strict=True)
    seconds: list[list[float]] = [[] for _ in rows]
    for turn in range(1 + arguments.repeats):  # the first one packs weights
        for work, spent in zip(works, seconds, strict=True):
            started = time.process_time()
            work()
            if turn:
                spent.append(time.process_time() - started)
    for row, spent in zip(rows, seconds, strict=True):
        times = quartiles([iterations * one for one in spent])
        assert times is not None
        row["processor_seconds_per_decision"] = times
        words = f"{row['rollout']}, {row['dtype']}, {row['tokens']} tokens"
        print(f"{words}: {times['median']:.2f} s a decision", flush=True)
    for row, one in zip(rows, reached, strict=False):
        row.update(one)
    report: dict[str, Any] = {"environment": arguments.env, "weights": weights, "iterations": iterations}
    report |= {"repeats": arguments.repeats, "threads": 1, "rows": list(rows)}
    report |= {"machine": machine(CPU), "command": typed_command()}
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "decisions.json", report)


if __name__ == "__main__":
    launch(main, Arguments)
