"""Self-distillation of the encoder: what its terms measure, and that a short run learns where things are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from scripts.lab.pretrain import (
    DistillationConfig,
    centred,
    join_readings,
    measure_by_reading,
    pretrain,
    surroundings_loss,
)
from sparsewm.encoders import ViT
from sparsewm.encoders.surroundings import BLURS, KINDS, READINGS, blurred_surroundings

FEATURES = sum(size for size, _ in READINGS)


def views(scenes: int, seed: int = 0) -> Tensor:
    return torch.randn(2, scenes, 3, 56, 56, generator=torch.Generator().manual_seed(seed))


def exact(pictures: Tensor) -> Tensor:
    """The prediction that makes no error: (looks, B, N, F)."""
    parts = [
        centred(p.unflatten(0, pictures.shape[:2])) for p in blurred_surroundings(pictures.flatten(0, 1))
    ]
    return torch.cat([p / (p.square().mean((1, 2, 3), keepdim=True).sqrt() + 0.02) for p in parts], -1)


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


def test_joined_tokens_hold_what_pictures_look_like_and_the_transformers_strongest_directions() -> None:
    torch.manual_seed(0)
    encoder = ViT(resolution=28, patch=14, width=32, depth=1, heads=1, dim=16)
    encoder.freeze()
    pictures = [dots(64)[:, look] for look in (0, 1)]
    joined = join_readings(encoder, pictures, readings=12)
    assert joined.dim == 16 and joined.encode(pictures[0][:3]).cls.shape == (3, 16)
    images = encoder.preprocess(pictures[0])
    tokens, read = joined.encode(pictures[0]).patches, torch.cat(blurred_surroundings(images), -1)
    torch.testing.assert_close(tokens[..., :12], read @ joined.reading_map, rtol=1e-4, atol=1e-4)
    context = encoder.encode(pictures[0]).patches @ joined.context_map
    torch.testing.assert_close(tokens[..., 12:], context, rtol=1e-4, atol=1e-4)
    # what the maps leave out varies little: least squares from the tokens brings colours back
    known = (tokens - tokens.mean(0)).flatten(0, 1)
    wanted = read[..., :27] - read[..., :27].mean(0)
    found = known @ torch.linalg.lstsq(known, wanted.flatten(0, 1)).solution
    assert (found - wanted.flatten(0, 1)).square().mean() < 0.1 * wanted.square().mean()


def test_surroundings_loss_is_zero_for_the_truth_and_blind_to_what_all_scenes_share() -> None:
    pictures = views(6)
    assert surroundings_loss(exact(pictures), pictures) < 1e-10
    shared = pictures.clone()
    shared[:, :, :, :20] = torch.rand(2, 1, 3, 20, 56)  # the same rows in all scenes
    truth = exact(shared)
    assert surroundings_loss(truth, shared) < 1e-10
    assert truth[:, :, 0, :27].abs().max() < 0.2 * truth[:, :, -1, :27].abs().max()
    ignorant = surroundings_loss(torch.zeros(2, 6, 16, FEATURES), pictures)
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


@pytest.mark.slow
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
