"""Kernels of every platform: compiled, and run, on what this machine has or by emulation.

Example:

    python -m scripts.trust.platforms
    python -m scripts.trust.platforms --emulate
    python -m scripts.trust.platforms --check-memory
    python -m scripts.trust.platforms --python python
    python -m scripts.trust.platforms --python "qemu-aarch64 -L arm64 arm64/usr/bin/python3.11"

What is written in C is compiled for every set of instructions, what is written in Triton for several
generations of GPUs, which needs none. `tests/kernels` compares what runs here with torch. With `--emulate`
all that is written in C is compared so on any x86-64 processor with AVX2: AVX-512 with its products of
bfloat16 and of 8-bit integers, and the tiles of a matrix unit, are computed in plain C (`wide.h`, `tiles.h`).
With `--check-memory` GCC's address sanitizer watches them: a kernel that reads or writes where nothing is
allocated is named. It takes some 20 minutes.

Elsewhere torch's own operations do the work. With `--python` the tests of models, planners, agents and
evaluation run by a Python without kernels, in another process: this one, or one of another processor that is
emulated. For the latter, Debian's packages of Python (`apt-get download libpython3.11-stdlib:arm64` and what
it needs) are unpacked with `dpkg -x` into a folder, and `uv pip install --python-platform
aarch64-manylinux_2_28 --target FOLDER . pytest pytest-timeout pytest-xdist` brings what `PYTHONPATH=FOLDER`
names. QEMU 7.2 runs torch 2.8 so, not 2.15; it wants to read what processor it is from
`arm64/sys/devices/system/cpu/cpu0/regs/identification/midr_el1` (0x00000000413fd0c1).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from scripts.common import launch
from scripts.trust import emulation
from scripts.trust.common import RESULTS, report
from scripts.trust.emulation import emulated
from sparsewm.kernels import LAYOUTS, denormals, gpu, layers, layers_library, training
from sparsewm.kernels.build import compiled

CAPABILITIES = (75, 80, 90)
"""Of GPUs: Turing, Ampere, Hopper."""
WITHOUT = ("tests/model", "tests/planners", "tests/evaluation", "tests/test_agent.py")
"""Tests that run without kernels."""
WITH = ("tests/kernels", "tests/model/test_step.py", "tests/model/test_rollout.py")
"""Tests of kernels."""
OUTSIDE = re.compile(r"AddressSanitizer: ([\w-]+) on address .*\n.*\n\s+#0 \S+ in (\S+)")
"""What the sanitizer reports: its kind, and the function."""


def not_exercised() -> dict[str, str]:
    """Kernels that do not run as they are on this machine: why, and what stands in for them."""
    found: dict[str, str] = {}

    def note(name: str, library: Any, instead: Any = "") -> None:
        if isinstance(library, str):
            found[name] = f"{library}; {instead}" if instead else library

    for layout in LAYOUTS:
        library = layers_library(layout)
        note(
            layout.name, library, _instead(library, layout.name, layers.SOURCES, layout.flags, layout.needed)
        )
    for name, parts in training.VARIANTS.items():
        found_here = training.variant(name)
        note(name, found_here, _instead(found_here, name, training.SOURCES, *parts))
    if not torch.cuda.is_available():
        there = isinstance(gpu.gpu_kernels(), gpu.GpuKernels)
        note("GPU", "no GPU", there and "by Triton's interpreter instead")
        note("graphs of a GPU", "no GPU")
    return found


def _instead(library: Any, name: str, sources: Sequence[Path], *parts: tuple[str, ...]) -> str:
    """What stands in for a library that is not there, in tests of it."""
    if not isinstance(library, str) or name.startswith("layers"):
        return ""
    flags, needed = parts
    there = isinstance(emulated(name, tuple(sources), flags, needed), CDLL)
    return "in plain C instead" if there else ""


def in_c() -> dict[str, str]:
    """Whether what is written in C compiles here, for each set of instructions."""
    sets = {
        "any processor (denormals)": (denormals.SOURCES, denormals.FLAGS),
        **{layout.name: (layers.SOURCES, layout.flags) for layout in LAYOUTS},
        **{name: (training.SOURCES, flags) for name, (flags, _) in training.VARIANTS.items()},
    }
    made = {name: compiled("kernels", *parts) for name, parts in sets.items()}
    return {name: one if isinstance(one, str) else "compiles" for name, one in made.items()}


def in_triton() -> dict[str, str]:
    """Whether what is written in Triton compiles, for each generation of GPUs."""
    os.environ.pop("TRITON_INTERPRET", None)
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError as error:
        return {"all": str(error)}
    from sparsewm.kernels import gpu_functions

    found = {}
    for capability in CAPABILITIES:
        for kind in ("fp16", "fp32") if capability < 80 else ("bf16", "fp16", "fp32"):
            target = GPUTarget("cuda", capability, 32)
            for name, (signature, constants, options) in _shapes(kind).items():
                source = ASTSource(getattr(gpu_functions, name), signature, constants)
                place = f"{name}, {kind}, {capability / 10}"
                try:
                    code = triton.compile(source, target, options).asm["cubin"]
                    found[place] = f"compiles, {len(code)} bytes"
                except Exception as error:  # whatever the compiler says
                    found[place] = f"{type(error).__name__}: {error}"
    return found


def _shapes(kind: str) -> dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Signature, constants and options of each function, as a rollout of three frames calls it."""
    pointer, frames, size = f"*{kind}", 3, 64
    block, seen, warps, stages = gpu.blocks(99, size, 4 if kind == "fp32" else 2)
    attend = {
        "queries": pointer,
        **dict.fromkeys(("keys", "values", "ages"), (pointer,) * frames),
        "out": pointer,
        "query_strides": ("i32",) * 4,
        "strides": ("i32",) * 8 * frames,
        "lengths": ("i32",) * frames,
        **dict.fromkeys(("candidates", "length", "heads"), "i32"),
    }
    sizes = {"FRAMES": frames, "AGED": 6, "SIZE": size, "STEP": 8, "D": size, "M": block, "N": seen}
    modulate = {
        **dict.fromkeys(("x", "total", "added", "gate", "shift", "scale", "y"), pointer),
        **dict.fromkeys(("candidates", "length", "gate_stride", "shift_stride"), "i32"),
        "epsilon": "fp32",
    }
    widths = {"ADDS": True, "SHARED": True, "WIDTH": 192, "W": 256}
    return {
        "attend": (attend | _constants(sizes), sizes, {"num_warps": warps, "num_stages": stages}),
        "modulate": (modulate | _constants(widths), widths, {"num_warps": 1}),
    }


