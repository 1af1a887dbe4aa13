"""A machine that lacks something: it works without, or says so in one sentence and leaves nothing half done.

Example:

    python -m scripts.trust.starved

A disk is filled to where a command comes short at a random place of what it writes. What was refused is done
again where nothing is missing: it has to go on then. What needs a mount or a network of its own is left out
where this user may not make one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import shutil
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
from sparsewm.evaluation.machine import code_hash
from sparsewm.files import read_json

PLAN = "plan --env wall --candidates 4 --iterations 1 --max-steps 5"
COMMANDS = {
    "plan": f"{PLAN} --checkpoint model --output out/plan",
    "train": samples.TRAIN.format(steps=2).replace("output run", "output out/run") + " --resume",
    "collect": "collect --env wall --episodes 2 --steps 20 --workers 1 --resolution 32 --output out",
    "convert": "convert wall.h5 out/wall.h5",
    "convert to lerobot": "convert wall.h5 out/wall",
    "inspect": "inspect wall.h5 --output out",
}
LEFT, STUCK = "left behind:", "does not go on where it is given back"
_NEWNS, _NEWNET = 0x20000, 0x40000000


@dataclass
class Lack:
    """Something that is missing.

    Attributes:
        name: what. before: takes it away, in the process that is to do without.
        commands: names of `COMMANDS`, or commands. environment: of the process.
        works: whether it has to work without. mute: whether nothing can be printed either.
        back: gives it back, in the same process; the same command then has to work.
    """

    name: str
    before: Callable[[], Any] = lambda: None
    commands: tuple[str, ...] = ("plan", "train")
    environment: dict[str, str] = field(default_factory=dict)
    works: bool = True
    mute: bool = False
    back: Callable[[], Any] | None = None


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


def _disk(left: int) -> None:
    """Work on a disk of its own, which has `left` bytes of space."""
    _mounted(".disk", "size=64m")
    shutil.copytree(".", ".disk", ignore=shutil.ignore_patterns(".disk"), dirs_exist_ok=True)
    os.chdir(".disk")
    room = os.statvfs(".")
    with open(".filling", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - left))


def _unprintable(*streams: int) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for stream in streams:
        os.dup2(full, stream)


def _on_the_hub() -> None:
    """Ask the hub, which this campaign does not else; but there is no network."""
    from huggingface_hub import constants

    _own(_NEWNET)
    constants.HF_HUB_OFFLINE = False


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
        Lack(
            f"files of {size} bytes at most",
            _files(size),
            every,
            works=False,
            back=_files(resource.RLIM_INFINITY),
        )
        for size in (2_000, 400_000)
    ]
    found += [
        Lack("room for any byte", _files(0), every, works=False, mute=True),
        Lack("room for what is printed", lambda: _unprintable(1), every, works=False),
        Lack("room for what errors say", lambda: _unprintable(2), every, works=False, mute=True),
    ]
    empty, read_only = tempfile.mkdtemp(), tempfile.mkdtemp()
    no_gl = {"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_DIRS": "/nowhere", "EGL_PLATFORM": "nowhere"}
    large = f"{PLAN} --checkpoint model --candidates 3000 --output out/large --run.no-video"
    huge = f"{PLAN} --checkpoint model --candidates 30000 --output out/huge --run.no-video"
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
        Lack("more than 2 GiB", lambda: limit_memory(2 << 30), (large, huge, *every)),
        Lack("more than 512 MiB", lambda: limit_memory(512 << 20), (large,)),
        Lack("more than 256 MiB", lambda: limit_memory(256 << 20), (large,)),
        Lack("a clock that goes on", _clock, ("plan", "train", "collect")),
    ]
    if mounts:
        found += [
            Lack(
                f"more than {left >> 10} KiB on the disk",
                partial(_disk, left),
                every,
                works=False,
                back=lambda: os.unlink(".filling"),
            )
            for left in (0, 8 << 10, 32 << 10, 128 << 10, 512 << 10, 2 << 20)
        ]
        found += [
            Lack("a disk that can be written", lambda: _mounted("out", "ro"), every, works=False),
            Lack(
                "a home that can be written",
                lambda: _mounted(read_only, "ro"),
                environment={"HOME": read_only, "XDG_CACHE_HOME": ""},
            ),
            Lack(
                "/dev/shm, for two at once",
                lambda: _mounted("/dev/shm", "ro"),
                (
                    COMMANDS["collect"].replace(
                        "--episodes 2 --steps 20 --workers 1", "--episodes 30 --steps 4"
                    ),
                ),
                works=False,
            ),
            Lack("/dev/shm", lambda: _mounted("/dev/shm", "ro"), ("plan", "train", "collect")),
            Lack("a network", lambda: _own(_NEWNET), ("plan", "train")),
            Lack(
                "a network, for a name on the hub",
                _on_the_hub,
                (f"{PLAN} --checkpoint somebody/something", f"{PLAN} --proposals somebody/something"),
                works=False,
            ),
        ]
    return found


def _watched(work: Callable[[], int], back: Callable[[], Any] | None = None) -> Callable[[], int]:
    """Say what a command leaves half done, finished parts of a recording aside; and whether it goes on."""

    def watched() -> int:
        code = work()
        left = [name for name in hidden(Path("out")) if ".parts/0" not in name]
        if code and left:
            print(LEFT, left[0])
        if code and back is not None:
            back()
            if work():
                print(STUCK)
        return code

    return watched


def judged(lack: Lack, outcome: Outcome) -> str:
    """What an outcome is: works, says so, or in a few words what is wrong."""
    if outcome.timed_out:
        return "hangs"
    if outcome.code == 2:
        if outcome.sentence is None and not (lack.mute and "Traceback" not in outcome.err + outcome.out):
            return "no one sentence"
        if LEFT in outcome.out:
            return outcome.out[outcome.out.index(LEFT) :].strip()
        if STUCK in outcome.out:
            return STUCK
        return "says so" if not lack.works else "says so, though it is to work"
    return "works" if outcome.code == 0 else f"exit code {outcome.code}"


@dataclass
class Arguments:
    """Take things away from commands."""

    only: tuple[str, ...] = ()
    """Parts of the names of what is taken away, whose trials replace those there are; all when left out."""
    output: Path = RESULTS
    """Folder of starved.json."""


def main(arguments: Arguments) -> None:
    warm_up()
    mounts = may_mount()
    chosen = [
        one for one in lacks(mounts) if not arguments.only or any(part in one.name for part in arguments.only)
    ]
    names = [lack.name for lack in chosen]
    path = arguments.output / "starved.json"
    before = read_json(path)["rows"] if path.is_file() and arguments.only else []
    found: list[dict[str, Any]] = [row for row in before if row["lack"] not in names]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as text:
        ready = Path(text) / "ready"
        (ready / "out").mkdir(parents=True)

        def make() -> int:
            samples.hdf5(ready)
            samples.checkpoint(ready)
            return 0

        assert Process(make, ready, Path(text) / "log").wait().code == 0
        for lack in chosen:
            for name in lack.commands:
                folder = Path(tempfile.mkdtemp(dir=text)) / "here"
                shutil.copytree(ready, folder)
                work = _watched(command(shlex.split(COMMANDS.get(name, name))), lack.back)
                outcome = Process(work, folder, folder.parent / "log", lack.before, lack.environment).wait()
                verdict, said = judged(lack, outcome), outcome.sentence or ""
                if verdict not in ("works", "says so"):
                    said = (outcome.err.strip().splitlines() or [""])[-1]
                row = {"lack": lack.name, "command": name, "verdict": verdict, "said": said}
                row["code"] = code_hash()
                found.append(row)
                print(row, flush=True)
                shutil.rmtree(folder.parent, ignore_errors=True)
                good = sum(row["verdict"] in ("works", "says so") for row in found)
                content = {"mounts": mounts, "trials": len(found), "good": good, "rows": found}
                report("starved", content, arguments.output)


if __name__ == "__main__":
    launch(main, Arguments)
