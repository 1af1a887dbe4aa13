"""DINOv2 without its hub's code: timm builds the network, transformers checks it."""

from __future__ import annotations

import urllib.error
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsewm.encoders import load_encoder
from sparsewm.encoders.dino import TimmDino, from_transformers
from sparsewm.encoders.hub import HubEncoder

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(autouse=True)
def small_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DINOv2 of 48 features and two blocks; the hub cannot be reached."""

    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("name resolution failed")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **SIZES))


def official(tmp_path: Path, registers: bool) -> tuple[Path, Path]:
    """Random weights of DINOv2: a folder of transformers, and a file under the official names."""
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        mlp_ratio=4,
        image_size=518,
        patch_size=14,
        layer_norm_eps=1e-6,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = getattr(transformers, f"{kind}Model")(config)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(tmp_path / "folder")
    torch.save(from_transformers(network.state_dict()), tmp_path / "official.pth")
    return tmp_path / "folder", tmp_path / "official.pth"


@pytest.mark.parametrize("registers", [False, True])
def test_timm_and_transformers_give_the_same_tokens_and_hash(registers: bool, tmp_path: Path) -> None:
    """On the grid of the stored positions, where nobody interpolates."""
    folder, weights = official(tmp_path, registers)
    name = "dinov2_vits14_reg" if registers else "dinov2_vits14"
    ours = load_encoder(name, weights, resolution=518)
    theirs = load_encoder(f"hf:{folder}", resolution=518)
    assert isinstance(ours, HubEncoder) and isinstance(ours.network, TimmDino)
    assert ours.hash == theirs.hash
    one, other = ours.encode(FRAMES, attention=True), theirs.encode(FRAMES, attention=True)
    torch.testing.assert_close(one.patches, other.patches, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(one.cls, other.cls, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(one.attention, other.attention, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("registers", [False, True])
def test_timms_own_door_knows_the_same_weights(registers: bool, tmp_path: Path) -> None:
    _, weights = official(tmp_path, registers)
    model = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    door, hub = (
        load_encoder(f"timm:{model}", weights),
        load_encoder(f"dinov2_vits14{'_reg' * registers}", weights),
    )
    assert door.hash == hub.hash and door.key != hub.key
    if registers:  # timm interpolates these positions as the official code does
        torch.testing.assert_close(
            door.encode(FRAMES).patches, hub.encode(FRAMES).patches, atol=2e-5, rtol=1e-5
        )


def test_hash_follows_what_tokens_depend_on(tmp_path: Path) -> None:
    _, weights = official(tmp_path, registers=False)
    state = torch.load(weights, weights_only=True)
    before = load_encoder("dinov2_vits14", weights).hash
    torch.save(state | {"mask_token": state["mask_token"] + 1}, weights)
    assert load_encoder("dinov2_vits14", weights).hash == before
    torch.save(state | {"norm.bias": state["norm.bias"] + 1}, weights)
    assert load_encoder("dinov2_vits14", weights).hash != before


def test_hashes_of_earlier_checkpoints_are_accepted(tmp_path: Path) -> None:
    _, weights = official(tmp_path, registers=False)
    encoder = load_encoder("dinov2_vits14", weights)
    again = load_encoder("dinov2_vits14", weights, expected_hash=encoder.earlier_hash)
    assert again.hash == encoder.earlier_hash != encoder.hash


@pytest.mark.parametrize(("rows", "cols"), [(16, 16), (12, 16)])
def test_positions_are_read_where_the_official_code_reads_them(rows: int, cols: int) -> None:
    """Of positions that grow linearly: cell i lies at (i + 0.5) * 37 / (rows + 0.1) - 0.5.

    Cubic interpolation errs by up to 0.05; without the offset of 0.1 the last cells would lie 0.2 further.
    """
    network = TimmDino("dinov2_vits14")
    state = {name: torch.zeros_like(tensor) for name, tensor in network.official.items()}
    y, x = torch.meshgrid(torch.arange(37.0), torch.arange(37.0), indexing="ij")
    state["pos_embed"][0, 1:, 0], state["pos_embed"][0, 1:, 1] = y.flatten(), x.flatten()
    state["pos_embed"][0, 0] = 7
    network.load_official(state)
    network.resize((14 * rows, 14 * cols))
    found = network.network.pos_embed[0]
    assert (found[0] == 7).all()
    found = found[1:].view(rows, cols, -1)[2:-2, 2:-2]
    down = (torch.arange(2, rows - 2) + 0.5) * 37 / (rows + 0.1) - 0.5
    across = (torch.arange(2, cols - 2) + 0.5) * 37 / (cols + 0.1) - 0.5
    torch.testing.assert_close(found[..., 0], down[:, None].expand(-1, cols - 4), atol=0.06, rtol=0)
    torch.testing.assert_close(found[..., 1], across.expand(rows - 4, -1), atol=0.06, rtol=0)
