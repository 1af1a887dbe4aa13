"""Does a cost fall on the way to the goal where PushT's T is turned wrongly and lies beside its place?

Example:

    python -m scripts.experiments.turned --checkpoint sparsewm/pretrained/pusht --output results/diagnosis

Random goals; states that differ from them by the T's angle, and by how far it lies from its place, in random
directions. A cost that is lower at a wrong angle than on the way to the right one holds a search there. Costs
are those of all tokens, without proprioception; a checkpoint with a temporal distance is asked for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from scripts.common import launch, typed_command
from scripts.lab.states import make_simulator, observations
from sparsewm.files import write_json
from sparsewm.model import WorldModel, load
from sparsewm.model.objectives import Objective, TemporalError, TokenError
from sparsewm.report.plots import save_figure, styled

ANGLES = (0, 10, 20, 30, 45, 60, 75, 90, 105, 120, 135, 150, 180)
"""Degrees by which the T is turned from the goal."""
SHIFTS = (0, 30, 60)
"""Pixels of the table's 512 by which it lies beside its place."""
WRONG = 60
"""Degrees from which a T is turned wrongly: what is nearer is on its way."""
X, ANGLE = 2, 4
"""Where the T's place and angle stand in a state."""


@dataclass
class Arguments:
    """Costs of turned Ts."""

    checkpoint: Path = Path("sparsewm/pretrained/pusht")
    """World model of PushT, in whose tokens costs are computed."""
    goals: int = 32
    """Random goals."""
    seed: int = 0
    """Seed of goals and directions."""
    output: Path = Path("results/diagnosis")
    """Folder of pusht_turned.json and its picture."""


@torch.inference_mode()
def curves(model: WorldModel, arguments: Arguments) -> dict[str, dict[str, dict[str, Any]]]:
    """By objective and distance from the place: the median `cost` at every angle, and `trapped`, the share of
    the Ts that cost less when turned wrongly, by `WRONG` degrees or more, than when turned as the goal."""
    env = make_simulator("pusht")
    env.reset(seed=arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    goals = np.stack([env.sample_state() for _ in range(arguments.goals)])
    objectives: dict[str, Objective] = {"mse": TokenError(model, 0.0)}
    if model.distance is not None:
        objectives["temporal"] = TemporalError(model, 0.0)
    patches = torch.arange(model.patches)[None]
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in objectives}
    wrong = np.array(ANGLES) >= WRONG
    for shift in SHIFTS:
        costs: dict[str, list[np.ndarray]] = {name: [] for name in objectives}
        for goal in goals:
            states = np.repeat(goal[None], len(ANGLES), 0)
            way = rng.uniform(0, 2 * np.pi)
            states[:, X : X + 2] += shift * np.array([np.cos(way), np.sin(way)])
            states[:, ANGLE] += np.deg2rad(ANGLES)
            seen = observations(env, np.concatenate([states, goal[None]]))
            frames = model.encode(seen["pixels"], seen["proprio"])
            tokens, proprio = frames.tokens[None], frames.proprio[None]
            for name, objective in objectives.items():
                wanted = objective.goal(tokens[:, -1:], proprio[:, -1:], patches)
                cost = objective.distance(tokens[:, :-1], proprio[:, :-1], wanted, patches)
                costs[name].append(cost[0].float().cpu().numpy())
        for name, rows in costs.items():
            costs_of = np.stack(rows)
            found[name][str(shift)] = {
                "cost": [round(float(x), 4) for x in np.median(costs_of, 0)],
                "trapped": float((costs_of[:, wrong].min(1) < costs_of[:, 0]).mean()),
            }
    return found


@styled
def plot(path: Path, objectives: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Cost over angle, a panel per objective, a line per distance."""
    figure, axes = plt.subplots(1, len(objectives), figsize=(4 * len(objectives), 3), squeeze=False)
    for axis, (name, lines) in zip(axes[0], objectives.items(), strict=True):
        for shift, found in lines.items():
            label = f"{shift} px from its place, {100 * found['trapped']:.0f}% trapped"
            axis.plot(ANGLES, found["cost"], marker=".", label=label)
        axis.set(xlabel="T turned by, degrees", ylabel=f"cost, {name}", ylim=0)
        axis.legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path)


def main(arguments: Arguments) -> None:
    objectives = curves(load(arguments.checkpoint, environment="pusht"), arguments)
    for name, lines in objectives.items():
        for shift, found in lines.items():
            print(f"{name}, {shift} px from its place: {found}", flush=True)
    report: dict[str, Any] = {"command": typed_command(), "goals": arguments.goals, "seed": arguments.seed}
    report |= {"checkpoint": str(arguments.checkpoint), "angles": ANGLES, "objectives": objectives}
    write_json(arguments.output / "pusht_turned.json", report)
    plot(arguments.output / "pusht_turned.png", objectives)


if __name__ == "__main__":
    launch(main, Arguments)
