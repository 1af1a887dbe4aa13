"""How exact must dynamics be? Success of the planner on dynamics learned from PushT's true state.

Example:

    python -m scripts.experiments.state_model --data data --episodes 60

A small network learns from the dataset's *states* what five environment steps do; the planner then searches
in it, under the true distance. No picture, no token, no encoder: what such a model misses at some error of
its dynamics, a world model of pixels with the same error will miss, too. Writes one row per training length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scripts.common import launch, typed_command
from scripts.lab.states import make_simulator
from sparsewm.config import PlanConfig
from sparsewm.data import Dataset, open_dataset
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.evaluation.actors import Oracle
from sparsewm.evaluation.episodes import Episode, run_episodes, summarize
from sparsewm.evaluation.simulator import SimulatorProblem, TrueDistance
from sparsewm.files import write_json
from sparsewm.tasks import make_tasks

SCALE = np.array([40, 40, 20, 20, 1 / 3, 50, 50.0])  # of changes: disc, T, its angle, the disc's velocity


@dataclass
class Arguments:
    """Planning in dynamics learned from states."""

    data: Path = Path("data")
    """Folder of pusht.h5."""
    episodes: int = 60
    """Episodes per row."""
    checks: tuple[int, ...] = (1000, 2000, 4000, 8000, 16000)
    """Training steps, of 512 transitions each, after which it plans; the last one ends the schedule."""
    seed: int = 0
    """Seed of weights, batches, tasks and candidates."""
    output: Path = Path("results/diagnosis/pusht_state_model.json")
    """JSON file."""


def inputs(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """What the network sees of states (K, 7) and the actions (K, F * 2) of one model step."""
    parts = [(states[:, :4] - 256) / 120, np.cos(states[:, 4:5]), np.sin(states[:, 4:5])]
    return np.concatenate([*parts, actions * 3, states[:, 5:] / 50], 1).astype(np.float32)


def transitions(env: SimulatedGoalEnv, dataset: Dataset, episodes: np.ndarray) -> tuple[Tensor, Tensor]:
    """Inputs and scaled changes of all transitions of the episodes."""
    skip = env.frameskip
    assert dataset.state is not None
    state, action = dataset.state[:], dataset.action[:]
    starts = [np.arange(dataset.lengths[e] - skip) + dataset.offsets[e] for e in episodes]
    rows = np.concatenate(starts)
    change = state[rows + skip] - state[rows]
    change[:, 4] = np.arctan2(np.sin(change[:, 4]), np.cos(change[:, 4]))
    actions = action[rows[:, None] + np.arange(skip)].reshape(len(rows), -1)
    return torch.from_numpy(inputs(state[rows], actions)), torch.from_numpy(
        (change / SCALE).astype(np.float32)
    )


class Learned:
    """The environment with learned dynamics, for `SimulatorProblem`."""

    def __init__(self, env: SimulatedGoalEnv, network: nn.Module) -> None:
        self.env, self.network = env, network

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def rollout_states(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """(D,), (S, H * frameskip, A) -> (S, H * frameskip + 1, D), the same within a model step."""
        now, skip = np.repeat(np.asarray(state)[None], len(actions), 0), self.env.frameskip
        states = [now]
        for t in range(0, actions.shape[1], skip):
            seen = torch.from_numpy(inputs(now, actions[:, t : t + skip].reshape(len(actions), -1)))
            with torch.inference_mode():
                now = now + self.network(seen).numpy() * SCALE
            states += [now] * skip
        return np.stack(states, 1)


class LearnedOracle(Oracle):
    """Plans in learned dynamics instead of the true ones."""

    def __init__(self, config: PlanConfig, network: nn.Module) -> None:
        super().__init__(config)
        self.network = network

    def _problem(self, rows: Sequence[Episode]) -> SimulatorProblem:
        env, search = rows[0].simulator, self.config.search
        learned: Any = Learned(env, self.network)
        return SimulatorProblem(
            learned,
            [episode.states[-1] for episode in rows],
            TrueDistance(env, [np.asarray(episode.info["goal"]) for episode in rows]),
            search.horizon,
            action_repeat=search.action_repeat,
            frame=self.config.cost.frame,
        )


def success(env: SimulatedGoalEnv, network: nn.Module, episodes: int, seed: int) -> dict[str, Any]:
    """Closed loop under the true distance, settings as in configs/; whole plans are executed."""
    config = PlanConfig.of(env.name)
    config = config.updated(execute=config.search.horizon, seed=seed)
    tasks = make_tasks(env, episodes, seed, config.goal)
    found = run_episodes([env], tasks, LearnedOracle(config.checked(), network), config.goal.max_steps)
    summary = summarize(env.name, found)
    return {name: summary[name] for name in ("success_rate", "success_ci95", "moved")}


def main(arguments: Arguments) -> None:
    env = make_simulator("pusht")
    dataset = open_dataset(arguments.data / "pusht.h5", env.name)
    train, held_out = (transitions(env, dataset, part) for part in dataset.split())
    torch.manual_seed(arguments.seed)
    sizes = (train[0].shape[1], 512, 512, 512, train[1].shape[1])
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.GELU())][:-1]
    network, steps = nn.Sequential(*layers), arguments.checks[-1]
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps)
    generator = torch.Generator().manual_seed(arguments.seed)
    rows = []
    for step in range(1, steps + 1):
        picked = torch.randint(len(train[0]), (512,), generator=generator)
        loss = (network(train[0][picked]) - train[1][picked]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in arguments.checks:
            with torch.inference_mode():
                error = (network(held_out[0]) - held_out[1]).square().mean(0)
            share = error / held_out[1].square().mean(0)
            row = {"steps": step, "transitions": 512 * step, "t_error": float(share[2:5].mean())}
            row |= {"disc_error": float(share[:2].mean())}
            row |= success(env, network, arguments.episodes, arguments.seed)
            rows.append(row)
            print(row, flush=True)
            result = {"command": typed_command(), "episodes": arguments.episodes, "seed": arguments.seed}
            result |= {"dataset": dataset.hash, "dataset_episodes": len(dataset.lengths), "rows": rows}
            write_json(arguments.output, result)


if __name__ == "__main__":
    launch(main, Arguments)
