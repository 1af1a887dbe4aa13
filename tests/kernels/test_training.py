"""Compiled products, and Newton-Schulz iterations, are torch's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sparsewm.kernels import training
from sparsewm.kernels.training import TrainingKernels
from sparsewm.training import optim


def random(*shape: int, seed: int = 0) -> Tensor:
    """Rows in bfloat16, with some behind them that may be read."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape[0] + 4, *shape[1:], generator=generator).bfloat16()[: shape[0]]


def close(result: Tensor, expected: Tensor, share: float = 0.005) -> None:
    assert (result.float() - expected).abs().max() <= share * expected.abs().max()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 5, 12, 131, 481])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 2), (70, 34), (192, 64), (10, 96), (96, 160)])
def test_products(kernels: TrainingKernels, rows: int, outputs: int, inputs: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, error, weight = (
            random(rows, inputs),
            random(rows, outputs, seed=1),
            random(outputs, inputs, seed=2),
        )
        bias = torch.randn(outputs, generator=torch.Generator().manual_seed(3))
        packed_rows, packed_columns = kernels.pack(weight)
        expected = x.float() @ weight.float().T + bias
        out = torch.empty(rows, outputs, dtype=torch.bfloat16)
        kernels.multiply(x, packed_rows, out, bias)
        close(out, expected)
        kernels.multiply(x, packed_rows, out, bias, relu=True)
        close(out, expected.relu())
        hidden = random(rows, inputs, seed=4).relu()
        back = torch.empty(rows, inputs, dtype=torch.bfloat16)
        kernels.multiply(error, packed_columns, back, mask=hidden)
        close(back, (error.float() @ weight.float()) * (hidden > 0))
        d_weight, d_bias = torch.ones(outputs, inputs), torch.ones(outputs)
        room = torch.empty(kernels.weigh_room(outputs, inputs), dtype=torch.bfloat16)
        kernels.weigh(error, x, d_weight, d_bias, room)
        close(d_weight, error.float().T @ x.float() + 1, 1e-5)
        close(d_bias, error.float().sum(0) + 1, 1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("outputs", [36, 64])
def test_gradients_of_weights_from_many_rows(kernels: TrainingKernels, outputs: int) -> None:
    """More than are packed at once."""
    x, error = random(2501, 64), random(2501, outputs, seed=1)
    d_weight = torch.zeros(outputs, 64)
    room = torch.empty(kernels.weigh_room(outputs, 64), dtype=torch.bfloat16)
    kernels.weigh(error, x, d_weight, None, room)
    close(d_weight, error.float().T @ x.float(), 1e-5)


@pytest.mark.parametrize(("rows", "inputs"), [(3, 8), (33, 32)])
def test_a_relu_keeps_what_is_no_number(kernels: TrainingKernels, rows: int, inputs: int) -> None:
    x, weight = random(rows, inputs), random(32, inputs, seed=1)
    x[1, 0] = torch.nan
    out = torch.empty(rows, 32, dtype=torch.bfloat16)
    kernels.multiply(x, kernels.pack(weight)[0], out, relu=True)
    assert torch.isnan(out[1]).all()
    assert torch.isnan(out).sum() == 32


def test_a_unit_that_is_not_lent_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(request_tiles=lambda: -1)
    monkeypatch.setattr(training, "load_library", lambda *arguments: refusing)
    assert training.variant.__wrapped__("training_tiles") == "the system does not lend its matrix unit"


@pytest.mark.parametrize("shape", [(3, 32, 32), (5, 96, 192), (2, 160, 64)])
def test_orthogonal_matrices(
    kernels: TrainingKernels, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    monkeypatch.setattr(optim, "training_kernels", lambda: kernels)
    own = optim.orthogonalized(matrices).double()
    monkeypatch.setattr(optim, "training_kernels", lambda: "switched off")
    truth = optim.orthogonalized(matrices.double())
    torchs = optim.orthogonalized(matrices).double()
    assert (own - truth).norm() < 1.3 * (torchs - truth).norm()
