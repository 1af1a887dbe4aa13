"""Gate an encoder, against its random twin, before any world model: cost geometry, precision, encoder oracle.

Example:

    python -m scripts.experiments.gate_encoder --encoder-weights runs/encoder/model.safetensors \\
        --output results/encoder_gate.json

The encoder oracle plans with the true simulator; only the cost is the encoder's. What it misses, no world
model on this encoder can reach. Vision-only cells (alpha 0) are the ones that judge the encoder: elsewhere
proprioception may decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.common import launch, typed_command
from scripts.lab.geometry import cost_geometry, encode_states, token_sensitivity
from scripts.lab.states import make_simulator
from scripts.lab.token_distance import TokenDistance
from sparsewm.config import PlanConfig
from sparsewm.data import fast_copy, token_statistics
from sparsewm.data.collect import explore
from sparsewm.data.encoding import token_precision
from sparsewm.encoders import PatchEncoder, random_twin
from sparsewm.encoders.embedded import load_embedded
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.evaluation.episodes import summarize
from sparsewm.evaluation.oracle import run_oracle
from sparsewm.files import read_json, write_json
from sparsewm.memory import keep_freed_memory
from sparsewm.model.latent import Standardizer
from sparsewm.precision import choose_dtype
from sparsewm.tasks import HELD_OUT, make_tasks
from sparsewm.training.config import preset


@dataclass
class Arguments:
    """Cost geometry and encoder oracle of the embedded encoder and its untrained twin."""

    encoder_weights: Path | None = None
    """Weights to judge; the shipped ones when left out."""
    environments: tuple[str, ...] = ("pusht", "wall", "pointmaze", "rope", "granular", "blockpush")
    """Environments."""
    drops: tuple[float, ...] = (0.0, 0.5)
    """Drop ratios of the oracle."""
    alphas: tuple[float, ...] = (0.0, 1.0)
    """Proprioception weights of the oracle."""
    episodes: int = 20
    """Episodes per cell; 0 measures the geometry only."""
    max_steps: int | None = None
    """Environment steps an episode may take; as in configs/ when left out."""
    seed: int = 0
    """Seed of tasks, candidates and masks."""
    output: Path = Path("results/encoder_gate.json")
    """JSON file; what it holds of other environments and cells of the same encoder stays."""


FAST = choose_dtype("auto", torch.device("cpu"))
WHITENING = preset("default").optim.whitening


def explored(env: SimulatedGoalEnv, seed: int) -> np.ndarray:
    """States (1088, D) of scripted exploration that no dataset contains."""
    return np.concatenate([explore(env, HELD_OUT + seed + 1, i, 64)[0][::4] for i in range(64)])


def standardizer_for(env: SimulatedGoalEnv, encoder: PatchEncoder, seed: int) -> Standardizer:
    """Token and proprioception statistics over states of scripted exploration, velocities included."""
    states = explored(env, seed)
    statistics: dict[str, Any] = token_statistics(encode_states(env, encoder, states), WHITENING)
    proprio = np.stack([env.proprio_of(state) for state in states])
    statistics |= {"proprio_mean": proprio.mean(0), "proprio_std": proprio.std(0)}
    standardizer = Standardizer(encoder.tokens, encoder.dim, env.proprio_dim, env.action_dim)
    standardizer.fit(statistics)
    return standardizer


def oracle(
    env: SimulatedGoalEnv,
    config: PlanConfig,
    episodes: int,
    seed: int,
    encoder: PatchEncoder | None,
    drop: float,
    alpha: float,
) -> dict[str, Any]:
    """Success of CEM on the true simulator, under the encoder's cost or (encoder None) the true distance."""
    tasks, cost = make_tasks(env, episodes, seed, config.goal), None
    if encoder is not None:
        encoder = fast_copy(encoder, env.render_states(explored(env, seed)[::17]), FAST, WHITENING)
        standardizer, generator = standardizer_for(env, encoder, seed), torch.Generator().manual_seed(seed)
        settings = encoder, standardizer

        def cost(goals: Sequence[np.ndarray]) -> TokenDistance:
            return TokenDistance(env, *settings, goals, drop, alpha, generator)

    summary = summarize(env.name, run_oracle(env, tasks, config, config.goal.max_steps, cost))
    kept = ("success_rate", "success_ci95", "moved")
    return {name: summary[name] for name in kept if name in summary}


def main(arguments: Arguments) -> None:
    keep_freed_memory()
    trained = load_embedded(arguments.encoder_weights)
    twin = random_twin(trained)
    report: dict[str, Any] = {"encoder": trained.hash, "oracle": []}
    report |= {"geometry": {}, "sensitivity": {}, "precision": {}}
    if arguments.output.is_file() and (found := read_json(arguments.output))["encoder"] == trained.hash:
        report |= {key: found[key] for key in report if key in found}
    command = {"command": typed_command(), "episodes": arguments.episodes, "seed": arguments.seed}
    for name in arguments.environments:
        env = make_simulator(name)
        config = PlanConfig.of(env.name)
        if arguments.max_steps is not None:
            config = config.updated(max_steps=arguments.max_steps)
        pictures = env.render_states(explored(env, arguments.seed)[::8])
        for label, encoder in (("trained", trained), ("random twin", twin)):
            report["geometry"][f"{name}, {label}"] = geometry = cost_geometry(env, encoder, (0.0, 0.5, 0.8))
            print(name, label, "geometry", geometry, flush=True)
            report["sensitivity"][f"{name}, {label}"] = token_sensitivity(env, encoder)
            found = token_precision(encoder, deepcopy(encoder).bfloat16(), pictures, WHITENING)
            report["precision"][f"{name}, {label}"] = found
            print(name, label, "tokens in bfloat16", found, flush=True)
        if arguments.episodes == 0:
            continue
        cells: list[tuple[str, PatchEncoder | None, float, float]] = [("true distance", None, 0.0, 0.0)]
        for label, encoder in (("trained", trained), ("random twin", twin)):
            cells += [(label, encoder, drop, alpha) for alpha in arguments.alphas for drop in arguments.drops]
        for label, judged, drop, alpha in cells:
            row = oracle(env, config, arguments.episodes, arguments.seed, judged, drop, alpha)
            cell = {"environment": name, "cost": label, "drop": drop, "alpha": alpha}
            others = [r for r in report["oracle"] if {key: r[key] for key in cell} != cell]
            report["oracle"] = [*others, {**cell, **row, **command, "max_steps": config.goal.max_steps}]
            print(cell, row, flush=True)
            write_json(arguments.output, report)
    write_json(arguments.output, report)


if __name__ == "__main__":
    launch(main, Arguments)
