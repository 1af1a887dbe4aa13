"""Probes: how well the state can be read from tokens, of real frames and of imagined ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sparsewm.bodies import is_angle, shown
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.envs.table import TableEnv

SUMMARY = ("mean_x", "mean_y", "deviation_x", "deviation_y", "covariance")


def probe_targets(env: SimulatedGoalEnv, states: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """What a probe reads: positions, angles as sine and cosine; of particles, the whole's shape.

    Angles that look the same (`GoalEnv.angle_symmetry`) read the same.

    Args:
        states: (K, D).

    Returns:
        float32 (K, T) in the state's units, and T names.
    """
    if isinstance(env, TableEnv):  # particles look alike, so which one is where cannot be read
        particles = states[:, :-2].reshape(len(states), -1, 2)
        middle, away = particles.mean(1), particles - particles.mean(1, keepdims=True)
        both = (away[..., 0] * away[..., 1]).mean(1)
        root = np.sign(both) * np.sqrt(np.abs(both))
        return np.column_stack([middle, away.std(1), root]).astype(np.float32), SUMMARY
    columns, names = [], []
    for name in shown(env.state_names):
        column = states[:, env.state_names.index(name)]
        if is_angle(name):
            turn = env.angle_symmetry * column
            columns += [np.sin(turn), np.cos(turn)]
            names += [f"{name}_sin", f"{name}_cos"]
        else:
            columns.append(column)
            names.append(name)
    return np.stack(columns, 1).astype(np.float32), tuple(names)


class Probe(nn.Module):
    """Reads targets (B, T) from all tokens (B, N, D) of a frame: a layer per token, three over all."""

    mean: Tensor
    std: Tensor

    def __init__(self, patches: int, dim: int, targets: int, width: int = 32, hidden: int = 256) -> None:
        super().__init__()
        self.token = nn.Linear(dim, width)
        self.place = nn.Parameter(torch.zeros(patches, width))
        self.all = nn.Linear(patches * width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.read = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, targets))
        self.register_buffer("mean", torch.zeros(targets))
        self.register_buffer("std", torch.ones(targets))

    def standardized(self, tokens: Tensor) -> Tensor:
        """Targets in deviations."""
        each = torch.nn.functional.gelu(self.token(tokens) + self.place)
        value: Tensor = self.read(self.norm(self.all(each.flatten(-2))))
        return value

    def forward(self, tokens: Tensor) -> Tensor:
        return self.standardized(tokens) * self.std + self.mean


def train_probe(tokens: Tensor, targets: Tensor, steps: int = 1500, seed: int = 0) -> Probe:
    """A probe for standardised tokens (K, N, D) and targets (K, T), trained on all of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe(tokens.shape[1], tokens.shape[2], targets.shape[1])
    probe.mean.copy_(targets.mean(0))
    probe.std.copy_(targets.std(0).clamp_min(1e-6))
    wanted = (targets - probe.mean) / probe.std
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for _ in range(steps):
        rows = torch.randint(len(tokens), (256,), generator=generator)
        batch = tokens[rows].float()
        batch = batch + 0.1 * torch.randn(batch.shape, generator=generator)  # imagined tokens are not exact
        loss = (probe.standardized(batch) - wanted[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe.eval()


def read_errors(probe: Probe, tokens: Tensor, targets: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Root mean squared errors by name, and `share`: the part of the targets' deviation that is left."""
    with torch.inference_mode():
        error = (probe(tokens.float()) - targets).square().mean(0).sqrt()
    result = {name: round(float(value), 4) for name, value in zip(names, error, strict=True)}
    return result | {"share": round(float((error / probe.std).square().mean().sqrt()), 4)}
