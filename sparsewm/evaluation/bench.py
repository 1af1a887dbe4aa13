"""Timing of planner iterations, ours and the DINO-WM rollout's, on the same weights in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.agent import Agent
from sparsewm.config import GoalConfig, PlanConfig
from sparsewm.encoders import ViT, weights_hash
from sparsewm.envs import GoalEnv
from sparsewm.evaluation.actors import AgentActor, interface_of_env
from sparsewm.evaluation.dino_wm import WindowRollout
from sparsewm.evaluation.episodes import run_episodes
from sparsewm.evaluation.machine import machine, matmul_peak, wait
from sparsewm.evaluation.profile import profile_iterations
from sparsewm.evaluation.statistics import quartiles
from sparsewm.memory import PeakMemory
from sparsewm.model import Latent, LatentProblem, PredictorConfig, WorldModel, kept_patches, load
from sparsewm.model.checkpoint import pretrained_path
from sparsewm.precision import fast_bfloat16
from sparsewm.tasks import make_tasks
from sparsewm.training.config import preset


def bench_model(
    env: GoalEnv, checkpoint: Path | None, device: torch.device, dtype: torch.dtype, **files: Any
) -> WorldModel:
    """The model to time: a checkpoint, or the shipped one; `files` as `load` takes them for its encoder."""
    return load(checkpoint or pretrained_path(env.name), device, dtype, environment=env.name, **files)


def paper_model(
    env: GoalEnv, device: torch.device, dtype: torch.dtype, seed: int, name: str = "paper"
) -> WorldModel:
    """A world model of a preset's sizes on ViT-S/16 (196 tokens of 384 features) with random weights."""
    torch.manual_seed(seed)
    encoder = ViT(resolution=224, patch=16, width=384, depth=12, heads=6, dim=384)
    encoder.name, encoder.hash = "random", weights_hash(encoder)
    encoder.freeze()
    interface = interface_of_env(env)
    sizes = interface.proprio_dim, interface.action_dim * env.frameskip
    config = PredictorConfig(encoder.dim, encoder.grid, *sizes, **asdict(preset(name).model))
    model = WorldModel(encoder, config, env.name, env.frameskip, {"interface": interface.to_dict()})
    model.eval().requires_grad_(False)
    return model.place(device, dtype)


def rollout_operations(model: WorldModel, kept: int, candidates: int, horizon: int) -> float:
    """Floating-point operations of an iteration: products of the blocks, attention over cached frames."""
    config, length = model.config, kept + 1
    width, inner, total = config.width, config.heads * config.head_size, 0.0
    for step in range(horizon):
        window = min(step + 1, config.history) * length
        block = 2 * length * width * (4 * inner + 2 * config.mlp) + 4 * length * window * inner
        total += config.depth * block + 2 * length * width * config.token_dim * 2
    return candidates * total


def bench_agent(model: WorldModel, horizon: int, drop: float, seed: int, **search: object) -> Agent:
    """The agent whose problems are timed: squared error of the last frame, an action for every step."""
    settings = {"horizon": horizon, "execute": horizon, "action_repeat": False} | search
    config = PlanConfig.of(model.environment).updated(
        search=settings, objective="mse", proprio_weight=1.0, frame="last", drop=drop, seed=seed
    )
    return Agent(model, config)


@dataclass
class Contestant:
    """One way to roll out, and what was measured of it.

    Attributes:
        name: "sparse", or "dino_wm" with or without its precision.
        dtype: what it multiplies in.
        work: an iteration of the problem with this index: new mask, rollout, cost.
        repeats: timed iterations of each problem.
        seconds: of the timed iterations, by problem.
        bytes: what an iteration takes of memory at its peak, by problem; None where nobody tells.
    """

    name: str
    dtype: str
    work: Callable[[int], object]
    repeats: int
    seconds: dict[int, list[float]] = field(default_factory=dict)
    bytes: dict[int, int | None] = field(default_factory=dict)


WARM_UP = 2
"""Untimed rounds of every contestant: kernels are made in the first, graphs recorded in the second."""


