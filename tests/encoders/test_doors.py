"""Encoders by name: anybody's own, timm's and transformers', at other resolutions and aspect ratios."""

from __future__ import annotations

import importlib
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sparsewm
from sparsewm.encoders import (
    ENCODERS,
    PatchEncoder,
    PatchFeatures,
    check_encoder_name,
    fitted_resolution,
    load_encoder,
    names_code,
)
from sparsewm.encoders.base import same_aspect
from sparsewm.errors import UserError
from tests.model.tiny import tiny_model

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

SQUARE = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
WIDE = np.random.default_rng(1).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example of docs/howto/encoder.md, importable."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "encoder.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# my_encoder.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_encoder.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.delitem(__import__("sys").modules, "my_encoder", raising=False)
    return "my_encoder:Colours"


# ------------------------------------------------------------------------------------------- your own


def test_an_encoder_of_ones_own_comes_back_with_its_checkpoint(own: str, tmp_path: Path) -> None:
    encoder = load_encoder(own, picture=(96, 128))
    assert (encoder.name, encoder.resolution, encoder.dim) == (own, (96, 128), 32)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    model = tiny_model(encoder=encoder)  # type: ignore[arg-type]
    again = sparsewm.load(sparsewm.save(model, tmp_path / "checkpoint"))
    assert again.encoder.resolution == encoder.resolution and again.encoder.hash == encoder.hash
    assert torch.equal(again.encoder.encode(WIDE).patches, encoder.encode(WIDE).patches)


def test_other_weights_of_ones_own_encoder_are_refused(own: str, tmp_path: Path) -> None:
    encoder = load_encoder(own)
    state = {name: tensor + 1 for name, tensor in encoder.state_dict().items()}
    torch.save(state, tmp_path / "other.pth")
    other = load_encoder(own, weights=tmp_path / "other.pth")
    assert other.hash != encoder.hash
    with pytest.raises(UserError, match="give the original file as `weights`"):
        load_encoder(own, weights=tmp_path / "other.pth", expected_hash=encoder.hash)


def test_the_image_token_of_ones_own_encoder(own: str) -> None:
    encoder, whole = load_encoder(f"{own}:cls"), load_encoder(own)
    features = encoder.encode(SQUARE)
    assert (encoder.name, encoder.grid, encoder.tokens) == (f"{own}:cls", (1, 1), 1)
    assert torch.equal(features.patches[:, 0], whole.encode(SQUARE).cls) and encoder.key != whole.key


class Fixed(PatchEncoder):
    """No parameters, one resolution, no arguments."""

    resolution, patch, dim = (32, 32), 16, 3

    def encode(self, pixels: Any, attention: bool = False) -> PatchFeatures:
        patches = self.preprocess(pixels).unfold(2, 16, 16).unfold(3, 16, 16).mean((-1, -2))
        patches = patches.flatten(2).transpose(1, 2)
        return PatchFeatures(patches, patches.mean(1), self.grid)


