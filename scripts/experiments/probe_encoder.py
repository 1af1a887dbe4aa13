"""How easily can an object's pose be read from an encoder's tokens? Planning precisely needs nothing more.

Example:

    python -m scripts.experiments.probe_encoder --output results/encoder_probe.json

The same small network, trained for the same steps on the same frames, reads the poses of PushT's T and disc
from: the embedded encoder's tokens; their two parts, all readings of the surroundings and the tokens of the
transformer; those of an untrained transformer; and the picture at half of its resolution. What it reads badly
from tokens, a world model has to find out for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.common import launch, typed_command
from scripts.lab.probe import probe_targets, train_probe
from scripts.lab.states import make_simulator
from sparsewm.data import token_statistics
from sparsewm.data.collect import explore
from sparsewm.encoders import random_twin
from sparsewm.encoders.embedded import load_embedded
from sparsewm.encoders.surroundings import blurred_surroundings
from sparsewm.files import write_json
from sparsewm.tasks import HELD_OUT


@dataclass
class Arguments:
    """Pose errors of a small network that reads tokens."""

    encoder_weights: Path | None = None
    """Weights to judge; the shipped ones when left out."""
    episodes: int = 200
    """Exploratory episodes of 100 steps the frames come from, every one; the last tenth is held out."""
    steps: int = 1500
    """Optimiser steps of the network."""
    seed: int = 0
    """Seed of the episodes and the network."""
    output: Path = Path("results/encoder_probe.json")
    """JSON file."""


def pose_errors(read: dict[str, np.ndarray], true: dict[str, np.ndarray]) -> dict[str, float]:
    """Errors over frames of `probe_targets`: root mean square of places, median and mean of angles."""

    def place(body: str) -> float:
        squares = [(read[f"{body}_{axis}"] - true[f"{body}_{axis}"]) ** 2 for axis in "xy"]
        return round(float(np.sqrt(np.mean(sum(squares)))), 2)

    turn = [np.arctan2(pose["block_angle_sin"], pose["block_angle_cos"]) for pose in (read, true)]
    away = np.degrees(np.abs(np.angle(np.exp(1j * (turn[0] - turn[1])))))
    return {
        "disc_px": place("agent"),
        "block_px": place("block"),
        "angle_median_degrees": round(float(np.median(away)), 2),
        "angle_mean_degrees": round(float(np.mean(away)), 2),
    }


def main(arguments: Arguments) -> None:
    env = make_simulator("pusht")
    runs = [explore(env, HELD_OUT + 17 + arguments.seed, i, 100)[0] for i in range(arguments.episodes)]
    states = np.concatenate(runs)
    split = len(np.concatenate(runs[: -max(1, arguments.episodes // 10)]))
    pictures = env.render_states(states)
    encoder, alone = (
        load_embedded(arguments.encoder_weights),
        load_embedded(arguments.encoder_weights, joined=False),
    )
    twin = random_twin(encoder)

    def patches(images: Tensor) -> Tensor:
        rows, cols = encoder.grid
        half = F.avg_pool2d(images, 2).unflatten(2, (rows, -1)).unflatten(4, (cols, -1))
        return half.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)

    def readings(images: Tensor) -> Tensor:
        return torch.cat([torch.cat(blurred_surroundings(part), -1) for part in images.split(8)])

    kinds: dict[str, Callable[[np.ndarray], Tensor]] = {
        "tokens": lambda frames: encoder.encode(frames).patches,
        "readings": lambda frames: readings(encoder.preprocess(frames)),
        "transformer": lambda frames: alone.encode(frames).patches,
        "untrained transformer": lambda frames: twin.encode(frames).patches,
        "picture": lambda frames: patches(encoder.preprocess(frames)),
    }
    targets, names = probe_targets(env, states)
    rows = {}
    for kind, tokens_of in kinds.items():
        with torch.inference_mode():
            tokens = torch.cat([tokens_of(part) for part in np.array_split(pictures, len(pictures) // 100)])
        statistics = token_statistics(tokens[:split:8])
        tokens = ((tokens - statistics["token_mean"]) @ statistics["token_map"]).half()
        probe = train_probe(
            tokens[:split], torch.from_numpy(targets[:split]), arguments.steps, arguments.seed
        )
        with torch.inference_mode():
            read = dict(zip(names, probe(tokens[split:].float()).T.numpy(), strict=True))
        rows[kind] = pose_errors(read, dict(zip(names, targets[split:].T, strict=True)))
        print(kind, rows[kind], flush=True)
    report = {"command": typed_command(), "encoder": encoder.hash, "seed": arguments.seed}
    report |= {"frames": split, "held_out": len(states) - split, "steps": arguments.steps}
    write_json(arguments.output, report | {"rows": rows})


if __name__ == "__main__":
    launch(main, Arguments)
