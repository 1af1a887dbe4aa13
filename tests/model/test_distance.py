"""The temporal distance: a quasimetric over any subset of patches, in any order."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsewm.model.distance import DistanceConfig, TemporalDistance

CONFIG = DistanceConfig(width=16, heads=2, features=6)


def make(seed: int = 0) -> TemporalDistance:
    torch.manual_seed(seed)
    distance = TemporalDistance(8, (4, 4), 3, CONFIG)
    with torch.no_grad():
        for parameter in distance.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return distance.eval().requires_grad_(False)


def frames(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, 16, 8, generator=generator), torch.randn(1, count, 3, generator=generator)


def test_no_detour_is_shorter_than_the_way() -> None:
    distance, (tokens, proprio) = make(), frames(30)
    at = distance.embed(tokens, proprio, torch.arange(16)[None])[0]
    lengths = distance.between(at[:, None], at[None])  # (30, 30)
    detours = (lengths[:, :, None] + lengths[None]).amin(1)
    assert (lengths <= detours + 1e-4).all()
    assert (lengths.diagonal() < 0.01).all() and (lengths + torch.eye(30) > 0.01).all()
    assert not torch.allclose(lengths, lengths.T, atol=1e-3), "ways there and back may differ"


def test_order_of_the_patches_does_not_matter() -> None:
    distance, (tokens, proprio) = make(), frames(3)
    kept = torch.tensor([[1, 4, 7, 12]])
    shuffled = torch.tensor([[12, 1, 7, 4]])
    a = distance.embed(tokens[:, :, kept[0]], proprio, kept)
    b = distance.embed(tokens[:, :, shuffled[0]], proprio, shuffled)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_where_a_patch_lies_matters() -> None:
    distance, (tokens, proprio) = make(), frames(3)
    few = tokens[:, :, :4]
    a = distance.embed(few, proprio, torch.tensor([[0, 1, 2, 3]]))
    b = distance.embed(few, proprio, torch.tensor([[12, 13, 14, 15]]))
    assert not torch.allclose(a, b, atol=1e-2)
