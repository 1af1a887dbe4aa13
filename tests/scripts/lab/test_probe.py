"""Probes read what tokens tell, and nothing that they do not."""

from __future__ import annotations

import numpy as np
import torch

from scripts.lab.probe import SUMMARY, probe_targets, read_errors, train_probe
from sparsewm import envs


def test_a_probe_reads_what_is_there_and_only_that() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(600, 2, generator=generator)
    tokens = targets[:, :1] @ torch.randn(1, 4 * 6, generator=generator)  # tells the first target alone
    tokens = tokens.unflatten(1, (4, 6))
    probe = train_probe(tokens[:500], targets[:500], steps=150)
    errors = read_errors(probe, tokens[500:], targets[500:], ("told", "untold"))
    assert errors["told"] < 0.2 and errors["untold"] > 0.7


def test_targets_are_what_a_picture_can_show() -> None:
    pusht = envs.make("pusht")
    pusht.reset(seed=0)
    values, names = probe_targets(pusht, pusht.state[None])
    assert values.shape == (1, len(names)) and not any("v" in name.split("_")[-1] for name in names)
    assert {"block_angle_sin", "block_angle_cos"} < set(names)
    rope = envs.make("rope")
    rope.reset(seed=0)
    reversed_rope = np.concatenate([rope.state[:-2].reshape(-1, 2)[::-1].ravel(), rope.state[-2:]])
    values, names = probe_targets(rope, np.stack([rope.state, reversed_rope]))
    assert names == SUMMARY
    np.testing.assert_allclose(values[0], values[1], atol=1e-6)


def test_squares_turned_by_a_quarter_read_the_same() -> None:
    env = envs.make("blockpush")
    env.reset(seed=0)
    turned = env.state.copy()
    turned[[4, 7]] += np.pi / 2
    values, names = probe_targets(env, np.stack([env.state, turned]))
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)
    assert "red_angle_sin" in names
