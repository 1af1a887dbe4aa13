"""Vision transformers of timm: `timm:NAME`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsewm.encoders.base import PatchEncoder, PatchFeatures, weights_hash, whole_patches
from sparsewm.encoders.dino import dino_hash, from_timm
from sparsewm.encoders.fast import Fast
from sparsewm.encoders.weights import read_weights
from sparsewm.errors import UserError, needs_extra, suggest

_LEFT_OUT = ("head", "head_dist", "fc_norm", "attn_pool", "mask_token")
"""Parts of networks in files of weights that patch tokens do not depend on."""

SIDE = 224
"""Side of the picture in pixels, unless another is asked for or the network was trained on smaller ones."""


class TimmEncoder(PatchEncoder):
    """Patch tokens of the last layer of a vision transformer of timm.

    Args:
        model: a name of `timm.list_models()`, with a tag of its weights or without, e.g.
            ``"vit_small_patch14_dinov2.lvd142m"``, ``"vit_base_patch16_siglip_224"``, ``"hf-hub:user/name"``.
        weights: local ``.safetensors`` or ``.pth`` file in place of the download.

    Raises:
        UserError: timm is not installed or does not know the name, it is no transformer with patch tokens,
            or its weights cannot be had or do not fit.
    """

    network: Any

    def __init__(self, model: str, weights: str | Path | None = None) -> None:
        super().__init__()
        self.name = f"timm:{model}"
        self.network = network = _create(model, weights)
        prefix = getattr(network, "num_prefix_tokens", None)
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        if prefix is None or patch is None or not hasattr(network, "blocks"):
            raise UserError(f"timm's {model} has no patch tokens: give a vision transformer (vit_...)")
        self.prefix, self.patch = int(prefix), int(patch[0])
        self.dim = int(network.embed_dim)
        network.reset_classifier(0, "")  # no head, no pooling: they do not change tokens
        self.has_cls = getattr(network, "cls_token", None) is not None
        settings = network.pretrained_cfg
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])
        self.hash = _network_hash(network)
        self.fast = Fast()
        self.resize((min(SIDE, settings["input_size"][1]),) * 2)
        tokens = network(torch.zeros(1, 3, *self.resolution)) if network.eval() else None
        if tokens is None or tokens.ndim != 3 or tokens.shape[1] != self.prefix + self.tokens:
            raise UserError(f"timm's {model} has no patch tokens: give a vision transformer (vit_...)")

    def resize(self, resolution: tuple[int, int]) -> None:
        """See pictures of another (height, width), rounded to whole patches; positions are interpolated."""
        self.resolution = whole_patches(resolution, self.patch, self.name)

    def encode(self, pixels: Tensor | np.ndarray, attention: bool = False) -> PatchFeatures:
        return self.in_parts(self._encode, pixels, attention)

    def _encode(self, pixels: Tensor | np.ndarray, attention: bool) -> PatchFeatures:
        images = self.preprocess(pixels).to(next(self.parameters()))
        tokens, recorded = None if attention else self.fast(self.network, images), []
        if tokens is None:
            with _recorded_attention(self.network, attention) as recorded:
                tokens = self.network.forward_features(images)
        patches = tokens[:, self.prefix :]
        cls = tokens[:, 0] if self.has_cls else patches.mean(1)
        weights = None
        if attention:
            if not self.has_cls or not recorded:
                raise UserError(
                    f"encoder '{self.name}' has no attention of an image token to patches: choose tokens by "
                    "something else"
                )
            weights = recorded[0].mean(1)[:, 0, self.prefix :]
        return PatchFeatures(patches, cls, self.grid, weights)


def _create(model: str, weights: str | Path | None) -> Any:
    """The network with its weights."""
    with needs_extra("encoders of timm", "encoders"):
        import timm
    path = None if weights is None else Path(weights).expanduser()
    if path is not None and not path.is_file():
        raise UserError(f"no encoder weights at {path}: give `weights` a .safetensors or .pth file")
    if not model.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(model.split(".")[0]):
        raise UserError(
            f"timm knows no model '{model}'.{suggest(model, timm.list_models())} See timm.list_models()"
        )
    try:
        network = timm.create_model(model, pretrained=path is None, num_classes=0, dynamic_img_size=True)
    except TypeError as error:
        raise UserError(
            f"timm's {model} takes no pictures of other sizes ({error}): give a vision transformer"
        ) from None
    except Exception as error:  # timm, its hub and its readers raise many kinds
        raise UserError(
            f"cannot get the weights of timm's {model} ({str(error)[:200]}): connect this machine to the "
            "network, give `weights` a local file, or set HF_HOME to a folder where another machine has "
            "downloaded them"
        ) from None
    if path is not None:
        _fill(network, model, path)
    return network


def _fill(network: Any, model: str, path: Path) -> None:
    """Load a file into a network, by the conversions that timm has for it, if all of it is there."""
    state = read_weights(path)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", lambda found, _: found)
    try:
        missing, unknown = network.load_state_dict(convert(state, network), strict=False)
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds no weights of {model} ({' '.join(str(error).split())[:200]})"
        ) from None
    unknown = [name for name in unknown if name.split(".")[0] not in _LEFT_OUT]
    for names, said in ((missing, "is missing"), (unknown, "is not part of it")):
        if names:
            raise UserError(f"{path} holds no weights of {model} ({names[0]} {said}): give another file")


def _network_hash(network: nn.Module) -> str:
    """Hash of a network without head; that of the official weights where they are DINO's or DINOv2's."""
    import timm

    if isinstance(network, timm.models.VisionTransformer):
        return dino_hash(from_timm(network))
    return weights_hash(network)


@contextlib.contextmanager
def _recorded_attention(network: Any, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects the attention (B, heads, L, L) of the last block, which computes it in the open for once."""
    recorded: list[Tensor] = []
    layer = network.blocks[-1].attn
    if not wanted or not hasattr(layer, "attn_drop"):
        yield recorded
        return
    fused, layer.fused_attn = layer.fused_attn, False
    handle = layer.attn_drop.register_forward_hook(lambda _m, _i, out: recorded.append(out))
    try:
        yield recorded
    finally:
        handle.remove()
        layer.fused_attn = fused
