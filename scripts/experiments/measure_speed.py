"""What each step of the fast rollout gains, how its cost grows, and that rankings and memory stay.

The steps lead from DINO-WM's rollout of all tokens in float32 to ours of a part of them; each says in what it
multiplies. 8-bit integers, which nothing chooses by itself, are a step of their own at the end.

Example (about two minutes on two cores; with --presets default paper a quarter of an hour):

    python -m scripts.experiments.measure_speed --output results/speed

Writes speed.json and scaling.png. All variants of a row run interleaved in one process, on the same weights,
candidates and patches; only the last step, memory that is kept, needs a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import psutil
import torch

from scripts.common import launch, typed_command
from scripts.lab.states import make_simulator
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.evaluation.bench import random_model
from sparsewm.evaluation.bench.models import fill
from sparsewm.evaluation.bench.timing import Contestant, interleave
from sparsewm.evaluation.dino_wm import WindowRollout
from sparsewm.evaluation.statistics import spearman
from sparsewm.files import write_json
from sparsewm.memory import keep_freed_memory
from sparsewm.model import Latent, LatentProblem, PredictorConfig, WorldModel
from sparsewm.model.checkpoint import load_pretrained
from sparsewm.model.objectives import TokenError
from sparsewm.planners import CEM
from sparsewm.precision import fast_bfloat16, fastest_dtype, no_integers
from sparsewm.report.plots import save_figure

CPU = torch.device("cpu")
FAST = fastest_dtype(CPU)


@dataclass
class Arguments:
    """Steps, scaling, ranking and memory of the planner's rollout."""

    output: Path = Path("results/speed")
    """Folder for speed.json and scaling.png."""
    presets: tuple[str, ...] = ("default",)
    """Sizes: default (the shipped PushT model), or paper, narrow, ... with random weights."""
    drop: float = 0.5
    """Drop ratio of the steps."""
    candidates: int = 100
    """Candidates."""
    repeats: int = 7
    """Timed iterations."""
    keep_memory: bool = True
    """Internal: whether the C library keeps freed memory."""
    only_last: bool = False
    """Internal: time the last step alone and print its seconds."""


def make_model(preset: str, dtype: torch.dtype, env: SimulatedGoalEnv) -> WorldModel:
    if preset == "default":
        return load_pretrained("pusht", CPU, dtype)
    return random_model(env, preset, CPU, dtype, 0)


def frames(model: WorldModel, env: SimulatedGoalEnv) -> tuple[Latent, Latent]:
    """A start and a goal as the camera sees them."""
    observation, _ = env.reset(seed=0)
    goal = env.render_state(env.goal)
    pairs = [(x["pixels"][None], x["proprio"][None]) for x in (observation, goal)]
    start, target = (model.encode(*pair) for pair in pairs)
    return start, target


def problem_of(model: WorldModel, env: SimulatedGoalEnv, drop: float, horizon: int = 5) -> LatentProblem:
    start, goal = frames(model, env)
    low, high = torch.as_tensor(env.action_space.low), torch.as_tensor(env.action_space.high)
    return LatentProblem(
        model,
        start,
        goal,
        low,
        high,
        objective=TokenError(model, 1.0),
        horizon=horizon,
        drop=drop,
        frame="last",
        action_repeat=False,
        init_std=1.0,
        generators=[torch.Generator().manual_seed(0)],
    )


def some_actions(model: WorldModel, count: int, horizon: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, count, horizon, model.action_dim, generator=generator).clamp(-1, 1)


