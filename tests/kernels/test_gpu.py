"""The GPU's kernels compute what torch does: on a GPU where there is one, else by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsewm.kernels import GpuKernels, gpu, gpu_kernels
from sparsewm.model import Latent, LatentProblem, WorldModel, rollout
from sparsewm.model.rollout import Rollout
from tests.kernels.attention import queries_and_frames, reference
from tests.model.test_problem import candidates, make_problem
from tests.model.tiny import latent_problem, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array")  # by the interpreter
pytest.importorskip("triton", reason="Triton is for Linux alone")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter knows no bfloat16


@pytest.fixture
def kernels() -> GpuKernels:
    found = gpu_kernels()
    assert isinstance(found, GpuKernels)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("size", [16, 24, 64])
@pytest.mark.parametrize(
    ("length", "own", "shared"), [(1, 1, 0), (13, 2, 1), (33, 1, 2), (60, 1, 1), (70, 3, 0), (99, 1, 1)]
)
def test_attention_is_softmax_of_products(
    kernels: GpuKernels, dtype: torch.dtype, size: int, length: int, own: int, shared: int
) -> None:
    queries, frames = queries_and_frames(size, length, own, shared, DEVICE, dtype)
    found = kernels.attend(queries, frames)
    assert found.shape == (*queries.shape[:3], queries.shape[3] * size) and found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found.float(), reference(queries, frames), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width", [16, 192, 520])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_modulation_is_that_of_torch(
    kernels: GpuKernels, width: int, alone: bool, adds: bool, everywhere: bool
) -> None:
    generator = torch.Generator().manual_seed(width)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    b, s, length = 2, 3, 5
    parts = random(b, s, 1, 7 * width).chunk(7, -1)
    shift, scale = (random(width), random(width)) if everywhere else parts[2:4]
    x = random(b, 1 if alone else s, length, width)
    added, gate = (random(b, s, length, width), parts[5]) if adds else (None, None)
    if everywhere and not adds:
        x = random(b, s, length, width)
    wanted = rollout.modulate(x.clone(), added, gate, shift, scale)
    found = kernels.modulate(x.clone(), added, gate, shift, scale)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("seen", "head_dim"), [(0, None), (2, 64)])
def test_a_rollout_by_them_is_that_of_the_predictor(
    kernels: GpuKernels, seen: int, head_dim: int | None
) -> None:
    model = tiny_model(head_dim=head_dim).place(DEVICE)
    problem = there(make_problem(tiny_model(head_dim=head_dim), seen=seen, drop=0.5), model)
    actions, view = candidates(model).to(DEVICE), problem.view
    with torch.inference_mode():
        start = view.tokens, problem.start.proprio
        fast = Rollout(model.predictor)
        fast.whole, fast.compiled, fast.modulated = None, kernels, kernels.modulate
        fast.blocks = [rollout.PackedBlock(block) for block in model.predictor.blocks]
        past = model.remember(problem.history, view.patches, fast)
        found = list(fast.imagine(*start, model.standardizer.actions(actions), view.patches, past))
        seen_so = model.remember(problem.history, view.patches)
        wanted = list(model.imagine(*start, actions, view.patches, seen_so))
    for ours, theirs in zip(found, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_problem_costs_the_same_on_a_gpu_as_on_a_cpu() -> None:
    """By the kernels, at first one by one, then from a graph."""
    near, far = tiny_model(), tiny_model().place(DEVICE)
    actions = candidates(near)
    for seed in range(3):
        here = make_problem(near, seen=1, seed=seed, drop=0.5)
        with torch.inference_mode():
            found = there(here, far).cost(actions.to(DEVICE))
            torch.testing.assert_close(found.cpu(), here.cost(actions), rtol=1e-3, atol=1e-3)


def there(problem: LatentProblem, model: WorldModel) -> LatentProblem:
    """The same problem for a model on the other device."""

    def moved(frame: Latent) -> Latent:
        return Latent(frame.tokens.to(DEVICE), frame.proprio.to(DEVICE))

    history = [(moved(frame), action.to(DEVICE)) for frame, action in problem.history]
    ends = moved(problem.start), moved(problem.goal)
    return latent_problem(model, *ends, drop=0.5, history=history, patches=problem.patches.to(DEVICE))


def test_sizes_that_fit() -> None:
    assert GpuKernels.fit(384, 128) and not GpuKernels.fit(384, 136)
    assert not GpuKernels.fit(gpu.WIDEST + 1, 64)


def test_a_reason_is_given_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.gpu_kernels.cache_clear()
    monkeypatch.setenv("SPARSEWM_KERNELS", "0")
    assert gpu.gpu_kernels() == "SPARSEWM_KERNELS=0"
    gpu.gpu_kernels.cache_clear()
    monkeypatch.delenv("SPARSEWM_KERNELS")
    monkeypatch.setattr("triton.__version__", "3.0.0")
    assert gpu.gpu_kernels() == "Triton 3.0.0 is too old"
    gpu.gpu_kernels.cache_clear()
