"""Odd numbers, long runs, deadlines and repeatability of an agent.

Example:

    python -m scripts.trust.numbers

NaN, infinity and denormals go into every place that takes numbers: the agent either refuses them in one
sentence, or plans on with finite actions inside their bounds. A thousand re-plans take no more memory and no
more files at the end than at the start. Plans at a deadline are counted by whether they came in time. Plans
of one seed are compared across processes, threads and batch sizes.
"""

from __future__ import annotations

import gc
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsewm
from scripts.common import launch
from scripts.trust import samples
from scripts.trust.common import RESULTS, Process, report, warm_up
from sparsewm import Agent, PlanConfig, UserError

ODD = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "1e38": 1e38,
    "a denormal": 1e-40,
}
SEARCH = {"candidates": 16, "iterations": 2, "horizon": 3}


@dataclass
class Place:
    """An agent on a small world model, and what it is shown."""

    agent: Agent
    goal: dict[str, np.ndarray]
    seen: dict[str, np.ndarray]


class Sampler:
    """Proposes actions with one odd number among them."""

    def __init__(self, value: float) -> None:
        self.value = value

    def propose(self, observation: Any, goal: Any, instruction: Any, samples: int, horizon: int) -> Any:
        """All of them alike, but one."""
        actions = torch.zeros(len(goal["proprio"]), samples, horizon, 2)
        actions[:, 0, 0, 0] = self.value
        return actions


def observation(seed: int) -> dict[str, np.ndarray]:
    """A picture of noise and two numbers."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)
    return {"pixels": pixels, "proprio": rng.uniform(10, 50, 2).astype(np.float32)}


def place(folder: Path, sampler: Any = None, **settings: Any) -> Place:
    """An agent at the start of an episode."""
    model = sparsewm.load(folder / "model")
    config = PlanConfig.of("wall").updated(**SEARCH | settings, objective="temporal", imagine=False)
    return Place(Agent(model, config, sampler=sampler), observation(1), observation(2))


def _act(at: Place) -> np.ndarray:
    at.agent.reset(at.goal, seeds=[0])
    actions: np.ndarray = at.agent.act(at.seen)
    return actions


def _weights(name: str) -> Callable[[Path, float], np.ndarray]:
    def run(folder: Path, value: float) -> np.ndarray:
        at = place(folder)
        state = {k: v for k, v in at.agent.model.state_dict().items() if k.startswith(name)}
        next(iter(state.values())).view(-1)[0] = value
        return _act(at)

    return run


def _proprio(folder: Path, value: float, part: str) -> np.ndarray:
    at = place(folder)
    getattr(at, part)["proprio"][0] = value
    return _act(at)


def _pixels(folder: Path, value: float) -> np.ndarray:
    at = place(folder)
    at.seen["pixels"] = at.seen["pixels"].astype(np.float32)
    at.seen["pixels"][0, 0, 0] = value
    return _act(at)


def _executed(folder: Path, value: float) -> np.ndarray:
    at = place(folder)
    _act(at)
    at.agent.observe(at.seen, action=np.array([value, 0], np.float32))
    actions: np.ndarray = at.agent.act(at.seen)
    return actions


def _proposals(folder: Path, value: float, mode: str) -> np.ndarray:
    named = {"proposals": {"source": "vla", "mode": mode, "samples": 4}}
    return _act(place(folder, Sampler(value), **named))


PLACES: dict[str, Callable[[Path, float], np.ndarray]] = {
    "weights of the predictor": _weights("predictor"),
    "weights of the distance": _weights("distance"),
    "statistics": _weights("standardizer"),
    "observed proprioception": lambda folder, value: _proprio(folder, value, "seen"),
    "proprioception of the goal": lambda folder, value: _proprio(folder, value, "goal"),
    "observed picture": _pixels,
    "executed action": _executed,
    "proposals that replace candidates": lambda folder, value: _proposals(folder, value, "replace"),
    "proposals among candidates": lambda folder, value: _proposals(folder, value, "seed"),
    "proposals as a prior": lambda folder, value: _proposals(folder, value, "prior"),
}
"""Where a number goes, and what is planned then."""


def odd(folder: Path) -> dict[str, dict[str, str]]:
    """What becomes of each odd number in each place."""
    found: dict[str, dict[str, str]] = {}
    for name, run in PLACES.items():
        for kind, value in ODD.items():
            try:
                actions = run(folder, value)
                inside = bool(np.isfinite(actions).all() and (np.abs(actions) <= 1).all())
                verdict = "plans" if inside else "WRONG: actions are not inside their bounds"
            except UserError as error:
                verdict = f"refused: {error}"
            except Exception as error:  # what the campaign looks for
                verdict = f"WRONG: {type(error).__name__}: {error}"
            found.setdefault(name, {})[kind] = verdict
    return found


def _status() -> tuple[int, int]:
    """Resident bytes, and open files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = next(line for line in lines if line.startswith("VmRSS"))
    return 1024 * int(resident.split()[1]), len(os.listdir("/proc/self/fd"))


