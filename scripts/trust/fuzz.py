"""Coverage-guided fuzzing of what is read, with atheris: nothing but a `UserError` may come out.

Example:

    pip install atheris
    python -m scripts.trust.fuzz
    python -m scripts.trust.fuzz --targets tokens --seconds 60 --output runs/trust

It begins with a small sound input and those in `scripts/trust/corpus/TARGET`, follows what new branches of
this package's own readers are reached, and ends at the first input that raises anything else or takes more
than 10 s of the processor (60 s of the clock) or 2 GiB. What was run, how long and what failed is in
fuzz.json. Time and inputs of earlier runs count on, and runs of different targets may go side by side. Inputs
are kept in `--work`; `--keep` replaces the corpus by the smallest that together reach all branches. Readers
of other packages (HDF5, safetensors) run as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args

import sparsewm
from scripts.common import launch
from scripts.trust import samples
from scripts.trust.common import RESULTS, Process, report
from sparsewm.errors import UserError
from sparsewm.evaluation.machine import code_hash
from sparsewm.files import read_json

CORPUS = Path(__file__).parent / "corpus"
Target = Literal[
    "yaml",
    "json",
    "names",
    "tokens",
    "lengths",
    "hdf5",
    "table",
    "state",
    "checkpoint",
    "metadata",
    "weights",
]

Reads = Callable[[Path], object]
"""Reads a file, from a folder in which everything else is sound."""


def _yaml(file: Path) -> None:
    from sparsewm.config import PlanConfig
    from sparsewm.trees import merged, read_yaml

    merged(PlanConfig(), read_yaml(file), "it").checked()


def _json(file: Path) -> None:
    from sparsewm.evaluation.cells import read_cell

    read_cell(file.parents[1], file.stem, {})


def _names(file: Path) -> None:
    from sparsewm.proposals.names import read_names

    read_names(file)


def _tokens(file: Path) -> None:
    from sparsewm.data.token_file import Layout, TokenFile

    TokenFile.find(file, Layout((4, 2, 3)))


def _lengths(file: Path) -> None:
    from sparsewm.data.formats.dino_wm import _lengths

    _lengths(file.parent, 2, 11)


def _hdf5(file: Path) -> None:
    from sparsewm.data import open_dataset

    dataset = open_dataset(file)
    dataset.pixels[: min(4, dataset.rows)]
    dataset.close()


def _checkpoint(file: Path) -> None:
    import sparsewm

    sparsewm.load(file.parent)


def _weights(file: Path) -> None:
    from sparsewm.encoders.weights import read_weights

    read_weights(file)


def _state(file: Path) -> None:
    from sparsewm.training.state import read_state

    read_state(file.parent)


def _table(file: Path) -> None:
    from sparsewm.data import open_dataset

    open_dataset(file.parent).close()


def _sound_weights(folder: Path) -> None:
    import torch

    torch.save({"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}, folder / "weights.pth")


def _sound_state(folder: Path) -> None:
    import torch

    from sparsewm.training.state import write_state

    write_state(folder, {"a": torch.ones(2, 3)}, {"step": 2, "config": {"steps": 4}})


def _sound_tokens(folder: Path) -> None:
    import torch

    from sparsewm.data.token_file import Layout, TokenFile

    layout = Layout((4, 2, 3))
    file = TokenFile.make(folder / "tokens.bin", layout)
    import numpy as np

    rows = np.arange(3)
    file.note(rows, file.write(rows, layout.pack(torch.ones(3, 2, 3), None)))


def _sound_cell(folder: Path) -> None:
    (folder / "cells").mkdir()
    (folder / "cells" / "one.json").write_text('{"request": {"env": "wall"}, "success_rate": 0.5}')


def _sound_lengths(folder: Path) -> None:
    import pickle

    (folder / "seq_lengths.pkl").write_bytes(pickle.dumps([7, 11]))


def _sound_names(folder: Path) -> None:
    (folder / "names.yaml").write_text("cameras: {a: pixels}\nstate: [x, null]\naction: [0, 1]\nscale: 2.0\n")


TARGETS: dict[str, tuple[Callable[[Path], object], str, Reads]] = {
    "yaml": (samples.plan_yaml, "plan.yaml", _yaml),
    "json": (_sound_cell, "cells/one.json", _json),
    "names": (_sound_names, "names.yaml", _names),
    "tokens": (_sound_tokens, "tokens.bin", _tokens),
    "lengths": (_sound_lengths, "seq_lengths.pkl", _lengths),
    "hdf5": (samples.hdf5, "wall.h5", _hdf5),
    "table": (samples.videos, "demos/actions.csv", _table),
    "state": (_sound_state, "training_state.safetensors", _state),
    "checkpoint": (samples.checkpoint, "model/config.yaml", _checkpoint),
    "metadata": (samples.checkpoint, "model/metadata.json", _checkpoint),
    "weights": (_sound_weights, "weights.pth", _weights),
}
"""What makes a sound folder, the file that is fuzzed, and what reads it."""


def tried(name: str, folder: Path, content: bytes) -> None:
    """Read one input; anything but a `UserError` gets out."""
    _, place, reads = TARGETS[name]
    (folder / place).write_bytes(content)
    with contextlib.suppress(UserError), contextlib.redirect_stderr(io.StringIO()):
        reads(folder / place)


@dataclass
class Arguments:
    """Fuzz readers, one after the other."""

    targets: tuple[Target, ...] = get_args(Target)
    """What is read."""
    seconds: int = 1800
    """Of the processor for each, those that fuzz.json knows of included."""
    keep: bool = False
    """Replace the corpus by the smallest inputs that together reach all branches."""
    work: Path = Path("runs/fuzz")
    """Folder of inputs that reach new branches, of logs, and of inputs that fail."""
    output: Path = RESULTS
    """Folder of fuzz.json."""


def _heaps(content: bytes) -> Iterator[int]:
    """Where heaps of texts begin in an HDF5 file."""
    heap = content.find(b"GCOL")
    while heap >= 0:
        yield heap
        heap = content.find(b"GCOL", heap + 4)


def endless(content: bytes) -> bool:
    """Whether a heap of texts in an HDF5 file keeps HDF5 2.0 busy without end: its free room has no size.

    Nothing of this package is reached by then; `docs/howto/trust.md` says so.
    """
    for heap in _heaps(content):
        end, at = heap + int.from_bytes(content[heap + 8 : heap + 16], "little"), heap + 16
        while at < min(end, len(content)):
            number, size = (
                int.from_bytes(content[a:b], "little") for a, b in ((at, at + 2), (at + 8, at + 16))
            )
            takes = (16 + -(-size // 8) * 8 if number else size) % (1 << 64)
            if not takes:
                return True
            at += takes
    return False


def boundless(content: bytes) -> bool:
    """Whether an HDF5 file names a text longer than itself, for which HDF5 takes memory before it looks.

    A text is named by its length (4 bytes), its heap's place (8 bytes) and its number there (4 bytes).
    """
    for heap in _heaps(content):
        for named in re.finditer(re.escape(heap.to_bytes(8, "little")), content):
            length = content[max(0, named.start() - 4) : named.start()]
            if int.from_bytes(length, "little") > len(content):
                return True
    return False


MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where files are written that are read: a disk takes longer than what reads them."""

