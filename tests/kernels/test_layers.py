"""All layers of a frame in one compiled call are what torch computes, layer by layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sparsewm.kernels import CompiledLayers, layers_library
from sparsewm.model import rollout
from sparsewm.model.rollout import Rollout
from sparsewm.model.world_model import WorldModel, gather_patches
from tests.model.tiny import random_actions, random_latent, tiny_encoder, tiny_model

compiled = pytest.mark.skipif(isinstance(layers_library(), str), reason=f"{layers_library()}")


def aged_model(**sizes: Any) -> WorldModel:
    """A tiny model whose keys grow visibly older, and whose actions modulate every layer."""
    model, generator = tiny_model(**sizes), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.predictor.blocks:
            for parameter in (block.age, block.modulation.weight, block.modulation.bias):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def imagined(
    model: WorldModel, kept: int, candidates: int, seen: int = 0, steps: int = 5
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], ...]:
    """Frames that two episodes imagine: by the predictor, and by the rollout."""
    generator = torch.Generator().manual_seed(kept)
    latent = random_latent(model, 2, generator)
    order = torch.rand(2, model.patches, generator=generator).argsort(1)
    patches = order[:, :kept]
    frames = [(random_latent(model, 2, generator), random_actions(model, 2, generator=generator))] * seen
    actions = random_actions(model, 2, candidates, steps, generator=generator)
    start = gather_patches(latent.tokens, patches), latent.proprio
    with torch.inference_mode():
        past = model.remember(frames, patches)
        expected = list(model.imagine(*start, actions, patches, past))
        fast = Rollout(model.predictor)
        assert fast.whole is not None
        found = list(fast.imagine(*start, model.standardizer.actions(actions), patches, past))
    return expected, found


def assert_same(frames: tuple[list[tuple[torch.Tensor, torch.Tensor]], ...]) -> None:
    for expected, found in zip(*frames, strict=True):
        for one, other in zip(expected, found, strict=True):
            assert (other - one).norm() < 1e-4 * one.norm()  # wide random layers amplify single roundings


@compiled
@pytest.mark.parametrize("kept", [1, 4, 7, 8, 16])
@pytest.mark.parametrize(("history", "seen"), [(1, 0), (2, 1), (3, 0), (3, 1), (3, 2), (3, 4)])
def test_frames_are_those_of_the_predictor(kept: int, history: int, seen: int) -> None:
    assert_same(imagined(aged_model(history=history), kept, 3, seen))


@compiled
@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 16, "heads": 1, "mlp": 16},
        {"width": 48, "heads": 2, "mlp": 80},  # heads of 24: a block of 16 numbers and one of 8
        {"width": 192, "heads": 3, "mlp": 768},  # more inputs than a panel's depth
        {"width": 64, "heads": 8, "mlp": 64},
    ],
)
@pytest.mark.parametrize("candidates", [1, 17, 40])
def test_any_sizes(sizes: dict[str, int], candidates: int) -> None:
    assert_same(imagined(aged_model(history=3, **sizes), 9, candidates, steps=4))


@compiled
def test_more_rows_than_a_thread_takes_at_once() -> None:
    assert_same(imagined(aged_model(history=2, encoder=tiny_encoder(196)), 196, 3, steps=3))


@compiled
def test_any_number_of_threads_gives_the_same() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(imagined(aged_model(history=3), 5, 60)[1][-1][0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@compiled
def test_large_scores_do_not_overflow() -> None:
    model = aged_model(history=2)
    with torch.no_grad():
        for block in model.predictor.blocks:
            block.qkv.weight *= 30
    expected, found = imagined(model, 9, 4, steps=2)
    for (one, _), (other, _) in zip(expected, found, strict=True):
        assert other.isfinite().all()
        assert (other - one).square().mean() < 1e-4 * one.square().mean()


def test_sizes_the_kernel_has_no_room_for_take_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not CompiledLayers.fit(40, 2, 64)  # width
    assert not CompiledLayers.fit(48, 4, 64)  # heads of 12
    assert not CompiledLayers.fit(48, 2, 72)  # mlp
    assert CompiledLayers.fit(384, 16, 2048) and CompiledLayers.fit(192, 3, 768)
    narrow = tiny_model(width=24, heads=2)
    assert Rollout(narrow.predictor).whole is None
    assert math.isfinite(float(next(_one_frame(narrow))[0].sum()))
    monkeypatch.setattr(rollout, "layers_library", lambda: "switched off")
    assert Rollout(tiny_model().predictor).whole is None


def _one_frame(model: WorldModel) -> Any:
    generator = torch.Generator().manual_seed(0)
    latent, patches = random_latent(model, 1, generator), torch.arange(4)[None]
    start = gather_patches(latent.tokens, patches), latent.proprio
    with torch.inference_mode():
        yield from Rollout(model.predictor).imagine(
            *start, random_actions(model, 1, 2, 1, generator=generator), patches
        )