def replans(folder: Path, count: int) -> dict[str, Any]:
    """Memory and open files over many re-plans of one episode, with other pictures each time."""
    sparsewm.keep_freed_memory()
    at = place(folder)
    at.agent.reset(at.goal, seeds=[0])
    marks = []
    for number in range(count):
        at.agent.act(observation(number % 7))
        if number + 1 in (count // 10, count):
            gc.collect()
            marks.append(_status())
    (before, files), (after, files_after) = marks
    return {
        "replans": count,
        "resident_bytes_after_a_tenth": before,
        "resident_bytes_at_the_end": after,
        "growth": round(after / before - 1, 5),
        "more_open_files": files_after - files,
    }


def deadlines(folder: Path, count: int, milliseconds: float) -> dict[str, Any]:
    """How many plans come in time."""
    at = place(folder, deadline_ms=milliseconds, iterations=1000)  # more than there is time for
    at.agent.reset(at.goal, seeds=[0])
    at.agent.act(at.seen)
    late = []
    for number in range(count):
        shown = observation(number % 7)
        started = time.perf_counter()
        at.agent.act(shown)
        late.append(1000 * (time.perf_counter() - started) - milliseconds)
    return {
        "plans": count,
        "deadline_ms": milliseconds,
        "in_time": sum(one <= 0 for one in late) / count,
        "most_late_ms": round(max(late), 1),
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def _digest(actions: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(actions).tobytes()).hexdigest()[:12]


def _plans(folder: Path, threads: int, batch: int) -> list[np.ndarray]:
    """Actions of the plans of `batch` episodes, planned together."""
    torch.set_num_threads(threads)
    at = place(folder, batch=batch)
    shown = [[observation(10 * kind + i) for i in range(batch)] for kind in (1, 2)]
    goal, seen = ({k: np.stack([one[k] for one in some]) for k in some[0]} for some in shown)
    at.agent.reset(goal, seeds=list(range(batch)))
    actions: list[np.ndarray] = at.agent.act(seen)
    return actions


def repeated(folder: Path, root: Path) -> dict[str, Any]:
    """Whether plans of one seed are the same in another process, with more threads, in a larger batch."""
    truth = _plans(folder, 1, 1)[0]
    found: dict[str, Any] = {"again": _digest(_plans(folder, 1, 1)[0]) == _digest(truth)}

    def elsewhere() -> int:
        print(_digest(_plans(folder, 1, 1)[0]))
        return 0

    found["another_process"] = Process(elsewhere, folder, root / "log").wait().out.strip() == _digest(truth)
    found["two_threads"] = _digest(_plans(folder, 2, 1)[0]) == _digest(truth)
    four = _plans(folder, 1, 4)[0]
    torch.set_num_threads(1)
    found["batch_of_four"] = _digest(four) == _digest(truth)
    found["batch_of_four_differs_by"] = float(np.abs(four - truth).max())
    return found


@dataclass
class Arguments:
    """Odd numbers, memory, deadlines and repeatability."""

    replans: int = 1000
    """Re-plans over which memory is watched."""
    plans: int = 10_000
    """Plans at a deadline."""
    deadline_ms: float = 100.0
    """The deadline."""
    output: Path = RESULTS
    """Folder of numbers.json."""


def main(arguments: Arguments) -> None:
    warm_up(optional=False)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        samples.checkpoint(folder)
        found: dict[str, Any] = {"repeated": repeated(folder, folder / "elsewhere"), "odd": odd(folder)}
        found["wrong"] = [
            f"{kind} in {name}: {verdict}"
            for name, kinds in found["odd"].items()
            for kind, verdict in kinds.items()
            if verdict.startswith("WRONG")
        ]
        print(found, flush=True)
        found["memory"] = replans(folder, arguments.replans)
        print(found["memory"], flush=True)
        report("numbers", found, arguments.output)
        found["deadline"] = deadlines(folder, arguments.plans, arguments.deadline_ms)
        print(found["deadline"], flush=True)
    report("numbers", found, arguments.output)


if __name__ == "__main__":
    launch(main, Arguments)
