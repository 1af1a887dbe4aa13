"""The predictor's short cuts, groups and caches, change nothing: both equal a masked dense transformer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsewm.model import Latent, PredictorConfig, WorldModel
from sparsewm.model.latent import gather_patches, random_groups, random_patches
from sparsewm.model.predictor import FrameCache, attend
from tests.model.dense import dense_step
from tests.model.tiny import random_actions, random_latent, tiny_model

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def training_batch(model: WorldModel, episodes: int, frames: int) -> dict[str, Tensor]:
    generator = seeded(1)
    return {
        "tokens": torch.randn(episodes, frames, model.patches, model.config.token_dim, generator=generator),
        "proprio": torch.randn(episodes, frames, model.config.proprio_dim, generator=generator),
        "action": random_actions(model, episodes, frames - 1, generator=generator),
    }


def dense_loss(
    model: WorldModel, batch: dict[str, Tensor], real: int, groups: list[Tensor]
) -> dict[str, Tensor]:
    """`WorldModel.loss` from its description, over all tokens at once with a block mask."""
    patches = torch.cat(groups, 1)
    truth, proprio_truth = gather_patches(batch["tokens"], patches), batch["proprio"]
    shares = torch.tensor([group.shape[1] / patches.shape[1] for group in groups])
    actions = model.standardizer.actions(batch["action"])
    tokens, proprio, token_errors, proprio_errors = [], [], [], []
    predicted_tokens, predicted_proprio = truth[:, 0], proprio_truth[:, 0, None].expand(-1, len(groups), -1)
    for t in range(batch["action"].shape[1]):
        recorded = t < real
        tokens.append(truth[:, t] if recorded else predicted_tokens)
        own = proprio_truth[:, t, None].expand(-1, len(groups), -1)
        proprio.append(own if recorded else predicted_proprio)
        predicted_tokens, predicted_proprio = dense_step(model.predictor, tokens, proprio, actions, groups)
        token_errors.append((predicted_tokens - truth[:, t + 1]).square().mean())
        per_group = (predicted_proprio - proprio_truth[:, None, t + 1]).square().mean((0, 2))
        proprio_errors.append((per_group * shares).sum())
    return {"tokens": torch.stack(token_errors).mean(), "proprio": torch.stack(proprio_errors).mean()}


@pytest.mark.parametrize("real", [1, 3])
@pytest.mark.parametrize(("count", "head_dim"), [(1, None), (2, None), (3, None), (2, 24)])
def test_grouped_attention_equals_masked_dense_attention(count: int, real: int, head_dim: int | None) -> None:
    model = tiny_model(history=3, head_dim=head_dim).requires_grad_(True)
    batch = training_batch(model, episodes=2, frames=6)  # longer than the attention window
    groups = random_groups(2, model.patches, count, 3, seeded(2))
    grouped = model.loss(batch, real, groups)
    dense = dense_loss(model, batch, real, groups)
    close(grouped["tokens"], dense["tokens"])
    close(grouped["proprio"], dense["proprio"])
    close(grouped["loss"], dense["tokens"] + dense["proprio"])
    parameters = list(model.predictor.parameters())
    expected = torch.autograd.grad(dense["tokens"] + dense["proprio"], parameters)
    for gradient, reference in zip(torch.autograd.grad(grouped["loss"], parameters), expected, strict=True):
        close(gradient, reference, 1e-4)


def test_groups_do_not_see_each_other() -> None:
    """Tokens of the other group change nothing; without groups they would."""
    model = tiny_model()
    batch = training_batch(model, episodes=2, frames=4)
    first, second = random_groups(2, model.patches, 2, 4, seeded(3))
    changed = dict(batch, tokens=batch["tokens"].scatter(
        2, second[:, None, :, None].expand(-1, 4, -1, model.config.token_dim), 5.0
    ))  # fmt: skip
    assert torch.equal(model.loss(batch, 2, [first])["loss"], model.loss(changed, 2, [first])["loss"])
    everything = [torch.arange(model.patches).expand(2, -1)]
    assert not torch.allclose(
        model.loss(batch, 2, everything)["loss"], model.loss(changed, 2, everything)["loss"]
    )


def test_random_groups_share_out_all_patches() -> None:
    sizes = set()
    for seed in range(20):
        groups = random_groups(3, 16, 3, 4, seeded(seed))
        assert len(groups) == 3 and min(group.shape[1] for group in groups) >= 4
        assert torch.equal(torch.cat(groups, 1).sort(1).values, torch.arange(16).expand(3, -1))
        sizes.add(tuple(group.shape[1] for group in groups))
        assert not torch.equal(groups[0][0], groups[0][1])  # another split for every episode
    assert len(sizes) > 3
    assert torch.equal(random_groups(2, 16, 1, 4, seeded())[0], torch.arange(16).expand(2, -1))
    with pytest.raises(ValueError, match=r"5 groups of at least 4 patches do not fit into 16"):
        random_groups(1, 16, 5, 4, seeded())


def recomputed(
    model: WorldModel, history: list[tuple[Latent, Tensor]], start: Latent, actions: Tensor, patches: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Imagined frames (B, S, ...) with nothing kept between frames or shared between candidates."""
    remembered = history[max(0, len(history) - model.history + 1) :]
    frames: list[list[tuple[Tensor, Tensor]]] = []
    for candidate in range(actions.shape[1]):
        tokens = [gather_patches(frame.tokens, patches) for frame, _ in remembered]
        proprio = [frame.proprio[:, None] for frame, _ in remembered]
        tokens.append(gather_patches(start.tokens, patches))
        proprio.append(start.proprio[:, None])
        taken = [action[:, None] for _, action in remembered]
        sequence = model.standardizer.actions(torch.cat([*taken, actions[:, candidate]], 1))
        imagined = []
        for _ in range(actions.shape[2]):
            after, own = dense_step(model.predictor, tokens, proprio, sequence, [patches])
            imagined.append((after, own[:, 0]))
            tokens.append(after)
            proprio.append(own)
        frames.append(imagined)
    return [
        (torch.stack([f[step][0] for f in frames], 1), torch.stack([f[step][1] for f in frames], 1))
        for step in range(actions.shape[2])
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("history", "seen"), [(1, 2), (2, 1), (3, 0), (3, 1), (3, 4)])
def test_cached_rollout_equals_recomputing_every_frame(history: int, seen: int, device: str) -> None:
    """`seen` recorded frames before the present one, a window of `history` frames, five imagined steps."""
    model, generator = tiny_model(history=history), seeded(4)
    start = random_latent(model, 2, generator)
    past = [
        (random_latent(model, 2, generator), random_actions(model, 2, generator=generator))
        for _ in range(seen)
    ]
    actions = random_actions(model, 2, 3, 5, generator=generator)
    patches = random_patches(2, model.patches, 6, generator)
    expected = recomputed(model, past, start, actions, patches)

    model.place(device)
    here = [(Latent(f.tokens.to(device), f.proprio.to(device)), a.to(device)) for f, a in past]
    patches, tokens = patches.to(device), gather_patches(start.tokens, patches).to(device)
    caches = model.remember(here, patches)
    assert all(key.ndim == 4 for cache in caches for key in cache.keys)  # shared by all candidates
    inputs = (tokens, start.proprio.to(device), actions.to(device), patches)
    shared = list(model.imagine(*inputs, caches))
    expanded = [
        FrameCache(
            [k[:, None].expand(-1, 3, -1, -1, -1) for k in cache.keys],
            [v[:, None].expand(-1, 3, -1, -1, -1) for v in cache.values],
        )
        for cache in caches
    ]
    own_keys = list(model.imagine(*inputs, expanded))
    for (tokens, proprio), (wide_tokens, wide_proprio), (tokens_from_scratch, proprio_from_scratch) in zip(
        shared, own_keys, expected, strict=True
    ):
        close(tokens.cpu(), tokens_from_scratch, 1e-4)
        close(proprio.cpu(), proprio_from_scratch, 1e-4)
        close(wide_tokens, tokens)
        close(wide_proprio, proprio)
    if seen and history > 1:  # the past matters, or all of the above would hold without it
        assert not torch.allclose(list(model.imagine(*inputs))[-1][0], shared[-1][0], atol=1e-3)


