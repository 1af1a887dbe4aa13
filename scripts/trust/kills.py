"""Killed at any moment: resumed, and compared bit for bit with a run that nobody disturbed.

Example:

    python -m scripts.trust.kills --kills 100

Every command is killed (SIGKILL, with all its processes) at random moments, up to four times in a row, and
then left alone; what it has made must be what an undisturbed run made, and no temporary file may be left. It
is stopped by SIGINT and by SIGTERM: what is finished is kept, and said in one line within 10 s, with the exit
code 130 or 143. And two of it are started at once: each ends well, or in one sentence that another one is at
work.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.common import launch
from scripts.trust import samples
from scripts.trust.common import RESULTS, Outcome, Process, command, report, snapshot, warm_up
from sparsewm.files import read_json

ROW = 4
"""Kills one after the other before a command is left alone, at most."""

SPENT = ("second", "per_second", "memory", "date", "command")
"""What differs from run to run: parts of names in JSON."""


@dataclass
class Job:
    """A command to kill.

    Attributes:
        name: in the results. make: what it needs. work: the command, as it is typed again after each kill.
        results: patterns of files to compare. finished: exit code 2 with this in the sentence is an end, too.
        kept: a file or folder that stays there from when it first was.
    """

    name: str
    make: Callable[[Path], Any]
    work: Callable[[], int]
    results: Sequence[str]
    finished: str = ""
    kept: str = ""


def typed(text: str) -> Callable[[], int]:
    """A command as it is typed."""
    return command(shlex.split(text))


def encode() -> int:
    """Encode a dataset, a few rows at a time."""
    from sparsewm.cli.common import script_exit_code
    from sparsewm.data import TokenCache, encoding, open_dataset, token_file
    from sparsewm.encoders import load_encoder

    encoding.NOTED_ROWS = token_file.CLAIMED_ROWS = 8

    def work() -> int:
        dataset = open_dataset("wall.h5")
        tokens = TokenCache(dataset, load_encoder("random"))
        np.save("tokens.npy", tokens.rows(np.arange(dataset.rows)).numpy())
        return 0

    return script_exit_code(work)


def world_models(folder: Path) -> None:
    """A folder of runs with a world model for Wall."""
    (folder / "models").mkdir()
    samples.checkpoint(folder)
    os.rename(folder / "model", folder / "models" / "wall")


def data_and_model(folder: Path) -> None:
    """A dataset, and a world model to train a policy beside."""
    samples.hdf5(folder)
    samples.checkpoint(folder)


def jobs() -> list[Job]:
    """All of them."""
    collect = "collect --env wall --episodes 60 --steps 4 --workers 2 --resolution 32"
    train = samples.TRAIN.format(steps=8) + " --resume"
    return [
        Job("collect", lambda folder: None, typed(collect), ["data/wall.h5", "data/wall.json"]),
        Job("encode", samples.hdf5, encode, ["*.tokens*", "tokens.npy"]),
        Job(
            "train",
            samples.hdf5,
            typed(train),
            ["run/checkpoint/*", "run/metrics.json", "run/training_state.safetensors"],
            kept="run/checkpoint",
        ),
        Job(
            "train-policy",
            data_and_model,
            typed(
                "train-policy --env wall --dataset wall.h5 --checkpoint model --chunk 2 --steps 12 --batch 4 "
                "--save-every 2 --device cpu --output policy --resume"
            ),
            ["policy/*.json", "policy/*.safetensors"],
        ),
        Job("eval", world_models, typed(samples.EVAL), ["table/cells/*", "table/eval.json"]),
        Job("convert", samples.hdf5, typed("convert wall.h5 out.h5"), ["out.h5"], "out.h5 exists", "out.h5"),
        Job(
            "convert to lerobot",
            samples.hdf5,
            typed("convert wall.h5 out"),
            ["out/**/*"],
            "out exists",
            "out",
        ),
        Job(
            "plan",
            samples.checkpoint,
            typed(
                "plan --env wall --checkpoint model --candidates 4 --iterations 1 --max-steps 5 --episodes 3 "
                "--run.no-video --output plan"
            ),
            ["plan/results.json"],
        ),
    ]


# What is compared ----------------------------------------------------------------------------------------


def timeless(content: Any) -> Any:
    """JSON without what differs from run to run."""
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if not any(part in k for part in SPENT)}
    return [timeless(part) for part in content] if isinstance(content, list) else content


def content(path: Path) -> Any:
    """What a file says, whenever it was made."""
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.name == "training_state.safetensors":
        from safetensors import safe_open
        from safetensors.numpy import load_file

        with safe_open(path, "np") as file:
            said = timeless(json.loads(file.metadata()["run"]))
        return said, {name: values.tobytes() for name, values in load_file(path).items()}
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pydict()
    return path.read_bytes()


def made(folder: Path, patterns: Sequence[str]) -> dict[str, Any]:
    """What a command has made."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): content(path) for path in sorted(files)}


def hidden(folder: Path) -> list[str]:
    """Temporary files and folders that are left."""
    return [name for name in snapshot(folder) if "/." in f"/{name}" or "partial" in name or ".parts" in name]


# What is done ---------------------------------------------------------------------------------------------


class Place:
    """Where a job is done: a copy of what it needs, and its logs."""

    def __init__(self, root: Path, ready: Path) -> None:
        self.root = Path(tempfile.mkdtemp(dir=root))
        self.folder = self.root / "here"
        shutil.copytree(ready, self.folder)

    def start(self, job: Job, log: str = "log") -> Process:
        """Start the command."""
        return Process(job.work, self.folder, self.root / log)

    def remove(self) -> None:
        """All of it."""
        shutil.rmtree(self.root, ignore_errors=True)


