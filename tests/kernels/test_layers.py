"""All layers of a frame in one compiled call are what torch computes, layer by layer."""

from __future__ import annotations

import copy
import math
from typing import Any
from unittest import mock

import pytest
import torch

from sparsewm.kernels import Layout, layout_of
from sparsewm.model import Latent, rollout
from sparsewm.model.latent import gather_patches
from sparsewm.model.rollout import Rollout
from sparsewm.model.world_model import WorldModel
from tests.kernels.stand_ins import compiled
from tests.model.tiny import random_actions, random_latent, tiny_encoder, tiny_model

FACTORS = {torch.bfloat16: 1.5, torch.int8: 3.0}
"""How many times the error of torch's operations is allowed; 8-bit integers are held against bfloat16."""
SIZES = {"width": 64, "heads": 2, "mlp": 96}
pytestmark = pytest.mark.usefixtures("tiles_everywhere")


def aged_model(**sizes: Any) -> WorldModel:
    """A tiny model whose keys grow visibly older, and whose actions modulate every layer."""
    model, generator = tiny_model(**SIZES | sizes), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.predictor.blocks:
            for parameter in (block.age, block.modulation.weight, block.modulation.bias):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


Frames = list[tuple[torch.Tensor, torch.Tensor]]


def imagined(
    layout: Layout, model: WorldModel, kept: int, candidates: int, seen: int = 0, steps: int = 5
) -> tuple[Frames, Frames, Frames]:
    """Frames that two episodes imagine: by the predictor in float64, compiled, and by torch's operations."""
    generator = torch.Generator().manual_seed(kept)
    latent = random_latent(model, 2, generator)
    order = torch.rand(2, model.patches, generator=generator).argsort(1)
    patches = order[:, :kept]
    frames = [(random_latent(model, 2, generator), random_actions(model, 2, generator=generator))] * seen
    actions = random_actions(model, 2, candidates, steps, generator=generator)
    start = gather_patches(latent.tokens, patches), latent.proprio
    predictor = copy.deepcopy(model.predictor).bfloat16()
    with torch.inference_mode():
        expected = exactly(model, start, actions, patches, frames)
        with mock.patch.object(rollout, "layout_of", lambda weights: layout):
            fast = Rollout(predictor, layout.weights)
        assert fast.whole is not None and fast.whole.layout is layout
        with mock.patch.object(rollout, "layout_of", lambda weights: None):
            slow = Rollout(predictor)
        standard = model.standardizer.actions(actions)
        found, usual = (
            list(way.imagine(*start, standard, patches, model.remember(frames, patches, way)))
            for way in (fast, slow)
        )
    return expected, found, usual


def exactly(model: WorldModel, start: Any, actions: Any, patches: Any, frames: Any) -> Frames:
    """Frames that the predictor imagines in float64."""
    exact = copy.deepcopy(model).double()
    seen = [(Latent(x.tokens.double(), x.proprio.double()), action.double()) for x, action in frames]
    start = tuple(part.double() for part in start)
    return list(exact.imagine(*start, actions.double(), patches, exact.remember(seen, patches)))


def assert_same(layout: Layout, *arguments: Any, **options: Any) -> None:
    """About as exact as torch's operations of the same precision: what random layers make of single roundings
    depends on their sizes, and shows in both."""
    errors = []  # of one part of one frame: compiled, and by torch's operations
    for frames in zip(*imagined(layout, *arguments, **options), strict=True):
        for expected, found, usual in zip(*frames, strict=True):
            errors.append([float((way - expected).norm() / expected.norm()) for way in (found, usual)])
    error, usual_error = (sum(column) / len(errors) for column in zip(*errors, strict=True))
    assert (
        error < FACTORS[layout.weights] * usual_error + 2**-6
    )  # torch's may be lucky with one draw of weights
    assert error < 0.5 and usual_error < 0.3


@compiled(*FACTORS)
@pytest.mark.parametrize("kept", [1, 4, 7, 8, 16])
@pytest.mark.parametrize(("history", "seen"), [(1, 0), (2, 1), (3, 0), (3, 1), (3, 2), (3, 4)])
def test_frames_are_those_of_the_predictor(layout: Layout, kept: int, history: int, seen: int) -> None:
    assert_same(layout, aged_model(history=history), kept, 3, seen)


@compiled(*FACTORS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 32, "heads": 1, "mlp": 32},
        {"width": 96, "heads": 4, "mlp": 160},  # heads of 24: a block of 16 numbers and one of 8
        {"width": 192, "heads": 3, "mlp": 768},  # more inputs than a panel's depth
        {"width": 64, "heads": 8, "mlp": 64},
        {"width": 64, "heads": 3, "mlp": 64, "head_dim": 64},  # heads together wider than the tokens
        {"width": 64, "heads": 2, "mlp": 64, "head_dim": 16},
    ],
)
@pytest.mark.parametrize("candidates", [1, 17, 40])
def test_any_sizes(layout: Layout, sizes: dict[str, int], candidates: int) -> None:
    assert_same(layout, aged_model(history=3, **sizes), 9, candidates, steps=4)


@compiled(*FACTORS)
def test_more_rows_than_a_thread_takes_at_once(layout: Layout) -> None:
    assert_same(layout, aged_model(history=2, encoder=tiny_encoder(196)), 196, 3, steps=3)


@compiled(*FACTORS)
def test_any_number_of_threads_gives_the_same(layout: Layout) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(imagined(layout, aged_model(history=3), 5, 60)[1][-1][0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@compiled(*FACTORS)
def test_large_scores_do_not_overflow(layout: Layout) -> None:
    model = aged_model(history=2)
    with torch.no_grad():
        for block in model.predictor.blocks:
            block.qkv.weight *= 30
    for frame, _ in imagined(layout, model, 9, 4, steps=2)[1]:
        assert frame.isfinite().all()


def test_sizes_the_kernel_has_no_room_for_take_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Layout.fit(48, 2, 24, 64, 3)  # width
    assert not Layout.fit(96, 32, 3, 64, 3)  # heads of 3
    assert not Layout.fit(96, 3, 8, 64, 3)  # heads together
    assert not Layout.fit(64, 2, 32, 72, 3)  # mlp
    assert not Layout.fit(64, 2, 32, 64, 17)  # frames
    assert Layout.fit(384, 16, 64, 2048, 3) and Layout.fit(384, 16, 24, 2048, 3)
    assert Layout.fit(192, 3, 64, 768, 3)
    narrow = tiny_model(width=24, heads=2).place("cpu", torch.bfloat16)
    assert Rollout(narrow.predictor).whole is None
    assert math.isfinite(float(next(_one_frame(narrow))[0].sum()))
    wide = tiny_model(**SIZES).place("cpu", torch.bfloat16)
    assert (Rollout(wide.predictor).whole is None) == (layout_of(torch.bfloat16) is None)
    monkeypatch.setattr(rollout, "layout_of", lambda weights: None)
    assert Rollout(wide.predictor).whole is None


def _one_frame(model: WorldModel) -> Any:
    generator = torch.Generator().manual_seed(0)
    latent, patches = random_latent(model, 1, generator), torch.arange(4)[None]
    start = gather_patches(latent.tokens, patches), latent.proprio
    with torch.inference_mode():
        yield from Rollout(model.predictor).imagine(
            *start, random_actions(model, 1, 2, 1, generator=generator), patches
        )
