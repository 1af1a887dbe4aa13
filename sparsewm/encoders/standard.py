"""Recognises networks that are stacks of standard pre-norm blocks, whoever wrote them.

Types are compared by name: the libraries need not be installed, and a class of one's own, even if derived
from one of theirs, is not taken for what it may not be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.kernels import Affine, VitBlock


@dataclass(frozen=True)
class Standard:
    """A network taken apart.

    Attributes:
        embed: normalised pictures (B, 3, H, W) -> tokens (B, L, W) before the first block.
        blocks, norm: what follows.
        whole: pictures -> normalised tokens (B, L, W), by the network as it is.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: Sequence[VitBlock]
    norm: Affine
    whole: Callable[[Tensor], Tensor]

    def tensors(self) -> list[Tensor]:
        """Parameters of the blocks and the norm."""
        last = [self.norm.weight] if self.norm.bias is None else [self.norm.weight, self.norm.bias]
        return [tensor for block in self.blocks for tensor in block.tensors()] + last


class Unknown(Exception):
    """The network is none of them."""


def standard(network: Any) -> Standard | None:
    """A network of timm, DINO's or DINOv2's own code, transformers or ours, taken apart; None for others."""
    take = _NETWORKS.get(_name(network))
    if take is None:
        return None
    try:
        _plain(network)
        return take(network)
    except (Unknown, AttributeError):
        return None


def _timm(network: Any) -> Standard:
    _need(not network.grad_checkpointing)

    def embed(images: Tensor) -> Tensor:
        tokens: Tensor = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))
        return tokens

    return _of_official(network, network.blocks, embed, network.forward_features)


def _dinov2(network: Any) -> Standard:
    def whole(images: Tensor) -> Tensor:
        x = network.prepare_tokens_with_masks(images)
        for block in network.blocks:
            x = block(x)
        return network.norm(x)  # type: ignore[no-any-return]

    return _of_official(network, network.blocks, network.prepare_tokens_with_masks, whole)


def _dino(network: Any) -> Standard:
    def whole(images: Tensor) -> Tensor:
        return network.get_intermediate_layers(images, n=1)[0]  # type: ignore[no-any-return]

    return _of_official(network, network.blocks, network.prepare_tokens, whole)


def _of_official(
    network: Any, blocks: Any, embed: Callable[[Tensor], Tensor], whole: Callable[[Tensor], Tensor]
) -> Standard:
    """A network whose parts have the names of the official code."""
    _need(type(blocks) in (nn.ModuleList, nn.Sequential))
    _plain(blocks)
    return Standard(embed, [_official_block(block) for block in blocks], _norm(network.norm), whole)


