"""Timing of planner iterations, ours and the DINO-WM rollout's, on the same weights in one run."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from sparsewm.encoders import ViT, weights_hash
from sparsewm.envs import GoalEnv
from sparsewm.evaluation.closed_loop import ModelProblems, Planned, make_tasks, run_episodes
from sparsewm.evaluation.dino_wm import WindowRollout
from sparsewm.evaluation.profile import profile_iterations
from sparsewm.evaluation.statistics import peak_memory, quartiles
from sparsewm.model import Latent, LatentProblem, PredictorConfig, WorldModel, kept_patches, load
from sparsewm.model.checkpoint import pretrained_path
from sparsewm.planners import CEM, MPC
from sparsewm.precision import fast_bfloat16
from sparsewm.training.config import preset


def bench_model(
    env: GoalEnv, checkpoint: Path | None, device: torch.device, dtype: torch.dtype, **files: Path | None
) -> WorldModel:
    """The model to time: a checkpoint, or the shipped one; `files` as `load` takes them for its encoder."""
    return load(checkpoint or pretrained_path(env.name), device, dtype, environment=env.name, **files)


def paper_model(env: GoalEnv, device: torch.device, dtype: torch.dtype, seed: int) -> WorldModel:
    """A world model of the paper's sizes (ViT-S/16: 196 tokens of 384 features) with random weights."""
    torch.manual_seed(seed)
    encoder = ViT(resolution=224, patch=16, width=384, depth=12, heads=6, dim=384)
    encoder.name, encoder.hash = "random", weights_hash(encoder)
    encoder.freeze()
    config = PredictorConfig(
        encoder.dim,
        encoder.grid,
        env.proprio_dim,
        env.action_dim * env.frameskip,
        **asdict(preset("paper").model),
    )
    model = WorldModel(encoder, config, env.name, env.frameskip)
    model.eval().requires_grad_(False)
    return model.place(device, dtype)


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 2048, repeats: int = 8) -> float:
    """Best measured rate of a square matrix product, in floating-point operations per second."""
    size = 8192 if device.type == "cuda" else size
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def rollout_operations(model: WorldModel, kept: int, candidates: int, horizon: int) -> float:
    """Floating-point operations of an iteration: products of the blocks, attention over cached frames."""
    config, length = model.config, kept + 1
    width, total = config.width, 0.0
    for step in range(horizon):
        window = min(step + 1, config.history) * length
        block = 2 * length * width * (4 * width + 2 * config.mlp) + 4 * length * window * width
        total += config.depth * block + 2 * length * width * config.token_dim * 2
    return candidates * total


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """What times were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processor": processor_name(),
        "bfloat16": fast_bfloat16(device),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """The processor's name, as far as the system tells."""
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or "unknown"


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
        baseline: repeats of the DINO-WM rollout, spread over ours; 0 leaves it out.
        traces: folder for a profile of every drop ratio; None: not profiled.

    Returns:
        the `machine`, `matmul_peak_flops`, `rows` and, with `traces`, `profile` of `bench.json`.
    """
    device = model.device
    dtype, precision = next(model.predictor.parameters()).dtype, str(model.precision)
    observation, _ = env.reset(seed=seed)
    goal = env.render_state(env.goal)
    pixels, proprio = (torch.as_tensor(observation[name])[None] for name in ("pixels", "proprio"))
    start = model.encode(pixels, proprio)
    target = model.encode(goal["pixels"][None], goal["proprio"][None])
    low, high = torch.as_tensor(env.action_space.low), torch.as_tensor(env.action_space.high)
    generator = torch.Generator().manual_seed(seed)
    actions = (
        torch.randn(1, candidates, horizon, model.action_dim, generator=generator).clamp(-1, 1).to(device)
    )
    ratios = sorted({0.0, *drops})
    problems = [
        LatentProblem(model, start, target, low, high, horizon=horizon, drop=drop, generator=generator)
        for drop in ratios
    ]
    window = cache(lambda: WindowRollout(model))  # made after the peak memory of ours is read
    copies = Latent(*(part.expand(candidates, *part.shape[1:]) for part in (start.tokens, start.proprio)))

    def sparse(problem: LatentProblem, repeat: int) -> None:
        problem.resample(repeat)
        problem.cost(actions)

    def dense(problem: LatentProblem, repeat: int) -> None:
        problem.resample(repeat)
        window().cost(copies, target, actions[0], problem.patches[0])

    def timed(work: Callable[[], Any]) -> float:
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        return time.perf_counter() - started

    times: dict[tuple[str, int], list[float]] = {}
    encoding: list[float] = []
    peak_bytes, due = 0, 0
    for repeat in range(repeats + 2):
        for index, problem in enumerate(problems):
            spent = timed(partial(sparse, problem, repeat))
            if repeat >= 2:
                times.setdefault(("sparse", index), []).append(spent)
        peak_bytes = peak_bytes or peak_memory(device)  # before the baseline needs its own
        while due < baseline * (repeat + 1) // (repeats + 2):
            for index, problem in enumerate(problems):
                times.setdefault(("dino_wm", index), []).append(timed(partial(dense, problem, repeat)))
            encoding.append(timed(lambda: window().encode(pixels, proprio, candidates)))
            due += 1
        if progress is not None:
            progress(repeat + 1, repeats + 2)
    peak = matmul_peak(device, dtype)
    rows = []
    for (rollout, index), seconds in sorted(times.items(), key=lambda item: item[0][0], reverse=True):
        drop, kept, ours = ratios[index], problems[index].kept, rollout == "sparse"
        spread = quartiles(seconds)
        assert spread is not None
        median = spread["median"]
        reference = times.get(("dino_wm", index))
        row: dict[str, Any] = {
            "rollout": rollout,
            "drop": drop,
            "tokens": kept,
            "candidates": candidates,
            "horizon": horizon,
            "dtype": precision.removeprefix("torch.") if ours else "float32",
            "repeats": len(seconds),
            "seconds_per_iteration": spread,
            "speedup_over_full": float(np.median(times[rollout, 0])) / median,
            "speedup_over_dino_wm": None if reference is None else float(np.median(reference)) / median,
            "tokens_per_second": candidates * horizon * kept / median,
            "peak_fraction": rollout_operations(model, kept, candidates, horizon) / median / peak,
            "peak_memory_bytes": peak_bytes if ours else peak_memory(device),
        }
        if not ours:  # what it encodes anew in every iteration comes on top
            row["encoding_seconds_per_iteration"] = quartiles(encoding)
        rows.append(row)
    report = {"machine": machine(device), "matmul_peak_flops": peak, "rows": rows}
    if traces is not None:
        report["profile"] = {
            f"{drop:g}": profile_iterations(problem, actions, traces / f"trace_drop{drop:g}.json")
            for drop, problem in zip(ratios, problems, strict=True)
        }
    return report


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
    tasks = make_tasks(env, 1, seed, "random")
    elites, rows = max(2, candidates // 10), []
    for index, drop in enumerate(drops):
        problems = ModelProblems(model, env, seed, horizon=horizon, drop=drop)
        policy = Planned(env, MPC(CEM(candidates, elites, iterations, seed=seed), horizon), problems)
        [trace] = run_episodes(env, tasks, policy, (plans + 2) * horizon * env.frameskip)
        spread = quartiles(trace.seconds_per_plan[2:])
        if spread is not None:
            rows.append(
                {
                    "drop": drop,
                    "tokens": kept_patches(model.patches, drop),
                    "candidates": candidates,
                    "horizon": horizon,
                    "iterations": iterations,
                    "plans": len(trace.seconds_per_plan) - 2,
                    "seconds_per_plan": spread,
                    "plans_per_second": 1 / spread["median"],
                    "actions_per_second": horizon * env.frameskip / spread["median"],
                }
            )
        if progress is not None:
            progress(index + 1, len(drops))
    return rows
