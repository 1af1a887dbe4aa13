"""Vision encoders that learn to see, and are asked once for a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm import envs
from sparsewm.bodies import shown_numbers
from sparsewm.data.cameras import CAMERA, GOAL, ROWS
from sparsewm.proposals.lerobot import LeRobotProposals
from sparsewm.training.smolvla.vision import (
    WAVES,
    begin_anew,
    single,
    teach_vision,
    visible,
)
from tests.proposals.tiny import tiny_policy
from tests.training.smolvla.tiny import tiny_learner


def test_places_found_once_give_the_same_features(tmp_path: Path) -> None:
    """A learner sees bit for bit what the policy that is saved of it sees, and computes in the same way."""
    folder, pictures = tmp_path / "saved", torch.rand(3, 3, 32, 32)
    learner = tiny_learner(tmp_path).eval()
    learner.model.vlm_with_expert.get_vlm_model().vision_model.set_attn_implementation("sdpa")
    tiny_policy(folder, "smolvla_grids")  # its processors
    learner.config.vlm_model_name = "backbone"
    learner.save_pretrained(folder)
    policy = LeRobotProposals(folder, envs.make("wall")).policy
    for _ in range(2):
        assert torch.equal(learner.dense(pictures), policy.dense(pictures))
        assert torch.equal(learner.dense(pictures[:1]), policy.dense(pictures[:1]))


def test_a_frozen_vision_encoder_is_asked_once_per_picture(tmp_path: Path) -> None:
    """A policy that is given rows has the loss of one that is given the pictures, to float16."""
    torch.manual_seed(0)
    policy = tiny_learner(tmp_path)
    begin_anew(policy.model)  # or pictures hardly matter
    pixels = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    now, goal = torch.tensor([0, 3, 5]), torch.tensor([1, 4, 2])
    batch = {
        "observation.state": torch.randn(3, 2),
        "observation.language.tokens": torch.ones(3, 4, dtype=torch.long),
        "observation.language.attention_mask": torch.ones(3, 4, dtype=torch.bool),
        "action": torch.randn(3, policy.config.chunk_size, 2),
    }
    noise, times = torch.randn(3, policy.config.chunk_size, policy.config.max_action_dim), torch.rand(3)

    def loss(**seen: Tensor) -> float:
        return float(policy.forward(batch | seen, noise=noise, time=times)[0].detach())

    wanted = loss(**{CAMERA: pixels[now] / 255, GOAL: pixels[goal] / 255})
    policy.remember(pixels.permute(0, 2, 3, 1).numpy())
    assert loss(**{ROWS: torch.stack([now, goal], 1)}) == pytest.approx(wanted, rel=1e-3)
    assert loss(**{ROWS: torch.stack([now, now], 1)}) != pytest.approx(wanted, rel=1e-3)


@pytest.mark.slow
def test_a_vision_encoder_learns_where_things_are(tmp_path: Path) -> None:
    """A dot in a picture, and a number that no picture shows, which is not asked for."""
    policy = tiny_learner(tmp_path)
    patches = policy.model.vlm_with_expert.get_vlm_model().vision_model.embeddings.patch_embedding.weight
    before, generator = patches.clone(), torch.Generator().manual_seed(0)
    places = torch.rand(256, 2, generator=generator)
    pixels = torch.zeros(256, 3, 32, 32, dtype=torch.uint8)
    for picture, (x, y) in zip(pixels, (places * 24).int().tolist(), strict=True):
        picture[:, y : y + 8, x : x + 8] = 255
    states = np.concatenate([places.numpy(), np.random.default_rng(0).normal(size=(256, 2))], 1)
    targets = visible(shown_numbers(("x", "y", "vx", "vy"), states))
    assert targets.shape == (256, 2 * (1 + 2 * len(WAVES)))
    frozen = [parameter.requires_grad for parameter in policy.parameters()]
    error = teach_vision(policy, single(pixels, targets), steps=250, batch=32, lr=3e-3)
    assert error < 0.5
    assert not torch.equal(before, patches)
    assert frozen == [parameter.requires_grad for parameter in policy.parameters()]


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_vision_encoder_may_look_for_a_few_steps(steps: int, tmp_path: Path) -> None:
    policy = tiny_learner(tmp_path)
    pixels, targets = torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.randn(8, 2)
    assert np.isfinite(teach_vision(policy, single(pixels, targets), steps, batch=4))


def test_an_angle_is_seen_as_a_direction() -> None:
    targets = visible({"block_angle": np.array([0.1, 2 * np.pi + 0.1]), "x": np.array([1.0, 3.0])})
    assert torch.allclose(targets[0, :2], targets[1, :2], atol=1e-6)
    assert torch.allclose(targets[:, 2], torch.tensor([-1.0, 1.0]))