def _official_block(block: Any) -> VitBlock:
    """A block of timm, or of DINO's or DINOv2's own code."""
    _need(_name(block) in _BLOCKS)
    parts = _children(block, "norm1 attn norm2 mlp", "ls1 ls2 drop_path drop_path1 drop_path2")
    attention: Any = parts["attn"]
    mlp = parts["mlp"]
    _need(_name(attention) in _ATTENTIONS and _name(mlp) in _MLPS)
    inner = _children(attention, "qkv proj", "attn_drop proj_drop q_norm k_norm norm gate")
    hidden = _children(mlp, "fc1 act fc2", "drop drop1 drop2 norm")
    for name, part in (*parts.items(), *inner.items(), *hidden.items()):
        if name.startswith(("attn_drop", "proj_drop", "drop")):
            _need(type(part) in (nn.Dropout, nn.Identity) or _name(part) in _DROP_PATHS)
        elif name in ("q_norm", "k_norm", "norm"):
            _need(type(part) is nn.Identity)
        _need(name != "gate")
    _need(_exact_gelu(hidden["act"]))
    heads = int(attention.num_heads)
    width = _norm(parts["norm1"]).weight.shape[0]
    _need(abs(float(attention.scale) * (width // heads) ** 0.5 - 1) < 1e-6)
    return _checked(
        VitBlock(
            heads,
            _norm(parts["norm1"]),
            (_linear(inner["qkv"]),),
            _linear(inner["proj"]),
            _norm(parts["norm2"]),
            _linear(hidden["fc1"]),
            _linear(hidden["fc2"]),
            _scale(parts.get("ls1")),
            _scale(parts.get("ls2")),
        )
    )


def _embedded(network: Any) -> Standard:
    def embed(images: Tensor) -> Tensor:
        tokens: Tensor = network.with_cls(network.patchify(images))
        return tokens

    def whole(images: Tensor) -> Tensor:
        x = embed(images)
        for block in network.blocks:
            x, _ = block(x)
        return network.norm(x)  # type: ignore[no-any-return]

    blocks = []
    for block in network.blocks:
        _need(_name(block) == "sparsewm.encoders.embedded.Block")
        parts = _children(block, "norm1 qkv out norm2 up down", "")
        qkv, out, up, down = (_linear(parts[name]) for name in ("qkv", "out", "up", "down"))
        norms = _norm(parts["norm1"]), _norm(parts["norm2"])
        blocks.append(_checked(VitBlock(block.heads, norms[0], (qkv,), out, norms[1], up, down)))
    return Standard(embed, blocks, _norm(network.norm), whole)


def _transformers(network: Any) -> Standard:
    def whole(images: Tensor) -> Tensor:
        return network(pixel_values=images).last_hidden_state  # type: ignore[no-any-return]

    layers = network.encoder.layer
    _need(type(layers) is nn.ModuleList)
    _plain(network.encoder)
    _plain(layers)
    blocks = [_transformers_block(layer) for layer in layers]
    return Standard(network.embeddings, blocks, _norm(network.layernorm), whole)


def _transformers_block(layer: Any) -> VitBlock:
    """A layer of Dinov2Model, with registers or without."""
    kind = _name(layer).removesuffix("Layer")
    parts = _children(layer, "norm1 attention layer_scale1 norm2 mlp layer_scale2", "drop_path")
    outer = _children(parts["attention"], "attention output", "")
    inner = _children(outer["attention"], "query key value", "dropout")
    out = _children(outer["output"], "dense dropout", "")
    hidden = _children(parts["mlp"], "fc1 activation fc2", "")
    found = [parts[name] for name in ("attention", "mlp", "layer_scale1", "layer_scale2")]
    found += [outer["attention"], outer["output"]]
    endings = ("Attention", "MLP", "LayerScale", "LayerScale", "SelfAttention", "SelfOutput")
    _need(kind in _TRANSFORMERS and [_name(part) for part in found] == [kind + end for end in endings])
    drop = parts.get("drop_path", nn.Identity())
    _need(type(drop) is nn.Identity or _name(drop) == kind + "DropPath")
    _need(_exact_gelu(hidden["activation"]))
    attention: Any = outer["attention"]
    scales: list[Any] = [parts["layer_scale1"], parts["layer_scale2"]]
    return _checked(
        VitBlock(
            int(attention.num_attention_heads),
            _norm(parts["norm1"]),
            tuple(_linear(inner[name]) for name in ("query", "key", "value")),
            _linear(out["dense"]),
            _norm(parts["norm2"]),
            _linear(hidden["fc1"]),
            _linear(hidden["fc2"]),
            scales[0].lambda1,
            scales[1].lambda1,
        )
    )


_NETWORKS: dict[str, Callable[[Any], Standard]] = {
    "timm.models.vision_transformer.VisionTransformer": _timm,
    "dinov2.models.vision_transformer.DinoVisionTransformer": _dinov2,
    "vision_transformer.VisionTransformer": _dino,
    "sparsewm.encoders.embedded.ViT": _embedded,
    "transformers.models.dinov2.modeling_dinov2.Dinov2Model": _transformers,
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers."
    "Dinov2WithRegistersModel": _transformers,
}
_TRANSFORMERS = [name.removesuffix("Model") for name in _NETWORKS if name.startswith("transformers.")]
_BLOCKS = (
    "timm.models.vision_transformer.Block",
    "dinov2.layers.block.Block",
    "dinov2.layers.block.NestedTensorBlock",
    "vision_transformer.Block",
)
_ATTENTIONS = (
    "timm.layers.attention.Attention",
    "timm.models.vision_transformer.Attention",
    "dinov2.layers.attention.Attention",
    "dinov2.layers.attention.MemEffAttention",
    "vision_transformer.Attention",
)
_MLPS = ("timm.layers.mlp.Mlp", "dinov2.layers.mlp.Mlp", "vision_transformer.Mlp")
_SCALES = (
    "timm.layers.layer_scale.LayerScale",
    "timm.models.vision_transformer.LayerScale",
    "dinov2.layers.layer_scale.LayerScale",
)
_DROP_PATHS = (
    "timm.layers.drop.DropPath",
    "dinov2.layers.drop_path.DropPath",
    "vision_transformer.DropPath",
)
_NORMS = ("torch.nn.modules.normalization.LayerNorm", "timm.layers.norm.LayerNorm")
_GELUS = (
    "torch.nn.modules.activation.GELU",
    "timm.layers.activations.GELU",
    "transformers.activations.GELUActivation",
)


def _need(what: bool) -> None:
    if not what:
        raise Unknown


def _name(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _plain(module: nn.Module) -> None:
    """Nothing is hung on a module, and it is not training."""
    _need(not (module.training or module._forward_hooks or module._forward_pre_hooks))
    _need("forward" not in module.__dict__)


def _children(module: nn.Module, needed: str, known: str) -> dict[str, nn.Module]:
    """A module's parts, if it has all that are needed and none that are not known."""
    _plain(module)
    parts = {name: part for name, part in module._modules.items() if part is not None}
    _need(set(needed.split()) <= parts.keys() <= {*needed.split(), *known.split()})
    _need(not module._parameters)
    for part in parts.values():
        _plain(part)
    return parts


def _linear(layer: nn.Module) -> Affine:
    _need(type(layer) is nn.Linear)
    assert isinstance(layer, nn.Linear)
    return Affine(layer.weight, layer.bias)


def _norm(layer: nn.Module) -> Affine:
    _need(_name(layer) in _NORMS and not getattr(layer, "_fast_norm", False))
    assert isinstance(layer, nn.LayerNorm)
    _plain(layer)
    _need(layer.weight is not None and layer.normalized_shape == tuple(layer.weight.shape))
    return Affine(layer.weight, layer.bias, layer.eps)


def _scale(layer: Any) -> Tensor | None:
    if layer is None or type(layer) is nn.Identity:
        return None
    _need(_name(layer) in _SCALES)
    gamma: Tensor = layer.gamma
    return gamma


def _exact_gelu(layer: Any) -> bool:
    """Whether an activation is GELU itself, none of its approximations."""
    if getattr(layer, "approximate", "none") != "none":
        return False
    return _name(layer) in _GELUS and getattr(layer, "act", F.gelu) is F.gelu


def _checked(block: VitBlock) -> VitBlock:
    """A block, if its sizes are those of one."""
    width, mlp = block.width, len(block.up.weight)
    _need(width % block.heads == 0)
    _need(sum(len(part.weight) for part in block.qkv) == 3 * width)
    _need(all(part.weight.shape[1] == width for part in (*block.qkv, block.up)))
    _need(block.out.weight.shape == (width, width) and block.down.weight.shape == (width, mlp))
    return block
