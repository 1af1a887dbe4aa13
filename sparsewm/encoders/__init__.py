"""Frozen patch encoders: the embedded default, DINO and DINOv2 through torch.hub."""

from __future__ import annotations

from pathlib import Path

import torch

from sparsewm.encoders.base import ClsOnly, PatchEncoder, PatchFeatures, weights_hash
from sparsewm.encoders.embedded import ViT, load_embedded, random_twin
from sparsewm.encoders.hub import HUB_ENCODERS, load_hub_encoder
from sparsewm.errors import UserError, suggest

_NETWORKS = ("embedded", "random", *HUB_ENCODERS)
ENCODERS = (*_NETWORKS, *(f"{name}:cls" for name in _NETWORKS))

__all__ = [
    "ENCODERS",
    "ClsOnly",
    "PatchEncoder",
    "PatchFeatures",
    "ViT",
    "load_encoder",
    "random_twin",
    "weights_hash",
]


def load_encoder(
    name: str = "embedded",
    weights: str | Path | None = None,
    hub_repo: str | Path | None = None,
    device: str | torch.device = "cpu",
    expected_hash: str | None = None,
) -> PatchEncoder:
    """A frozen patch encoder by name.

    Args:
        name: one of `ENCODERS`; ``"random"`` is the embedded network untrained (a control), a name with
            ``:cls`` the same encoder reduced to its image token (a yardstick).
        weights: local weights file instead of the shipped or downloaded one.
        hub_repo: local clone of the hub repository, for machines without network.
        device: where to put it.
        expected_hash: SHA-256 the weights must have, from a checkpoint's metadata.

    Raises:
        UserError: unknown name, missing or unsuitable weights, no network, or a hash that differs.
    """
    if name not in ENCODERS:
        raise UserError(
            f"unknown encoder '{name}'.{suggest(name, ENCODERS)} Known: {', '.join(_NETWORKS)}, each also "
            "with :cls"
        )
    if name.endswith(":cls"):
        network = load_encoder(name.removesuffix(":cls"), weights, hub_repo, device, expected_hash)
        return ClsOnly(network).freeze()
    if name in HUB_ENCODERS:
        encoder: PatchEncoder = load_hub_encoder(name, weights=weights, hub_repo=hub_repo)
    elif name == "random":
        encoder = random_twin(ViT())
    else:
        encoder = load_embedded(weights, expected_hash)
    if expected_hash is not None and encoder.hash != expected_hash:
        raise UserError(
            f"the weights of encoder '{name}' differ from those this checkpoint was trained with "
            f"({encoder.hash[:12]} instead of {expected_hash[:12]}): give the original file with "
            "--encoder-weights"
        )
    return encoder.to(device)
