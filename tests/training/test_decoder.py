"""The decoder draws where things are, from any subset of tokens, and changes nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm.data import Dataset, DatasetWriter, open_dataset
from sparsewm.model.decoder import Decoder, DecoderConfig
from sparsewm.training.decoder import DecoderTrainConfig, imagine_windows, train_decoder
from tests.model.tiny import tiny_model

SIDE = 28
CONFIG = DecoderConfig(width=32, layers=2, channels=8, side=SIDE)


class Tokens:
    """Tokens that tell how far the square is from their patch, on both axes and as a whole."""

    def __init__(self, places: np.ndarray) -> None:
        rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
        patches = torch.stack([columns, rows], -1).view(16, 2) * SIDE / 4
        away = (torch.as_tensor(places)[:, None] - patches).float() / SIDE
        features = torch.cat(
            [away, *(torch.exp(-away.square().sum(-1, keepdim=True) / s) for s in (0.02, 0.1, 0.4))], -1
        )
        basis = torch.randn(5, 8, generator=torch.Generator().manual_seed(5))
        self.values = features @ basis

    def rows(self, rows: np.ndarray) -> Tensor:
        return self.values[torch.as_tensor(rows)]


def squares(path: Path, count: int = 256) -> tuple[Dataset, np.ndarray]:
    """Pictures of a bright square at random places (count, 2), as one episode."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, SIDE - 8, (count, 2))
    pixels = np.full((count, SIDE, SIDE, 3), 40, np.uint8)
    for picture, (x, y) in zip(pixels, places, strict=True):
        picture[y : y + 8, x : x + 8] = (240, 200, 60)
    with DatasetWriter(path, {"environment": "wall", "frameskip": 2}) as writer:
        zeros = np.zeros((count, 2), np.float32)
        writer.append(
            {"pixels": pixels, "action": zeros, "proprio": zeros, "state": zeros.astype(np.float64)}
        )
    return open_dataset(path), places


def trained(path: Path, steps: int) -> tuple[Decoder, Tokens, np.ndarray]:
    dataset, places = squares(path)
    model, tokens = tiny_model(), Tokens(places)
    torch.manual_seed(0)
    decoder = Decoder(8, (4, 4), CONFIG)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    settings = DecoderTrainConfig(steps=steps, batch=16, warmup=10, smallest=4, noise=0.02)
    train_decoder(model, decoder, dataset, tokens, np.array([0]), settings, torch.float32)  # type: ignore[arg-type]
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    standardized = Tokens(places)
    standardized.values = model.standardizer.tokens(tokens.values)
    return decoder, standardized, places


@pytest.mark.slow
def test_half_of_the_tokens_draw_the_square_in_its_place(tmp_path: Path) -> None:
    decoder, tokens, places = trained(tmp_path / "squares.h5", 400)
    some = np.arange(40)
    patches = torch.stack(
        [torch.randperm(16, generator=torch.Generator().manual_seed(int(i)))[:8] for i in some]
    )
    seen = tokens.rows(some).gather(1, patches[..., None].expand(-1, -1, 8))
    drawn = decoder.pictures(seen[:, None], patches)[:, 0].float()
    assert drawn.shape == (40, SIDE, SIDE, 3)
    inside, everywhere = [], drawn[..., 0].mean((1, 2))
    for picture, (x, y) in zip(drawn, places[some], strict=True):
        inside.append(picture[y + 1 : y + 7, x + 1 : x + 7, 0].mean())
    assert torch.stack(inside).mean() > 160 and everywhere.mean() < 90  # 240 in the square, 40 elsewhere


def test_training_is_repeatable(tmp_path: Path) -> None:
    first, *_ = trained(tmp_path / "a.h5", 3)
    second, *_ = trained(tmp_path / "b.h5", 3)
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_order_of_tokens_does_not_matter() -> None:
    model = tiny_model()
    assert model.decoder is not None
    generator = torch.Generator().manual_seed(0)
    tokens, patches = torch.randn(2, 5, 8, generator=generator), torch.tensor([[0, 3, 7, 9, 15]] * 2)
    order = torch.tensor([4, 0, 2, 1, 3])
    first, second = model.decoder(tokens, patches), model.decoder(tokens[:, order], patches[:, order])
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, model.decoder(tokens, (patches + 1) % 16), atol=1e-3)


def test_imagined_windows_start_at_the_recorded_frame() -> None:
    model = tiny_model()
    generator = torch.Generator().manual_seed(0)
    batch = {
        "tokens": torch.randn(3, 4, 16, 8, generator=generator),
        "proprio": torch.randn(3, 4, 2, generator=generator),
        "action": torch.randn(3, 3, 4, generator=generator),
    }
    pictures = imagine_windows(model, batch, 0.5)
    assert pictures.shape == (3, 4, 28, 28, 3) and pictures.dtype == np.uint8
    batch["tokens"][:, 1:] = 0  # later frames are not looked at
    np.testing.assert_array_equal(imagine_windows(model, batch, 0.5), pictures)
