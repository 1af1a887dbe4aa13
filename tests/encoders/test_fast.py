"""Networks of standard blocks run through packed weights, and all others as they are."""

from __future__ import annotations

import copy
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsewm.encoders import PatchEncoder, ViT
from sparsewm.encoders.dino import TimmDino
from sparsewm.encoders.fast import Fast
from sparsewm.encoders.hub import HubEncoder
from sparsewm.encoders.standard import standard

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 56, 56, 3), dtype=np.uint8)
IMAGES = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
WIDTH, HEADS, DEPTH = 64, 2, 2

# ------------------------------------------------- the official codes, as far as blocks go, in small


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(WIDTH, 96), nn.GELU()
        self.fc2, self.drop = nn.Linear(96, WIDTH), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * self.scale).softmax(-1)
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(WIDTH, 1e-6), Attention(), LayerScale()
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(WIDTH, 1e-6), Mlp(), LayerScale()
        self.drop_path1 = self.drop_path2 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DinoVisionTransformer(nn.Module):
    chunked_blocks = False

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = WIDTH
        self.patch_embed = nn.Conv2d(3, WIDTH, 14, 14)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, 1e-6)

    def prepare_tokens_with_masks(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        x = self.prepare_tokens_with_masks(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {"x_norm_clstoken": x[:, 0], "x_norm_patchtokens": x[:, 1:], "x_prenorm": x}


class DinoAttention(Attention):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class DinoBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path = nn.LayerNorm(WIDTH), DinoAttention(), nn.Identity()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))[0]
        return x + self.mlp(self.norm2(x))


class VisionTransformer(DinoVisionTransformer):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DinoBlock() for _ in range(DEPTH))

    def prepare_tokens(self, x: Tensor) -> Tensor:
        return self.prepare_tokens_with_masks(x)

    def get_intermediate_layers(self, images: Tensor, n: int = 1) -> list[Tensor]:
        x = self.prepare_tokens(images)
        for block in self.blocks:
            x = block(x)
        return [self.norm(x)]


PLACES: dict[type, tuple[str, str]] = {
    LayerScale: ("dinov2.layers.layer_scale", "LayerScale"),
    Block: ("dinov2.layers.block", "Block"),
    Attention: ("dinov2.layers.attention", "Attention"),
    Mlp: ("dinov2.layers.mlp", "Mlp"),
    DinoVisionTransformer: ("dinov2.models.vision_transformer", "DinoVisionTransformer"),
    DinoAttention: ("vision_transformer", "Attention"),
    DinoBlock: ("vision_transformer", "Block"),
    VisionTransformer: ("vision_transformer", "VisionTransformer"),
}


for _kind, (_module, _name) in PLACES.items():
    _kind.__module__, _kind.__qualname__ = _module, _name


@pytest.fixture(autouse=True)
def where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickling finds the classes above where the official ones are."""
    for kind, (module, name) in PLACES.items():
        parents = module.split(".")
        for i in range(len(parents)):
            place = ".".join(parents[: i + 1])
            if place not in sys.modules:
                monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
        monkeypatch.setattr(sys.modules[module], name, kind, raising=False)


# ------------------------------------------------------------------------------------------- families


def shaken(network: nn.Module) -> nn.Module:
    """With norms, biases and scales that matter, frozen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += (
                0.2
                * parameter.std(correction=0).clamp(min=0.5 if parameter.ndim == 1 else 0)
                * (torch.randn(parameter.shape, generator=generator))
            )
    return network.eval().requires_grad_(False)


def timm_network(name: str = "vit_small_patch14_dinov2", **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": 56, "num_classes": 0}
    return shaken(timm.create_model(name, **sizes | options))


def transformers_network(kind: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "mlp_ratio": 3}
    config = getattr(transformers, f"{kind}Config")(**sizes, image_size=56, patch_size=14, **options)
    return shaken(getattr(transformers, f"{kind}Model")(config))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "timm, DINOv2": timm_network,
    "timm, registers": lambda: timm_network("vit_small_patch14_reg4_dinov2"),
    "timm, augreg": lambda: timm_network("vit_small_patch16_224", patch_size=14, drop_path_rate=0.1),
    "timm, norm before": lambda: timm_network("vit_small_patch14_dinov2", pre_norm=True, qkv_bias=False),
    "DINOv2's code": lambda: shaken(DinoVisionTransformer()),
    "DINO's code": lambda: shaken(VisionTransformer()),
    "transformers, DINOv2": lambda: transformers_network("Dinov2", drop_path_rate=0.1),
    "transformers, registers": lambda: transformers_network("Dinov2WithRegisters", qkv_bias=False),
    "embedded": lambda: shaken(ViT(56, 14, WIDTH, DEPTH, HEADS, 16)),
}
families = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


def whole(network: nn.Module, images: Tensor) -> Tensor:
    """The tokens, by the network as it is."""
    found = standard(network)
    assert found is not None
    return found.whole(images)


