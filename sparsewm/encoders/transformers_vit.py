"""Vision models of transformers: `hf:NAME_OR_FOLDER`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsewm.encoders.base import PatchEncoder, PatchFeatures, weights_hash, whole_patches
from sparsewm.encoders.dino import dino_hash, from_transformers
from sparsewm.encoders.fast import Fast
from sparsewm.encoders.timm_vit import SIDE
from sparsewm.errors import UserError, needs_extra

_UNUSED = ("mask_token", "pooler.", "head.", "text_")
"""Beginnings of names, below their module, of tensors that patch tokens do not depend on."""


class TransformersEncoder(PatchEncoder):
    """Patch tokens of the last layer of a vision model of transformers.

    Models of pictures and text (SigLIP, CLIP) are reduced to their vision tower.

    Args:
        model: a name on the hub, or a folder written by `save_pretrained`, for which the network is not used.

    Raises:
        UserError: transformers is not installed, the model cannot be had, or it has no patch tokens.
    """

    network: Any

    def __init__(self, model: str) -> None:
        super().__init__()
        self.name = f"hf:{model}"
        self.network, settings = _load(model)
        config = self.network.config
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int) or not hasattr(config, "hidden_size"):
            raise UserError(f"{model} has no patch tokens: give a vision transformer of transformers")
        self.patch, self.dim = patch, int(config.hidden_size)
        if "image_mean" in settings and "image_std" in settings:
            self.mean, self.std = tuple(settings["image_mean"]), tuple(settings["image_std"])
        self.options: dict[str, Any] = {}
        if "interpolate_pos_encoding" in inspect.signature(self.network.forward).parameters:
            self.options["interpolate_pos_encoding"] = True
        self.hash = _network_hash(self.network)
        self.fast = Fast()
        side = config.image_size if isinstance(getattr(config, "image_size", None), int) else SIDE
        self.resize((min(SIDE, side),) * 2)
        self.prefix = self._count_prefix(model)

    def _count_prefix(self, model: str) -> int:
        """Tokens before those of the patches, seen on one picture."""
        picture = torch.linspace(-1, 1, 3 * self.resolution[0] * self.resolution[1])
        picture = picture.view(1, 3, *self.resolution)
        try:
            first, second = self._forward(picture)[0], self._forward(picture)[0]
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"{model} does not work on pictures alone ({error}): give another vision transformer"
            ) from None
        if first.ndim != 3 or first.shape[1] < self.tokens or first.shape[2] != self.dim:
            raise UserError(f"{model} has no patch tokens: give a vision transformer of transformers")
        if not torch.equal(first, second):  # as ViTMAE, which shuffles and drops patches
            raise UserError(f"{model} gives other tokens every time: give another vision transformer")
        return int(first.shape[1]) - self.tokens

    def _forward(self, images: Tensor, attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """Normalised pictures -> all tokens (B, L, D), and attention (B, heads, L, L) of the last block."""
        options = self.options | ({"output_attentions": True} if attention else {})
        with torch.no_grad():
            output = self.network(pixel_values=images, **options)
        weights = getattr(output, "attentions", None) if attention else None
        return output.last_hidden_state, weights[-1] if weights else None

    def resize(self, resolution: tuple[int, int]) -> None:
        """See pictures of another (height, width), rounded to whole patches; positions are interpolated."""
        self.resolution = whole_patches(resolution, self.patch, self.name)

    def encode(self, pixels: Tensor | np.ndarray, attention: bool = False) -> PatchFeatures:
        return self.in_parts(self._encode, pixels, attention)

    def _encode(self, pixels: Tensor | np.ndarray, attention: bool) -> PatchFeatures:
        images = self.preprocess(pixels).to(next(self.parameters()))
        if not attention:
            tokens, every = self.fast(self.network, images), None
            if tokens is None:
                tokens, _ = self._forward(images)
        else:
            if not self.prefix:
                raise UserError(
                    f"encoder '{self.name}' has no attention of an image token to patches: choose tokens by "
                    "something else"
                )
            config = self.network.config
            usual, config._attn_implementation = config._attn_implementation, "eager"  # others return none
            try:
                tokens, every = self._forward(images, attention=True)
            finally:
                config._attn_implementation = usual
        patches = tokens[:, self.prefix :]
        cls = tokens[:, 0] if self.prefix else patches.mean(1)
        weights = None if every is None else every.mean(1)[:, 0, self.prefix :]
        return PatchFeatures(patches, cls, self.grid, weights)


def _load(model: str) -> tuple[Any, dict[str, Any]]:
    """The vision network with its weights, and the settings of its picture processor."""
    with needs_extra("encoders of transformers", "encoders"):
        from transformers import AutoModel
        from transformers.image_processing_base import ImageProcessingMixin
    folder = Path(model).expanduser()
    place, offline = (str(folder), True) if folder.is_dir() else (model, False)
    try:
        network = AutoModel.from_pretrained(place, local_files_only=offline, dtype=torch.float32)
    except Exception as error:  # transformers and its hub raise many kinds
        remedy = (
            "give a folder that save_pretrained wrote"
            if offline
            else "connect this machine to the network, give the folder of a downloaded model, or set HF_HOME"
        )
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot load {model} with transformers ({reason}): {remedy}") from None
    try:
        settings = ImageProcessingMixin.get_image_processor_dict(place, local_files_only=offline)[0]
    except Exception:  # models without a processor of their own
        settings = {}
    network = getattr(network, "vision_model", network)
    if hasattr(network, "use_head"):
        network.use_head = False
    return network.eval(), settings


def _network_hash(network: nn.Module) -> str:
    """Hash of what tokens depend on; that of the official weights where they are DINOv2's."""
    if type(network).__name__ in ("Dinov2Model", "Dinov2WithRegistersModel"):
        return dino_hash(from_transformers(network.state_dict()))
    state = network.state_dict()
    return weights_hash(
        {
            name: tensor
            for name, tensor in state.items()
            if not any(name.startswith(part) or f".{part}" in name for part in _UNUSED)
        }
    )
