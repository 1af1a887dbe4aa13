"""The written-out training step gives the loss and the gradients that torch differentiates."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsewm.kernels.training import TrainingKernels, training_kernels, variant
from sparsewm.model import WorldModel
from sparsewm.model.latent import random_groups
from sparsewm.model.step import Step
from tests.kernels.stand_ins import training_of
from tests.model.tiny import tiny_model

HERE = training_kernels()
KERNELS = training_of("training_tiles") if isinstance(HERE, str) else HERE
pytestmark = pytest.mark.skipif(isinstance(KERNELS, str), reason=f"{KERNELS}")
SIZES = {"width": 64, "heads": 2, "mlp": 96}
Batch = dict[str, Tensor]
LUCK = 2**-5
"""How much less torch's step may err than ours for one draw of weights; over draws ours errs no more."""


def made(
    kernels: TrainingKernels | None = None, windows: int = 5, frames: int = 6, **sizes: Any
) -> tuple[WorldModel, Batch]:
    """A model in bfloat16 that learns by compiled products, the fastest if left out, and random windows."""
    model, generator = tiny_model(**SIZES | sizes), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in (model.predictor.token_change, model.predictor.proprio_change):
            for parameter in layer.parameters():
                parameter *= 0.2  # errors of rounding are not to grow from frame to frame
    model.place("cpu", torch.bfloat16).predictor.requires_grad_(True)
    assert not isinstance(KERNELS, str)
    model._step = Step(kernels or KERNELS)
    config = model.config
    batch = {
        "tokens": torch.randn(windows, frames, model.patches, config.token_dim, generator=generator),
        "proprio": torch.randn(windows, frames, config.proprio_dim, generator=generator),
        "action": torch.randn(windows, frames - 1, config.action_dim, generator=generator),
    }
    return model, batch


def groups_of(model: WorldModel, windows: int, count: int) -> list[Tensor]:
    return random_groups(windows, model.patches, count, 3, torch.Generator().manual_seed(2))


