"""What is read from a picture without learning, and the embedded encoder that carries it in its tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsewm.encoders import load_encoder
from sparsewm.encoders.embedded import EMBEDDED_WEIGHTS, ViT, load_embedded
from sparsewm.encoders.surroundings import BLURS, READINGS, blurred_surroundings, edges
from sparsewm.errors import UserError


def test_surroundings_are_the_blurred_picture_around_each_patch() -> None:
    picture = torch.zeros(1, 3, 56, 56)
    picture[0, 1, 7, 49] = 1.0  # in the middle of the patch in row 0, column 3
    parts = blurred_surroundings(picture)
    assert [part.shape for part in parts] == [(1, 16, size) for size, _ in READINGS]
    for (_, k, _), colours, strength in zip(BLURS, parts[0::3], parts[1::3], strict=True):
        seen = colours.view(1, 16, 3, k * k).sum(-1)
        assert seen[0, :, 1].argmax() == 3 and seen[0, :, [0, 2]].abs().max() == 0
        assert strength.sum(-1)[0].argmax() == 3
    flat = blurred_surroundings(torch.ones(1, 3, 56, 56))
    torch.testing.assert_close(
        torch.cat(flat[0::3], -1), torch.ones(1, 16, 3 * sum(k * k for _, k, _ in BLURS))
    )
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


def test_the_shipped_file_serves_world_models_from_before_its_readings_were_joined() -> None:
    now, before = load_embedded(), load_embedded(joined=False)
    assert now.joined and not before.joined and now.hash != before.hash and now.dim == before.dim
    assert load_encoder(expected_hash=before.hash).hash == before.hash
    assert load_encoder(expected_hash=now.hash).hash == now.hash
    frame = np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3), dtype=np.uint8)
    assert torch.equal(now.encode(frame).cls, before.encode(frame).cls)
    assert not torch.allclose(now.encode(frame).patches, before.encode(frame).patches)


def test_readings_stay_exact_when_the_transformer_computes_in_bfloat16() -> None:
    encoder = load_embedded()
    frames = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    exact, rounded = encoder.encode(frames).patches, load_embedded().bfloat16().encode(frames).patches
    size = encoder.reading_map.shape[1]
    assert torch.equal(exact[..., :size], rounded[..., :size])
    assert not torch.equal(exact[..., size:], rounded[..., size:])


def test_maps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    features = sum(size for size, _ in READINGS)
    with pytest.raises(ValueError, match="16 columns"):
        ViT(resolution=28, patch=14, width=32, depth=1, heads=1, dim=16, maps=(torch.ones(features, 12),) * 2)
    state = load_file(EMBEDDED_WEIGHTS)
    save_file(state | {"reading_map": torch.ones(features, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        load_embedded(tmp_path / "model.safetensors")
