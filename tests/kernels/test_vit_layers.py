"""An ordinary vision transformer in one compiled call is what torch computes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.kernels import LAYOUTS, CompiledLayers, VitBlock, layers_library

compiled = pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        pytest.param(
            dtype,
            bound,
            marks=pytest.mark.skipif(
                isinstance(layers_library(LAYOUTS[dtype]), str), reason=f"{layers_library(LAYOUTS[dtype])}"
            ),
            id=LAYOUTS[dtype].name,
        )
        for dtype, bound in ((torch.bfloat16, 0.01), (torch.int8, 0.04))
    ],
)


def vit(width: int, heads: int, head_dim: int, mlp: int, depth: int, gates: bool = True) -> list[VitBlock]:
    """Layers with norms, gates and biases that matter."""
    generator, inner = torch.Generator().manual_seed(0), heads * head_dim
    blocks = []
    for _ in range(depth):
        layers = [
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 3 * inner),
            nn.Linear(inner, width),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, mlp),
            nn.Linear(mlp, width),
        ]
        for parameter in itertools.chain(*(layer.parameters() for layer in layers)):
            scale = parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 0.3
            noise = scale * torch.randn(parameter.shape, generator=generator)
            parameter.data = noise if parameter.ndim == 2 else parameter.data.round() + noise
        pair = [0.5 + 0.2 * torch.randn(width, generator=generator) if gates else None for _ in range(2)]
        blocks.append(VitBlock(*layers, *pair))
    return blocks


def plain(blocks: list[VitBlock], norm: nn.LayerNorm, heads: int, x: Tensor) -> Tensor:
    """The same by torch's operations, in float32."""
    for block in blocks:
        q, k, v = block.qkv(block.norm1(x)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = block.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + (mixed if block.gate1 is None else block.gate1 * mixed)
        more = block.down(F.gelu(block.up(block.norm2(x))))
        x = x + (more if block.gate2 is None else block.gate2 * more)
    return norm(x)


@compiled
@pytest.mark.parametrize("length", [1, 17, 65, 197])
@pytest.mark.parametrize("sizes", [(64, 2, 32, 96), (96, 2, 64, 32), (64, 4, 8, 128), (384, 6, 64, 1536)])
@torch.inference_mode()
def test_tokens_are_those_of_torch(
    dtype: torch.dtype, bound: float, length: int, sizes: tuple[int, int, int, int]
) -> None:
    width, heads, head_dim, mlp = sizes
    blocks, norm = vit(width, heads, head_dim, mlp, 3), nn.LayerNorm(width, eps=1e-6)
    norm.weight.uniform_(0.5, 2), norm.bias.uniform_(-1, 1)
    layout = LAYOUTS[dtype]
    assert layout.fit(width, heads, head_dim, mlp, 1)
    fast = CompiledLayers.of_vit(layers_library(layout), layout, blocks, norm, heads)
    x = torch.randn(3, length, width, generator=torch.Generator().manual_seed(length))
    expected = plain(blocks, norm, heads, x)
    found = fast.encode(x)
    assert found.dtype == torch.float32 and found.shape == x.shape
    assert float((found - expected).norm() / expected.norm()) < bound
    halves = fast.encode(x.bfloat16())
    assert halves.dtype == torch.bfloat16
    assert float((halves - expected).norm() / expected.norm()) < bound + 0.005


@compiled
@torch.inference_mode()
def test_pictures_do_not_see_each_other(dtype: torch.dtype, bound: float) -> None:
    blocks, norm, layout = vit(64, 2, 32, 96, 2, gates=False), nn.LayerNorm(64, eps=1e-6), LAYOUTS[dtype]
    fast = CompiledLayers.of_vit(layers_library(layout), layout, blocks, norm, 2)
    x = torch.randn(40, 21, 64, generator=torch.Generator().manual_seed(0))
    together = fast.encode(x)
    assert torch.equal(together, torch.cat([fast.encode(one) for one in x.split(1)]))
    assert float((together - plain(blocks, norm, 2, x)).norm() / together.norm()) < bound


@compiled
@torch.inference_mode()
def test_gelu_is_exact_to_bfloat16(dtype: torch.dtype, bound: float) -> None:
    """One layer whose tokens are nothing but GELUs of all kinds of numbers."""
    if dtype == torch.int8:
        pytest.skip("8-bit integers round more than a GELU could")
    width = 32
    blocks, norm = vit(width, 1, 32, width, 1), nn.LayerNorm(width, eps=1e-6)
    block = blocks[0]
    for layer in (block.out, block.up, block.down):
        layer.weight.zero_(), layer.bias.zero_()
    block.down.weight.copy_(torch.eye(width))
    block.gate2.fill_(1.0)
    layout = LAYOUTS[dtype]
    for numbers in torch.linspace(-8, 8, 40 * width).view(-1, width):
        block.up.bias.copy_(numbers)
        fast = CompiledLayers.of_vit(layers_library(layout), layout, blocks, norm, 1)
        fast.epsilon = 1e6  # hardly a norm: what comes in is divided by a thousand
        found = fast.encode(torch.zeros(1, 1, width))[0, 0] * 1e3
        gelu = F.gelu(numbers.double()).bfloat16().double()
        step = 2**-7 * float(gelu.abs().max())  # of bfloat16, at most
        assert torch.allclose(found.double(), gelu - gelu.mean(), rtol=0, atol=step)
