"""Make the shipped encoder: render scenes in two looks each, train by self-distillation, save with a card.

Example (all defaults; about 20 minutes on 2 CPU cores):

    python -m scripts.pretrain_encoder --output runs/encoder
"""

from __future__ import annotations

import json
import multiprocessing as mp
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file

from scripts.common import launch
from scripts.lab.pretrain import DistillationConfig, join_readings, pretrain
from scripts.lab.states import make_simulator
from sparsewm import envs
from sparsewm.data.collect import explore
from sparsewm.encoders import ViT, weights_hash
from sparsewm.encoders.embedded import load_embedded
from sparsewm.envs.policies import exploration_policy
from sparsewm.files import atomic_path, read_json, write_json
from sparsewm.precision import fastest_dtype

NEIGHBOUR = {"pusht": 4, "wall": 4, "pointmaze": 6, "rope": 1, "granular": 1, "blockpush": 4}
"""Environment steps, at most, between the two views of a scene."""


@dataclass
class Arguments:
    """Train the embedded encoder."""

    output: Path = Path("runs/encoder")
    """Folder for `model.safetensors`, `card.json` and the rendered scenes."""
    environments: tuple[str, ...] = tuple(NEIGHBOUR)
    """Environments whose frames are used."""
    scenes: int = 4096
    """Scenes (two looks each) per environment."""
    minutes: float = 0.0
    """Stop after this wall-clock time; `recipe.steps` sets the length of the schedules."""
    depth: int = 5
    """Transformer blocks."""
    workers: int = 2
    """Rendering processes."""
    seed: int = 0
    """Seed of scenes, weights and batches."""
    start: Path | None = None
    """Weights to start from; with `--recipe.steps 0` they are only joined with readings."""
    readings: int = 48
    """Features of a token, of 64, that are what its surroundings look like; 0: none."""
    recipe: DistillationConfig = field(default_factory=DistillationConfig)


