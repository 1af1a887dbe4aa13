"""Broken and hostile inputs, for every reader: one sentence, exit code 2, and nothing else happens.

Example:

    python -m scripts.trust.hostile

Each input is a sound sample with one thing wrong, read by the command a user would type, in a process of
its own that may allocate 2 GiB. `refused`: exit code 2, one sentence, nothing written, nothing run, in time.
`read`: exit code 0 where the damage cannot be noticed or does no harm. `healed`: what was damaged is made
again, and the result is that of an undamaged run. Everything else is `wrong`, and listed.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.common import launch
from scripts.trust import samples
from scripts.trust.common import (
    RESULTS,
    Outcome,
    Process,
    command,
    limit_memory,
    report,
    snapshot,
    warm_up,
)
from scripts.trust.damage import (
    CANARY,
    CHECKPOINT,
    FILE,
    HDF5,
    SETTINGS,
    TABLES,
    Case,
    json_cases,
)
from sparsewm.errors import UserError
from sparsewm.evaluation.machine import code_hash
from sparsewm.files import read_json

OPTIONAL = ("lerobot", "lerobot videos", "zarr", "zarr zip", "minari", "videos, Parquet", "videos", "policy")
"""Readers that need packages whose import takes long."""

VERDICTS = ("refused", "read", "healed", "wrong")
SECONDS = 10.0
MEMORY = 2 << 30

CONVERT = "convert {} out.h5"


@dataclass
class Reader:
    """What reads one kind of input.

    Attributes:
        name: in the results. make: writes a sound sample into a folder. command: what is typed, or work.
        files: patterns of files that are damaged as files. inside: (pattern, cases) of other damage.
        json: patterns of JSON files whose values are replaced. few: only every so many-th damage of a file.
        heals: whether damage is to be repaired, so that the result is that of an undamaged input.
        harmless: damage that leaves a sound input. spare: files that are not needed.
    """

    name: str
    make: Callable[[Path], Any]
    command: str | Callable[[], int]
    files: Sequence[str] = ()
    inside: Sequence[tuple[str, list[Case]]] = ()
    json: Sequence[str] = ()
    few: int = 1
    heals: bool = False
    harmless: Sequence[str] = ()
    spare: Sequence[str] = ()
    before: Callable[[], Any] | None = None


def tokens(folder: Path) -> None:
    """A dataset and its tokens, and what they are."""
    samples.hdf5(folder)
    np.save(folder / "truth.npy", _tokens(folder))


def _tokens(folder: Path) -> np.ndarray:
    from sparsewm.data import TokenCache, open_dataset
    from sparsewm.encoders import load_encoder

    dataset = open_dataset(folder / "wall.h5")
    found: np.ndarray = TokenCache(dataset, load_encoder("random")).rows(np.arange(dataset.rows)).numpy()
    return found


def read_tokens() -> int:
    """Whether tokens are what they were."""
    from sparsewm.cli.common import script_exit_code

    def work() -> int:
        return 0 if np.array_equal(_tokens(Path()), np.load("truth.npy")) else 3

    return script_exit_code(work)


def read_checkpoint() -> int:
    """Load a world model and make an agent of it."""
    from sparsewm import Agent, load
    from sparsewm.cli.common import script_exit_code

    return script_exit_code(lambda: 0 * len(Agent(load("model")).decisions))


def read_policy() -> int:
    """Load a policy for Wall."""
    from types import SimpleNamespace

    from sparsewm.cli.common import script_exit_code
    from sparsewm.proposals.lerobot import LeRobotProposals

    walls = SimpleNamespace(
        name="wall", action_low=[-1.0] * 2, action_high=[1.0] * 2, proprio_names=("x", "y")
    )
    return script_exit_code(lambda: 0 * LeRobotProposals("policy", walls).frames)


def read_weights() -> int:
    """Load an encoder's weights, and others as those of a hub are read."""
    from sparsewm.cli.common import script_exit_code
    from sparsewm.encoders import load_encoder
    from sparsewm.encoders.weights import read_weights

    def work() -> int:
        read_weights(Path("weights.pth"))
        return 0 * load_encoder("embedded", "weights.safetensors").dim

    return script_exit_code(work)


