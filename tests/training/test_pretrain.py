"""Self-distillation of the encoder: what its terms measure, and that a short run learns where things are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm.encoders import ViT
from sparsewm.training.pretrain import (
    BLURS,
    KINDS,
    READINGS,
    DistillationConfig,
    blurred_surroundings,
    centred,
    edges,
    measure_by_reading,
    pretrain,
    surroundings_loss,
)

FEATURES = sum(size for size, _ in READINGS)


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
    parts = blurred_surroundings(picture, 14)
    assert [part.shape for part in parts] == [(1, 16, size) for size, _ in READINGS]
    for (_, k), colours, strength in zip(BLURS, parts[0::3], parts[1::3], strict=True):
        seen = colours.view(1, 16, 3, k * k).sum(-1)
        assert seen[0, :, 1].argmax() == 3 and seen[0, :, [0, 2]].abs().max() == 0
        assert strength.sum(-1)[0].argmax() == 3
    flat = blurred_surroundings(torch.ones(1, 3, 56, 56), 14)
    torch.testing.assert_close(torch.cat(flat[0::3], -1), torch.ones(1, 16, 3 * sum(k * k for _, k in BLURS)))
    assert not any(part.any() for kind in (flat[1::3], flat[2::3]) for part in kind)  # no edge anywhere


def stripes(degrees: float, contrast: float = 4.0) -> Tensor:
    """Soft stripes (1, 3, 56, 56) whose edges run in a direction."""
    y, x = torch.meshgrid(torch.arange(56.0), torch.arange(56.0), indexing="ij")
    angle = torch.deg2rad(torch.tensor(degrees))
    wave = torch.sin((x * angle.cos() + y * angle.sin()) / 3)
    return contrast * wave.expand(1, 3, -1, -1)


def test_edges_tell_direction_but_not_sign_and_count_more_than_contrast() -> None:
    def direction(picture: Tensor) -> Tensor:
        return edges(picture)[0, :, 4:-4, 4:-4].mean((1, 2))

    for degrees in (0.0, 20.0, 75.0):
        strength, cos2, sin2, cos4, sin4 = direction(stripes(degrees))
        assert torch.rad2deg(torch.atan2(sin2, cos2)).item() / 2 == pytest.approx(degrees, abs=1.5)
        quarter = torch.rad2deg(torch.atan2(sin4, cos4)).item() / 4
        assert (quarter - degrees + 45) % 90 - 45 == pytest.approx(0, abs=1.5)
        assert strength > 0.5
    torch.testing.assert_close(edges(-stripes(20.0)), edges(stripes(20.0)))
    weak = direction(stripes(20.0, 2.0))[0] / direction(stripes(20.0))[0]
    assert weak > 0.75  # half of the contrast


def test_tokens_are_measured_by_what_is_read_from_them() -> None:
    torch.manual_seed(0)
    encoder = ViT(resolution=28, patch=14, width=32, depth=1, heads=1, dim=16)
    reader = torch.randn(FEATURES, 16)
    pictures = torch.randint(0, 256, (6, 28, 28, 3), dtype=torch.uint8)
    before = encoder.encode(pictures).patches
    measure_by_reading(encoder, reader)
    after = encoder.encode(pictures).patches
    expected, start = torch.zeros(4), 0
    for size, weight in READINGS:
        read = before @ reader[start : start + size].T
        expected += weight * (read[0] - read[1]).square().mean(-1)
        start += size
    expected /= len(BLURS) * sum(weight for _, weight in KINDS)
    torch.testing.assert_close((after[0] - after[1]).square().mean(-1), expected, rtol=1e-3, atol=1e-4)


def test_surroundings_loss_is_zero_for_the_truth_and_blind_to_what_all_scenes_share() -> None:
    pictures = views(6)
    assert surroundings_loss(exact(pictures), pictures, 14) < 1e-10
    shared = pictures.clone()
    shared[:, :, :, :20] = torch.rand(2, 1, 3, 20, 56)  # the same rows in all scenes
    truth = exact(shared)
    assert surroundings_loss(truth, shared, 14) < 1e-10
    assert truth[:, :, 0, :27].abs().max() < 0.2 * truth[:, :, -1, :27].abs().max()
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
