"""A machine that lacks something: it works without, or says so in one sentence and leaves nothing half done.

Example:

    python -m scripts.trust.starved

What needs a mount or a network of its own is left out, and named, where this user may not make one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scripts.common import launch
from scripts.trust import samples
from scripts.trust.common import RESULTS, Outcome, Process, command, limit_memory, report, warm_up
from scripts.trust.kills import hidden

PLAN = "plan --env wall --candidates 4 --iterations 1 --max-steps 5"
COMMANDS = {
    "plan": f"{PLAN} --checkpoint model --output out/plan",
    "train": samples.TRAIN.format(steps=2).replace("output run", "output out/run"),
    "collect": "collect --env wall --episodes 2 --steps 20 --workers 1 --resolution 32 --output out",
    "convert": "convert wall.h5 out/wall.h5",
    "convert to lerobot": "convert wall.h5 out/wall",
    "inspect": "inspect wall.h5 --output out",
}
LEFT = "left behind:"
_NEWNS, _NEWNET = 0x20000, 0x40000000


@dataclass
class Lack:
    """Something that is missing.

    Attributes:
        name: what. before: takes it away, in the process that is to do without.
        commands: names of `COMMANDS`, or commands. environment: of the process.
        works: whether it has to work without.
    """

    name: str
    before: Callable[[], Any] = lambda: None
    commands: tuple[str, ...] = ("plan", "train")
    environment: dict[str, str] = field(default_factory=dict)
    works: bool = True


def _own(kind: int) -> None:
    """A view of mounts or networks of this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(kind):
        raise OSError(ctypes.get_errno(), "unshare")
    if kind == _NEWNS:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def _mounted(place: str, options: str) -> None:
    _own(_NEWNS)
    Path(place).mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=True)


def may_mount() -> bool:
    """Whether this user may make mounts and networks for a process."""

    def work() -> int:
        _mounted("here", "size=1m")
        _own(_NEWNET)
        return 0

    with tempfile.TemporaryDirectory() as folder:
        return Process(work, Path(folder), Path(folder) / "log").wait().code == 0


def _files(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _clock() -> None:
    """A clock that jumps back an hour at every other look."""
    real, looks = time.time, iter(range(1 << 62))
    time.time = lambda: real() - 3600 * (next(looks) % 2)  # type: ignore[assignment]


def lacks(mounts: bool) -> list[Lack]:
    """All that can be missing here."""
    every = tuple(COMMANDS)
    nowhere = "/dev/null/nowhere"
    found = [
        Lack(f"files of {size} bytes at most", _files(size), every, works=False)
        for size in (0, 2_000, 50_000, 400_000, 1_500_000)
    ]
    empty = tempfile.mkdtemp()
    no_gl = {"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_DIRS": "/nowhere", "EGL_PLATFORM": "nowhere"}
    large = f"{PLAN} --checkpoint model --candidates 3000 --output out/large --run.no-video"
    found += [
        Lack("a home", environment={"HOME": nowhere, "XDG_CACHE_HOME": ""}),
        Lack("a cache", environment={"XDG_CACHE_HOME": nowhere}),
        Lack("a compiler", environment={"PATH": "/nowhere", "XDG_CACHE_HOME": empty, "CC": ""}),
        Lack("OpenGL, where none is needed", environment=no_gl),
        Lack(
            "OpenGL",
            commands=("plan --env pointmaze --run.actor nothing",),
            environment=no_gl,
            works=False,
        ),
        Lack("a second core", lambda: os.sched_setaffinity(0, {0})),
        Lack("more than 64 descriptors", _descriptors, ("plan", "train", "convert", "inspect")),
        Lack("more than 256 MiB", lambda: limit_memory(256 << 20), (large,)),
        Lack("a clock that goes on", _clock, ("plan", "train", "collect")),
    ]
    if mounts:
        found += [
            Lack(
                f"a disk of more than {size}",
                partial(_mounted, "out", f"size={size}"),
                every,
                works=False,
            )
            for size in ("16k", "128k", "1m", "2m")
        ]
        found += [
            Lack("a disk that can be written", lambda: _mounted("out", "ro"), every, works=False),
            Lack("/dev/shm", lambda: _mounted("/dev/shm", "ro"), ("plan", "train", "collect")),
            Lack("a network", lambda: _own(_NEWNET), ("plan", "train")),
            Lack(
                "a network, for a name on the hub",
                lambda: _own(_NEWNET),
                (f"{PLAN} --checkpoint somebody/something", f"{PLAN} --proposals somebody/something"),
                {"HF_HUB_OFFLINE": "0"},
                works=False,
            ),
        ]
    return found


def _watched(work: Callable[[], int]) -> Callable[[], int]:
    """Say what a command leaves half done; finished parts of a recording are to be kept."""

    def watched() -> int:
        code = work()
        left = [name for name in hidden(Path("out")) if ".parts/0" not in name]
        if code and left:
            print(LEFT, left[0])
        return code

    return watched


def judged(lack: Lack, outcome: Outcome) -> str:
    """What an outcome is: works, says so, or in a few words what is wrong."""
    if outcome.timed_out:
        return "hangs"
    if outcome.code == 2:
        if outcome.sentence is None:
            return "no one sentence"
        if LEFT in outcome.out:
            return outcome.out[outcome.out.index(LEFT) :].strip()
        return "says so" if not lack.works else "says so, though it is to work"
    return "works" if outcome.code == 0 else f"exit code {outcome.code}"


@dataclass
class Arguments:
    """Take things away from commands."""

    only: str = ""
    """Part of the names of what is taken away; all when left out."""
    output: Path = RESULTS
    """Folder of starved.json."""


def main(arguments: Arguments) -> None:
    warm_up()
    found: list[dict[str, Any]] = []
    mounts = may_mount()
    for lack in lacks(mounts):
        if arguments.only not in lack.name:
            continue
        for name in lack.commands:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as text:
                folder = Path(text) / "here"
                (folder / "out").mkdir(parents=True)

                def make(folder: Path = folder) -> int:
                    samples.hdf5(folder)
                    samples.checkpoint(folder)
                    return 0

                log = Path(text) / "log"
                assert Process(make, folder, log).wait().code == 0
                work = _watched(command(shlex.split(COMMANDS.get(name, name))))
                outcome = Process(work, folder, log, lack.before, lack.environment).wait()
                verdict = judged(lack, outcome)
            said = outcome.sentence or ""
            if verdict not in ("works", "says so"):
                said = (outcome.err.strip().splitlines() or [""])[-1]
            row = {"lack": lack.name, "command": name, "verdict": verdict, "said": said}
            found.append(row)
            print(row, flush=True)
    good = sum(row["verdict"] in ("works", "says so") for row in found)
    content = {"mounts": mounts, "trials": len(found), "good": good, "rows": found}
    report("starved", content, arguments.output)


if __name__ == "__main__":
    launch(main, Arguments)
