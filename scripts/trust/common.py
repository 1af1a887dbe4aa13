"""Commands as they end in processes of their own: forked, so that they need not be imported again."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

import sparsewm
from scripts.common import typed_command
from sparsewm.evaluation.machine import code_hash, processor_name
from sparsewm.files import write_json

RESULTS = Path("results/trust")

HEAVY = (
    "sparsewm.cli.plan",
    "sparsewm.cli.train",
    "sparsewm.cli.train_policy",
    "sparsewm.cli.collect",
    "sparsewm.cli.evaluate",
    "sparsewm.cli.judge",
    "sparsewm.cli.inspect",
    "sparsewm.cli.convert",
    "sparsewm.data.videos",
    "torch.utils.tensorboard",
)
"""What commands import when they are first called."""

OPTIONAL = (
    "sparsewm.data.lerobot",
    "sparsewm.proposals.lerobot",
    "lerobot.datasets.lerobot_dataset",
    "minari",
    "zarr",
    "pyarrow.csv",
    "pyarrow.parquet",
)
"""The same of packages that may not be installed."""

_PIECE = 0.01  # seconds between two looks at a process


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: exit code; minus the number of the signal that killed it. out, err: what it printed.
        seconds: wall time. cpu_seconds: of the processor. peak_bytes: of memory, resident,
            beyond what it was forked with.
        timed_out: whether it was ended because it took too long.
    """

    code: int
    out: str
    err: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    timed_out: bool = False

    @property
    def sentence(self) -> str | None:
        """The one sentence of an error; None where there is another number of them, or a traceback."""
        lines = [line for line in self.err.strip().splitlines() if line.startswith("error: ")]
        if "Traceback" in self.err + self.out or len(lines) != 1:
            return None
        return lines[0].removeprefix("error: ")


def warm_up(optional: bool = True) -> None:
    """Import what commands need, once for all processes that are forked off; on one thread."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    for name in HEAVY:
        importlib.import_module(name)
    for name in OPTIONAL if optional else ():
        with contextlib.suppress(ImportError, sparsewm.UserError):
            importlib.import_module(name)


def command(words: Sequence[str]) -> Callable[[], int]:
    """A command of sparsewm as work of a forked process."""

    def work() -> int:
        from sparsewm.cli import main

        try:
            main(list(words))
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return 0

    return work


class Process:
    """A forked process that does some work in a folder; its own process group, its output kept.

    Args:
        work: returns the exit code; an exception is a traceback and code 1.
        folder: where it works. before: called in the process first, e.g. to set limits.
        log: folder of what it prints.
    """

    def __init__(
        self,
        work: Callable[[], int],
        folder: Path,
        log: Path,
        before: Callable[[], Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        log.mkdir(parents=True, exist_ok=True)
        self._files = [log / "out", log / "err"]
        self.started = time.monotonic()
        memory = psutil.Process().memory_info()
        self._inherited = memory.rss - memory.shared  # pages of files are mapped anew
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(work, folder, self._files, before, environment or {})

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = 120.0, kill_at: float | None = None) -> Outcome:
        """Wait for the end.

        Args:
            seconds: of the processor, after which it is ended by SIGKILL; and so it is after as many in
                which it slept, as a process does that waits for something that never comes.
            kill_at: wall time after which it is ended too, but that is no failure.
        """
        timed_out = killed = False
        looked, worked, busy = self.started, self.started, -1.0
        while True:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            spent = time.monotonic() - self.started
            if pid:
                break
            if kill_at is not None and spent >= kill_at and not killed:
                self.kill()
                killed = True
            now = time.monotonic()
            if now - looked > 0.5 and not timed_out:
                looked, state, cpu = now, *_activity(self.pid)
                if cpu > busy or state != "S":
                    worked, busy = now, cpu
                if cpu > seconds or now - worked > seconds:
                    self.kill()
                    timed_out = True
            time.sleep(_PIECE)
        self.kill()  # what it may have left running
        code = os.waitstatus_to_exitcode(status)
        out, err = (path.read_text(errors="replace") if path.exists() else "" for path in self._files)
        cpu = usage.ru_utime + usage.ru_stime
        peak = max(usage.ru_maxrss * 1024 - self._inherited, 0)
        return Outcome(code, out, err, spent, cpu, peak, timed_out)


def _activity(pid: int) -> tuple[str, float]:
    """State of a process, and the seconds of the processor that it and its children took."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", 0.0
    return words[0], sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def _child(
    work: Callable[[], int],
    folder: Path,
    files: Sequence[Path],
    before: Callable[[], Any] | None,
    environment: dict[str, str],
) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would ignore it
        os.environ.update(environment)
        for number, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        sys.stdout, sys.stderr = (open(i, "w", encoding="utf-8", closefd=False) for i in (1, 2))  # noqa: SIM115
        os.chdir(folder)
        if before is not None:
            before()
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def limit_memory(size: int) -> None:
    """Let this process allocate no more than `size` bytes beyond what it has."""
    kinds = {line.split(":")[0]: line for line in Path("/proc/self/status").read_text().splitlines()}
    most = 1024 * int(kinds["VmData"].split()[1]) + size
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything in a folder that is no folder."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            status = os.lstat(path)
            found[os.path.relpath(path, folder)] = status.st_size, status.st_mtime_ns
    return found


def report(name: str, content: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write a JSON file of results, with the machine, the code and the command."""
    about = {
        "command": typed_command(),
        "code": code_hash(),
        "version": sparsewm.__version__,
        "machine": {"processor": processor_name(), "cores": os.cpu_count(), "torch": torch.__version__},
        "date": time.strftime("%Y-%m-%d"),
    }
    write_json(folder / f"{name}.json", content | about)
