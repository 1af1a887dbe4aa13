"""Does a policy look at its goal? Its error against demonstrations, with their own goals and with others'.

Example:

    sparsewm collect --env pointmaze-large --policy expert --episodes 40 --seed 99 --output data/probe
    python -m scripts.experiments.probe_policy --env pointmaze-large \\
        --dataset data/probe/pointmaze-large-expert.h5 --policies vla runs/vla/pointmaze-large/policy

Chunks proposed along recorded ways are compared with what the expert did, the end of the way being the goal.
A policy that acts on its goal errs more when it is shown the end of another way; one whose error stays is
blind to it, however low its training loss. Record the demonstrations with a seed it was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.common import launch, typed_command
from scripts.lab.states import instruction, make_simulator, observations
from sparsewm.data import open_dataset
from sparsewm.files import read_json, write_json
from sparsewm.proposals import check_proposals, load_sampler


@dataclass
class Arguments:
    """Whether policies act on their goals."""

    env: str
    """Environment."""
    dataset: Path
    """Demonstrations, by sparsewm collect --policy expert."""
    policies: tuple[str, ...] = ("vla",)
    """Policies as --proposals takes them."""
    every: int = 40
    """Environment steps between the frames that are looked at."""
    actions: int = 25
    """Actions compared."""
    samples: int = 4
    """Chunks per frame; their mean is compared."""
    seed: int = 0
    """Of chunks, and of whose goals are exchanged."""
    output: Path = Path("results/proposals/goals.json")
    """JSON file; the rows of other environments in it are kept."""


def main(arguments: Arguments) -> None:
    env = make_simulator(arguments.env)
    dataset, text = open_dataset(arguments.dataset, env.name), instruction(env)
    starts, ends = [], []
    for first, length in zip(dataset.offsets, dataset.lengths, strict=True):
        rows = np.arange(first, first + length - arguments.actions, arguments.every)
        starts += rows.tolist()
        ends += [first + length - 1] * len(rows)
    assert dataset.state is not None
    states = dataset.state[:]
    done = np.stack([dataset.action[row : row + arguments.actions] for row in starts])
    exchanged = np.random.default_rng(arguments.seed).permutation(ends)
    spread = ((done - done.mean((0, 1))) ** 2).mean()
    report: list[dict[str, Any]] = []
    for name in arguments.policies:
        row: dict[str, Any] = {"environment": env.name} | check_proposals(name, env.name)
        for label, goals in (("own", ends), ("others", exchanged)):
            sampler = load_sampler(name, env, torch.device("cpu"), arguments.seed)
            chunks = []
            for i in range(0, len(starts), 32):
                now, goal = (observations(env, states[rows[i : i + 32]]) for rows in (starts, goals))
                proposed = sampler.propose(now, goal, text, arguments.samples, arguments.actions)
                chunks.append(proposed.mean(1).numpy())
            error = ((np.concatenate(chunks) - done) ** 2).mean() / spread
            row[f"error_with_{label}_goals"] = float(error)
        report.append(row | {"frames": len(starts), "command": typed_command()})
        print(
            f"{name}: error {row['error_with_own_goals']:.3f} of the actions' variance with their goals, "
            f"{row['error_with_others_goals']:.3f} with others'",
            flush=True,
        )
    before = []
    if arguments.output.is_file():
        before = [row for row in read_json(arguments.output)["rows"] if row["environment"] != env.name]
    write_json(arguments.output, {"rows": before + report})


if __name__ == "__main__":
    launch(main, Arguments)