def _constants(values: dict[str, Any]) -> dict[str, str]:
    return dict.fromkeys(values, "constexpr")


def without_kernels(python: str) -> tuple[str, dict[str, Any]]:
    """The processor's architecture, and how many tests pass there by torch's own operations.

    Args:
        python: words that start a Python.
    """
    words = shlex.split(python)
    about = "import json, platform, torch; print(json.dumps([platform.machine(), torch.__version__]))"
    said = subprocess.run([*words, "-c", about], stdout=subprocess.PIPE, check=True).stdout
    machine, version = json.loads(said)
    return machine, {"its_torch": version, **tested(words, WITHOUT, {"SPARSEWM_KERNELS": "0"})}


def with_emulated_kernels() -> dict[str, Any]:
    """How many tests of kernels pass where all are emulated."""
    return tested([sys.executable], WITH, {"OMP_NUM_THREADS": "2"}, "-p", emulation.__name__)


def with_checked_memory() -> dict[str, Any]:
    """The same, and where a kernel touched what is not allocated: how, and in which function."""
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")  # torch's exceptions want the second beside the first
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "CC": "gcc -fsanitize=address -fsanitize-recover=address "
            "--param asan-instrumentation-with-call-threshold=0",
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=0:log_path={folder}/found",
            "OMP_NUM_THREADS": "1",
        }
        found = tested([sys.executable], WITH, settings, "-p", emulation.__name__)
        said = "".join(path.read_text(errors="replace") for path in Path(folder).glob("found*"))
    return {**found, "outside": [f"{kind} in {where}" for kind, where in OUTSIDE.findall(said)]}


def tested(
    words: Sequence[str], tests: Sequence[str], settings: dict[str, str], *flags: str
) -> dict[str, Any]:
    """How many of these tests there are, are skipped and fail, and how.

    Args:
        words: that start a Python. settings: of its environment. flags: of pytest.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "tests.xml"
        usual = ["-q", "-n", "0", "-m", "not slow", "-o", "timeout=0", f"--junitxml={results}"]
        subprocess.run([*words, "-m", "pytest", *usual, *flags, *tests], env=os.environ | settings)
        suite = ElementTree.parse(results).find("testsuite")
    assert suite is not None
    counts = {name: int(suite.attrib[name]) for name in ("tests", "skipped")}
    failed = {
        f"{case.attrib['classname']}::{case.attrib['name']}": said.attrib.get("message", "")
        for case in suite.iter("testcase")
        for said in (*case.iter("failure"), *case.iter("error"))
    }
    return {"of": list(tests), **counts, "failed": failed}


@dataclass
class Arguments:
    """Compile kernels for every platform, or run tests with emulated ones or without any."""

    emulate: bool = False
    """Run tests of kernels on emulated instructions instead, and write emulated_kernels.json."""
    check_memory: bool = False
    """The same, but watch what they read and write, and write checked_kernels.json."""

    python: str | None = None
    """Run tests without kernels by this Python instead, and write without_kernels_ARCHITECTURE.json."""
    output: Path = RESULTS
    """Folder of the JSON files."""


def main(arguments: Arguments) -> None:
    checked = arguments.check_memory
    if arguments.emulate or checked:
        found = with_checked_memory() if checked else with_emulated_kernels()
        print(found)
        report("checked_kernels" if checked else "emulated_kernels", found, arguments.output)
        return
    if arguments.python is not None:
        machine, found = without_kernels(arguments.python)
        print(machine, found)
        report(f"without_kernels_{machine}", found, arguments.output)
        return
    parts: dict[str, Callable[[], dict[str, str]]] = {
        "not_exercised": not_exercised,
        "c": in_c,
        "triton": in_triton,
    }
    found = {name: part() for name, part in parts.items()}
    print(found)
    report("platforms", found, arguments.output)


if __name__ == "__main__":
    launch(main, Arguments)
