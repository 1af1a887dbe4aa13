"""A training run of seconds; one that is killed: `python -m tests.training.tiny DATASET FOLDER STEP`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from sparsewm.data import Dataset, TokenCache, Windows, open_dataset
from sparsewm.model import PredictorConfig, WorldModel
from sparsewm.training.config import OptimConfig
from sparsewm.training.parallel import Processes
from sparsewm.training.trainer import Trainer
from tests.model.tiny import tiny_encoder

CONFIG = {
    "steps": 12,
    "batch": 4,
    "warmup": 2,
    "horizon": 2,
    "groups": 2,
    "whitening": 0.0,
    "smallest_group": 3,
    "full_every": 3,
    "validate_every": 5,
    "checkpoint_every": 4,
}


def make_model(dataset: Dataset, tokens: TokenCache, history: int = 2) -> WorldModel:
    """Untrained, with the statistics of the data."""
    encoder = tiny_encoder()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PredictorConfig(encoder.dim, encoder.grid, 2, 4, history, width=32, depth=2, heads=2, mlp=64)
        model = WorldModel(encoder, config, "wall", 2)
    rows = torch.arange(dataset.rows).numpy()
    model.standardizer.fit(
        tokens.statistics(rows)
        | {
            "proprio_mean": dataset.proprio.mean(0),
            "proprio_std": dataset.proprio.std(0),
            "action_mean": dataset.action.mean(0),
            "action_std": dataset.action.std(0),
        }
    )
    return model


def make_trainer(
    data: Path,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    history: int = 2,
    seed: int = 0,
    processes: Processes | None = None,
    **changes: Any,
) -> Trainer:
    """The last tenth of the episodes validates."""
    config = OptimConfig(**(CONFIG | changes))
    dataset = open_dataset(data)
    tokens = TokenCache(dataset, tiny_encoder())
    train, held_out = dataset.split(0.1)
    model = make_model(dataset, tokens, history)
    windows = [
        Windows(dataset, tokens, history + config.horizon, 2, episodes) for episodes in (train, held_out)
    ]
    return Trainer(model, windows[0], windows[1], folder, config, dtype, seed, processes)


if __name__ == "__main__":

    def kill(trainer: Trainer, values: dict[str, float]) -> None:
        if trainer.step == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

    make_trainer(Path(sys.argv[1]), Path(sys.argv[2])).run(kill)
