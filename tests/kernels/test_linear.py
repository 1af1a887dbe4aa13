"""Packed linear layers compute what torch's do."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from sparsewm.kernels import FrozenLinear, PackedLinear, linear


def test_packed_layer_falls_back_where_torch_has_no_such_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias, x = torch.randn(5, 3), torch.randn(5), torch.randn(2, 4, 3)
    expected = torch.relu(x @ weight.T + bias)
    torch.testing.assert_close(PackedLinear(weight, bias, "relu")(x), expected)

    class Nothing:
        def __getattr__(self, name: str) -> None:
            raise AttributeError(name)

    monkeypatch.setattr(torch.ops, "mkldnn", Nothing())
    layer = PackedLinear(weight, bias, "relu")
    assert layer.packed is None
    torch.testing.assert_close(layer(x), expected)


def frozen(inputs: int = 5, outputs: int = 3) -> FrozenLinear:
    layer = FrozenLinear(inputs, outputs).requires_grad_(False)
    layer.frozen = True
    return layer


def plain(layer: FrozenLinear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


@pytest.mark.parametrize("inference", [True, False])
def test_a_frozen_layer_computes_the_same_and_sees_that_weights_changed(inference: bool) -> None:
    with torch.inference_mode(inference):
        layer, x = frozen(), torch.randn(2, 4, 5)
        torch.testing.assert_close(layer(x), plain(layer, x))
        layer.load_state_dict(FrozenLinear(5, 3).state_dict(), assign=True)
        torch.testing.assert_close(layer(x), plain(layer, x))
    if not inference:
        layer.weight.add_(1.0)
        torch.testing.assert_close(layer(x), plain(layer, x))


def test_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    monkeypatch.setattr(linear, "PackedLinear", lambda *parts: packed.append(1) or PackedLinear(*parts))
    layer, x = frozen(), torch.randn(4, 5)
    for _ in range(3):
        layer(x)
    assert len(packed) == 1


def test_copies_of_a_frozen_layer_have_weights_of_their_own() -> None:
    layer, x = frozen(), torch.randn(4, 5)
    before = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other.weight.mul_(2.0)
        torch.testing.assert_close(other(x), plain(other, x))
    torch.testing.assert_close(layer(x), before)


def test_a_layer_that_learns_again_has_gradients_and_casts_are_obeyed() -> None:
    layer, x = frozen(), torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    layer.float().requires_grad_(True)(x).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [True, False])
def test_products_end_in_gelu_or_in_a_sum(dtype: torch.dtype, packed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x, other = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((5, 3), (5,), (2, 4, 3), (2, 4, 5))
    )
    before = other.clone()
    product = x.float() @ weight.float().T + bias.float()
    activated, plainly = PackedLinear(weight, bias, "gelu"), PackedLinear(weight, None)
    if not packed:
        activated.packed = plainly.packed = None
    rounding = {"rtol": 0.01, "atol": 0.02} if dtype == torch.bfloat16 else {}
    expected = torch.nn.functional.gelu(product).to(dtype)
    torch.testing.assert_close(activated(x), expected, **rounding)
    expected = (other.float() + product - bias.float()).to(dtype)
    torch.testing.assert_close(plainly.plus(x, other), expected, **rounding)
    assert torch.equal(other, before)