def differentiated(
    model: WorldModel, batch: Batch, real: int, groups: list[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of every parameter, in float64."""
    losses = model.loss(batch, real, groups)
    parameters = dict(model.predictor.named_parameters())
    gradients = torch.autograd.grad(losses["loss"], list(parameters.values()))
    named = dict(zip(parameters, gradients, strict=True))
    return {k: v.detach() for k, v in losses.items()}, {k: v.double() for k, v in named.items()}


def by_torch(
    model: WorldModel, batch: Batch, real: int, groups: list[Tensor], dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same by torch's own operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "fits", staticmethod(lambda predictor: False))
        other = copy.deepcopy(model)
        other.predictor.to(dtype)
        return differentiated(other, batch, real, groups)


def error(gradients: dict[str, Tensor], truth: dict[str, Tensor], names: list[str]) -> float:
    """Distance to the true gradient, as a share of its size."""
    off = sum(float((gradients[name] - truth[name]).square().sum()) for name in names)
    return (off / sum(float(truth[name].square().sum()) for name in names)) ** 0.5


def check(model: WorldModel, batch: Batch, real: int, groups: list[Tensor]) -> None:
    """Errors are those of bfloat16, which torch's own step makes, too."""
    losses, gradients = differentiated(model, batch, real, groups)
    true_losses, truth = by_torch(model, batch, real, groups, torch.float32)
    torch_losses, torch_gradients = by_torch(model, batch, real, groups, torch.bfloat16)
    for name, value in losses.items():
        own = abs(float(value - true_losses[name]))
        assert own < 1.5 * abs(float(torch_losses[name] - true_losses[name])) + 0.005 * float(value), name
    names = list(truth)
    assert error(gradients, truth, names) < 1.5 * error(torch_gradients, truth, names) + LUCK
    for name in names:
        if "age" in name and model.history == 1:
            continue  # softmax does not see what all keys have
        limit = 3 * error(torch_gradients, truth, [name]) + 3 * LUCK
        assert error(gradients, truth, [name]) < limit, name


@pytest.mark.parametrize("real", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_loss_and_gradients_are_those_of_torch(kernels: TrainingKernels, real: int, count: int) -> None:
    model, batch = made(kernels)
    check(model, batch, real, groups_of(model, 5, count))


def test_rows_behind_the_last_one_are_there_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product reads whole fours of rows."""
    multiply = TrainingKernels.multiply

    def watched(self: TrainingKernels, x: Tensor, *others: Any, **more: Any) -> None:
        end = x.storage_offset() + -(-len(x) // 4) * 4 * x.shape[1]
        assert end * x.element_size() <= x.untyped_storage().nbytes()
        multiply(self, x, *others, **more)

    monkeypatch.setattr(TrainingKernels, "multiply", watched)
    model, batch = made()  # nothing is remembered of earlier steps: each tensor has memory of its own
    differentiated(model, batch, 1, groups_of(model, 5, 1))


@pytest.mark.parametrize(
    "sizes",
    [
        {"history": 1},
        {"history": 4, "frames": 9},
        {"frames": 2},
        {"width": 96, "heads": 4, "mlp": 64},
        {"width": 96, "heads": 1, "mlp": 32, "depth": 1},
        {"windows": 33, "frames": 3},
    ],
    ids=str,
)
def test_other_sizes(kernels: TrainingKernels, sizes: dict[str, Any]) -> None:
    model, batch = made(kernels, **sizes)
    check(model, batch, 2, groups_of(model, len(batch["action"]), 1))


@pytest.mark.parametrize("size", [6, 48, 80])
def test_heads_of_other_sizes_than_the_width(size: int) -> None:
    model, batch = made(head_dim=size)
    check(model, batch, 2, groups_of(model, 5, 2))


def test_weights_of_zeros() -> None:
    """As a fresh predictor has them."""
    model, batch = made()
    with torch.no_grad():
        for layer in (model.predictor.token_change, model.predictor.blocks[0].modulation):
            layer.weight.zero_()
            layer.bias.zero_()
    check(model, batch, 2, groups_of(model, 5, 1))


def test_windows_that_wait_for_their_turn_change_little(kernels: TrainingKernels) -> None:
    model, batch = made(kernels)
    groups = groups_of(model, 5, 2)
    losses, gradients = differentiated(model, batch, 2, groups)
    model._step = Step(kernels, room=1)
    others, other_gradients = differentiated(model, batch, 2, groups)
    assert torch.allclose(losses["loss"], others["loss"], rtol=3e-3)
    assert error(other_gradients, gradients, list(gradients)) < 0.05


def test_the_same_bits_every_time_and_on_any_number_of_threads() -> None:
    model, batch = made(windows=40)
    groups = groups_of(model, 40, 2)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            results.append(differentiated(model, batch, 2, groups))
    finally:
        torch.set_num_threads(before)
    for losses, gradients in results[1:]:
        assert torch.allclose(losses["loss"], results[0][0]["loss"], rtol=1e-6)
        for name, gradient in gradients.items():
            assert error({name: gradient}, results[0][1], [name]) < 0.01, name
    assert torch.equal(results[2][0]["loss"], results[3][0]["loss"])
    assert all(torch.equal(results[2][1][name], results[3][1][name]) for name in results[0][1])


def test_groups_do_not_see_each_other() -> None:
    model, batch = made()
    first, second = groups_of(model, 5, 2)
    changed = dict(batch, tokens=batch["tokens"].clone())
    changed["tokens"].scatter_(
        2, second[:, None, :, None].expand(-1, 6, -1, model.config.token_dim).contiguous(), 5.0
    )
    assert torch.equal(model.loss(batch, 2, [first])["loss"], model.loss(changed, 2, [first])["loss"])


@pytest.mark.parametrize("name", ["tokens", "proprio", "action"])
def test_what_is_no_number_is_seen(name: str) -> None:
    """As a diverged training must be."""
    model, batch = made()
    batch[name].view(-1)[0] = torch.nan
    losses, gradients = differentiated(model, batch, 2, groups_of(model, 5, 1))
    assert torch.isnan(losses["loss"])
    assert any(torch.isnan(gradient).any() for gradient in gradients.values())


def test_without_gradients_the_loss_is_the_same() -> None:
    model, batch = made()
    groups = groups_of(model, 5, 2)
    losses = model.loss(batch, 2, groups)
    with torch.no_grad():
        assert torch.equal(model.loss(batch, 2, groups)["loss"], losses["loss"])
    assert losses["loss"].requires_grad
    model.predictor.requires_grad_(False)
    assert not model.loss(batch, 2, groups)["loss"].requires_grad


def test_gradients_are_scaled_by_what_comes_after_the_loss() -> None:
    model, batch = made()
    groups = groups_of(model, 5, 1)
    _, once = differentiated(model, batch, 2, groups)
    (3 * model.loss(batch, 2, groups)["loss"]).backward()
    for name, parameter in model.predictor.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad.double(), 3 * once[name], rtol=0.02, atol=1e-6), name


@pytest.mark.slow
def test_training_reaches_the_loss_that_torch_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(Step, "fits", staticmethod(lambda predictor: False))
        model, batch = made(windows=16, frames=4)
        batch["tokens"] *= 0.5
        optimizer = torch.optim.SGD(model.predictor.parameters(), lr=0.02)
        for i in range(60):
            groups = random_groups(16, model.patches, 2, 3, torch.Generator().manual_seed(i))
            optimizer.zero_grad()
            loss = model.loss(batch, 1 + i % 3, groups)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.predictor.parameters(), 1.0)
            optimizer.step()
            if i == 0:
                first = float(loss.detach())
        ends.append(float(loss.detach()))
        assert ends[-1] < 0.6 * first
    assert abs(ends[0] / ends[1] - 1) < 0.05


def test_copies_have_memory_of_their_own() -> None:
    model, batch = made()
    model.loss(batch, 2, groups_of(model, 5, 1))
    assert copy.deepcopy(model)._step is None
    model.encoder = None  # type: ignore[assignment]
    assert pickle.loads(pickle.dumps(model))._step is None


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = made()
    assert (Step.of(model.predictor) is None) == isinstance(HERE, str)
    monkeypatch.setenv("SPARSEWM_KERNELS", "0")
    variant.cache_clear()
    try:
        assert Step.of(model.predictor) is None
    finally:
        variant.cache_clear()


def test_other_precisions_are_torchs() -> None:
    model, batch = made()
    model._step = None
    model.place("cpu", torch.float32)
    model.loss(batch, 2, groups_of(model, 5, 1))
    assert model._step is None
    assert not Step.fits(model.predictor)
