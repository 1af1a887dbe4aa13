"""Timing of planner iterations; the comparison with the DINO-WM rollout belongs here too."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from envs import GoalEnv
from sparsewm.encoders import ViT, weights_hash
from sparsewm.evaluation.statistics import peak_memory, quartiles
from sparsewm.model import LatentProblem, PredictorConfig, WorldModel, load
from sparsewm.model.checkpoint import pretrained_path
from sparsewm.settings import preset


def bench_model(
    env: GoalEnv, checkpoint: Path | None, device: torch.device, dtype: torch.dtype
) -> WorldModel:
    """The model to time: a checkpoint, or the shipped one."""
    return load(checkpoint or pretrained_path(env.name), device, dtype, environment=env.name)


def paper_model(env: GoalEnv, device: torch.device, dtype: torch.dtype, seed: int) -> WorldModel:
    """A world model of the paper's sizes (196 tokens of 384 features) with random weights."""
    torch.manual_seed(seed)
    encoder = ViT(resolution=224, patch=16, width=384, depth=1, heads=6, dim=384)
    encoder.name, encoder.hash = "random", weights_hash(encoder)
    encoder.freeze()
    config = PredictorConfig(
        encoder.dim, encoder.grid, env.proprio_dim, env.action_dim * env.frameskip, **preset("paper").model
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


def measure(
    model: WorldModel,
    env: GoalEnv,
    drops: Sequence[float],
    candidates: int,
    horizon: int,
    repeats: int,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Seconds per iteration (new mask, kept tokens, rollout, cost) per drop ratio; repeats are interleaved.

    Returns:
        the `machine`, `matmul_peak_flops` and `rows` of `bench.json`.
    """
    device = model.device
    dtype = next(model.predictor.parameters()).dtype
    observation, _ = env.reset(seed=seed)
    goal = env.render_state(env.goal)
    start = model.encode(observation["pixels"][None], observation["proprio"][None])
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
    times: list[list[float]] = [[] for _ in ratios]
    for repeat in range(repeats + 2):
        for problem, seconds in zip(problems, times, strict=True):
            _wait(device)
            started = time.perf_counter()
            problem.resample(repeat)
            problem.cost(actions)
            _wait(device)
            if repeat >= 2:
                seconds.append(time.perf_counter() - started)
        if progress is not None:
            progress(repeat + 1, repeats + 2)
    peak = matmul_peak(device, dtype)
    full = float(np.median(times[0]))
    rows = []
    for drop, problem, seconds in zip(ratios, problems, times, strict=True):
        spread = quartiles(seconds)
        assert spread is not None
        operations = rollout_operations(model, problem.kept, candidates, horizon)
        rows.append(
            {
                "rollout": "sparse",
                "drop": drop,
                "tokens": problem.kept,
                "candidates": candidates,
                "horizon": horizon,
                "dtype": str(dtype).removeprefix("torch."),
                "seconds_per_iteration": spread,
                "speedup_over_full": full / spread["median"],
                "speedup_over_dino_wm": None,
                "tokens_per_second": candidates * horizon * problem.kept / spread["median"],
                "peak_fraction": operations / spread["median"] / peak,
                "peak_memory_bytes": peak_memory(device),
            }
        )
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {"machine": machine, "matmul_peak_flops": peak, "rows": rows}
