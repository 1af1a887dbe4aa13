"""An ordinary vision transformer in one compiled call is what torch computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.kernels import Affine, CompiledLayers, Layout, VitBlock
from sparsewm.kernels.blocks import bias_of
from tests.kernels.stand_ins import compiled

BOUNDS = {torch.bfloat16: 0.01, torch.int8: 0.04}
pytestmark = pytest.mark.usefixtures("tiles_everywhere")


def vit(width: int, heads: int, head_dim: int, mlp: int, depth: int, gates: bool = True) -> list[VitBlock]:
    """Layers with norms, gates and biases that matter."""
    generator, inner = torch.Generator().manual_seed(0), heads * head_dim
    blocks = []
    for _ in range(depth):
        norm1, norm2 = (vit_norm(width, generator) for _ in range(2))
        qkv, out, up, down = (
            Affine(size**-0.5 * random(generator, outputs, size), 0.3 * random(generator, outputs))
            for size, outputs in ((width, 3 * inner), (inner, width), (width, mlp), (mlp, width))
        )
        pair = [0.5 + 0.2 * random(generator, width) if gates else None for _ in range(2)]
        blocks.append(VitBlock(heads, norm1, (qkv,), out, norm2, up, down, *pair))
    return blocks


def vit_norm(width: int, generator: torch.Generator | None = None) -> Affine:
    return Affine(1 + 0.3 * random(generator, width), 0.3 * random(generator, width), 1e-6)


def random(generator: torch.Generator | None, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator or torch.Generator().manual_seed(1))


def plain(blocks: list[VitBlock], norm: Affine, x: Tensor) -> Tensor:
    """The same by torch's operations."""

    def normalized(x: Tensor, norm: Affine) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)

    for block in blocks:
        qkv = F.linear(normalized(x, block.norm1), block.joined().weight, block.joined().bias)
        q, k, v = qkv.unflatten(2, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.mT * block.head_dim**-0.5, -1) @ v
        mixed = F.linear(mixed.transpose(1, 2).flatten(2), block.out.weight, block.out.bias)
        x = x + (mixed if block.gate1 is None else block.gate1 * mixed)
        hidden = F.gelu(F.linear(normalized(x, block.norm2), block.up.weight, block.up.bias))
        more = F.linear(hidden, block.down.weight, block.down.bias)
        x = x + (more if block.gate2 is None else block.gate2 * more)
    return normalized(x, norm)


@compiled(*BOUNDS)
@pytest.mark.parametrize("length", [1, 17, 65, 197])
@pytest.mark.parametrize(
    "sizes", [(64, 2, 32, 96), (96, 2, 64, 32), (64, 4, 8, 128), (160, 2, 80, 32), (384, 6, 64, 1536)]
)
@torch.inference_mode()
def test_tokens_are_those_of_torch(layout: Layout, length: int, sizes: tuple[int, int, int, int]) -> None:
    width, heads, head_dim, mlp = sizes
    blocks, norm = vit(width, heads, head_dim, mlp, 3), vit_norm(width)
    assert layout.fit(width, heads, head_dim, mlp, 1)
    fast, bound = CompiledLayers.of_vit(layout, blocks, norm), BOUNDS[layout.weights]
    x = torch.randn(3, length, width, generator=torch.Generator().manual_seed(length))
    expected = plain(blocks, norm, x)
    found = fast.encode(x)
    assert found.dtype == torch.float32 and found.shape == x.shape
    assert float((found - expected).norm() / expected.norm()) < bound
    halves = fast.encode(x.bfloat16())
    assert halves.dtype == torch.bfloat16
    assert float((halves - expected).norm() / expected.norm()) < bound + 0.005


@compiled(*BOUNDS)
@torch.inference_mode()
def test_pictures_do_not_see_each_other(layout: Layout) -> None:
    blocks, norm = vit(64, 2, 32, 96, 2, gates=False), vit_norm(64)
    fast = CompiledLayers.of_vit(layout, blocks, norm)
    x = torch.randn(40, 21, 64, generator=torch.Generator().manual_seed(0))
    together = fast.encode(x)
    assert torch.equal(together, torch.cat([fast.encode(one) for one in x.split(1)]))
    assert float((together - plain(blocks, norm, x)).norm() / together.norm()) < BOUNDS[layout.weights]


@compiled(torch.bfloat16)
@torch.inference_mode()
def test_gelu_is_exact_to_bfloat16(layout: Layout) -> None:
    """One layer whose tokens are nothing but GELUs of all kinds of numbers; 8-bit integers round more."""
    width = 32
    blocks, norm = vit(width, 1, 32, width, 1), Affine(torch.ones(width), torch.zeros(width), 1e-6)
    block = blocks[0]
    for layer in (block.out, block.up, block.down):
        layer.weight.zero_(), bias_of(layer).zero_()
    block.down.weight.copy_(torch.eye(width))
    assert block.gate2 is not None
    block.gate2.fill_(1.0)
    for numbers in torch.linspace(-8, 8, 40 * width).view(-1, width):
        bias_of(block.up).copy_(numbers)
        fast = CompiledLayers.of_vit(layout, blocks, norm)
        fast.epsilon = 1e6  # hardly a norm: what comes in is divided by a thousand
        found = fast.encode(torch.zeros(1, 1, width))[0, 0] * 1e3
        gelu = F.gelu(numbers.double()).bfloat16().double()
        step = 2**-7 * float(gelu.abs().max())  # of bfloat16, at most
        assert torch.allclose(found.double(), gelu - gelu.mean(), rtol=0, atol=step)