def test_rollout_stacks_what_imagine_yields() -> None:
    model, generator = tiny_model(), seeded(5)
    start, actions = random_latent(model, 2, generator), random_actions(model, 2, 3, 4, generator=generator)
    patches = random_patches(2, model.patches, 5, generator)
    kept = gather_patches(start.tokens, patches)
    tokens, proprio = model.rollout(kept, start.proprio, actions, patches)
    assert tokens.shape == (2, 3, 4, 5, model.config.token_dim) and proprio.shape == (2, 3, 4, 2)
    for step, (now_tokens, now_proprio) in enumerate(model.imagine(kept, start.proprio, actions, patches)):
        assert torch.equal(tokens[:, :, step], now_tokens) and torch.equal(proprio[:, :, step], now_proprio)


def test_predict_is_the_first_imagined_frame_of_one_candidate() -> None:
    model, generator = tiny_model(), seeded(6)
    start, action = random_latent(model, 2, generator), random_actions(model, 2, generator=generator)
    patches = random_patches(2, model.patches, 5, generator)
    kept = gather_patches(start.tokens, patches)
    tokens, proprio, _ = model.predict(kept, start.proprio, action, patches)
    (imagined_tokens, imagined_proprio), *_ = model.imagine(
        kept, start.proprio, action[:, None, None], patches
    )
    close(tokens, imagined_tokens[:, 0])
    close(proprio, imagined_proprio[:, 0])


