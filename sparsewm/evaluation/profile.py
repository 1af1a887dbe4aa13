"""Where the time of a planner iteration goes, by kind of work, with a trace for standard viewers."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from sparsewm.files import atomic_path
from sparsewm.model import LatentProblem

PARTS = {
    "linear layers": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
    "all layers of a frame": ("sparsewm::advance",),
    "attention": ("sparsewm::attend",),
    "residual, norm, modulation": ("sparsewm::modulate",),
    "attention products": ("aten::bmm", "aten::baddbmm"),
    "fused attention": (
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
    ),
    "softmax": ("aten::_softmax",),
    "layer norm": ("aten::native_layer_norm",),
    "modulation, residuals": ("aten::addcmul", "aten::addcmul_", "aten::add", "aten::add_", "aten::mul"),
    "copies": ("aten::copy_", "aten::cat", "aten::gather", "aten::index_select", "aten::stack"),
}
"""Kinds of work and the operations that do it; what is not named is "other operations"."""


def profile_iterations(
    problem: LatentProblem, actions: Tensor, trace: Path, iterations: int = 5
) -> list[dict[str, Any]]:
    """Profile planner iterations: a new mask, the rollout of `actions`, the cost.

    Args:
        problem: its first iterations, which warm up, are not counted.
        actions: (B, S, H, action_dim) candidates.
        trace: written for chrome://tracing, Perfetto or TensorBoard.

    Returns:
        rows ``{"part", "seconds", "share", "calls"}`` of one iteration, the longest first; "between
        operations" is what no operation accounts for: Python, and on a GPU waiting for it.
    """
    cuda = problem.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda

    def iterate(repeat: int) -> None:
        with record_function("new mask"):
            problem.resample(repeat)
        with record_function("rollout and cost"):
            problem.cost(actions)
        if cuda:
            torch.cuda.synchronize(problem.device)

    for repeat in range(2):
        iterate(repeat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that events of an earlier profile are dropped
        with profile(activities=activities) as record:
            started = time.perf_counter()
            for repeat in range(iterations):
                iterate(repeat)
            wall = time.perf_counter() - started
        with atomic_path(trace) as temporary:
            record.export_chrome_trace(str(temporary))
        events = record.key_averages()
    owner = {name: part for part, names in PARTS.items() for name in names}
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    for event in events:
        if not event.key.startswith(("aten::", "mkldnn::", "sparsewm::")):
            continue
        part = owner.get(event.key, "other operations")
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        seconds[part] = seconds.get(part, 0.0) + spent * 1e-6
        calls[part] = calls.get(part, 0) + event.count
    seconds["between operations"] = max(0.0, wall - sum(seconds.values()))
    return [
        {
            "part": part,
            "seconds": spent / iterations,
            "share": spent / wall,
            "calls": round(calls.get(part, 0) / iterations),
        }
        for part, spent in sorted(seconds.items(), key=lambda item: -item[1])
        if spent > 0
    ]