def wander(env: envs.SimulatedGoalEnv, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A state a few steps of one persistent action later: a neighbour in time."""
    steps = int(rng.integers(1, NEIGHBOUR[env.name] + 1))
    if env.frameskip == 1:  # a step is a whole push, which at random would mostly touch nothing
        action = exploration_policy(env, rng).act(state)[None, None].astype(np.float64)
    else:
        action = rng.normal(0, 0.6, (1, 1, env.action_dim)).clip(-1, 1)
    return env.rollout_states(state, action.repeat(steps, 1))[0, -1]


def scene_states(env: envs.SimulatedGoalEnv, count: int, rng: np.random.Generator) -> np.ndarray:
    """States (count, D), half of them random, half from exploration: contacts, poses, piles after pushes."""
    states = [env.sample_state() for _ in range(count // 2)]
    stride = 3 if env.frameskip == 1 else 10
    while len(states) < count:
        steps = 24 if env.frameskip == 1 else 100
        states += list(explore(env, int(rng.integers(2**31)), 0, steps)[0][stride::stride])
    return np.stack(states[:count])


def render_scenes(job: tuple[str, int, int, int]) -> np.ndarray:
    """Two looks of `count` states of one environment, a few steps apart: uint8 (count, 2, R, R, 3)."""
    name, count, seed, resolution = job
    env = make_simulator(name, resolution=resolution)
    rng = np.random.default_rng(seed)
    env.reset(seed=int(rng.integers(2**31)))
    states = scene_states(env, count, rng)
    later = np.stack([wander(env, state, rng) for state in states])
    pictures = np.empty((count, 2, resolution, resolution, 3), np.uint8)
    env.randomize_appearance(None if rng.random() < 0.65 else rng)
    for view in range(2):
        if view == 1 or rng.random() < 0.6:
            env.randomize_appearance(rng, keep_geometry=True)
        pictures[:, view] = env.render_states((states, later)[view], resolution)
    env.close()
    return pictures


def make_scenes(arguments: Arguments, resolution: int) -> dict[str, np.ndarray]:
    """Scenes of every environment, rendered in parallel and kept beside the weights for the next run."""
    scenes = {}
    context = mp.get_context("spawn")
    for number, name in enumerate(arguments.environments):
        path = arguments.output / f"scenes-{name}-{arguments.scenes}-{arguments.seed}.npy"
        if not path.exists():
            part = arguments.recipe.block
            jobs = [
                (
                    name,
                    min(part, arguments.scenes - i),
                    1000003 * (arguments.seed + 1) + 10007 * number + i,
                    resolution,
                )
                for i in range(0, arguments.scenes, part)
            ]
            started = time.time()
            with context.Pool(arguments.workers) as pool, atomic_path(path) as temporary:
                out = np.lib.format.open_memmap(
                    temporary, "w+", np.uint8, (arguments.scenes, 2, resolution, resolution, 3)
                )
                done = 0
                for pictures in pool.imap(render_scenes, jobs):
                    out[done : done + len(pictures)] = pictures
                    done += len(pictures)
                out.flush()
            print(f"{name}: {arguments.scenes} scenes in {time.time() - started:.0f} s", flush=True)
        scenes[name] = np.load(path, mmap_mode="r")
    return scenes


def plain_pictures(arguments: Arguments) -> list[np.ndarray]:
    """uint8 (K, R, R, 3) per environment, in its own look: what readings are summed up over."""
    pictures = []
    for name in arguments.environments:
        env = make_simulator(name, resolution=112)
        env.reset(seed=arguments.seed)
        rng = np.random.default_rng(arguments.seed)
        pictures.append(env.render_states(scene_states(env, 256, rng), 112))
        env.close()
    return pictures


def main(arguments: Arguments) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    encoder, found = ViT(depth=arguments.depth), {}
    if arguments.start is not None:
        encoder = load_embedded(arguments.start, joined=False)
        if (card_of_start := arguments.start.with_name("card.json")).is_file():
            found = read_json(card_of_start)
    started, log = time.time(), []
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    task = bar.add_task("pretraining", total=arguments.recipe.steps, loss="")

    def report(step: int, losses: dict[str, float]) -> bool:
        text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        bar.update(task, completed=step, loss=text)
        log.append({"step": step, "seconds": round(time.time() - started, 1), **losses})
        if step % 100 == 0:
            print(f"{step} {time.time() - started:.0f}s {text}", flush=True)
        return arguments.minutes > 0 and time.time() - started > 60 * arguments.minutes

    result = encoder
    if arguments.recipe.steps:
        scenes = make_scenes(arguments, encoder.resolution[0])
        with bar:
            student = encoder.train().requires_grad_(True)
            dtype = fastest_dtype(torch.device("cpu"))
            result = pretrain(scenes, arguments.recipe, student, arguments.seed, report, dtype)
    if arguments.readings:
        result.load_state_dict(
            {name: tensor.bfloat16().float() for name, tensor in result.state_dict().items()}
        )
        result = join_readings(result, plain_pictures(arguments), arguments.readings, arguments.seed)
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in result.state_dict().items()}
    with atomic_path(arguments.output / "model.safetensors") as temporary:
        save_file(weights, temporary)
    result.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    trained = {
        "data": {"environments": list(arguments.environments), "scenes": arguments.scenes, "looks": 2},
        "recipe": asdict(arguments.recipe) | {"seed": arguments.seed},
        "steps": log[-1]["step"] if log else 0,
        "minutes": round((time.time() - started) / 60, 1),
        "losses": log,
    }
    if not log:
        trained = {name: found[name] for name in trained if name in found}
    card = {
        "hash": weights_hash(result),
        "architecture": {
            "depth": len(result.blocks),
            "dim": result.dim,
            "readings": arguments.readings,
            "width": result.width,
            "patch": result.patch,
            "resolution": result.resolution[0],
        },
    }
    write_json(arguments.output / "card.json", json.loads(json.dumps(card | trained)))


if __name__ == "__main__":
    launch(main, Arguments)
