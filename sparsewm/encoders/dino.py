"""The tensors of DINO and DINOv2 under their official names, and their networks built by timm.

The same weights come from torch.hub, timm and transformers, where tensors are named and cut differently.
They are recognised as the same by `dino_hash`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.encoders.base import weights_hash

_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_FROM_TIMM = {"reg_token": "register_tokens"}
_FROM_TRANSFORMERS = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
)


def dino_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of official weights, whatever brought them: only tensors that tokens depend on.

    The place of the class token is part of that token (timm stores the sum), and the mask token is left out.
    """
    found = {name: tensor.float() for name, tensor in state.items() if name != "mask_token"}
    if "pos_embed" in found and "cls_token" in found:
        places = found["pos_embed"]
        if round((places.shape[1] - 1) ** 0.5) ** 2 == places.shape[1] - 1:
            found |= {"cls_token": found["cls_token"] + places[:, :1], "pos_embed": places[:, 1:]}
    return weights_hash(found)


def from_timm(network: Any) -> dict[str, Tensor]:
    """The state of timm's vision transformer under official names."""
    state = {_FROM_TIMM.get(name, name): tensor for name, tensor in network.state_dict().items()}
    if any(name.endswith("ls1.gamma") for name in state) and "Glu" in type(network.blocks[0].mlp).__name__:
        state = {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for n, t in state.items()}
    return state


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of transformers' Dinov2Model, with registers or without, under official names."""
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key
        if ".attention.attention." in name:
            if ".query." not in name:
                continue
            tensor = torch.cat([state[key.replace("query", part)] for part in ("query", "key", "value")])
            name = name.replace("attention.attention.query", "attn.qkv")
        for pattern, official in _FROM_TRANSFORMERS:
            name = re.sub(pattern, official, name)
        found[name.replace("embeddings.mask_token", "mask_token")] = tensor
    return found


class TimmDino(nn.Module):
    """The network of a hub encoder built by timm, for machines on which the hub's code cannot be had.

    Positions are interpolated as the official code does it, so that the tokens are the same.

    Args:
        name: one of `HUB_ENCODERS`.

    Raises:
        ImportError: timm is not installed.
    """

    network: Any
    places: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        second, self.registers = name.startswith("dinov2_"), name.endswith("_reg")
        found = re.match(r"dino(?:v2)?_vit([sblg])(\d+)", name)
        assert found is not None
        size, self.patch = _SIZES[found[1]], int(found[2])
        model, side = f"vit_{size}_patch{self.patch}_224", 224
        if second:
            model, side = f"vit_{size}_patch{self.patch}{'_reg4' if self.registers else ''}_dinov2", 518
        self.network = timm.create_model(model, num_classes=0, img_size=side)
        self.side, self.embed_dim, self.blocks = (
            side // self.patch,
            self.network.embed_dim,
            self.network.blocks,
        )
        places = torch.zeros(1, 1 + self.side**2, self.embed_dim)
        self.register_buffer("places", places, persistent=False)
        mask = {"mask_token": torch.zeros(1, self.embed_dim)} if second else {}
        self.official = {**from_timm(self.network), "pos_embed": places, **mask}
        """What an official state dict must hold: names, and tensors of the right shapes."""

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of an official state dict, which has the names and shapes of `official`."""
        self.official = {}
        self.places = state["pos_embed"].float()
        names = {official: name for name, official in _FROM_TIMM.items()}
        found = {names.get(name, name): tensor for name, tensor in state.items() if name != "mask_token"}
        found = {n.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): t for n, t in found.items()}
        if self.registers:
            found["cls_token"] = found["cls_token"] + self.places[:, :1]
        found["pos_embed"] = self.places[:, 1:] if self.registers else self.places
        self.network.load_state_dict(found)

    def resize(self, resolution: tuple[int, int]) -> None:
        """See pictures of another (height, width), in whole patches."""
        self.network.set_input_size(resolution)
        rows, cols = resolution[0] // self.patch, resolution[1] // self.patch
        places = self.places[:, 1:]
        if (rows, cols) != (self.side, self.side):
            options: dict[str, Any] = {"size": (rows, cols), "antialias": True}
            if not self.registers:  # as the official code: an offset that keeps rounding from losing a row
                options = {"scale_factor": ((rows + 0.1) / self.side, (cols + 0.1) / self.side)}
            square = places.float().reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
            places = F.interpolate(square, mode="bicubic", **options).flatten(2).transpose(1, 2)
        if not self.registers:
            places = torch.cat([self.places[:, :1], places.to(self.places)], 1)
        old = self.network.pos_embed
        self.network.pos_embed = nn.Parameter(places.to(old), requires_grad=old.requires_grad)

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        """Pictures (B, 3, height, width) -> tokens, under the names of DINOv2's own code."""
        tokens = self.network.forward_features(images)
        first = self.network.num_prefix_tokens
        return {"x_norm_clstoken": tokens[:, 0], "x_norm_patchtokens": tokens[:, first:]}


def cls_attention(qkv: Tensor, heads: int) -> Tensor:
    """Attention of the first token to all tokens, averaged over heads: qkv (B, L, 3 * D) -> (B, L)."""
    b, length, _ = qkv.shape
    q, k, _ = qkv.view(b, length, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, L, D / heads)
    scores = (q[:, :, :1] * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, heads, 1, L)
    return scores.softmax(-1).mean(1)[:, 0]


@contextlib.contextmanager
def recorded_qkv(network: Any, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects what the last block's qkv layer returns, so that attention costs no second pass."""
    recorded: list[Tensor] = []
    if not wanted:
        yield recorded
        return
    handle = network.blocks[-1].attn.qkv.register_forward_hook(lambda _m, _i, out: recorded.append(out))
    try:
        yield recorded
    finally:
        handle.remove()