def ended_well(job: Job, outcome: Outcome) -> bool:
    """Whether a command has done its work, now or before."""
    found = outcome.sentence or ""
    return outcome.code == 0 or (outcome.code == 2 and job.finished != "" and job.finished in found)


def killed(
    job: Job,
    root: Path,
    ready: Path,
    truth: dict[str, Any],
    seconds: float,
    kills: int,
    until: float,
    before: int = 0,
) -> dict[str, Any]:
    """Kill a command again and again, at other moments than those `before`."""
    rng = np.random.default_rng([len(job.name), kills, before])
    done, wrong, chains = 0, [], 0
    while done < kills and time.monotonic() < until:
        place, chains, seen = Place(root, ready), chains + 1, False
        moments = []
        for _ in range(min(ROW, kills - done)):
            moment = float(rng.uniform(0, 1.05 * seconds))
            outcome = place.start(job).wait(kill_at=moment)
            moments.append(round(moment, 2))
            if outcome.code != -signal.SIGKILL:
                if not ended_well(job, outcome):
                    wrong.append({"moments": moments, "what": "failed", "said": outcome.err[-500:]})
                break
            done += 1
            there = bool(job.kept) and (place.folder / job.kept).exists()
            if seen and not there:
                wrong.append({"moments": moments, "what": f"{job.kept} was there, and is not"})
            seen = seen or there
        outcome = place.start(job).wait()
        if not ended_well(job, outcome):
            wrong.append({"moments": moments, "what": "does not go on", "said": outcome.err[-500:]})
        else:
            found = made(place.folder, job.results)
            differs = sorted(
                name for name in {*found, *truth} if found.get(name, b"") != truth.get(name, b"")
            )
            if differs:
                wrong.append({"moments": moments, "what": "differs", "said": ", ".join(differs)})
        if left := hidden(place.folder):
            wrong.append({"moments": moments, "what": "left behind", "said": ", ".join(left[:3])})
        place.remove()
    return {"kills": done, "resumed_runs": chains, "wrong": wrong}


ANSWER = 10.0
"""Seconds in which a command is to end that is asked to."""


def stopped(job: Job, root: Path, ready: Path, seconds: float) -> dict[str, Any]:
    """Stop a command by Ctrl-C, and politely."""
    found: dict[str, Any] = {}
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        place = Place(root, ready)
        process = place.start(job)
        time.sleep(0.6 * seconds)
        process.signal(number)
        asked = time.monotonic()
        outcome = process.wait()
        answered = time.monotonic() - asked
        line = (outcome.err.strip().splitlines() or [""])[-1]
        good = (
            outcome.code in (code, 0) and "Traceback" not in outcome.err + outcome.out and answered < ANSWER
        )
        again = place.start(job).wait()
        found[number.name] = {
            "code": outcome.code,
            "answered_in": round(answered, 1),
            "said": line if outcome.code == code else "",
            "continues": ended_well(job, again),
            "good": good and ended_well(job, again),
        }
        place.remove()
    return found


def together(job: Job, root: Path, ready: Path, truth: dict[str, Any]) -> dict[str, Any]:
    """Start two at once."""
    place = Place(root, ready)
    processes = [place.start(job, f"log{i}") for i in range(2)]
    outcomes = [process.wait() for process in processes]
    said = [outcome.sentence or "" for outcome in outcomes]
    fine = [
        outcome.code == 0 or "another process" in text or (job.finished and job.finished in text)
        for outcome, text in zip(outcomes, said, strict=True)
    ]
    same = made(place.folder, job.results) == truth
    place.remove()
    good = all(fine) and same and any(outcome.code == 0 for outcome in outcomes)
    return {"codes": [outcome.code for outcome in outcomes], "said": said, "same": same, "good": bool(good)}


@dataclass
class Arguments:
    """Kill commands at random moments, and compare what they make after all."""

    kills: int = 100
    """SIGKILLs of each, those that kills.json knows of included."""
    jobs: tuple[str, ...] = ()
    """Names; all when left out."""
    minutes: float = 60.0
    """Wall time for the kills of each, at most."""
    output: Path = RESULTS
    """Folder of kills.json."""


def _making(job: Job, ready: Path) -> Callable[[], int]:
    def work() -> int:
        job.make(ready)
        return 0

    return work


def main(arguments: Arguments) -> None:
    wanted = [job for job in jobs() if not arguments.jobs or job.name in arguments.jobs]
    warm_up(optional=any(job.name == "convert to lerobot" for job in wanted))
    path = arguments.output / "kills.json"
    found: dict[str, Any] = read_json(path)["jobs"] if path.is_file() else {}
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        for number, job in enumerate(wanted):
            ready = root / f"ready-{number}"
            ready.mkdir()
            assert Process(_making(job, ready), ready, root / "log").wait().code == 0
            place = Place(root, ready)
            outcome = place.start(job).wait()
            assert outcome.code == 0, outcome.err
            truth = made(place.folder, job.results)
            assert truth and not hidden(place.folder), f"{job.name}: {sorted(truth)} {hidden(place.folder)}"
            place.remove()
            until = time.monotonic() + 60 * arguments.minutes
            entry: dict[str, Any] = {"seconds": round(outcome.seconds, 2)}
            before = found.get(job.name, {"kills": 0, "resumed_runs": 0, "wrong": []})
            more = arguments.kills - before["kills"]
            now = killed(job, root, ready, truth, outcome.seconds, more, until, before["kills"])
            entry |= {key: before[key] + now[key] for key in before if key in now}
            entry["stopped"] = stopped(job, root, ready, outcome.seconds)
            entry["two_at_once"] = together(job, root, ready, truth)
            found[job.name] = entry
            print(job.name, json.dumps(entry), flush=True)
            report("kills", {"jobs": found}, arguments.output)


if __name__ == "__main__":
    launch(main, Arguments)