def test_attention_over_shared_and_own_keys_is_softmax_over_their_union() -> None:
    generator = seeded(7)
    q, own_k, own_v = torch.randn(3, 2, 3, 2, 4, 8, generator=generator)
    old_k, old_v = torch.randn(2, 2, 2, 5, 8, generator=generator)  # (B, H, L', d)
    everything_k = torch.cat([old_k[:, None].expand(-1, 3, -1, -1, -1), own_k], 3)
    everything_v = torch.cat([old_v[:, None].expand(-1, 3, -1, -1, -1), own_v], 3)
    expected = torch.softmax(torch.einsum("bshld,bshmd->bshlm", q, everything_k), -1) @ everything_v
    close(attend(q, [old_k, own_k], [old_v, own_v]), expected)


def test_token_order_permutes_the_outcome_and_nothing_else() -> None:
    model, generator = tiny_model(), seeded(8)
    start, action = random_latent(model, 2, generator), random_actions(model, 2, generator=generator)
    actions = random_actions(model, 2, 3, 4, generator=generator)
    patches = random_patches(2, model.patches, 7, generator)
    order = torch.randperm(7, generator=generator)
    outcomes = []
    for kept in (patches, patches[:, order]):
        past = model.remember([(start, action)], kept)
        outcomes.append(model.rollout(gather_patches(start.tokens, kept), start.proprio, actions, kept, past))
    (tokens, proprio), (shuffled_tokens, shuffled_proprio) = outcomes
    close(shuffled_tokens, tokens[..., order, :])
    close(shuffled_proprio, proprio)
    assert not torch.allclose(tokens, tokens[..., order, :], atol=1e-2)


def test_patches_know_where_they_are() -> None:
    """The same token somewhere else has another future."""
    model, generator = tiny_model(), seeded(9)
    start, actions = random_latent(model, 1, generator), random_actions(model, 1, 1, 1, generator=generator)
    here, there = torch.tensor([[0, 1]]), torch.tensor([[10, 15]])
    kept = start.tokens[:, :2]
    futures = [model.rollout(kept, start.proprio, actions, patches)[0] for patches in (here, there)]
    assert not torch.allclose(*futures, atol=1e-2)


def test_random_patches_are_distinct_and_every_patch_gets_its_turn() -> None:
    counts = torch.zeros(16)
    for seed in range(50):
        patches = random_patches(4, 16, 8, seeded(seed))
        assert patches.shape == (4, 8) and bool((patches.diff(dim=1) > 0).all())
        counts.scatter_add_(0, patches.flatten(), torch.ones(32))
    assert counts.min() > 60 and counts.max() < 140  # 100 expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 30, "heads": 3}, "multiple of 4"),
        ({"width": 32, "heads": 3}, "heads 3"),
        ({"history": 0}, "history"),
        ({"width": 30, "heads": 3, "head_dim": 10}, "multiple of 4"),
        ({"head_dim": 0}, "head_dim"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictorConfig(8, (4, 4), 2, 4, **sizes)