def read_cells() -> int:
    """Read finished cells, as an evaluation that goes on does."""
    from sparsewm.cli.common import script_exit_code
    from sparsewm.evaluation.cells import read_cell

    def work() -> int:
        for path in sorted(Path("table/cells").glob("*")):
            read_cell(Path("table"), path.stem, {})
        return 0

    return script_exit_code(work)


def own_tasks() -> None:
    """Let frozen tasks be read here."""
    import sparsewm.tasks

    sparsewm.tasks.config_folder = Path  # type: ignore[attr-defined]


def run(text: str, folder: Path) -> int:
    """A command in a folder."""
    log = Path(tempfile.mkdtemp())
    return Process(command(shlex.split(text)), folder, log).wait().code


def _dataset(name: str, make: Callable[[Path], Any], place: str, files: Sequence[str], **more: Any) -> Reader:
    return Reader(name, make, CONVERT.format(place), files, **more)


def readers() -> list[Reader]:
    """All that read something."""
    settings = (
        "train --env wall --dataset wall.h5 --steps 1 --batch 2 --distance-steps 0 --decoder-steps 0 "
        "--config train.yaml"
    )
    frozen = "plan --env wall --run.actor nothing --max-steps 5 --run.no-video --goal.tasks test"
    state = samples.TRAIN.format(steps=4) + " --resume"
    return [
        _dataset("hdf5", samples.hdf5, "wall.h5", ["wall.h5"], inside=[("wall.h5", HDF5)]),
        _dataset(
            "lerobot",
            samples.lerobot,
            "arm",
            ["arm/**/*.*"],
            json=["arm/meta/*.json"],
            few=3,
            spare=["arm/meta/stats.json", "arm/meta/tasks.parquet"],
        ),
        _dataset("lerobot videos", samples.lerobot_videos, "arm", ["arm/**/*.mp4"], few=2),
        _dataset(
            "zarr",
            samples.zarr,
            "demos.zarr",
            ["demos.zarr/data/img/[.0]*", "demos.zarr/data/action/1.0", "demos.zarr/meta/episode_ends/*"],
            json=["demos.zarr/data/img/.zarray", "demos.zarr/meta/episode_ends/.zarray"],
            few=2,
            spare=["demos.zarr/data/img/.zattrs"],
        ),
        _dataset("zarr zip", samples.zarr_zip, "demos.zarr.zip", ["demos.zarr.zip"]),
        _dataset(
            "minari",
            samples.minari,
            "point-v0",
            ["point-v0/**/*.*"],
            json=["point-v0/data/metadata.json"],
        ),
        _dataset(
            "videos",
            samples.videos,
            "demos",
            ["demos/run_1.mp4", "demos/actions.csv"],
            inside=[("demos/actions.csv", TABLES)],
        ),
        _dataset("videos, Parquet", samples.videos_parquet, "demos", ["demos/actions.parquet"]),
        _dataset("dino_wm", samples.dino_wm, "train", ["train/states.pth", "train/seq_lengths.pth"], few=2),
        _dataset("dino_wm tensors", samples.dino_wm_tensors, "train", ["train/obses/*1.pth"]),
        _dataset("dino_wm pickle", samples.dino_wm_pickle, "train", ["train/seq_lengths.pkl"]),
        Reader(
            "checkpoint",
            samples.checkpoint,
            read_checkpoint,
            ["model/*"],
            inside=[("model", CHECKPOINT)],
            json=["model/metadata.json"],
        ),
        Reader(
            "policy",
            samples.policy,
            read_policy,
            ["policy/*"],
            json=["policy/*.json"],
            inside=[("policy/names.yaml", SETTINGS)],
            few=2,
        ),
        Reader("encoder weights", samples.weights, read_weights, ["weights.*"]),
        Reader(
            "plan settings",
            samples.plan_yaml,
            "plan --config plan.yaml",
            ["plan.yaml"],
            harmless=["empty"],
            inside=[("plan.yaml", SETTINGS)],
        ),
        Reader(
            "training settings",
            samples.train_yaml,
            settings,
            ["train.yaml"],
            harmless=["empty"],
            inside=[("train.yaml", SETTINGS)],
        ),
        Reader(
            "frozen tasks", samples.tasks, frozen, ["tasks/*.json"], json=["tasks/*.json"], before=own_tasks
        ),
        Reader("token cache", tokens, read_tokens, ["wall.tokens*.bin"], heals=True),
        Reader(
            "training state",
            lambda folder: samples.state(folder, run),
            state,
            ["run/training_state.safetensors"],
            few=2,
        ),
        Reader(
            "finished cells",
            lambda folder: samples.cells(folder, run),
            read_cells,
            ["table/cells/wall-random*.json"],
            json=["table/cells/wall-random*.json"],
            few=2,
        ),
    ]


