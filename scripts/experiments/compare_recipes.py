"""Compare training recipes at equal time: from the same start, on the same data, each with its own schedule.

Example:

    python -m scripts.experiments.compare_recipes --seconds 90

Every recipe trains the default predictor of one environment from scratch for about the same time on an
otherwise idle machine; what counts is the rollout error on held-out windows. Writes a JSON file and a plot.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from scripts.common import launch, typed_command
from sparsewm.data import TokenCache, Windows, fast_copy, open_dataset
from sparsewm.files import write_json
from sparsewm.memory import keep_freed_memory
from sparsewm.model.checkpoint import load, pretrained_path
from sparsewm.model.world_model import WorldModel
from sparsewm.precision import fastest_dtype
from sparsewm.report.plots import save_figure
from sparsewm.settings import make_env
from sparsewm.training.config import OptimConfig
from sparsewm.training.trainer import Trainer

NEVER = 10**9
RECIPES: dict[str, dict[str, Any]] = {
    "AdamW": {"muon": 0.0, "lr": 1e-3, "groups": 2, "batch": 64},
    "AdamW, twice the windows in half the tokens": {"muon": 0.0, "lr": 1e-3, "groups": 4, "batch": 128},
    "AdamW, twice the rate": {"muon": 0.0, "lr": 2e-3, "groups": 4, "batch": 128},
    "Muon": {"muon": 5.0, "lr": 2e-3, "groups": 2, "batch": 64},
    "Muon, twice the windows in half the tokens": {"muon": 5.0, "lr": 2e-3, "groups": 4, "batch": 128},
}


@dataclass
class Arguments:
    """Rollout error of training recipes at equal time."""

    env: str = "pusht"
    """Environment with a shipped world model, whose encoder and statistics are taken."""
    data: Path = Path("data")
    """Folder of the dataset."""
    seconds: float = 90.0
    """Training time of a recipe."""
    horizon: int = 1
    """Imagined frames of a training rollout."""
    seed: int = 0
    """Seed of weights, windows and groups."""
    output: Path = Path("results/recipes")
    """Folder of recipes.json and recipes.png."""


def compare(arguments: Arguments) -> dict[str, Any]:
    """One row per recipe: settings, and the held-out rollout error during training."""
    env = make_env(arguments.env)
    shipped = load(pretrained_path(env.name), "cpu", torch.float32, environment=env.name)
    dataset = open_dataset(arguments.data / f"{env.name}.h5", env.name)
    some = np.unique(np.linspace(0, dataset.rows - 1, 64).astype(int))
    dtype = fastest_dtype(torch.device("cpu"))
    cache = TokenCache(dataset, fast_copy(shipped.encoder, dataset.pixels[some], dtype))
    frames = shipped.history + arguments.horizon
    train, held_out = (Windows(dataset, cache, frames, env.frameskip, part) for part in dataset.split())

    def trainer(config: OptimConfig, folder: str) -> Trainer:
        torch.manual_seed(arguments.seed)
        model = WorldModel(shipped.encoder, shipped.config, env.name, shipped.frameskip)
        model.standardizer.load_state_dict(shipped.standardizer.state_dict())
        return Trainer(model, train, held_out, folder, config, dtype, arguments.seed)

    rows = {}
    for name, recipe in RECIPES.items():
        config = OptimConfig(
            **recipe,
            horizon=arguments.horizon,
            ramp=0.0,
            ema=0.98,
            validate_every=NEVER,
            checkpoint_every=NEVER,
        )

        with tempfile.TemporaryDirectory() as folder:
            trial = trainer(replace(config, steps=NEVER), folder)
            trial.run(until=4)
            started = time.perf_counter()
            trial.run(until=20)
            steps = round(arguments.seconds * 16 / (time.perf_counter() - started))
            config = replace(config, steps=steps, warmup=steps // 8, validate_every=max(1, steps // 4))
            real = trainer(config, folder)
            real.run()
        curve = [
            {"step": m["step"], "seconds": m["seconds"]}
            | {drop: m["validation"][drop]["tokens_ratio"] for drop in ("drop_0", "drop_0.5")}
            for m in real.metrics
        ]
        rows[name] = {"settings": asdict(config), "curve": curve}
        print(f"{name}: {steps} steps, {curve[-1]}", flush=True)
    return rows


def main(arguments: Arguments) -> None:
    keep_freed_memory()
    rows = compare(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.output / "recipes.json",
        {"command": typed_command(), "threads": torch.get_num_threads(), "recipes": rows},
    )
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, row in rows.items():
        curve = row["curve"]
        axes.plot([c["seconds"] for c in curve], [c["drop_0.5"][0] for c in curve], "o-", label=name)
    axes.set(xlabel="seconds of training", ylabel="rollout error, copying = 1 (half of the tokens)")
    axes.legend()
    save_figure(figure, arguments.output / "recipes.png")


if __name__ == "__main__":
    launch(main, Arguments)
