"""The planner's rollout computes what the predictor does; otherwise plans would be for another model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsewm.model import rollout as module
from sparsewm.model.latent import gather_patches, random_patches
from sparsewm.model.predictor import FrameCache, Predictor
from sparsewm.model.rollout import Rollout
from tests.kernels.attention import ByTorch
from tests.model.tiny import random_actions, random_latent, tiny_model


@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize("seen", [0, 1, 2])
@pytest.mark.parametrize(
    ("fused", "head_dim", "compiled"),
    [(True, None, False), (False, None, False), (True, 24, False), (True, 6, False), (True, 24, True)],
)
def test_rollout_imagines_what_the_predictor_does(
    history: int,
    seen: int,
    fused: bool,
    head_dim: int | None,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if compiled:  # attention and norms, as on a GPU
        monkeypatch.setattr(Rollout, "_kernels", lambda *_: ByTorch())
    if not fused:  # a machine without oneDNN
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    generator = torch.Generator().manual_seed(0)
    model = tiny_model(history=history, head_dim=head_dim)
    with torch.no_grad():
        for block in model.predictor.blocks:
            block.age += torch.randn(block.age.shape, generator=generator)
    latent = random_latent(model, 2, generator)
    patches = torch.tensor([[3, 1, 9], [14, 0, 5]])
    frames = [(random_latent(model, 2, generator), random_actions(model, 2, generator=generator))] * seen
    actions = random_actions(model, 2, 4, 5, generator=generator)
    start = gather_patches(latent.tokens, patches), latent.proprio
    expected = list(model.imagine(*start, actions, patches, model.remember(frames, patches)))
    with torch.inference_mode():
        rollout = Rollout(model.predictor)
        assert (rollout.modulation.packed is not None) == (fused and torch.backends.mkldnn.is_available())
        past = model.remember(frames, patches, rollout)
        found = list(rollout.imagine(*start, model.standardizer.actions(actions), patches, past))
    assert len(found) == 5
    for (tokens, proprio), (expected_tokens, expected_proprio) in zip(found, expected, strict=True):
        torch.testing.assert_close(tokens, expected_tokens, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(proprio, expected_proprio, rtol=1e-4, atol=1e-4)


def test_rollout_sees_weights_that_changed_when_it_is_made_anew() -> None:
    generator = torch.Generator().manual_seed(0)
    model = tiny_model()
    latent, patches = random_latent(model, 1, generator), torch.arange(4)[None]
    actions = random_actions(model, 1, 2, 1, generator=generator)
    start = gather_patches(latent.tokens, patches), latent.proprio
    with torch.inference_mode():
        before = next(Rollout(model.predictor).imagine(*start, actions, patches))[0]
        model.predictor.token_change.bias.add_(1.0)
        after = next(Rollout(model.predictor).imagine(*start, actions, patches))[0]
    torch.testing.assert_close(after, before + 1.0)


@pytest.mark.parametrize(("seen", "head_dim"), [(1, None), (2, None), (4, None), (2, 24)])
def test_past_frames_are_remembered_in_one_pass(
    monkeypatch: pytest.MonkeyPatch, seen: int, head_dim: int | None
) -> None:
    """As the predictor remembers them, one after the other."""
    monkeypatch.setattr(Rollout, "_whole", lambda *_: None)
    monkeypatch.setattr(Rollout, "_kernels", lambda *_: ByTorch())
    model, generator = tiny_model(head_dim=head_dim), torch.Generator().manual_seed(2)
    patches = random_patches(2, model.patches, 5, generator)
    history = [
        (random_latent(model, 2, generator), random_actions(model, 2, generator=generator))
        for _ in range(seen)
    ]
    wanted = model.remember(history, patches)
    with torch.no_grad():
        packed = Rollout(model.predictor)
        monkeypatch.setattr(Predictor, "remember", None)
        found = model.remember(history, patches, packed)
    assert len(found) == len(wanted) == min(seen, model.history - 1)
    for ours, theirs in zip(found, wanted, strict=True):
        assert isinstance(ours, FrameCache)
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="a torch without CUDA makes no fake tensor there"
)
def test_weights_that_lie_on_a_gpu_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed, so no GPU is needed: two devices in one operation are an error all the same."""
    monkeypatch.setattr(module, "gpu_kernels", ByTorch)
    predictor = tiny_model().predictor
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        for part in predictor.modules():
            for name, value in part.named_parameters(recurse=False):
                there = torch.empty(value.shape, device="cuda", dtype=torch.bfloat16)
                setattr(part, name, nn.Parameter(there, requires_grad=False))
            for name, value in part.named_buffers(recurse=False):
                setattr(part, name, torch.empty(value.shape, device="cuda"))

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(*shape, device="cuda", dtype=dtype)

        patches = torch.zeros(2, 5, dtype=torch.long, device="cuda")
        past = [FrameCache(*[[empty(2, 2, 6, 16, dtype=torch.bfloat16)] * 2] * 2)] * 2
        ends = empty(2, 5, 8), empty(2, 2)
        rollout = Rollout(predictor)
        assert isinstance(rollout.compiled, ByTorch)
        frames = list(rollout.imagine(*ends, empty(2, 7, 3, 4), patches, past))
        assert [(x.device.type, x.dtype) for frame in frames for x in frame] == [("cuda", torch.float32)] * 6
        for cache in rollout.remember(empty(2, 2, 5, 8), empty(2, 2, 2), empty(2, 2, 4), patches):
            assert isinstance(cache, FrameCache)
            assert [x.device.type for x in cache.keys] == ["cuda"] * 2


def test_a_rollout_takes_only_what_it_has_remembered() -> None:
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    latent, patches = random_latent(model, 1, generator), torch.arange(4)[None]
    start = gather_patches(latent.tokens, patches), latent.proprio
    with torch.inference_mode(), pytest.raises(TypeError, match="remembered itself"):
        list(Rollout(model.predictor).imagine(*start, torch.zeros(1, 2, 1, 4), patches, ["a frame"]))  # type: ignore[arg-type]