def test_a_registered_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENCODERS, "_known", dict(ENCODERS._known))
    ENCODERS.register("fixed", Fixed)
    encoder = load_encoder("fixed")
    assert (
        encoder.name == "fixed"
        and len(encoder.hash) == 64
        and encoder.encode(SQUARE).patches.shape == (2, 4, 3)
    )
    with pytest.raises(UserError, match="sees pictures of 32 x 32 pixels only: leave `resolution`"):
        load_encoder("fixed", resolution=64)
    with pytest.raises(UserError, match="'fixed' takes no `weights`: leave it out"):
        load_encoder("fixed", weights="file.pth")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("embeded", "unknown encoder 'embeded'. Did you mean 'embedded'"),
        ("no_such_module:Encoder", "no encoder at 'no_such_module:Encoder'"),
        ("collections:OrderedDict", "gave no PatchEncoder"),
        ("math:pi", "is no PatchEncoder class"),
        ("embedded:x", "'embedded' takes no model: 'x'|takes no ':x' behind its name"),
        ("timm", "needs the name of a model: give timm:NAME"),
        ("timm:vit_smal_patch16_224", "timm knows no model .* Did you mean 'vit_small_patch16_224'"),
        ("timm:resnet18", "timm's resnet18 .*: give a vision transformer"),
    ],
)
def test_names_of_no_encoder(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_encoder(name)


def test_names_are_checked_before_anything_is_loaded() -> None:
    for name in ("embedded", "random:cls", "dinov2_vits14", "timm:anything", "hf:any/thing:cls"):
        check_encoder_name(name)
        assert not names_code(name)
    with pytest.raises(UserError, match="Did you mean 'dinov2_vits14'"):
        check_encoder_name("dinov2_vit14s")
    assert names_code("os:system") and names_code("os:system:cls")


# ------------------------------------------------------------------------------------------------ timm


@pytest.fixture
def timm_weights(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


def test_a_transformer_of_timm(timm_weights: Path) -> None:
    encoder = load_encoder("timm:test_vit", timm_weights)
    assert (encoder.name, encoder.patch, encoder.dim, encoder.grid) == ("timm:test_vit", 16, 64, (10, 10))
    assert encoder.mean == encoder.std == (0.5, 0.5, 0.5)
    features = encoder.encode(SQUARE, attention=True)
    tokens = encoder.network.forward_features(encoder.preprocess(SQUARE))
    torch.testing.assert_close(features.patches, tokens[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.cls, tokens[:, 0], atol=1e-5, rtol=1e-5)
    assert features.attention is not None and features.attention.shape == (2, 100)
    layer, seen = encoder.network.blocks[-1].attn, list[torch.Tensor]()
    handle = layer.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    encoder.encode(SQUARE)
    handle.remove()
    q, k, _ = layer.qkv(seen[0]).view(2, 101, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    expected = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(1)[:, 0, 1:]
    torch.testing.assert_close(features.attention, expected, atol=1e-5, rtol=1e-4)


def test_timm_at_another_aspect_ratio(timm_weights: Path) -> None:
    encoder = load_encoder("timm:test_vit", timm_weights, picture=(96, 128))
    assert encoder.resolution == (144, 192) and encoder.encode(WIDE).patches.shape == (2, 9 * 12, 64)
    assert encoder.hash == load_encoder("timm:test_vit", timm_weights).hash
    assert load_encoder("timm:test_vit", timm_weights, resolution=(80, 64)).grid == (5, 4)


def test_weights_of_timm_that_cannot_be_had(timm_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot get the weights of timm's test_vit .* give `weights`"):
        load_encoder("timm:test_vit")
    with pytest.raises(UserError, match=r"no encoder weights at .*gone.pth: give `weights`"):
        load_encoder("timm:test_vit", tmp_path / "gone.pth")
    with pytest.raises(UserError, match=r"vit.safetensors holds no weights of test_vit2"):
        load_encoder("timm:test_vit2", timm_weights)
    torch.save({"network": Path("a pickled object")}, tmp_path / "object.pth")
    with pytest.raises(UserError, match=r"object.pth is not a readable weights file"):
        load_encoder("timm:test_vit", tmp_path / "object.pth")


# ---------------------------------------------------------------------------------------- transformers


def folder(tmp_path: Path, config: Any) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    return f"hf:{tmp_path}"


def vision(**more: Any) -> dict[str, Any]:
    return {**SMALL, "image_size": 64, "patch_size": 16, **more}


@pytest.mark.parametrize(
    ("config", "prefix"),
    [
        (transformers.Dinov2Config(**vision(mlp_ratio=2)), 1),
        (transformers.DINOv3ViTConfig(**vision(num_register_tokens=4)), 5),
        (transformers.ViTConfig(**vision()), 1),
        (transformers.SiglipConfig(vision_config=vision(), text_config=SMALL | {"vocab_size": 50}), 0),
        (transformers.CLIPConfig(vision_config=vision(), text_config=SMALL | {"vocab_size": 50}), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_vision_model_of_transformers(config: Any, prefix: int, tmp_path: Path) -> None:
    encoder = load_encoder(folder(tmp_path, config), picture=(96, 128))
    assert (encoder.patch, encoder.dim, encoder.resolution) == (
        16,
        24,
        fitted_resolution((96, 128), 16, (64, 64)),
    )
    features = encoder.encode(WIDE)
    assert features.patches.shape == (2, encoder.tokens, 24) and encoder.prefix == prefix
    options = dict.fromkeys(encoder.options, True)
    every = encoder.network(pixel_values=encoder.preprocess(WIDE), **options).last_hidden_state
    torch.testing.assert_close(features.patches, every[:, prefix:], atol=1e-5, rtol=1e-5)
    if prefix:
        with_attention = encoder.encode(WIDE, attention=True)
        torch.testing.assert_close(with_attention.patches, features.patches, atol=1e-5, rtol=1e-5)
        assert with_attention.attention is not None
        assert ((with_attention.attention.sum(1) > 0) & (with_attention.attention.sum(1) < 1)).all()
    else:
        assert torch.equal(features.cls, features.patches.mean(1))
        with pytest.raises(UserError, match="no attention of an image token"):
            encoder.encode(WIDE, attention=True)


def test_mean_and_deviation_come_from_the_model(tmp_path: Path) -> None:
    name = folder(tmp_path, transformers.ViTConfig(**vision()))
    assert load_encoder(name).mean == (0.485, 0.456, 0.406)
    processor = transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    encoder = load_encoder(name)
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    grey = np.full((1, 64, 64, 3), 255, np.uint8)
    expected = torch.tensor([(1 - 0.1) / 0.4, (1 - 0.2) / 0.5, (1 - 0.3) / 0.6])
    torch.testing.assert_close(encoder.preprocess(grey)[0, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (transformers.ViTMAEConfig(**vision()), "has no patch tokens"),
        (transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]), "has no patch tokens"),
    ],
    ids=["drops patches", "no transformer"],
)
def test_models_without_patch_tokens(config: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_encoder(folder(tmp_path, config))


def test_models_of_transformers_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="connect this machine to the network, give the folder"):
        load_encoder("hf:nobody/nothing")
    with pytest.raises(UserError, match="give a folder that save_pretrained wrote"):
        load_encoder(f"hf:{tmp_path}")


# ------------------------------------------------------------------------------------------- the shape


@pytest.mark.parametrize("picture", [(480, 640), (720, 1280), (96, 192), (1242, 375), (64, 640)])
@pytest.mark.parametrize(("patch", "side"), [(14, 112), (14, 224), (16, 224)])
def test_a_resolution_that_squashes_nothing(picture: tuple[int, int], patch: int, side: int) -> None:
    for options in ({"like": (side, side)}, {"longest": side}):
        found = fitted_resolution(picture, patch, **options)  # type: ignore[arg-type]
        assert found[0] % patch == found[1] % patch == 0
        assert same_aspect(picture, found)
    height, width = fitted_resolution(picture, patch, like=(side, side))
    assert 0.5 <= height * width / side**2 <= 2


def test_a_square_stays_as_it_is() -> None:
    assert fitted_resolution((480, 480), 14, like=(112, 112)) == (112, 112)
    assert fitted_resolution((480, 485), 14, like=(196, 196)) == (196, 196)
    with pytest.raises(ValueError, match="one of `like` and `longest`"):
        fitted_resolution((480, 640), 14)


def test_squashing_is_refused() -> None:
    encoder = load_encoder("embedded")
    said = r"96 x 128 pixels would be squashed .* sees 112 x 112: .*resolution=\(84, 112\) or letterbox=True"
    with pytest.raises(UserError, match=said):
        encoder.encode(WIDE)
    encoder.encode(np.zeros((1, 100, 101, 3), np.uint8))  # a hundredth is let pass


def test_bars_keep_the_aspect_ratio() -> None:
    encoder = load_encoder("embedded", letterbox=True)
    white = np.full((1, 60, 120, 3), 255, np.uint8)
    image = encoder.preprocess(white)
    lit = image[0, 0] > 1
    assert image.shape == (1, 3, 112, 112)
    assert lit[28:84].all() and not lit[:28].any() and not lit[84:].any()
    assert (image[:, :, :28] == 0).all()  # the mean's colour
    assert encoder.key != load_encoder("embedded").key
    assert torch.equal(encoder.encode(SQUARE).patches, load_encoder("embedded").encode(SQUARE).patches)


def test_the_shipped_encoder_at_another_aspect_ratio() -> None:
    """Tokens of a picture beside itself are those of the picture, but for what crosses the border."""
    square, wide = load_encoder("embedded"), load_encoder("embedded", resolution=(112, 224))
    picture = np.full((1, 112, 112, 3), 200, np.uint8)
    picture[:, 48:64, 48:64] = 30
    assert wide.grid == (8, 16) and wide.hash == square.hash
    one = square.encode(picture).patches[0].view(8, 8, -1)
    both = wide.encode(np.concatenate([picture, picture], 2)).patches[0].view(8, 16, -1)
    readings = square.reading_map.shape[1]
    left, right = both[:, 1:7, :readings], both[:, 9:15, :readings]
    torch.testing.assert_close(left[2:6, 1:5], one[2:6, 2:6, :readings], atol=0.05, rtol=0.05)
    torch.testing.assert_close(right[2:6, 1:5], one[2:6, 2:6, :readings], atol=0.05, rtol=0.05)


def test_the_shipped_encoder_is_resized_back_to_the_same_tokens() -> None:
    encoder = load_encoder("embedded")
    before = encoder.encode(SQUARE).patches
    encoder.resize((168, 84))
    assert encoder.encode(np.zeros((1, 168, 84, 3), np.uint8)).patches.shape == (1, 72, 64)
    encoder.resize((112, 112))
    assert torch.equal(encoder.encode(SQUARE).patches, before)
