"""Kernels run without the instructions they are written for."""

from __future__ import annotations

import re

import pytest
import torch

from scripts.trust import emulation
from sparsewm.kernels import build, vit
from tests.kernels.test_vit import vit_norm


def test_every_wide_instruction_of_the_kernels_has_a_stand_in() -> None:
    folder = emulation.WIDE.parents[2] / "sparsewm" / "kernels"
    sources = "".join(path.read_text() for path in [*folder.glob("*.c"), *folder.glob("*.h")])
    used = set(re.findall(r"\b(?:_mm512_\w+|_mm256_mask\w+|_tile_\w+)", sources))
    defined = set(re.findall(r"#define (\w+)", emulation.WIDE.read_text() + emulation.TILES.read_text()))
    assert len(used) > 50
    assert used <= defined, "add it to scripts/trust/wide.h or tiles.h"


@pytest.mark.skipif(not emulation.possible(), reason="emulated by GCC on Linux, with AVX2")
@torch.no_grad()
def test_what_runs_in_plain_c_is_what_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEWM_KERNELS", raising=False)
    for name in ("compiled", "processor"):
        monkeypatch.setattr(build, name, getattr(build, name))  # put back afterwards
    emulation.pytest_configure()
    library = vit.residual_library.__wrapped__()
    assert not isinstance(library, str), library
    generator = torch.Generator().manual_seed(0)
    x, norm = 3 + torch.randn(3, 7, 48, generator=generator), vit_norm(48, generator)
    added, gate = torch.randn(3, 7, 48, generator=generator).bfloat16(), torch.randn(48, generator=generator)
    exact = x.clone()
    expected = vit._added_by_torch(exact, added, gate, norm, torch.float32)
    found = vit._added(library, x, added, gate, norm, torch.bfloat16)
    torch.testing.assert_close(x, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.float(), expected, rtol=0.005, atol=0.005)