def cases(reader: Reader, sample: Path, values: int) -> Iterable[tuple[str, str, Case]]:
    """Name, file, and damage of every input of a reader."""
    rng = np.random.default_rng(zlib.crc32(reader.name.encode()))
    for pattern in reader.files:
        for file in sorted(path for path in sample.glob(pattern) if path.is_file()):
            place = str(file.relative_to(sample))
            start = int(rng.integers(reader.few))
            for case in FILE[start :: reader.few]:
                yield f"{place}: {case.name}", place, case
    for pattern, inside in reader.inside:
        for case in inside:
            yield f"{pattern}: {case.name}", pattern, case
    for pattern in reader.json:
        for file in sorted(sample.glob(pattern)):
            place = str(file.relative_to(sample))
            for case in json_cases(file, rng, values):
                yield f"{place}: {case.name}", place, case


def judged(
    reader: Reader, place: str, case: Case, outcome: Outcome, before: Any, after: Any, folder: Path
) -> str:
    """What an outcome is: refused, read, healed, or in a few words what is wrong about it."""
    if (folder / CANARY).exists() or Path("/tmp/escaped-from-zip").exists():
        return "something was run, or written elsewhere"
    if outcome.timed_out or outcome.cpu_seconds > SECONDS:
        return f"took {outcome.cpu_seconds:.0f} s of the processor"
    if outcome.peak_bytes > MEMORY:
        return f"took {outcome.peak_bytes / 2**30:.1f} GiB"
    if outcome.code == 2:
        if outcome.sentence is None:
            return "no one sentence"
        if not reader.heals and before != after:
            changed = sorted(set(before.items()) ^ set(after.items()))
            return f"left something behind: {changed[0][0]}"
        return "refused"
    if outcome.code == 0:
        if reader.heals:
            return "healed"
        fine = case.may_pass or case.name in reader.harmless or place in reader.spare
        return "read" if fine else "read, though it must not be"
    return f"exit code {outcome.code}"


def one(reader: Reader, place: str, case: Case, sample: Path, name: str) -> tuple[str, Outcome]:
    """Damage a copy of a sample, read it, and judge."""
    root = Path(tempfile.mkdtemp(prefix="trust-"))
    try:
        folder = root / "here"
        shutil.copytree(sample, folder, symlinks=True)
        work = command(shlex.split(reader.command)) if isinstance(reader.command, str) else reader.command

        rng = np.random.default_rng(zlib.crc32(name.encode()))
        for path in sorted(folder.glob(place)):
            case.apply(path, rng)
        before = snapshot(folder)

        def limits() -> None:
            limit_memory(MEMORY)
            if reader.before is not None:
                reader.before()

        outcome = Process(work, folder, root / "log", limits).wait(1.2 * SECONDS)
        return judged(reader, place, case, outcome, before, snapshot(folder), folder), outcome
    finally:
        shutil.rmtree(root, ignore_errors=True)