def measure(
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
        baseline: repeats of the DINO-WM rollout, spread over ours; 0 leaves it out. Where the device is fast
            in bfloat16, it is timed in that as well as in float32, in which it was published.
        traces: folder for a profile of every drop ratio; None: not profiled.

    Returns:
        the `machine`, `matmul_peak_flops`, `rows` and, with `traces`, `profile` of `bench.json`.
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

    def sparse(index: int) -> Tensor:
        problems[index].resample(0)
        return problems[index].cost(actions)

    def dense(window: WindowRollout, index: int) -> Tensor:
        problems[index].resample(0)
        return window.cost(copies, target, actions[0], problems[index].patches[0])

    ways = [Contestant("sparse", str(model.precision).removeprefix("torch."), sparse, repeats)]
    window = WindowRollout(model)
    if baseline:
        ways.append(Contestant("dino_wm", "float32", partial(dense, window), baseline))
        if fast_bfloat16(device):
            half = partial(dense, WindowRollout(model, dtype=torch.bfloat16))
            ways.append(Contestant("dino_wm_bfloat16", "bfloat16", half, baseline))
    encoding: list[float] = []
    for round_ in range(WARM_UP + repeats):
        for way in ways:
            if round_ >= WARM_UP and not _due(round_ - WARM_UP, way.repeats, repeats):
                continue
            for index in range(len(problems)):
                if round_ == 0:
                    peak = PeakMemory(device)
                    way.work(index)
                    way.bytes[index] = peak.added()
                    continue
                spent = _timed(device, partial(way.work, index))
                if round_ >= WARM_UP:
                    way.seconds.setdefault(index, []).append(spent)
            if way.name == "dino_wm":
                spent = _timed(device, lambda: window.encode(pixels, proprio, candidates))
                encoding += [spent] * (round_ >= WARM_UP)
        if progress is not None:
            progress(round_ + 1, WARM_UP + repeats)
    dtypes = {way.dtype for way in ways} - {"int8"}
    peaks = {name: matmul_peak(device, getattr(torch, name)) for name in sorted(dtypes)}
    rows = []
    for way in ways:
        for index, problem in enumerate(problems):
            rows.append(_row(way, index, ways, ratios[index], problem, model, candidates, peaks))
            if way.name != "sparse":  # what it encodes anew in every iteration comes on top
                rows[-1]["encoding_seconds_per_iteration"] = quartiles(encoding)
    report = {"machine": machine(device), "matmul_peak_flops": peaks, "rows": rows}
    if traces is not None:
        report["profile"] = {
            f"{drop:g}": profile_iterations(problem, actions, traces / f"trace_drop{drop:g}.json")
            for drop, problem in zip(ratios, problems, strict=True)
        }
    return report


def _due(round_: int, wanted: int, rounds: int) -> bool:
    """Whether one of `wanted` repeats, spread evenly over the rounds, is in this one; at most one is."""
    return (round_ + 1) * wanted // rounds > round_ * wanted // rounds


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def _row(
    way: Contestant,
    index: int,
    ways: Sequence[Contestant],
    drop: float,
    problem: LatentProblem,
    model: WorldModel,
    candidates: int,
    peaks: dict[str, float],
) -> dict[str, Any]:
    """A row of `bench.json`."""
    spread = quartiles(way.seconds[index])
    assert spread is not None
    median, kept = spread["median"], problem.patches.shape[1]
    published = next((other.seconds[index] for other in ways if other.name == "dino_wm"), None)
    rate = rollout_operations(model, kept, candidates, problem.horizon) / median
    return {
        "rollout": way.name,
        "drop": drop,
        "tokens": kept,
        "candidates": candidates,
        "horizon": problem.horizon,
        "dtype": way.dtype,
        "repeats": len(way.seconds[index]),
        "seconds_per_iteration": spread,
        "speedup_over_full": float(np.median(way.seconds[0])) / median,
        "speedup_over_dino_wm": None if published is None else float(np.median(published)) / median,
        "tokens_per_second": candidates * problem.horizon * kept / median,
        # Of a product in the same precision; what 8-bit integers could reach at best is not measured.
        "peak_fraction": rate / peaks[way.dtype] if way.dtype in peaks else None,
        "iteration_memory_bytes": way.bytes[index],
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
