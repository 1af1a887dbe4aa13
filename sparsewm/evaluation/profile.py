"""Where the time of a planner iteration goes, by kind of work, with a trace for standard viewers."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from sparsewm.files import atomic_path
from sparsewm.model import LatentProblem

MASK, COST = "new mask", "rollout and cost"

PARTS = {
    "linear layers": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
    "all layers of a frame": ("sparsewm::advance",),
    "attention products": ("aten::bmm", "aten::baddbmm"),
    "softmax": ("aten::_softmax",),
    "layer norm": ("aten::native_layer_norm",),
    "modulation, residuals": ("aten::addcmul", "aten::addcmul_", "aten::add", "aten::add_", "aten::mul"),
    "copies": ("aten::copy_", "aten::cat", "aten::gather", "aten::index_select", "aten::stack"),
}
"""Kinds of work and the operations that do it; what is not named is "other operations"."""

KERNELS = {
    "attention": ("attend", "sdpa", "flash", "fmha"),
    "residual, norm, modulation": ("modulate", "layer_norm"),
    "linear layers": ("nvjet", "gemm", "cutlass"),
    "copies": ("copy", "memcpy", "memset", "catarray", "gather", "index"),
}
"""The same on a GPU, where a graph's kernels belong to no operation: parts of a kernel's name, the first that
fits."""


def operation_part(name: str) -> str | None:
    """Kind of work of an operation; None for what is none, such as the profiler's own."""
    if not name.startswith(("aten::", "mkldnn::", "sparsewm::")):
        return None
    return next((part for part, names in PARTS.items() if name in names), "other operations")


def kernel_part(name: str) -> str | None:
    """Kind of work of a GPU's kernel; None for a name that was given to several."""
    if name in (MASK, COST) or name.startswith("sparsewm::"):
        return None
    found = (part for part, names in KERNELS.items() if any(piece in name.lower() for piece in names))
    return next(found, "other operations")


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
        with record_function(MASK):
            problem.resample(repeat)
        with record_function(COST):
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
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    for event in events:
        if cuda:
            part = kernel_part(event.key) if event.device_type == DeviceType.CUDA else None
        else:
            part = operation_part(event.key)
        if part is None:
            continue
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
