"""A frozen network through packed weights, where it is a standard vision transformer."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsewm.encoders.standard import Standard, standard
from sparsewm.kernels import PackedVit, packed_vit

TOLERANCE = 1e-4
"""How much packed tokens of a picture may differ from the network's in float32, as a share of these."""
ROUNDING = 2.0
"""In bfloat16 both round: how many times as far from float32 as the network's own packed tokens may be."""


class Fast:
    """Packs the blocks of a network when they are first wanted, and again when their weights have changed.

    It is no part of the network: that stays what it is to torch, and copies pack their own weights.
    """

    def __init__(self) -> None:
        self._vit: PackedVit | None = None
        self._of: list[tuple[Tensor, int, int]] = []  # tensors, where they lay, their versions

    def __call__(self, network: nn.Module, images: Tensor) -> Tensor | None:
        """Normalised pictures (B, 3, H, W) -> normalised tokens (B, L, W), those before the patches included.

        None where the network has to run as it is: it is no stack of standard blocks, its weights still
        learn, or it is on another device or in another precision.
        """
        if images.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not len(images):
            return None
        found = standard(network)
        if found is None:
            return None
        tensors, dtype = found.tensors(), images.dtype
        if dtype not in (torch.float32, torch.bfloat16) or any(_unfit(tensor, images) for tensor in tensors):
            return None
        state = [(tensor, tensor.data_ptr(), _version(tensor)) for tensor in tensors]
        if len(state) != len(self._of) or any(
            new[0] is not old[0] or new[1:] != old[1:] for new, old in zip(state, self._of, strict=True)
        ):
            self._vit, self._of = self._packed(network, found, images[:1]), state
        return None if self._vit is None else self._vit(found.embed(images))

    @staticmethod
    def _packed(network: nn.Module, found: Standard, like: Tensor) -> PackedVit | None:
        """The blocks, packed, if they give the tokens that the network gives, of a random picture."""
        with torch.inference_mode(False), torch.no_grad():
            vit = packed_vit(found.blocks, found.norm)
            picture = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like.dtype)
            tokens, usual = vit(found.embed(picture)), found.whole(picture).float()
            if like.dtype == torch.float32:
                allowed = TOLERANCE * usual.norm()
                return vit if bool((tokens - usual).norm() <= allowed) else None
            exact = standard(copy.deepcopy(network).float())
            assert exact is not None  # as the network is
            expected = exact.whole(picture.float())
            allowed = ROUNDING * (usual - expected).norm()
            return vit if bool((tokens - expected).norm() <= allowed) else None

    def __getstate__(self) -> dict[str, Any]:
        """Copies pack their own weights."""
        return self.__dict__ | {"_vit": None, "_of": []}


def _unfit(tensor: Tensor, images: Tensor) -> bool:
    learns = tensor.requires_grad and torch.is_grad_enabled()
    return learns or tensor.dtype != images.dtype or tensor.device != images.device


def _version(tensor: Tensor) -> int:
    """Another number when a tensor has changed; inference tensors do not count: their bits are summed."""
    if not tensor.is_inference():
        return tensor._version
    bits = tensor.contiguous().view(torch.uint8).flatten().numpy()
    words = len(bits) // 8 * 8
    return int(bits[:words].view(np.uint64).sum()) + int(bits[words:].sum())
