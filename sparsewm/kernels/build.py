"""Compiles the C files of this folder at first use, into the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

DAY = 24 * 3600.0


def named(what: str) -> AbstractContextManager[Any]:
    """A name in profiles; without a profiler it costs nothing."""
    return record_function(what) if torch.autograd.profiler._is_profiler_enabled else nullcontext()


def load_library(
    name: str, sources: Sequence[Path], flags: Sequence[str], needed: Sequence[str]
) -> ctypes.CDLL | str:
    """C files as a library, compiled where they were not yet; or in one phrase why there is none.

    Args:
        name: of the file in the cache folder. sources: C files; headers beside them count as theirs.
        flags: of the compiler.
        needed: what the processor must be able to do, as Linux calls it.
    """
    if os.environ.get("SPARSEWM_KERNELS") == "0":
        return "SPARSEWM_KERNELS=0"
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "Linux on x86-64 alone"
    able = processor()
    missing = [name for name in needed if name not in able]
    if missing:
        return f"the processor has no {missing[0]}"
    try:
        path = compiled(name, sources, flags)
        if isinstance(path, str):
            return path
        threads = re.search(r"\S*/libgomp\S*", Path("/proc/self/maps").read_text())
        if threads is None:
            return "torch brings no OpenMP of GNU"
        ctypes.CDLL(threads.group(), ctypes.RTLD_GLOBAL)  # one pool of threads for torch and the kernels
        return ctypes.CDLL(str(path))
    except OSError as error:
        return str(error)


def processor() -> set[str]:
    """What the processor can do, as Linux calls it."""
    try:
        line = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(line.group(1).split()) if line else set()


def compiled(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path | str:
    """The shared library, compiled where these sources were not yet by this compiler; or why it is not.

    What does not compile is remembered for a day beside the libraries: later processes do not try in vain.
    """
    cache = cache_folder()
    if isinstance(cache, str):
        return cache
    headers = {header for source in sources for header in source.parent.glob("*.h")}
    parts = [*sources, *sorted(headers)]
    content = b"".join(part.read_bytes() for part in parts) + " ".join(flags).encode()
    stem = f"{name}-{_short(content)}"
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("gcc") or shutil.which("cc") or ""]
    if not compiler[0]:
        made = sorted(path for path in cache.glob(f"{stem}-*.so") if _own(path))
        return made[0] if made else "no C compiler"
    words = [*compiler, "--version"]
    made_by = subprocess.run(words, capture_output=True, check=False).stdout + " ".join(compiler).encode()
    path = cache / f"{stem}-{_short(made_by)}.so"
    failed = path.with_suffix(".failed")
    if path.is_file() and _own(path):
        return path
    if failed.is_file() and time.time() - failed.stat().st_mtime < DAY:
        return f"{failed.read_text()} (delete {failed} to try again)"
    _announce()
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        library = Path(folder) / path.name
        reason = _compile(compiler, sources, flags, library)
        if reason is None:
            os.replace(library, path)
            return path
        note = Path(folder) / failed.name
        note.write_text(reason)
        os.replace(note, failed)
    return reason


def cache_folder() -> Path | str:
    """The user's folder for compiled libraries, made where it is missing; or why there is none."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsewm"
    except RuntimeError:
        return "no home folder: set XDG_CACHE_HOME"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if cache.stat().st_uid != os.geteuid():
        return f"{cache} belongs to another user: set XDG_CACHE_HOME"
    if cache.stat().st_mode & 0o022:
        cache.chmod(0o700)
    return cache


@functools.cache
def _announce() -> None:
    """Say why it takes so long; once, however many libraries follow."""
    logging.getLogger(__name__).warning("compiling kernels for this processor, once: 5 to 20 s")


def _own(path: Path) -> bool:
    """Whether nobody else can have written a file, so that its code may be run."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _compile(
    compiler: Sequence[str], sources: Sequence[Path], flags: Sequence[str], library: Path
) -> str | None:
    """Make the library; or why it does not compile."""
    files = {source: library.with_name(f"{source.stem}.o") for source in sources if source.suffix == ".c"}
    # Not linked with a library of OpenMP: the one that torch has loaded serves both.
    steps = [[*flags, "-c", source, "-o", part] for source, part in files.items()]
    for step in (*steps, ["-shared", *files.values(), "-o", library]):
        words = [*compiler, *map(str, step)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            first = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
            return f"{compiler[0]} does not compile them: {first}"
    library.chmod(0o755)
    return None
