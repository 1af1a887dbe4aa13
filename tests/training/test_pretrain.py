"""Self-distillation of the encoder: what its terms measure, and that a short run learns where things are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsewm.encoders import ViT
from sparsewm.training.pretrain import (
    BLURS,
    DistillationConfig,
    blurred_surroundings,
    centred,
    pretrain,
    surroundings_loss,
)

FEATURES = 3 * sum(k * k for _, k in BLURS)


def views(scenes: int, seed: int = 0) -> Tensor:
    return torch.randn(2, scenes, 3, 56, 56, generator=torch.Generator().manual_seed(seed))


def exact(pictures: Tensor) -> Tensor:
    """The prediction that makes no error: (looks, B, N, F)."""
    parts = [
        centred(p.unflatten(0, pictures.shape[:2])) for p in blurred_surroundings(pictures.flatten(0, 1), 14)
    ]
    return torch.cat([p / (p.square().mean((1, 2, 3), keepdim=True).sqrt() + 0.02) for p in parts], -1)


def test_surroundings_are_the_blurred_picture_around_each_patch() -> None:
    picture = torch.zeros(1, 3, 56, 56)
    picture[0, 1, 7, 49] = 1.0  # in the middle of the patch in row 0, column 3
    for part, (_, k) in zip(blurred_surroundings(picture, 14), BLURS, strict=True):
        assert part.shape == (1, 16, 3 * k * k)
        seen = part.view(1, 16, 3, k * k).sum(-1)
        assert seen[0, :, 1].argmax() == 3 and seen[0, :, [0, 2]].abs().max() == 0
    flat = torch.cat(blurred_surroundings(torch.ones(1, 3, 56, 56), 14), -1)
    torch.testing.assert_close(flat, torch.ones(1, 16, FEATURES))


def test_surroundings_loss_is_zero_for_the_truth_and_blind_to_what_all_scenes_share() -> None:
    pictures = views(6)
    assert surroundings_loss(exact(pictures), pictures, 14) < 1e-10
    shared = pictures + torch.rand(2, 1, 3, 56, 56)
    assert surroundings_loss(exact(pictures), shared, 14) < 1e-8
    ignorant = surroundings_loss(torch.zeros(2, 6, 16, FEATURES), pictures, 14)
    assert 0.2 < ignorant <= 1.0


def dots(count: int) -> np.ndarray:
    """Scenes (count, 2, 28, 28, 3): a bright square somewhere on grey, in two colours."""
    rng = np.random.default_rng(0)
    pictures = np.full((count, 2, 28, 28, 3), 100, np.uint8)
    for scene in pictures:
        y, x = rng.integers(0, 22, 2)
        scene[0, y : y + 6, x : x + 6] = (255, 60, 60)
        scene[1, y : y + 6, x : x + 6] = (60, 255, 60)
    return pictures


def test_a_short_run_learns_surroundings_and_repeats_itself() -> None:
    config = DistillationConfig(steps=100, batch=16, block=32, lr=2e-3)
    seen: list[dict[str, float]] = []

    def run() -> ViT:
        torch.manual_seed(0)
        encoder = ViT(resolution=28, patch=14, width=32, depth=1, heads=1, dim=16)
        return pretrain(
            {"dots": dots(64)}, config, encoder, 0, lambda step, losses: seen.append(dict(losses)) or False
        )

    first, second = run(), run()
    assert seen[4]["surroundings"] < 0.8 * seen[0]["surroundings"]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
