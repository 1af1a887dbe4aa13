"""The baseline: a user compares its times with ours, so both must compute the same thing."""

from __future__ import annotations

import pytest
import torch

from sparsewm.evaluation.dino_wm import WindowRollout
from sparsewm.model import Latent
from sparsewm.model.latent import gather_patches
from tests.model.tiny import latent_problem, random_actions, random_latent, tiny_model


def copies(latent: Latent, count: int) -> Latent:
    return Latent(latent.tokens.expand(count, -1, -1), latent.proprio.expand(count, -1))


@pytest.mark.parametrize("head_dim", [None, 24])
def test_window_computes_what_the_cached_rollout_does_while_the_window_grows(head_dim: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    model = tiny_model(history=3, head_dim=head_dim)
    latent, patches = random_latent(model, 1, generator), torch.tensor([7, 2, 11, 5])
    actions = random_actions(model, 1, 6, 3, generator=generator)
    kept = gather_patches(latent.tokens, patches[None])
    ours_tokens, ours_proprio = model.rollout(kept, latent.proprio, actions, patches[None])
    start = kept.expand(6, -1, -1), latent.proprio.expand(6, -1)
    tokens, proprio = WindowRollout(model).rollout(*start, actions[0], patches)
    torch.testing.assert_close(tokens, ours_tokens[0, :, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(proprio, ours_proprio[0, :, -1], rtol=1e-4, atol=1e-4)


def test_window_forgets_what_slid_out_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    model = tiny_model(history=2)
    patches = torch.arange(4)
    actions = random_actions(model, 1, 3, 4, generator=generator)
    start = torch.randn(1, 4, model.config.token_dim, generator=generator), torch.randn(1, 2)
    ours, _ = model.rollout(*start, actions, patches[None])
    theirs, _ = WindowRollout(model).rollout(
        start[0].expand(3, -1, -1), start[1].expand(3, -1), actions[0], patches
    )
    assert 1e-4 < (ours[0, :, -1] - theirs).abs().max() < 1.0


def test_window_costs_what_the_planning_problem_costs_however_candidates_are_split() -> None:
    generator = torch.Generator().manual_seed(1)
    model = tiny_model(history=3)
    start, goal = random_latent(model, 1, generator), random_latent(model, 1, generator)
    problem = latent_problem(model, start, goal, horizon=3, drop=0.5, weight=0.7)
    actions = random_actions(model, 1, 5, 3, generator=generator)
    expected = problem.cost(actions)[0]
    for memory in (5e8, 1.0):
        window = WindowRollout(model, memory)
        cost = window.cost(copies(start, 5), goal, actions[0], problem.patches[0], alpha=0.7)
        torch.testing.assert_close(cost, expected, rtol=1e-4, atol=1e-4)


def test_start_is_encoded_once_per_candidate() -> None:
    model = tiny_model()
    calls: list[int] = []
    encode = model.encode
    model.encode = lambda pixels, proprio: calls.append(len(pixels)) or encode(pixels, proprio)  # type: ignore
    pixels, proprio = torch.zeros(1, 28, 28, 3, dtype=torch.uint8), torch.zeros(1, 2)
    latent = WindowRollout(model).encode(pixels, proprio, 5, batch=2)
    assert calls == [2, 2, 1] and latent.tokens.shape[0] == 5


def test_in_bfloat16_it_costs_about_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    model = tiny_model(history=3)
    start, goal = copies(random_latent(model, 1, generator), 5), random_latent(model, 1, generator)
    actions, patches = random_actions(model, 1, 5, 3, generator=generator)[0], torch.arange(6)
    exact, half = (
        WindowRollout(model, dtype=dtype).cost(start, goal, actions, patches)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32 and not torch.equal(exact, half)
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0)
