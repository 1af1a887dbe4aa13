"""Where a world model loses: can the encoder's tokens be read, and where does a probe see imagined objects?

Example:

    python -m scripts.experiments.diagnose --environments pusht --checkpoints runs --output results/diagnosis

Per environment: a probe reads the state from real tokens (held-out episodes), from tokens imagined 1 to 5
model steps ahead, and, for comparison, from the frame imagination started at. A model that moves objects
keeps the second near the first; one that blurs them drifts to the third. Needs the dataset (`sparsewm
collect`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.common import launch, typed_command
from scripts.lab.probe import probe_targets, read_errors, train_probe
from scripts.lab.states import make_simulator
from sparsewm.data import TokenCache, Windows, fast_copy, open_dataset
from sparsewm.files import write_json
from sparsewm.model.checkpoint import load, pretrained_path
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.training.trainer import standardized


@dataclass
class Arguments:
    """Probe and readout errors of world models."""

    environments: tuple[str, ...] = ("wall", "pointmaze", "pusht", "rope", "granular", "blockpush")
    """Environments."""
    checkpoints: Path | None = None
    """Folder of training runs named by environment; the shipped world models when left out."""
    data: Path = Path("data")
    """Folder of the datasets."""
    horizon: int = 5
    """Model steps imagined."""
    frames: int = 12000
    """Frames the probe is trained on."""
    windows: int = 512
    """Held-out windows."""
    output: Path = Path("results/diagnosis")
    """Folder of one JSON file per environment."""


@torch.inference_mode()
def imagined(model: Any, batch: dict[str, torch.Tensor], horizon: int) -> torch.Tensor:
    """Tokens float32 (B, H, N, D) imagined from the first frame of standardised windows, no token dropped."""
    count = len(batch["tokens"])
    patches = torch.arange(model.patches).expand(count, -1)
    actions = batch["action"][:, None, :horizon]
    tokens, _ = model.rollout(batch["tokens"][:, 0], batch["proprio"][:, 0], actions, patches)
    return tokens[:, 0].float()


def diagnose(name: str, arguments: Arguments) -> dict[str, Any]:
    """Probe and readout errors of one environment."""
    env, device = make_simulator(name), choose_device("auto")
    dtype = choose_dtype("auto", device)
    runs = arguments.checkpoints
    path = pretrained_path(env.name) if runs is None else runs / env.name / "checkpoint"
    model = load(path, device, dtype, environment=env.name)
    dataset = open_dataset(arguments.data / f"{env.name}.h5", env.name)
    some = np.unique(np.linspace(0, dataset.rows - 1, 64).astype(int))
    cache = TokenCache(dataset, fast_copy(model.encoder, dataset.pixels[some], dtype))
    episodes, held_out = dataset.split()
    rows = np.concatenate(
        [np.arange(dataset.offsets[e], dataset.offsets[e] + dataset.lengths[e]) for e in episodes]
    )
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(rows, min(arguments.frames, len(rows)), replace=False))
    assert dataset.state is not None
    targets, names = probe_targets(env, dataset.state[rows])
    probe = train_probe(model.standardizer.tokens(cache.rows(rows)).half(), torch.from_numpy(targets))
    windows = Windows(dataset, cache, arguments.horizon + 1, env.frameskip, held_out)
    raw = windows.sample(rng, arguments.windows)
    batch = standardized(model, raw)
    future = imagined(model, batch, arguments.horizon)
    truth = [
        torch.from_numpy(probe_targets(env, raw["state"][:, t].numpy())[0])
        for t in range(arguments.horizon + 1)
    ]
    result: dict[str, Any] = {
        "environment": env.name,
        "checkpoint": f"pretrained/{env.name}" if runs is None else str(path),
        "training": model.metadata["training"],
    }
    result["probe"] = read_errors(probe, batch["tokens"][:, 0], truth[0], names)
    result["imagined"], result["real"], result["copied"] = [], [], []
    for t in range(1, arguments.horizon + 1):
        result["imagined"].append(read_errors(probe, future[:, t - 1], truth[t], names))
        result["real"].append(read_errors(probe, batch["tokens"][:, t], truth[t], names))
        result["copied"].append(read_errors(probe, batch["tokens"][:, 0], truth[t], names))
    return result


def main(arguments: Arguments) -> None:
    for name in arguments.environments:
        result = diagnose(name, arguments) | {"command": typed_command()}
        write_json(arguments.output / f"{name}.json", result)
        print(name, "probe", result["probe"])
        for kind in ("real", "imagined", "copied"):
            print(f"  {kind:9s}", [row["share"] for row in result[kind]], result[kind][-1], flush=True)


if __name__ == "__main__":
    launch(main, Arguments)