PIECE = 300.0
"""Seconds after which it is noted how far it is, in a process of its own."""

SHORTER = {"hdf5": 60.0}
"""Where memory of a process grows meanwhile: HDF5 keeps some of what damaged files made it take."""

LONGEST = 10.0
"""Seconds of the processor that reading one input may take; other programs may make the clock's longer."""

LARGEST = 4096
"""Bytes of an input that is kept in the corpus, at most."""


def instrument(atheris: Any) -> None:
    """Count the branches of this package; what is imported already counts nothing by itself."""
    for name, module in list(sys.modules.items()):
        if name.startswith("sparsewm."):
            for thing in list(vars(module).values()):
                for function in vars(thing).values() if inspect.isclass(thing) else (thing,):
                    if inspect.isfunction(function) and function.__module__ == name:
                        atheris.instrument_func(function)


def sound(target: str, folder: Path) -> bytes:
    """Make a sound folder; what the file holds that is fuzzed. What reads it is imported then."""
    make, place, _ = TARGETS[target]
    make(folder)
    content = (folder / place).read_bytes()
    tried(target, folder, content)
    return content


def fuzz(target: str, folder: Path, found: Path, failed: Path, seconds: int) -> None:
    """Let atheris run in this process, which it ends.

    Args:
        folder: empty, for the files that are read. seconds: wall time.
        found: folder of inputs that reach new branches. failed: of those that fail.
    """
    import atheris

    (found / "sound").write_bytes(sound(target, folder))
    instrument(atheris)

    def one(content: bytes) -> None:
        if target == "hdf5" and (endless(content) or boundless(content)):
            return
        begun = time.process_time()
        try:
            tried(target, folder, content)
            taken = time.process_time() - begun
            if taken > LONGEST:
                raise RuntimeError(f"took {taken:.0f} s of the processor")
        except Exception:
            (failed / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
            raise

    options = [
        "-rss_limit_mb=2048",
        "-timeout=60",
        "-report_slow_units=60",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    options += [f"-max_total_time={seconds}", f"-artifact_prefix={failed}{os.sep}"]
    atheris.Setup([sys.argv[0], *options, str(found)], one)
    atheris.Fuzz()


def branches(target: str, folder: Path, content: bytes) -> set[tuple[str, int, int]]:
    """Which line of this package came after which, while an input was read."""
    package, found = str(Path(sparsewm.__file__).parent), set()

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(package):
            return None
        before = frame.f_lineno

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal before
            if event == "line":
                found.add((name, before, frame.f_lineno))
                before = frame.f_lineno
            return line

        return line

    sys.settrace(follow)
    try:
        tried(target, folder, content)
    finally:
        sys.settrace(None)
    return found


def run(target: str, work: Path, seconds: float) -> dict[str, Any]:
    """Fuzz one reader for so many seconds, of which a busy machine gives it a part; what came of it."""
    found, failed = work / target, work / f"{target}-failed"
    for folder in (found, failed):
        folder.mkdir(parents=True, exist_ok=True)
    for path in (CORPUS / target).glob("*"):
        shutil.copyfile(path, found / path.name)
    before = set(failed.iterdir())

    with tempfile.TemporaryDirectory(dir=MEMORY) as text:

        def reads() -> int:
            fuzz(target, Path(text), found, failed, max(1, round(seconds)))
            return 0

        outcome = Process(reads, Path.cwd(), work / f"{target}-log").wait(2 * seconds + 60)
    told = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s+(\d+)", outcome.err)}
    reached = re.findall(r"cov: (\d+)", outcome.err)
    new = sorted(path.name for path in set(failed.iterdir()) - before)
    return {
        "cpu_seconds": round(outcome.cpu_seconds, 1),
        "inputs": told.get("number_of_executed_units", 0),
        "branches": int(reached[-1]) if reached else 0,
        "peak_mb": told.get("peak_rss_mb", 0),
        "failed": new,
        "code": outcome.code,
    }


def keep(target: str, work: Path) -> int:
    """Make the corpus of small inputs that reach what the sound one does not; how many."""
    corpus, kept = CORPUS / target, []
    inputs = [path.read_bytes() for path in [*(work / target).glob("*"), *corpus.glob("*")]]
    with tempfile.TemporaryDirectory() as text:
        reached = branches(target, Path(text), sound(target, Path(text)))
        for content in sorted(
            {one for one in inputs if len(one) <= LARGEST}, key=lambda one: (len(one), one)
        ):
            new = branches(target, Path(text), content) - reached
            reached |= new
            kept += [content] if new else []
    shutil.rmtree(corpus, ignore_errors=True)
    corpus.mkdir(parents=True)
    for content in kept:
        (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    return len(kept)


def _keep(target: str, work: Path) -> int:
    """`keep`, in a process of its own: what it imports has threads, and the next is forked from this one."""
    print(f"{target}: {keep(target, work)} inputs kept")
    return 0


def known(output: Path) -> dict[str, Any]:
    """What earlier runs found, by target; read anew each time, since others may run beside this one."""
    path = output / "fuzz.json"
    return read_json(path)["targets"] if path.is_file() else {}


def main(arguments: Arguments) -> None:
    try:
        import atheris  # noqa: F401
    except ImportError:
        raise UserError("fuzzing needs atheris: pip install atheris") from None
    failing: list[str] = []
    for target in arguments.targets:
        nothing = {"cpu_seconds": 0.0, "inputs": 0, "failed": []}
        while True:
            before = known(arguments.output).get(target, nothing)
            left = arguments.seconds - before["cpu_seconds"]
            if left <= 0:
                break
            print(f"{target}: {left / 60:.1f} min left", flush=True)
            now = run(target, arguments.work, min(left, SHORTER.get(target, PIECE)))
            added = {key: before[key] + now[key] for key in ("cpu_seconds", "inputs", "failed")}
            added["of_code"] = code_hash()
            print(f"{target}: {now}", flush=True)
            report("fuzz", {"targets": known(arguments.output) | {target: now | added}}, arguments.output)
            if now["code"]:
                failing.append(target)
                break
        if arguments.keep:
            log = arguments.work / f"{target}-keep"
            outcome = Process(partial(_keep, target, arguments.work), Path.cwd(), log).wait(600)
            print(outcome.out or f"{target}: no corpus, see {log}", end="", flush=True)
    if failing:
        raise UserError(f"failed: {', '.join(failing)}; see *-failed and *-log in {arguments.work}")


assert set(TARGETS) == set(get_args(Target))

if __name__ == "__main__":
    launch(main, Arguments)
