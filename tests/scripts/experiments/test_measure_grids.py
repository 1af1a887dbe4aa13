"""The map of what tokens retain."""

from __future__ import annotations

import torch

from scripts.experiments.measure_grids import retention


def test_what_is_kept_is_retained() -> None:
    dense = torch.randn(2, 16, 8)
    found = retention(dense, dense[:, :5])
    assert torch.allclose(found[:, :5], torch.ones(2, 5)) and (found[:, 5:] < 1).all()