@families
@pytest.mark.parametrize("inference", [True, False])
def test_tokens_are_the_networks(make: Callable[[], nn.Module], inference: bool) -> None:
    network = make()
    with torch.inference_mode(inference):
        found = Fast()(network, IMAGES)
        assert found is not None
        torch.testing.assert_close(found, whole(network, IMAGES), rtol=1e-4, atol=1e-5)


@families
def test_in_bfloat16_they_are_nearer_to_the_exact_ones(make: Callable[[], nn.Module]) -> None:
    network = make()
    with torch.inference_mode():
        exact = whole(network, IMAGES)
        rounded = copy.deepcopy(network).bfloat16()  # of inference tensors, as `fast_copy` makes them
        found, usual = Fast()(rounded, IMAGES.bfloat16()), whole(rounded, IMAGES.bfloat16())
    assert found is not None and found.dtype == torch.float32
    errors = [float((tokens - exact).norm() / exact.norm()) for tokens in (found, usual)]
    assert errors[0] < 0.02 and errors[0] < 1.1 * errors[1]


@families
@pytest.mark.parametrize("inference", [True, False])
def test_changed_weights_are_packed_again(make: Callable[[], nn.Module], inference: bool) -> None:
    network = make()

    def check() -> None:
        found = fast(network, IMAGES)
        assert found is not None
        torch.testing.assert_close(found, whole(network, IMAGES), rtol=1e-4, atol=1e-5)

    with torch.inference_mode(inference):
        if inference:
            network = copy.deepcopy(network)
        fast = Fast()
        check()
        weight = next(
            p for name, p in network.named_parameters() if name.endswith(("fc1.weight", "up.weight"))
        )
        weight.mul_(1.5)
        check()
        weight.data = 2 * weight.data
        check()
        state = {name: 0.9 * tensor for name, tensor in network.state_dict().items()}
        network.load_state_dict(state, assign=True)
        network.requires_grad_(False)
        check()


def test_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, fast = NETWORKS["DINOv2's code"](), Fast()
    fast(network, IMAGES)
    monkeypatch.setattr("sparsewm.encoders.fast.packed_vit", lambda *_: pytest.fail("packed again"))
    for count in (1, 2, 3):
        assert fast(network, IMAGES[:count]) is not None


# ------------------------------------------------------------------------------- what is not standard


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Derived(Block):
    pass


def hooked(network: Any) -> None:
    network.blocks[0].mlp.fc1.register_forward_hook(lambda *_: None)


def hooked_before(network: Any) -> None:
    network.blocks[1].register_forward_pre_hook(lambda *_: None)


def training(network: Any) -> None:
    network.blocks[0].train()


def another_block(network: Any) -> None:
    network.blocks[1] = Own().eval()


def derived(network: Any) -> None:
    network.blocks[1] = Derived().eval()


def patched(network: Any) -> None:
    block = network.blocks[0]
    block.forward = lambda x: x


def tanh(network: Any) -> None:
    network.blocks[0].mlp.act = nn.GELU(approximate="tanh").eval()


def another_activation(network: Any) -> None:
    network.blocks[0].mlp.act = nn.SiLU().eval()


def another_scale(network: Any) -> None:
    network.blocks[0].attn.scale = 1.0


def more_parts(network: Any) -> None:
    network.blocks[0].attn.gate = nn.Linear(WIDTH, WIDTH).eval()


def adapted(network: Any) -> None:
    nn.utils.parametrizations.weight_norm(network.blocks[0].mlp.fc1)


@pytest.mark.parametrize(
    "change",
    [
        hooked,
        hooked_before,
        training,
        another_block,
        derived,
        patched,
        tanh,
        another_activation,
        another_scale,
        more_parts,
        adapted,
    ],
)
def test_what_is_changed_runs_as_it_is(change: Callable[[Any], None]) -> None:
    network, fast = shaken(DinoVisionTransformer()), Fast()
    with torch.no_grad():
        assert fast(network, IMAGES) is not None
        change(network)
        assert fast(network, IMAGES) is None


def parallel(self: Any, x: Tensor) -> Tensor:
    return x + self.ls1(self.attn(self.norm1(x))) + self.ls2(self.mlp(self.norm2(x)))


def a_little_more(self: Any, x: Tensor) -> Tensor:
    x = x + 1.05 * self.ls1(self.attn(self.norm1(x)))
    return x + self.ls2(self.mlp(self.norm2(x)))


@pytest.mark.parametrize("forward", [parallel, a_little_more])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_that_compute_otherwise_are_found_out(
    dtype: torch.dtype, forward: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network, fast = shaken(DinoVisionTransformer()).to(dtype), Fast()
    monkeypatch.setattr(Block, "forward", forward)
    assert standard(network) is not None
    for _ in range(2):
        assert fast(network, IMAGES.to(dtype)) is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch14_dinov2", {"qk_norm": True}),
        ("vit_small_patch14_dinov2", {"scale_attn_norm": True}),
        ("vit_small_patch14_dinov2", {"scale_mlp_norm": True}),
        ("vit_small_patch14_dinov2", {"act_layer": "gelu_tanh"}),
        ("vit_giant_patch14_dinov2", {"mlp_ratio": 4}),  # SwiGLU
        ("eva02_tiny_patch14_224", {}),  # rotary positions
        ("vit_small_patch14_dinov2", {"final_norm": False}),
    ],
)
def test_other_networks_of_timm_run_as_they_are(name: str, options: dict[str, Any]) -> None:
    assert standard(timm_network(name, **options)) is None