def interleaved(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Quartiles of the seconds of each, taken in turns."""
    timed = {name: Contestant(work, repeats) for name, work in variants.items()}
    interleave(list(timed.values()), CPU)
    return {name: one.spread for name, one in timed.items()}


def generic(problem: LatentProblem, actions: torch.Tensor) -> Callable[[], Any]:
    """The predictor called frame by frame, as training calls it."""

    def work() -> None:
        with torch.inference_mode():
            start = problem.view.tokens, problem.start.proprio
            *_, last = problem.model.imagine(*start, actions, problem.patches)
            problem._distance(*last, problem.view)

    return work


def steps(arguments: Arguments, preset: str, env: SimulatedGoalEnv) -> dict[str, Any]:
    """Seconds per iteration after each step, in order."""
    fast, exact = (make_model(preset, dtype, env) for dtype in (FAST, torch.float32))
    actions = some_actions(fast, arguments.candidates)
    sparse, slow = (problem_of(model, env, arguments.drop) for model in (fast, exact))
    if arguments.only_last:
        return interleaved({"last": lambda: sparse.cost(actions)}, arguments.repeats)
    plain, packed = (problem_of(fast, env, arguments.drop) for _ in range(2))
    with mock.patch("sparsewm.model.rollout.layout_of", lambda weights: None):
        packed.cost(actions)  # a rollout without compiled kernels
        with mock.patch("torch.backends.mkldnn.is_available", lambda: False):
            fast.place(CPU, FAST)
            plain.cost(actions)  # and without packed weights
    fast.place(CPU, FAST)
    sparse.cost(actions)
    assert sparse._rollout is not None
    whole = sparse._rollout.whole is not None
    name, part = str(FAST).removeprefix("torch."), f"{100 * (1 - arguments.drop):g}% of the tokens"
    dense = problem_of(exact, env, 0.0)
    every = problem_of(fast, env, 0.0)
    variants: dict[str, Callable[[], Any]] = {
        "DINO-WM, float32, all tokens": windowed(exact, dense, actions, torch.float32),
        f"DINO-WM, float32, {part}, as all that follows": windowed(exact, slow, actions, torch.float32),
        "float32: keys and values cached, one frame a step": generic(slow, actions),
    }
    if fast_bfloat16(CPU):
        variants[f"{name}: the same"] = generic(sparse, actions)
    variants[f"{name}: one buffer of keys, modulations at once"] = lambda: plain.cost(actions)
    variants[f"{name}: weights packed, bias and ReLU fused into products"] = lambda: packed.cost(actions)
    if whole:
        whole_frame = "all layers of a frame compiled, a few candidates at a time"
        variants[f"{name}: {whole_frame}"] = lambda: sparse.cost(actions)
    if no_integers(CPU) is None:
        final = problem_of(make_model(preset, torch.int8, env), env, arguments.drop)
        variants["int8: linear layers in 8-bit integers, if asked for"] = lambda: final.cost(actions)
    variants["beside them: DINO-WM, bfloat16"] = windowed(exact, slow, actions, torch.bfloat16)
    variants[f"beside them: ours, {name}, all tokens"] = lambda: every.cost(actions)
    found = interleaved(variants, arguments.repeats)
    command = [
        sys.executable,
        "-m",
        "scripts.experiments.measure_speed",
        "--presets",
        preset,
        "--drop",
        str(arguments.drop),
        "--only-last",
    ]
    command += ["--candidates", str(arguments.candidates), "--repeats", str(arguments.repeats)]
    for keep in (True, False):
        output = subprocess.check_output(
            [*command, "--keep-memory" if keep else "--no-keep-memory"], text=True
        )
        found[f"ours, {name}, in a process that {'keeps' if keep else 'returns'} freed memory"] = json.loads(
            output.splitlines()[-1]
        )["last"]
    return found


def windowed(
    model: WorldModel, problem: LatentProblem, actions: torch.Tensor, dtype: torch.dtype
) -> Callable[[], Any]:
    """DINO-WM's rollout of a problem's tokens."""
    window = WindowRollout(model, dtype=dtype)
    start = problem.start.tokens, problem.start.proprio
    copies = Latent(*(x.expand(actions.shape[1], *x.shape[1:]) for x in start))
    return lambda: window.cost(copies, problem.goal, actions[0], problem.patches[0])


def scaling(env: SimulatedGoalEnv, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Seconds per iteration over tokens kept, candidates, horizon and width, the others as by default."""
    model = load_pretrained("pusht", CPU, FAST)
    rows: dict[str, dict[float, Callable[[], Any]]] = {
        "tokens": {},
        "candidates": {},
        "horizon": {},
        "width": {},
    }

    def add(axis: str, value: float, model: WorldModel, drop: float, count: int, horizon: int) -> None:
        problem, actions = problem_of(model, env, drop, horizon), some_actions(model, count, horizon)
        rows[axis][value] = lambda: problem.cost(actions)

    for kept in (8, 16, 32, 48, 64):
        add("tokens", kept, model, 1 - kept / 64, 100, 5)
    for count in (16, 32, 64, 128, 256):
        add("candidates", count, model, 0.5, count, 5)
    for horizon in (1, 2, 3, 5, 8):
        add("horizon", horizon, model, 0.5, 100, horizon)
    for width in (96, 192, 384):
        config = PredictorConfig(
            64,
            (8, 8),
            env.proprio_dim,
            model.action_dim,
            3,
            width,
            model.config.depth,
            width // 64 or 1,
            4 * width,
        )
        other = WorldModel(model.encoder, config, env.name, env.frameskip)
        fill(other.predictor)
        other.eval().requires_grad_(False)
        add("width", width, other.place(CPU, FAST), 0.5, 100, 5)
    found = {}
    for axis, variants in rows.items():
        timed = interleaved({str(value): work for value, work in variants.items()}, repeats)
        found[axis] = [{"value": float(value), **spread} for value, spread in timed.items()]
    return found


def plot_scaling(path: Path, found: dict[str, list[dict[str, float]]]) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2))
    for axis, (name, rows) in zip(axes, found.items(), strict=True):
        values, median = [row["value"] for row in rows], np.array([row["median"] for row in rows])
        spread = [median - [row["p25"] for row in rows], [row["p75"] for row in rows] - median]
        axis.errorbar(values, 1000 * median, yerr=1000 * np.array(spread), marker="o", capsize=3)
        axis.set(xlabel=name, ylim=0, xlim=0)
    axes[0].set_ylabel("ms per iteration")
    figure.tight_layout()
    save_figure(figure, path)


