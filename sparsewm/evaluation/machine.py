"""What results were made on: processor, threads, kernels, versions, and how fast it multiplies at best."""

from __future__ import annotations

import os
import platform
import re
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from sparsewm.files import sha256_files
from sparsewm.kernels import gpu_kernels, layout_of
from sparsewm.precision import fast_bfloat16

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "pymunk", "lerobot")


PATIENCE = 1.0
"""Seconds that a product may take whose rate is measured, on a CPU."""


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 2048, repeats: int = 8) -> float:
    """Best measured rate of a square matrix product, in floating-point operations per second.

    It is a small one where one of this size takes too long: bfloat16 on processors without it.
    """
    if device.type == "cuda":
        return _rate(device, dtype, 8192, repeats)
    small = min(size, 256)
    rate = _rate(device, dtype, small, 2)
    return _rate(device, dtype, size if 2 * size**3 < PATIENCE * rate else small, repeats)


def _rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for number in range(repeats):
        other = b if number % 2 else b.T  # as linear layers have their weights
        started = time.perf_counter()
        a @ other
        wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def wait(device: torch.device) -> None:
    """Until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """The machine, and what of the project ran on it."""
    return {
        "kind": machine_kind(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processor": processor_name(),
        "bfloat16": fast_bfloat16(device),
        "kernels": compiled_kernels(device),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "code": code_hash(),
        **{name: found for name in PACKAGES if (found := package_version(name)) is not None},
    }


def machine_kind(device: torch.device) -> str:
    """What has to be alike of two machines for a table of both: processor, and kernels in use."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return f"{name} ({device.type}, kernels: {', '.join(compiled_kernels(device)) or 'none'})"


def compiled_kernels(device: torch.device) -> list[str]:
    """Kernels of this project that planning uses here; empty where torch's own operations are used."""
    if device.type == "cuda":
        return ["triton"] if not isinstance(gpu_kernels(), str) else []
    found = [layout for dtype in (torch.bfloat16, torch.int8) if (layout := layout_of(dtype)) is not None]
    unit = ["amx"] if any(layout.tiles for layout in found) else []
    return unit + [str(layout.weights).removeprefix("torch.") for layout in found]


@cache
def code_hash() -> str:
    """Short SHA-256 of the package's source: results of another code are other results."""
    root = Path(__file__).parents[1]
    sources = (path for kind in ("*.py", "*.c", "*.h", "*.yaml") for path in root.rglob(kind))
    linked = (path for name in ("planners", "envs", "configs") for path in (root / name).rglob("*.*"))
    chosen = {path.resolve() for path in (*sources, *linked) if path.suffix in (".py", ".c", ".h", ".yaml")}
    return sha256_files(sorted(path for path in chosen if "pretrained" not in path.parts))[:12]


def processor_name() -> str:
    """The processor's name, as far as the system tells."""
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or "unknown"


def package_version(package: str) -> str | None:
    """Version of an installed package, None where it is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
