"""Kernels of other processors on this one, their instructions in plain C (`wide.h`, `tiles.h`).

As a plugin of pytest, `-p scripts.trust.emulation`, all kernels are such, whatever the processor can do.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Sequence
from ctypes import CDLL
from pathlib import Path

from sparsewm.kernels import build, layers

WIDE, TILES = (Path(__file__).with_name(name) for name in ("wide.h", "tiles.h"))
"""What AVX-512 adds, and a matrix unit (AMX)."""
NEEDED = ("avx2", "fma")
"""What the processor must be able to do all the same, as Linux calls it."""
GIVEN = {name for layout in layers.LAYOUTS for name in layout.needed}
"""What emulation gives it."""


def in_plain_c(
    sources: Sequence[Path], flags: Sequence[str], headers: Sequence[Path]
) -> tuple[list[Path], list[str]]:
    """Sources and flags for a compiler that may use none of the instructions that headers stand in for."""
    gone = ("-mavx512", "-mamx") if WIDE in headers else ("-mamx",)
    kept = [flag for flag in flags if not flag.startswith(gone)]
    kept += ["-mavx2", "-Wno-psabi"] if WIDE in headers else []
    return [*sources, *headers], kept + [word for header in headers for word in ("-include", str(header))]


def possible() -> bool:
    """Whether kernels can be emulated here: by GCC on Linux, with AVX2, if they are not switched off."""
    here = sys.platform == "linux" and shutil.which("gcc") is not None
    return here and build.processor().issuperset(NEEDED) and os.environ.get("SPARSEWM_KERNELS") != "0"


@functools.cache
def emulated(
    name: str, sources: tuple[Path, ...], flags: tuple[str, ...], needed: tuple[str, ...]
) -> CDLL | str:
    """What the processor lacks, in plain C: the tiles of a matrix unit alone, if that is all; or why not.

    Args:
        name, sources, flags, needed: as of `build.load_library`.
    """
    wide = [feature for feature in needed if not feature.startswith("amx")]
    able = build.processor().issuperset(wide)
    parts = in_plain_c(sources, flags, [TILES] if able else [WIDE, TILES])
    return build.load_library(f"emulated_{name}", *parts, wide if able else NEEDED)


def pytest_configure() -> None:
    """Let all kernels be emulated in this process."""
    compiled, processor = build.compiled, build.processor

    def emulates(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path | str:
        return compiled(f"emulated_{name}", *in_plain_c(sources, flags, [WIDE, TILES]))

    def able() -> set[str]:
        real = processor()
        return real | GIVEN if real.issuperset(NEEDED) else real

    build.compiled, build.processor = emulates, able
