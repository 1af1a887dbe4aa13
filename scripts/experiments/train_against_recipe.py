"""Our training and the published recipe's, for the same time on the same tokens: which imagines better?

The published recipe is that of `sparsewm.evaluation.bench.recipe`: a dense transformer of the same sizes in
plain torch, three recorded frames, one step ahead, all tokens, 32 windows, AdamW at its published rate.
Ours is what `sparsewm train` does, its schedule fitted to the time. Both are validated alike, each by its
own rollout: error of imagined tokens over five steps as a share of copying the present frame, with all
tokens and with half.

Example (twice the minutes and a little more, on an otherwise idle machine; pictures are encoded first):

    python -m scripts.experiments.train_against_recipe --env pusht --minutes 20

Add --autocast for the recipe in bfloat16. Writes recipe.json and recipe.png.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from scripts.common import launch, typed_command
from sparsewm.cli.common import progress_bar
from sparsewm.data import TokenCache, Windows, fast_copy, open_dataset
from sparsewm.encoders import load_encoder
from sparsewm.evaluation.bench.operations import parameters
from sparsewm.evaluation.bench.recipe import BATCH, PlainTraining, RecipeConfig
from sparsewm.evaluation.machine import machine
from sparsewm.files import write_json
from sparsewm.memory import keep_freed_memory
from sparsewm.model import WorldModel
from sparsewm.precision import choose_device, fastest_dtype
from sparsewm.report.plots import save_figure
from sparsewm.settings import make_env
from sparsewm.training.config import OptimConfig, TrainConfig
from sparsewm.training.start import interface, new_model
from sparsewm.training.trainer import Trainer, standardized, validate

NEVER = 10**9
HORIZON = 5
"""Imagined frames of a validation."""


@dataclass
class Arguments:
    """Rollout error of our training and of the published recipe at equal time."""

    env: str = "pusht"
    """Environment whose training settings are taken."""
    dataset: Path | None = None
    """Recorded episodes; data/ENV.h5 when left out."""
    preset: str = "default"
    """Sizes, as for `sparsewm train`."""
    minutes: float = 20.0
    """Training time of each."""
    points: int = 12
    """Validations of each."""
    autocast: bool = False
    """Train the published recipe in bfloat16 by torch's autocast."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    seed: int = 0
    """Seed of weights, windows and groups."""
    output: Path = Path("results/recipe")
    """Folder of recipe.json and recipe.png."""


Curve = list[dict[str, float]]