@dataclass
class Arguments:
    """Damage sound inputs of every kind and read them."""

    readers: tuple[str, ...] = ()
    """Names of readers, whose results replace those there are; all when left out."""
    every: int = 1
    """Read every so many-th input."""
    values: int = 12
    """Values replaced in each JSON file."""
    show: bool = False
    """Print the sentence of every input."""
    output: Path = RESULTS
    """Folder of hostile.json."""


def sampled(reader: Reader, root: Path) -> Path:
    """A sound sample of a reader, which it reads."""
    sample = root / hashlib.sha256(reader.name.encode()).hexdigest()[:8]
    sample.mkdir()

    def work() -> int:
        reader.make(sample)
        return 0

    made = Process(work, sample, root / "log").wait()
    if made.code:
        raise UserError(f"no sample of {reader.name}: {made.err[-300:]}")
    nothing = Case("nothing", lambda path, rng: None, True)
    verdict, outcome = one(reader, "*", nothing, sample, "")
    assert verdict in ("read", "healed"), f"{reader.name}: {verdict} {outcome.err}"
    return sample


def _before(folder: Path, anew: list[str]) -> dict[str, Any]:
    """What was found of readers that are not tried anew."""
    path = folder / "hostile.json"
    found = read_json(path) if path.is_file() else {"readers": {}, "wrong": []}
    return {
        "readers": {name: one for name, one in found["readers"].items() if name not in anew},
        "wrong": [one for one in found["wrong"] if one["reader"] not in anew],
    }


def main(arguments: Arguments) -> None:
    chosen = [one for one in readers() if not arguments.readers or one.name in arguments.readers]
    warm_up(optional=any(one.name in OPTIONAL for one in chosen))
    before = _before(arguments.output, [one.name for one in chosen])
    wrong: list[dict[str, str]] = before["wrong"]
    number = 0
    with tempfile.TemporaryDirectory() as place:
        for reader in chosen:
            counts: Counter[str] = Counter()
            slowest, largest = 0.0, 0
            sample = sampled(reader, Path(place))
            for name, file, case in cases(reader, sample, arguments.values):
                number += 1
                if number % arguments.every:
                    continue
                verdict, outcome = one(reader, file, case, sample, name)
                slowest = max(slowest, outcome.cpu_seconds)
                largest = max(largest, outcome.peak_bytes)
                good = verdict in ("refused", "read", "healed")
                counts[verdict if good else "wrong"] += 1
                if not good:
                    said = (outcome.err.strip().splitlines() or [""])[-1]
                    wrong.append({"reader": reader.name, "input": name, "verdict": verdict, "said": said})
                    print(f"WRONG {reader.name} / {name}: {verdict}\n  {said}", flush=True)
                elif arguments.show:
                    print(f"{verdict} {reader.name} / {name}: {outcome.sentence}", flush=True)
            print(reader.name, dict(counts), flush=True)
            before["readers"][reader.name] = {
                **counts,
                "every": arguments.every,
                "most_processor_seconds": round(slowest, 2),
                "most_resident_bytes": largest,
                "code": code_hash(),
            }
            every = before["readers"].values()
            verdicts = {kind: sum(one.get(kind, 0) for one in every) for kind in VERDICTS}
            content = {
                "inputs": sum(verdicts.values()),
                "verdicts": verdicts,
                "most_processor_seconds": max(one["most_processor_seconds"] for one in every),
                "most_resident_bytes": max(one["most_resident_bytes"] for one in every),
                **before,
                "limits": {"processor_seconds": SECONDS, "bytes": MEMORY},
            }
            report("hostile", content, arguments.output)


if __name__ == "__main__":
    launch(main, Arguments)