def test_other_networks_of_transformers_run_as_they_are() -> None:
    assert standard(transformers_network("Dinov2", use_swiglu_ffn=True)) is None
    assert standard(transformers_network("Dinov2", hidden_act="gelu_new")) is None


def test_weights_that_learn_other_precisions_and_casts_run_as_they_are() -> None:
    network, fast = shaken(DinoVisionTransformer()), Fast()
    assert fast(network, IMAGES[:0]) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(network, IMAGES) is None
    assert fast(copy.deepcopy(network).double(), IMAGES.double()) is None
    network.requires_grad_(True)
    assert fast(network, IMAGES) is None
    with torch.no_grad():
        assert fast(network, IMAGES) is not None


# ------------------------------------------------------------------------------------------- encoders


@pytest.fixture(params=["embedded", "hub", "timm's DINOv2"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[PatchEncoder]:
    if request.param == "embedded":
        network = shaken(ViT(56, 14, WIDTH, DEPTH, HEADS, 16))
        assert isinstance(network, ViT)
        yield network.freeze()
        return
    network = shaken(DinoVisionTransformer())
    if request.param != "hub":
        timm, usual = pytest.importorskip("timm"), None
        usual = timm.create_model
        sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
        monkeypatch.setattr(timm, "create_model", lambda *names, **options: usual(*names, **options | sizes))
        network = shaken(TimmDino("dinov2_vits14"))
    yield HubEncoder("dinov2_vits14", network, dict(network.state_dict()), (56, 56)).freeze()


def packed(encoder: PatchEncoder) -> bool:
    return encoder.fast._vit is not None  # type: ignore[attr-defined,no-any-return]


def test_encoders_give_the_networks_tokens_with_attention_and_without(encoder: PatchEncoder) -> None:
    found, usual = encoder.encode(FRAMES), encoder.encode(FRAMES, attention=True)
    assert packed(encoder) and usual.attention is not None and usual.attention.shape == (3, 16)
    torch.testing.assert_close(found.patches, usual.patches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cls, usual.cls, rtol=1e-4, atol=1e-5)


def test_many_pictures_go_through_in_parts(encoder: PatchEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (11, 56, 56, 3), dtype=np.uint8)
    together, attention = encoder.encode(frames), encoder.encode(frames, attention=True)
    monkeypatch.setattr("sparsewm.encoders.base.PART", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    seen: list[int] = []
    prepare = PatchEncoder.preprocess
    monkeypatch.setattr(PatchEncoder, "preprocess", lambda self, x: seen.append(len(x)) or prepare(self, x))
    found = encoder.encode(frames)
    assert seen == [4, 4, 3]
    torch.testing.assert_close(found.patches, together.patches, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cls, together.cls, rtol=1e-5, atol=1e-5)
    again = encoder.encode(torch.from_numpy(frames), attention=True)
    torch.testing.assert_close(again.attention, attention.attention, rtol=1e-5, atol=1e-6)


def test_copies_pack_their_own_weights(encoder: PatchEncoder) -> None:
    before, names = encoder.encode(FRAMES).patches, list(encoder.state_dict())
    copies = [copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))]
    for other in copies:
        assert not packed(other) and list(other.state_dict()) == names
        for parameter in other.parameters():
            parameter.mul_(0.9)
        usual = other.encode(FRAMES, attention=True).patches
        torch.testing.assert_close(other.encode(FRAMES).patches, usual, rtol=1e-4, atol=1e-5)
    assert torch.equal(encoder.encode(FRAMES).patches, before)


def test_a_precision_of_its_own_after_to(encoder: PatchEncoder) -> None:
    exact = encoder.encode(FRAMES).patches
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        encoder.to(dtype)
        found = encoder.encode(FRAMES).patches.float()
        assert float((found - exact).norm() / exact.norm()) < 0.03


def test_in_bfloat16_a_picture_does_not_see_the_others(encoder: PatchEncoder) -> None:
    """Bit for bit where blocks are one compiled call."""
    from sparsewm.kernels.vit import CompiledVit

    encoder.bfloat16()
    together = encoder.encode(FRAMES).patches
    alone = torch.cat([encoder.encode(FRAMES[i : i + 1]).patches for i in range(3)])
    if isinstance(encoder.fast._vit, CompiledVit) and isinstance(encoder, HubEncoder):  # type: ignore[attr-defined]
        assert torch.equal(together, alone)
    torch.testing.assert_close(together, alone, rtol=0.02, atol=0.02)
