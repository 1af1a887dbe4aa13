"""Planner iterations timed, ours and the DINO-WM rollout's, on the same weights in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsewm.agent import Agent
from sparsewm.config import GoalConfig, PlanConfig
from sparsewm.envs import GoalEnv
from sparsewm.evaluation.actors import AgentActor
from sparsewm.evaluation.bench.operations import (
    parameters,
    recipe_operations,
    rollout_operations,
    window_operations,
)
from sparsewm.evaluation.bench.recipe import PlainPredictor, RecipeConfig
from sparsewm.evaluation.bench.timing import Contestant, interleave, matmul_peaks
from sparsewm.evaluation.dino_wm import WindowRollout
from sparsewm.evaluation.episodes import run_episodes
from sparsewm.evaluation.machine import machine
from sparsewm.evaluation.profile import profile_iterations
from sparsewm.evaluation.statistics import quartiles
from sparsewm.model import Latent, LatentProblem, WorldModel, kept_patches
from sparsewm.tasks import make_tasks

OURS, PUBLISHED = "sparse", "dino_wm"


def bench_agent(model: WorldModel, horizon: int, drop: float, seed: int, **search: object) -> Agent:
    """The agent whose problems are timed: squared error of the last frame, an action for every step."""
    settings = {"horizon": horizon, "execute": horizon, "action_repeat": False} | search
    config = PlanConfig.of(model.environment).updated(
        search=settings, objective="mse", proprio_weight=1.0, frame="last", drop=drop, seed=seed
    )
    return Agent(model, config)


def measure_planning(
    model: WorldModel,
    env: GoalEnv,
    drops: Sequence[float],
    candidates: int,
    horizon: int,
    repeats: int,
    seed: int = 0,
    baseline: int = 0,
    progress: Callable[..., None] | None = None,
    traces: Path | None = None,
) -> dict[str, Any]:
    """Seconds per iteration (new mask, kept tokens, rollout, cost) per drop ratio; repeats are interleaved.

    Args:
        baseline: repeats of the DINO-WM rollout, spread over ours; 0 leaves it out. It is timed in float32,
            in which it was published, and in bfloat16, after as many rounds of warming up as ours.
        traces: folder for a profile of every drop ratio; None: not profiled.

    Returns:
        the `machine`, `matmul_peak_flops`, `sizes`, `rows` and, with `traces`, `profile` of `bench.json`.
    """
    device = model.device
    observation, _ = env.reset(seed=seed)
    pixels, proprio = (torch.as_tensor(observation[name])[None] for name in ("pixels", "proprio"))
    generator = torch.Generator().manual_seed(seed)
    actions = (
        torch.randn(1, candidates, horizon, model.action_dim, generator=generator).clamp(-1, 1).to(device)
    )
    ratios = sorted({0.0, *drops})
    problems = []
    for drop in ratios:
        agent = bench_agent(model, horizon, drop, seed)
        agent.reset(env.goal_observation())
        problems.append(agent.problem(observation))
    start, target = problems[0].start, problems[0].goal
    copies = Latent(*(part.expand(candidates, *part.shape[1:]) for part in (start.tokens, start.proprio)))

    def sparse(problem: LatentProblem) -> Tensor:
        problem.resample(0)
        return problem.cost(actions)

    def dense(window: WindowRollout, problem: LatentProblem) -> Tensor:
        problem.resample(0)
        return window.cost(copies, target, actions[0], problem.patches[0])

    precision = str(model.precision).removeprefix("torch.")
    ways = {(OURS, precision): [Contestant(partial(sparse, problem), repeats) for problem in problems]}
    encoding: list[Contestant] = []
    if baseline:
        for dtype in (torch.float32, torch.bfloat16):
            window = WindowRollout(model, dtype=dtype)
            ways[PUBLISHED, str(dtype).removeprefix("torch.")] = [
                Contestant(partial(dense, window, problem), baseline) for problem in problems
            ]
            if not encoding:
                encoding.append(Contestant(partial(window.encode, pixels, proprio, candidates), baseline))
    timed = [one for way in ways.values() for one in way]
    interleave([*timed, *encoding], device, progress, memory=True)
    peaks = matmul_peaks(device)
    rows: list[dict[str, Any]] = []
    for (name, precision), way in ways.items():
        for index, (problem, one) in enumerate(zip(problems, way, strict=True)):
            counted = rollout_operations if name == OURS else window_operations
            operations = counted(model.config, problem.kept, horizon)
            median = one.spread["median"]
            row: dict[str, Any] = {
                "rollout": name,
                "drop": ratios[index],
                "tokens": problem.kept,
                "candidates": candidates,
                "horizon": horizon,
                "dtype": precision,
                "repeats": len(one.seconds),
                "seconds_per_iteration": one.spread,
                "speedup_over_full": way[0].spread["median"] / median,
                "speedup_over_dino_wm_float32": _times(ways.get((PUBLISHED, "float32")), index, median),
                "speedup_over_dino_wm_bfloat16": _times(ways.get((PUBLISHED, "bfloat16")), index, median),
                "tokens_per_second": candidates * horizon * problem.kept / median,
                "operations_per_candidate": operations,
                # What 8-bit integers could reach at best is not measured.
                "peak_fraction": candidates * operations / median / peaks[precision]
                if precision in peaks
                else None,
                "iteration_memory_bytes": one.bytes,
            }
            if name != OURS:  # what it encodes anew in every iteration comes on top
                row["encoding_seconds_per_iteration"] = encoding[0].spread
            rows.append(row)
    report: dict[str, Any] = {"machine": machine(device), "matmul_peak_flops": peaks}
    report |= {"sizes": sizes(model, [problem.kept for problem in problems], horizon), "rows": rows}
    if traces is not None:
        report["profile"] = {
            f"{drop:g}": profile_iterations(problem, actions, traces / f"trace_drop{drop:g}.json")
            for drop, problem in zip(ratios, problems, strict=True)
        }
    return report


def _times(way: list[Contestant] | None, index: int, seconds: float) -> float | None:
    """How many times as long another way takes."""
    return None if way is None else way[index].spread["median"] / seconds


def sizes(model: WorldModel, kept: Sequence[int], horizon: int) -> dict[str, Any]:
    """Parameters, and operations per candidate by kept tokens, of our rollout and of others.

    Returns:
        by name ``{"parameters", "operations_per_candidate": {kept: ...}}``: `sparse`; `dino_wm`, the same
        predictor in the window that `bench` times; `published`, DINO-WM's own network of these sizes in it.
    """
    config, recipe = model.config, RecipeConfig.like(model)
    with torch.device("meta"):
        published = parameters(PlainPredictor(recipe))
    ours = parameters(model.predictor)
    named: dict[str, tuple[int, Callable[[int], float]]] = {
        OURS: (ours, lambda count: rollout_operations(config, count, horizon)),
        PUBLISHED: (ours, lambda count: window_operations(config, count, horizon)),
        "published": (published, lambda count: recipe_operations(recipe, count, horizon)),
    }
    return {
        name: {"parameters": numbers, "operations_per_candidate": {str(n): count(n) for n in kept}}
        for name, (numbers, count) in named.items()
    }


def measure_plans(
    model: WorldModel,
    env: GoalEnv,
    drops: Sequence[float],
    candidates: int,
    horizon: int,
    iterations: int,
    plans: int,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> list[dict[str, Any]]:
    """Seconds from an observation to a plan, in a closed loop: encoding, search, choosing the actions.

    One episode per drop ratio; all of a plan is executed before the next one. Two more plans come first,
    untimed. An episode that reaches its goal ends early.
    """
    tasks = make_tasks(env, 1, seed, GoalConfig("random"))
    elites, rows = max(2, candidates // 10), []
    for index, drop in enumerate(drops):
        sizes = {"candidates": candidates, "elites": elites, "iterations": iterations}
        actor = AgentActor(bench_agent(model, horizon, drop, seed, **sizes))
        [episode] = run_episodes([env], tasks, actor, (plans + 2) * horizon * env.frameskip)
        spread = quartiles(episode.seconds_per_plan[2:])
        if spread is not None:
            rows.append(
                {
                    "drop": drop,
                    "tokens": kept_patches(model.patches, drop),
                    "candidates": candidates,
                    "horizon": horizon,
                    "iterations": iterations,
                    "plans": len(episode.seconds_per_plan) - 2,
                    "seconds_per_plan": spread,
                    "plans_per_second": 1 / spread["median"],
                    "actions_per_second": horizon * env.frameskip / spread["median"],
                }
            )
        if progress is not None:
            progress(index + 1, len(drops))
    return rows