def ranking(environment: str, drop: float, count: int = 256) -> float:
    """Rank correlation of candidates' costs between planning and float32, on a real observation."""
    env = make_simulator(environment)
    costs = []
    for dtype in (FAST, torch.float32):
        model = load_pretrained(environment, CPU, dtype)
        costs.append(problem_of(model, env, drop).cost(some_actions(model, count))[0].numpy())
    return spearman(*costs)


def memory(env: SimulatedGoalEnv, drop: float) -> dict[str, float]:
    """Resident bytes after the 2nd and the 50th re-plan."""
    model, planner, process = load_pretrained("pusht", CPU, FAST), CEM(64, 8, 5), psutil.Process()
    found = {}
    for plan in range(1, 51):
        planner.plan(problem_of(model, env, drop))
        if plan in (2, 50):
            found[f"plan_{plan}"] = float(process.memory_info().rss)
    return found | {"growth": found["plan_50"] / found["plan_2"] - 1}


def main(arguments: Arguments) -> None:
    if arguments.keep_memory:
        keep_freed_memory()
    env = make_simulator("pusht")
    if arguments.only_last:
        print(json.dumps(steps(arguments, arguments.presets[0], env)))
        return
    report: dict[str, Any] = {"command": typed_command(), "threads": torch.get_num_threads(), "seed": 0}
    report |= {"drop": arguments.drop, "candidates": arguments.candidates, "horizon": 5, "steps": {}}
    report["memory"] = memory(env, arguments.drop)
    report["ranking"] = {
        f"{name}, drop {drop:g}": ranking(name, drop) for name in ("pusht", "wall") for drop in (0.0, 0.5)
    }
    print(report["memory"], report["ranking"], flush=True)
    for preset in arguments.presets:
        report["steps"][preset] = steps(arguments, preset, env)
        for name, spread in report["steps"][preset].items():
            print(f"{preset}: {name}: {1000 * spread['median']:.0f} ms", flush=True)
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output / "speed.json", report)
    report["scaling"] = scaling(env, arguments.repeats)
    plot_scaling(arguments.output / "scaling.png", report["scaling"])
    write_json(arguments.output / "speed.json", report)


if __name__ == "__main__":
    launch(main, Arguments)
