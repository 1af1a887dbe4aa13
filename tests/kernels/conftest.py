"""What tests of kernels share."""

from __future__ import annotations

import pytest

from sparsewm.kernels import layers
from tests.kernels.stand_ins import library_of


@pytest.fixture
def tiles_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers for a matrix unit run in plain C where there is none."""
    monkeypatch.setattr(layers, "layers_library", library_of)
