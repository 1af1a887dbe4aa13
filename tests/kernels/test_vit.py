"""Packed stacks of blocks compute what torch does, each on its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from sparsewm.kernels import (
    Affine,
    VitBlock,
    layers_library,
    layout_of,
    packed_vit,
    vit,
)
from sparsewm.kernels.blocks import bias_of
from sparsewm.kernels.layers import CompiledLayers
from sparsewm.kernels.vit import Bfloat16Vit, CompiledVit, Float32Vit, PackedVit
from tests.kernels.test_vit_layers import plain, vit_norm
from tests.kernels.test_vit_layers import vit as random_blocks

HERE = layout_of(torch.bfloat16)
RESIDUAL = vit.residual_library()


def in_bfloat16(blocks: Sequence[VitBlock], norm: Affine) -> tuple[list[VitBlock], Affine]:
    """The same, rounded."""

    def rounded(layer: Affine) -> Affine:
        return Affine(layer.weight.bfloat16(), bias_of(layer).bfloat16(), layer.eps)

    found = [
        VitBlock(
            block.heads,
            rounded(block.norm1),
            tuple(rounded(layer) for layer in block.qkv),
            rounded(block.out),
            rounded(block.norm2),
            rounded(block.up),
            rounded(block.down),
            *(None if gate is None else gate.bfloat16() for gate in (block.gate1, block.gate2)),
        )
        for block in blocks
    ]
    return found, rounded(norm)


@pytest.fixture
def without_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "residual_library", lambda: "switched off")


def compiled_way(blocks: list[VitBlock], norm: Affine) -> PackedVit:
    assert HERE is not None
    return CompiledVit(CompiledLayers.of_vit(HERE, blocks, norm))


WAYS: dict[str, Callable[[list[VitBlock], Affine], PackedVit]] = {
    "as here": packed_vit,
    "torch": Bfloat16Vit,
    "compiled": compiled_way,
}
ways = pytest.mark.parametrize(
    "way",
    [
        pytest.param(
            make,
            id=name,
            marks=pytest.mark.skipif(name == "compiled" and not HERE, reason="no compiled layers here"),
        )
        for name, make in WAYS.items()
    ],
)


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("length", [1, 17, 65])
@torch.no_grad()
def test_float32_is_torchs_to_rounding(length: int, gates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "ROWS", 40)  # some pictures at a time
    blocks, norm = random_blocks(48, 3, 16, 96, 3, gates), vit_norm(48)
    x = torch.randn(5, length, 48, generator=torch.Generator().manual_seed(length))
    before, fast = x.clone(), packed_vit(blocks, norm)
    assert isinstance(fast, Float32Vit)
    torch.testing.assert_close(fast(x), plain(blocks, norm, x), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


@ways
@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("length", [1, 17, 65])
@torch.no_grad()
def test_bfloat16_rounds_what_products_read(
    way: Callable[[list[VitBlock], Affine], PackedVit],
    length: int,
    gates: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vit, "ROWS", 40)
    blocks, norm = in_bfloat16(random_blocks(64, 2, 32, 96, 3, gates), vit_norm(64))
    x = torch.randn(5, length, 64, generator=torch.Generator().manual_seed(length))
    for given in (x, x.bfloat16()):
        exact = plain([wide(block) for block in blocks], widened(norm), given.float())
        before = given.clone()
        found = way(blocks, norm)(given)
        assert found.dtype == torch.float32 and torch.equal(given, before)
        assert float((found - exact).norm() / exact.norm()) < 0.01


def widened(layer: Affine) -> Affine:
    return Affine(layer.weight.float(), bias_of(layer).float(), layer.eps)


def wide(block: VitBlock) -> VitBlock:
    gates = (None if gate is None else gate.float() for gate in (block.gate1, block.gate2))
    parts = (block.out, block.norm2, block.up, block.down)
    qkv = tuple(widened(layer) for layer in block.qkv)
    return VitBlock(block.heads, widened(block.norm1), qkv, *(widened(part) for part in parts), *gates)


@pytest.mark.usefixtures("without_residual")
@torch.no_grad()
def test_between_layers_tokens_are_float32() -> None:
    """However small what a layer adds is beside the tokens; without the compiled residual, too."""
    check_small_sums(Bfloat16Vit)


@ways
@torch.no_grad()
def test_between_layers_tokens_are_float32_on_every_way(
    way: Callable[[list[VitBlock], Affine], PackedVit],
) -> None:
    check_small_sums(way)


def check_small_sums(way: Callable[[list[VitBlock], Affine], PackedVit]) -> None:
    blocks, norm = random_blocks(64, 2, 32, 96, 8), vit_norm(64)
    for block in blocks:
        assert block.gate1 is not None and block.gate2 is not None
        block.gate1.mul_(1e-3), block.gate2.mul_(1e-3)
    blocks, norm = in_bfloat16(blocks, norm)
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = plain([wide(block) for block in blocks], widened(norm), x.float())
    without = plain([], widened(norm), x.float())
    found = way(blocks, norm)(x)
    assert float((found - exact).norm() / (exact - without).norm()) < 0.02


@ways
@torch.no_grad()
def test_a_picture_does_not_see_the_others(way: Callable[[list[VitBlock], Affine], PackedVit]) -> None:
    blocks, norm = in_bfloat16(random_blocks(64, 2, 32, 96, 2), vit_norm(64))
    x = torch.randn(33, 21, 64, generator=torch.Generator().manual_seed(0))
    fast = way(blocks, norm)
    together, alone = fast(x), torch.cat([fast(one) for one in x.split(1)])
    if isinstance(fast, CompiledVit):
        assert torch.equal(together, alone)
    torch.testing.assert_close(together, alone, rtol=0, atol=0.05)


@ways
@torch.no_grad()
def test_any_number_of_threads_gives_the_same(way: Callable[[list[VitBlock], Affine], PackedVit]) -> None:
    blocks, norm = in_bfloat16(random_blocks(64, 2, 32, 96, 2), vit_norm(64))
    x = torch.randn(13, 21, 64, generator=torch.Generator().manual_seed(0))
    fast, before, found = way(blocks, norm), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(fast(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@torch.no_grad()
def test_long_pictures_take_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, norm = in_bfloat16(random_blocks(64, 2, 32, 96, 2), vit_norm(64))
    x = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0))
    short = Bfloat16Vit(blocks, norm)(x)
    monkeypatch.setattr(vit, "SHORT", 30)
    torch.testing.assert_close(Bfloat16Vit(blocks, norm)(x), short, rtol=0, atol=0.05)


@pytest.mark.skipif(isinstance(RESIDUAL, str), reason=str(RESIDUAL))
@pytest.mark.parametrize("width", [16, 192, 400])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_residual_and_norm_are_torchs(width: int, adds: bool, dtype: torch.dtype) -> None:
    assert not isinstance(RESIDUAL, str)
    generator = torch.Generator().manual_seed(width)
    x = 3 + torch.randn(3, 7, width, generator=generator)
    added = torch.randn(3, 7, width, generator=generator).bfloat16() if adds else None
    gate = torch.randn(width, generator=generator) if adds else None
    norm = vit_norm(width, generator)
    exact = x.clone()
    expected = vit._added_by_torch(exact, added, gate, norm, torch.float32)
    found = vit._added(RESIDUAL, x, added, gate, norm, dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(x, exact, rtol=1e-6, atol=1e-6)
    rounding = 0.005 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.float(), expected, rtol=rounding, atol=rounding)


def test_each_machine_has_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, norm = in_bfloat16(random_blocks(64, 2, 32, 96, 2), vit_norm(64))
    assert isinstance(packed_vit(blocks, norm), CompiledVit if HERE else Bfloat16Vit)
    monkeypatch.setattr(vit, "layout_of", lambda weights: None)
    assert isinstance(packed_vit(blocks, norm), Bfloat16Vit)


def test_sizes_that_are_not_compiled_take_the_other_way() -> None:
    odd = in_bfloat16(random_blocks(48, 3, 16, 96, 2), vit_norm(48))
    assert not CompiledLayers.takes(*odd) and isinstance(packed_vit(*odd), Bfloat16Vit)
    blocks, norm = in_bfloat16(random_blocks(64, 2, 32, 96, 2), vit_norm(64))
    assert CompiledLayers.takes(blocks, norm)
    other = Affine(norm.weight, norm.bias, 1e-3)
    assert not CompiledLayers.takes(blocks, other) and isinstance(packed_vit(blocks, other), Bfloat16Vit)
    mixed = [blocks[0], in_bfloat16(random_blocks(64, 2, 32, 64, 1), norm)[0][0]]
    assert not CompiledLayers.takes(mixed, norm)


def test_kernels_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEWM_KERNELS", "0")
    for cached in (layers_library, vit.residual_library):
        cached.cache_clear()
    try:
        fast = packed_vit(*in_bfloat16(random_blocks(64, 2, 32, 96, 1), vit_norm(64)))
        assert isinstance(fast, Bfloat16Vit) and fast.add is vit._added_by_torch
    finally:
        for cached in (layers_library, vit.residual_library):
            cached.cache_clear()