class Imagining:
    """The published network as `validate` takes a world model: it imagines by its own window.

    Args:
        training: has the network. model: whose statistics standardise its frames.
    """

    def __init__(self, training: PlainTraining, model: WorldModel) -> None:
        self.training, self.standardizer = training, model.standardizer
        self.device, self.patches, self.history = model.device, model.patches, model.history

    def rollout(
        self, tokens: Tensor, proprio: Tensor, actions: Tensor, patches: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `WorldModel.rollout`, of one candidate; proprioception, never read out, stays as it is."""
        given = self.standardizer.actions(actions[:, 0])
        network, steps = self.training.network, actions.shape[2]
        enabled = self.training.autocast
        network.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            found = network.imagine(tokens, proprio, given, patches)
        network.train()
        return found[:, None].float(), proprio[:, None, None].expand(-1, 1, steps, -1)


def point(model: WorldModel, held_out: Windows, seconds: float, windows: int) -> dict[str, float]:
    """One validation: time, windows seen so far, and errors as shares of copying."""
    found = validate(model, held_out, min(HORIZON, held_out.frames - 1))
    named = {"all": found["drop_0"], "half": found["drop_0.5"]}
    errors = {f"{name}_error": float(np.mean(part["tokens"])) for name, part in named.items()}
    ratios = {name: float(part["ratio"]) for name, part in named.items()}
    return {"seconds": seconds, "windows": windows} | ratios | errors


def windows_seen(config: OptimConfig, steps: int) -> int:
    """Windows of so many steps; those on all tokens have fewer."""
    whole = -(-steps // config.full_every) if config.full_every > 0 else 0
    trained = min(config.trained_groups, config.groups) or config.groups
    return (steps - whole) * config.batch + whole * max(1, config.batch * trained // config.groups)


def train_ours(
    make: Callable[[], WorldModel],
    train: Windows,
    held_out: Windows,
    config: OptimConfig,
    dtype: torch.dtype,
    seconds: float,
    points: int,
    seed: int,
    progress: Callable[..., None],
    trial: int = 16,
) -> tuple[OptimConfig, Curve]:
    """Train a model that `make` makes for about so long; the settings it came to, and its validations."""
    config = replace(config, validate_every=NEVER, checkpoint_every=NEVER)
    with tempfile.TemporaryDirectory() as folder:
        first = Trainer(make(), train, held_out, folder, replace(config, steps=NEVER, ramp=0.0), dtype, seed)
        first.run(until=4)
        before = first.seconds
        first.run(until=4 + trial)
        # While rollouts grow, steps are cheaper: by about a third, over the ramp.
        pace = (first.seconds - before) / trial * (1 - config.ramp / 3)
        config = replace(config, steps=max(2, round(seconds / pace)))
        config = replace(config, warmup=min(config.warmup, config.steps // 8))
        trainer = Trainer(make(), train, held_out, folder, config, dtype, seed)
        every, curve = max(1, config.steps // points), []

        def on_step(run: Trainer, values: dict[str, float]) -> None:
            if run.step % every == 0 or run.step == config.steps:
                seen = windows_seen(config, run.step)
                curve.append(run.with_average(lambda: point(run.model, held_out, run.seconds, seen)))
            progress(run.seconds, seconds, f"ours: {run.step} steps, {_said(curve)}")

        trainer.run(on_step)
    return config, curve


def train_recipe(
    model: WorldModel,
    train: Windows,
    held_out: Windows,
    seconds: float,
    points: int,
    seed: int,
    progress: Callable[..., None],
    autocast: bool = False,
) -> tuple[PlainTraining, Curve]:
    """Train the published recipe for so long; what it came to, and its validations.

    Args:
        model: its sizes and statistics are taken.
    """
    training = PlainTraining(RecipeConfig.like(model), model.device, seed, autocast)
    imagining = cast(WorldModel, Imagining(training, model))
    rng, spent, steps, curve = np.random.default_rng(seed), 0.0, 0, Curve()
    while spent < seconds:
        started = time.perf_counter()
        batch = standardized(model, train.sample(rng, BATCH))
        actions = model.standardizer.actions(batch["action"])
        training.step(batch["tokens"], batch["proprio"], actions)
        spent += time.perf_counter() - started
        steps += 1
        if spent >= seconds * (len(curve) + 1) / points or spent >= seconds:
            curve.append(point(imagining, held_out, spent, steps * BATCH))
        progress(spent, seconds, f"recipe: {steps} steps, {_said(curve)}")
    return training, curve


def _said(curve: Curve) -> str:
    return f"{curve[-1]['all']:.3f} of copying, half {curve[-1]['half']:.3f}" if curve else "not validated"


def compare(arguments: Arguments) -> dict[str, Any]:
    """Both curves and what they are of."""
    env, device = make_env(arguments.env), choose_device(arguments.device)
    config = TrainConfig.of(env.name, arguments.preset)
    dtype, whitening = fastest_dtype(device), config.optim.whitening
    dataset = open_dataset(arguments.dataset or Path("data") / f"{env.name}.h5", env.name)
    height, width = dataset.pixels.shape[1:3]
    encoder = load_encoder(
        config.encoder.name or "embedded", device=device, picture=(int(height), int(width))
    )
    some = np.unique(np.linspace(0, dataset.rows - 1, 64).astype(int))
    with progress_bar("encoding") as progress:
        cache = TokenCache(
            dataset, fast_copy(encoder, dataset.pixels[some], dtype, whitening), progress=progress
        )
    split = dataset.split()
    space = env.action_space.low, env.action_space.high
    shown = interface(dataset, env.name, env.frameskip, space)

    def make() -> WorldModel:
        sizes = encoder, dataset, cache, split[0], config.model, shown, whitening, arguments.seed
        return new_model(*sizes).place(device)

    model = make()
    frames = model.history + config.optim.horizon
    ours, theirs, held_out = (
        Windows(dataset, cache, count, env.frameskip, part)
        for count, part in (
            (frames, split[0]),
            (model.history + 1, split[0]),
            (HORIZON + 1, split[1]),
        )
    )
    seconds, seed = 60 * arguments.minutes, arguments.seed
    with progress_bar("training") as progress:
        settings, curve = train_ours(
            make, ours, held_out, config.optim, dtype, seconds, arguments.points, seed, progress
        )
        took = curve[-1]["seconds"]  # the other gets the same
        training, other = train_recipe(
            model, theirs, held_out, took, arguments.points, seed, progress, arguments.autocast
        )
    best = min(row["all"] for row in other)
    sooner = next((row["seconds"] for row in curve if row["all"] <= best), None)
    return {
        "ours": {
            "dtype": str(dtype).removeprefix("torch."),
            "parameters": parameters(model.predictor),
            "model": asdict(model.config),
            "settings": asdict(settings),
            "curve": curve,
        },
        "recipe": {
            "dtype": "bfloat16" if arguments.autocast else "float32",
            "parameters": parameters(training.network),
            "model": asdict(training.network.config),
            "batch": BATCH,
            "curve": other,
        },
        "seconds_until_recipes_best": sooner,
    }


def plot(path: Path, report: dict[str, Any]) -> None:
    """Validation error over seconds of training."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, colour in (("ours", "#2b6cb0"), ("recipe", "#c05621")):
        curve = report[name]["curve"]
        for tokens, style in (("all", "o-"), ("half", "o--")):
            label = f"{name}, {report[name]['dtype']}, {tokens} tokens"
            ratio = [row[tokens] for row in curve]
            axes.plot([row["seconds"] for row in curve], ratio, style, color=colour, label=label)
    axes.set(xlabel="seconds of training", ylabel="rollout error, copying = 1", xscale="log", yscale="log")
    axes.legend()
    save_figure(figure, path)


def main(arguments: Arguments) -> None:
    keep_freed_memory()
    report = compare(arguments)
    report |= {"command": typed_command(), "machine": machine(choose_device(arguments.device))}
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "recipe.json", report)
    plot(arguments.output / "recipe.png", report)
    for name in ("ours", "recipe"):
        last = report[name]["curve"][-1]
        print(f"{name}: {last['windows']:.0f} windows in {last['seconds']:.0f} s, {_said([last])}")
    if report["seconds_until_recipes_best"] is not None:
        print(f"ours is as good as the recipe's best after {report['seconds_until_recipes_best']:.0f} s")


if __name__ == "__main__":
    launch(main, Arguments)
