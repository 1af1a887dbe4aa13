"""DINO and DINOv2 through the real torch.hub machinery, on a small repository written here.

The repository has the entry points, method names and layer names of the official ones and a network of a
few thousand weights, so everything but the download of the real files runs as it does for a user.
"""

from __future__ import annotations

import errno
import sys
import urllib.error
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparsewm.encoders import load_encoder
from sparsewm.encoders.hub import HUB_ENCODERS, load_hub_encoder
from sparsewm.encoders.weights import read_weights
from sparsewm.errors import UserError

HUBCONF = """
import torch
from torch import nn

from utils import HEADS

dependencies = ["torch"]


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.num_heads = HEADS
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (c // self.num_heads) ** -0.5).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(b, n, c)), attention


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim)

    def forward(self, x, return_attention=False):
        y, attention = self.attn(self.norm1(x))
        return attention if return_attention else x + y


class Network(nn.Module):
    def __init__(self, patch, dim, registers):
        super().__init__()
        self.embed_dim, self.registers = dim, registers
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.extra = nn.Parameter(torch.randn(1, 1 + registers, dim))
        self.blocks = nn.ModuleList([Block(dim), Block(dim)])
        self.norm = nn.LayerNorm(dim)

    def tokens(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.extra.expand(len(x), -1, -1), x], 1)


class DinoV2(Network):
    def forward_features(self, images):
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {"x_norm_clstoken": x[:, 0], "x_norm_patchtokens": x[:, 1 + self.registers :]}


class Dino(Network):
    def get_intermediate_layers(self, images, n=1):
        x = self.tokens(images)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(self.norm(x))
        return outputs[-n:]

    def get_last_selfattention(self, images):
        return self.blocks[1](self.blocks[0](self.tokens(images)), return_attention=True)


def dinov2_vits14(*, pretrained=True):
    assert not pretrained
    return DinoV2(14, 12, 0)


def dinov2_vits14_reg(*, pretrained=True):
    assert not pretrained
    return DinoV2(14, 12, 4)


def dino_vits16(pretrained=True):
    assert not pretrained
    return Dino(16, 12, 0)


def dino_vitb8(pretrained=True):
    assert not pretrained
    return Dino(8, 24, 0)
"""

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TORCH_HOME and a network on which every request fails."""

    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("name resolution failed")

    home = tmp_path / "torch_home"
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    return home


def write_repository(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "hubconf.py").write_text(HUBCONF)
    (folder / "utils.py").write_text("HEADS = 3\n")
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository")


def state_of(repository: Path, name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = torch.hub.load(str(repository), name, source="local", pretrained=False)
    return dict(network.state_dict())


@pytest.fixture
def weights(repository: Path, tmp_path: Path) -> Path:
    """Weights for dinov2_vits14."""
    path = tmp_path / "weights.pth"
    torch.save(state_of(repository, "dinov2_vits14"), path)
    return path


def save_weights(repository: Path, name: str, path: Path, seed: int = 0) -> Path:
    torch.save(state_of(repository, name, seed), path)
    return path


@pytest.mark.parametrize(
    ("name", "dim", "grid"),
    [
        ("dinov2_vits14", 12, (16, 16)),
        ("dinov2_vits14_reg", 12, (16, 16)),
        ("dino_vits16", 12, (14, 14)),
        ("dino_vitb8", 24, (28, 28)),
    ],
)
def test_frames_become_patch_tokens_image_token_and_attention(
    name: str, dim: int, grid: tuple[int, int], repository: Path, tmp_path: Path
) -> None:
    path = save_weights(repository, name, tmp_path / "w.pth")
    encoder = load_encoder(name, weights=path, hub_repo=repository)
    features = encoder.encode(FRAMES, attention=True)
    n = grid[0] * grid[1]
    assert (encoder.name, encoder.dim, encoder.grid, encoder.tokens) == (name, dim, grid, n)
    assert features.patches.shape == (2, n, dim)
    assert features.cls.shape == (2, dim)
    assert features.grid == grid
    assert features.attention is not None and features.attention.shape == (2, n)
    assert not features.patches.requires_grad
    assert encoder.encode(FRAMES).attention is None


def test_tokens_and_attention_are_those_of_the_hub_network(repository: Path, tmp_path: Path) -> None:
    path = save_weights(repository, "dino_vits16", tmp_path / "w.pth")
    encoder = load_hub_encoder("dino_vits16", path, repository)
    images = encoder.preprocess(FRAMES)
    features = encoder.encode(FRAMES, attention=True)
    tokens = encoder.network.get_intermediate_layers(images, n=1)[0]
    attention = encoder.network.get_last_selfattention(images)  # (B, heads, 1 + N, 1 + N)
    assert torch.equal(features.patches, tokens[:, 1:])
    assert torch.equal(features.cls, tokens[:, 0])
    assert torch.allclose(features.attention, attention.mean(1)[:, 0, 1:], atol=1e-6)


def test_attention_to_patches_leaves_the_registers_out(repository: Path, tmp_path: Path) -> None:
    path = save_weights(repository, "dinov2_vits14_reg", tmp_path / "w.pth")
    encoder = load_hub_encoder("dinov2_vits14_reg", path, repository, resolution=28)
    x = encoder.network.tokens(encoder.preprocess(FRAMES))
    first, last = encoder.network.blocks
    expected = last(first(x), return_attention=True).mean(1)[:, 0, 5:]  # CLS and four registers stand first
    features = encoder.encode(FRAMES, attention=True)
    assert features.attention is not None and torch.allclose(features.attention, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "asked", "side"),
    [
        ("dinov2_vits14", 196, 196),
        ("dinov2_vits14", 200, 196),
        ("dinov2_vits14", 218, 224),
        ("dino_vits16", 100, 96),
    ],
)
def test_sides_are_rounded_to_whole_patches(
    name: str, asked: int, side: int, repository: Path, tmp_path: Path
) -> None:
    path = save_weights(repository, name, tmp_path / "w.pth")
    encoder = load_hub_encoder(name, path, repository, resolution=asked)
    assert encoder.resolution == (side, side)
    assert encoder.encode(FRAMES).patches.shape[1] == (side // encoder.patch) ** 2


def test_a_picture_smaller_than_a_patch_is_refused(repository: Path, weights: Path) -> None:
    with pytest.raises(UserError, match="5 pixels holds no patch of dinov2_vits14: use 14 or more"):
        load_hub_encoder("dinov2_vits14", weights, repository, resolution=5)


def test_hash_follows_the_weights_not_their_file(repository: Path, tmp_path: Path, weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    save_file(state, tmp_path / "same.safetensors")
    encoder = load_encoder("dinov2_vits14", weights, repository)
    same = load_encoder(
        "dinov2_vits14", tmp_path / "same.safetensors", repository, expected_hash=encoder.hash
    )
    assert torch.equal(encoder.encode(FRAMES).patches, same.encode(FRAMES).patches)

    other = save_weights(repository, "dinov2_vits14", tmp_path / "other.pth", seed=1)
    with pytest.raises(UserError, match="differ from those this checkpoint was trained with"):
        load_encoder("dinov2_vits14", other, repository, expected_hash=encoder.hash)


def test_downloads_are_found_below_torch_home(torch_home: Path, weights: Path) -> None:
    spec = HUB_ENCODERS["dinov2_vits14"]
    code = write_repository(torch_home / "hub" / f"facebookresearch_dinov2_{spec.commit}")
    checkpoint = torch_home / "hub" / "checkpoints" / "dinov2_vits14_pretrain.pth"
    checkpoint.parent.mkdir()
    weights.rename(checkpoint)
    assert (spec.code, spec.weights) == (code, checkpoint)
    assert load_encoder("dinov2_vits14").tokens == 256  # every request would fail


def test_first_use_downloads_the_pinned_commit_and_the_weights_once(
    torch_home: Path, repository: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = HUB_ENCODERS["dinov2_vits14"]
    asked: list[str] = []

    def serve(url: str, path: str, *_: Any, **__: Any) -> None:
        asked.append(url)
        if url == spec.url:
            Path(path).write_bytes(weights.read_bytes())
            return
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("facebookresearch-dinov2-b8931f7/", "")
            for file in ("hubconf.py", "utils.py"):
                archive.write(repository / file, f"facebookresearch-dinov2-b8931f7/{file}")

    monkeypatch.setattr("torch.hub.download_url_to_file", serve)
    first, second = load_encoder("dinov2_vits14"), load_encoder("dinov2_vits14")
    assert asked == [f"https://github.com/facebookresearch/dinov2/zipball/{spec.commit}", spec.url]
    assert spec.code.is_dir() and torch_home in spec.code.parents
    assert first.hash == second.hash == load_encoder("dinov2_vits14", weights, repository).hash


def test_a_programs_own_utils_module_survives(
    repository: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "utils.py").write_text("MINE = True\n")
    monkeypatch.syspath_prepend(str(tmp_path / "program"))
    import utils

    load_encoder("dinov2_vits14", weights, repository)
    assert sys.modules["utils"] is utils
    monkeypatch.delitem(sys.modules, "utils")


def test_standard_output_is_left_to_results(
    torch_home: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError):
        load_encoder("dinov2_vits14", weights)  # torch.hub announces the download it tries
    captured = capsys.readouterr()
    assert captured.out == "" and "Downloading" in captured.err


@pytest.mark.parametrize("name", ["dinov2_vitb14", "dino_vitb16"])
@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Temporary failure in name resolution"),
        urllib.error.HTTPError("https://x", 429, "Too Many Requests", None, None),  # type: ignore[arg-type]
        ConnectionResetError("Connection reset by peer"),
        TimeoutError("timed out"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_network_names_the_ways_out(name: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("torch.hub.urlopen", fail)
    with pytest.raises(UserError) as caught:
        load_encoder(name)
    message = str(caught.value)
    spec = HUB_ENCODERS[name]
    ways = ("`hub_repo`", spec.commit[:7], "`weights`", spec.url, "TORCH_HOME", "'embedded'")
    for way_out in ways:
        assert way_out in message
    assert "\n" not in message


def test_weights_that_cannot_be_downloaded_leave_nothing_behind(torch_home: Path, repository: Path) -> None:
    with pytest.raises(UserError, match="cannot download dinov2_vits14"):
        load_encoder("dinov2_vits14", hub_repo=repository)
    assert [path for path in torch_home.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_no_missing_network(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.hub.download_url_to_file", full)
    with pytest.raises(UserError, match=r"No space left on device.*set TORCH_HOME"):
        load_encoder("dinov2_vits14", hub_repo=repository)


@pytest.mark.parametrize("load", [load_encoder, load_hub_encoder])
def test_a_misspelled_name_gets_the_nearest_one(load: Any) -> None:
    with pytest.raises(UserError, match="Did you mean 'dinov2_vits14'"):
        load("dinov2_vit14s")


def test_a_folder_that_is_no_hub_repository_is_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(
        UserError, match=r"no hubconf.py: give `hub_repo` a clone of .*dinov2 at commit b8931f7"
    ):
        load_encoder("dinov2_vits14", weights, hub_repo=tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["x = ", "import no_such_module_anywhere\n", "dependencies = ['torch']\n"])
def test_a_repository_without_the_network_is_refused(damage: str, repository: Path, weights: Path) -> None:
    (repository / "hubconf.py").write_text(damage)
    with pytest.raises(UserError, match=r"does not build dinov2_vits14 \(.*give `hub_repo` a clone of"):
        load_encoder("dinov2_vits14", weights, hub_repo=repository)


def test_a_missing_weights_file_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no encoder weights at .*gone.pth: give `weights` the file"):
        load_encoder("dinov2_vits14", tmp_path / "gone.pth", repository)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_weights_file_is_refused(
    suffix: str, repository: Path, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"short{suffix}"
    if suffix == ".safetensors":
        save_file(torch.load(weights, weights_only=True), path)
    else:
        path.write_bytes(weights.read_bytes())
    for length in (0, 100, path.stat().st_size // 2):
        path.write_bytes(path.read_bytes()[:length] if length else b"")
        with pytest.raises(UserError, match="is not a readable weights file: fetch https"):
            load_encoder("dinov2_vits14", path, repository)


def test_a_damaged_download_says_what_to_delete(torch_home: Path, repository: Path) -> None:
    spec = HUB_ENCODERS["dinov2_vits14"]
    spec.weights.parent.mkdir(parents=True)
    spec.weights.write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"delete .*dinov2_vits14_pretrain.pth to download it again"):
        load_encoder("dinov2_vits14", hub_repo=repository)


def test_weights_are_never_unpickled(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "object.pth"
    torch.save({"network": Path("a pickled object")}, path)
    with pytest.raises(UserError, match="is not a readable weights file"):
        load_encoder("dinov2_vits14", path, repository)
    for text in ("a text", "root:x:0:0:root:/root:/bin/sh\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a readable weights file"):
            read_weights(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("norm.weight"), "norm.weight is missing"),
        (lambda s: s.update({"norm.weight": torch.ones(7)}), r"norm.weight is \(7,\) instead of \(12,\)"),
        (lambda s: s.update({"head.weight": torch.ones(7)}), "head.weight is not part of it"),
        (lambda s: s["norm.weight"].fill_(float("nan")), "norm.weight has NaN or infinite values"),
        (lambda s: s.update({"step": 3}), "it is no dictionary of tensors"),
    ],
)
def test_weights_of_another_network_are_refused(
    change: Any, said: str, repository: Path, weights: Path, tmp_path: Path
) -> None:
    state = torch.load(weights, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=rf"holds no weights of dinov2_vits14 \({said}\)"):
        load_encoder("dinov2_vits14", tmp_path / "wrong.pth", repository)
