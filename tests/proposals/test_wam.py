"""The world-action model: any pair of noise levels, what is computed once, its variants, its own ranking."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsewm.config import ProposalConfig
from sparsewm.errors import UserError
from sparsewm.model.latent import Latent, Standardizer, gather_patches
from sparsewm.model.world_model import WorldModel
from sparsewm.proposals.flow import PolicySizes
from sparsewm.proposals.latent import LatentProposals, load_policy, save_policy
from sparsewm.proposals.wam import WamConfig, WorldActionModel
from tests.model.tiny import random_latent, tiny_model
from tests.proposals.small import CHUNK, HOW, SIZES, forked, frames_of, stirred, taught, wam


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model()


@pytest.fixture(scope="module")
def frames(model: WorldModel) -> list[Latent]:
    seeds = torch.Generator().manual_seed(0)
    return [random_latent(model, 2, seeds) for _ in range(2)]


def noise(policy: WorldActionModel, samples: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A chunk, a future and its patches, of two episodes."""
    seeds, sizes = torch.Generator().manual_seed(seed), policy.sizes
    chunk = torch.randn(2, samples, sizes.chunk, sizes.action_dim, generator=seeds)
    future = torch.randn(2, samples, policy.frames * policy.kept, sizes.token_dim, generator=seeds)
    return chunk, future, torch.tensor([[0, 3, 7], [2, 5, 11]])


def drawn(policy: WorldActionModel, frames: list[Latent], how: ProposalConfig, samples: int = 4) -> Tensor:
    return policy.propose(*frames, samples, [torch.Generator().manual_seed(1)], how)


def test_candidates_share_what_is_seen(model: WorldModel, frames: list[Latent]) -> None:
    """Together they get what each gets alone."""
    policy = wam(model)
    cache = policy.read(frames[0].tokens, frames[0].proprio, frames[1].tokens)
    assert all(k.shape == v.shape == (2, 2, 2 * 16 + 1, 16) for k, v in cache)
    chunk, future, patches = noise(policy)
    levels, others = torch.rand(2, 3), torch.rand(2, 3)
    whole = policy.velocity(cache, chunk, levels, future, others, patches)
    for i in range(3):
        one = slice(i, i + 1)
        alone = policy.velocity(cache, chunk[:, one], levels[:, one], future[:, one], others[:, one], patches)
        assert torch.allclose(whole[0][:, one], alone[0], atol=1e-5)
        assert whole[1] is not None and alone[1] is not None
        assert torch.allclose(whole[1][:, one], alone[1], atol=1e-5)


def test_who_sees_whom(model: WorldModel, frames: list[Latent]) -> None:
    policy = wam(model)
    cache = policy.read(frames[0].tokens, frames[0].proprio, frames[1].tokens)
    chunk, future, patches = noise(policy)
    ones = torch.ones(2, 3)
    for sees in (True, False):
        plain, imagined, _ = policy.velocity(cache, chunk, ones, future, ones, patches, sees=sees)
        other, _, _ = policy.velocity(cache, chunk, ones, future + 1, ones, patches, sees=sees)
        assert torch.equal(plain, other) is not sees
        _, moved, _ = policy.velocity(cache, chunk + 1, ones, future, ones, patches, sees=sees)
        assert imagined is not None and moved is not None and not torch.isclose(imagined, moved).all()
    alone, nothing, _ = policy.velocity(cache, chunk, ones)
    assert torch.equal(alone, plain) and nothing is None
    for later in (0.2, 0.9):  # levels of their own
        changed, _, _ = policy.velocity(cache, chunk, ones, future, later * ones, patches)
        assert not torch.isclose(changed, plain).all()


def test_a_finished_future_is_read_once(model: WorldModel, frames: list[Latent]) -> None:
    """Its keys and values give the actions what the future itself gives them."""
    policy = wam(model)
    cache = policy.read(frames[0].tokens, frames[0].proprio, frames[1].tokens)
    chunk, future, patches = noise(policy)
    ones = torch.ones(2, 3)
    slope, _, kept = policy.velocity(cache, chunk, ones, future, 0.5 * ones, patches)
    assert torch.equal(slope, policy.velocity(cache, chunk, ones, fixed=kept)[0])


@pytest.mark.parametrize(("future", "actions"), [(0, 4), (1, 4), (3, 4), (4, 4), (8, 4), (2, 1)])
def test_steps_of_future_and_actions(
    future: int, actions: int, model: WorldModel, frames: list[Latent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How often each expert is asked, and at which noise levels."""
    policy, asked = wam(model), []
    velocity = WorldActionModel.velocity

    def spied(
        self: WorldActionModel, cache: Any, chunk: Tensor, levels: Tensor, *rest: Any, **named: Any
    ) -> Any:
        asked.append((levels[0, 0].item(), rest[1][0, 0].item() if rest else None, "fixed" in named))
        return velocity(self, cache, chunk, levels, *rest, **named)

    monkeypatch.setattr(WorldActionModel, "velocity", spied)
    how = ProposalConfig(action_steps=actions, future_steps=future)
    assert drawn(policy, frames, how).shape == (2, 4, CHUNK, 4)
    ahead = max(0, future - actions)
    levels = [1.0] * ahead + [1 - i / actions for i in range(actions)]
    assert [level for level, _, _ in asked] == pytest.approx(levels)
    seen = [level for _, level, _ in asked if level is not None]
    assert len(seen) == (0 if future == 0 else max(future, min(future + 1, actions)))
    assert seen == pytest.approx([1 - i / max(future, actions) for i in range(len(seen))])
    if 0 < future < actions:  # the rest goes on beside a future that stays as noisy as it is
        assert all(level is None for _, level, _ in asked[future + 1 :])


def test_left_out_it_is_a_flow_policy(model: WorldModel, frames: list[Latent]) -> None:
    """A future that is not imagined changes nothing; neither does the seed of one that cannot be."""
    policy, none = wam(model), wam(model, tokens=0)
    skipped = drawn(policy, frames, ProposalConfig(future_steps=0))
    assert not torch.isclose(skipped, drawn(policy, frames, ProposalConfig(future_steps=1))).all()
    assert not none.imagines and none.frames == 0
    assert torch.equal(drawn(none, frames, HOW), drawn(none, frames, ProposalConfig(future_steps=0)))
    assert wam(model, tokens=99).kept == 16, "all of them"


def test_its_own_future_ranks(model: WorldModel, frames: list[Latent]) -> None:
    """Of all that is drawn, those whose imagined end is nearest to the goal, best first."""
    policy = wam(model)
    how = ProposalConfig(future_steps=2, ranked=5)
    best = drawn(policy, frames, how)
    cache = policy.read(frames[0].tokens, frames[0].proprio, frames[1].tokens)
    chunks, imagined, patches = policy.denoise(cache, 20, [torch.Generator().manual_seed(1)], how)
    assert imagined is not None and patches is not None and imagined.shape == (2, 20, 2, 3, 8)
    wanted = gather_patches(frames[1].tokens, patches)[:, None]
    missed = (imagined[:, :, -1] - wanted).square().mean((2, 3))
    for row in range(2):
        places = [next(i for i in range(20) if torch.equal(chunks[row, i], chunk)) for chunk in best[row]]
        errors = missed[row, places].tolist()
        assert all(a <= b for a, b in pairwise(errors)) and errors[-1] <= missed[row].sort().values[3]


def test_the_future_expert_starts_from_the_predictor() -> None:
    """Of the predictor's sizes it takes its weights; of others it stays as it is."""
    model = tiny_model()
    sizes = {"width": 32, "depth": 2, "heads": 2, "mlp": 48}
    policy = wam(model, **sizes)
    assert policy.begin(model.predictor)
    for layer, block in zip(policy.future.layers, model.predictor.blocks, strict=True):
        assert torch.equal(layer.qkv.weight, block.qkv.weight)  # type: ignore[union-attr]
        assert torch.equal(layer.down.bias, block.down.bias)  # type: ignore[union-attr]
    assert torch.equal(policy.embed_tokens.weight, model.predictor.embed_tokens.weight)
    for name, value in (("depth", 3), ("mlp", 64), ("heads", 4), ("width", 64)):
        other = wam(model, **sizes | {name: value})
        before = other.embed_tokens.weight.clone()
        assert not other.begin(model.predictor) and torch.equal(other.embed_tokens.weight, before)


@pytest.mark.slow
def test_it_learns_actions_and_futures_that_belong_together() -> None:
    """Left or right is nobody's to say, but a candidate's future goes where its actions go."""
    torch.manual_seed(0)
    config = WamConfig(32, 2, 2, 64, 32, tokens=2, seen=1.0, unseen=0.3)
    policy = taught(WorldActionModel(SIZES, config), 500)
    batch = forked(64, torch.Generator().manual_seed(7))
    present, goal = frames_of(batch)
    far = batch["goal"][:, 0, -1]
    for steps in (0, 1, 4):
        how = ProposalConfig(action_steps=4, future_steps=steps)
        chunks = policy.propose(present, goal, 8, [torch.Generator().manual_seed(0)], how)[:, 1:, 0, 0]
        error = (chunks.abs() - far[:, None]).abs().median()
        assert error < 0.25, (steps, error)
        assert 0.2 < (chunks > 0).float().mean() < 0.8
    cache = policy.read(present.tokens, present.proprio, goal.tokens)
    chunks, imagined, patches = policy.denoise(cache, 8, [torch.Generator().manual_seed(0)], HOW)
    assert imagined is not None and patches is not None
    moved = (imagined[:, :, 0] - gather_patches(present.tokens, patches)[:, None])[..., 0].mean(-1)
    same = (moved[:, 1:].sign() == chunks[:, 1:, 0, 0].sign()).float().mean()
    assert same > 0.8, same
    told = policy.tell(batch, torch.Generator().manual_seed(0))
    assert 0 < told["future"] < 1.2  # half of the ways go left: their mean is the present


@pytest.mark.parametrize("tokens", [0, 3])
def test_it_is_kept_beside_its_world_model(
    tokens: int, model: WorldModel, frames: list[Latent], tmp_path: Any
) -> None:
    policy = wam(model, tokens=tokens)
    save_policy(policy, model, tmp_path / "wam", {})
    again: Any = load_policy(tmp_path / "wam", model)
    assert torch.equal(drawn(policy, frames, HOW), drawn(again, frames, HOW))
    shown = model.interface
    assert shown is not None
    with pytest.raises(UserError, match=r"`ranked` candidates need an imagined future|imagines no future"):
        LatentProposals(again, model, shown, ProposalConfig(future_steps=0, ranked=2))


@pytest.mark.parametrize(
    "sizes", [{"width": 30}, {"heads": 5}, {"action_width": 3}, {"tokens": -1}, {"seen": 0.0}, {"frames": 0}]
)
def test_impossible_sizes_are_said(sizes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="of a wam, "):
        WamConfig(**sizes)


TABLE = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")


def told(turned: bool = True) -> WorldActionModel:
    torch.manual_seed(0)
    sizes = PolicySizes(8, (4, 4), 2, 4, 2, TABLE, 1, turned)
    policy = WorldActionModel(sizes, WamConfig(32, 2, 2, 48, 16, tokens=3, told=True))
    policy.bodies.reader.fit(256 + 100 * torch.randn(40, 5, dtype=torch.float64))
    policy.bodies.fit(dict.fromkeys(TABLE, 2.0), Standardizer(16, 8, 2, 4))
    return stirred(policy)


def test_it_is_told_how_things_lie(model: WorldModel, tmp_path: Path) -> None:
    """What it is told of the goal moves its chunks, and a file keeps what tells it."""
    policy = told()
    frames = [random_latent(model, 2, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    save_policy(policy, model, tmp_path / "wam", {})
    kept, one, other = load_policy(tmp_path / "wam", model), told(), told()
    other.bodies.reader.mean += 50
    chunks = [drawn(each, frames, HOW) for each in (policy, kept, one, other)]
    assert torch.equal(chunks[0], chunks[1]) and torch.equal(chunks[0], chunks[2])
    assert not torch.allclose(chunks[0], chunks[3])
    assert torch.allclose(chunks[0].norm(dim=-1), drawn(told(False), frames, HOW).norm(dim=-1), atol=1e-5)


@pytest.mark.slow
def test_it_learns_from_recorded_states(model: WorldModel) -> None:
    """Which way to go is in the states alone; what tells the state stays as it was."""
    sizes = PolicySizes(4, (2, 2), 2, 2, CHUNK, ("x", "y"))
    torch.manual_seed(0)
    policy = WorldActionModel(sizes, WamConfig(32, 2, 2, 48, 32, tokens=2, told=True, unseen=0.5))
    policy.bodies.reader.fit(torch.randn(40, 2, dtype=torch.float64))
    policy.bodies.fit({"x": 0.001, "y": 0.001}, Standardizer(4, 4, 2, 2))
    for part in policy.learned:
        part.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 3e-3)

    def batch(count: int) -> dict[str, Tensor]:
        found = forked(count, generator)
        state = torch.randn(count, 2, generator=generator)
        return found | {"state": state, "wanted": state + found["action"][:, 0]}

    for _ in range(300):
        optimizer.zero_grad()
        losses = policy.loss(batch(128), generator)
        losses["loss"].backward()
        optimizer.step()
    assert losses["action"] < 0.25, "0.5 and more where it does not know which way"


@pytest.mark.parametrize("free", [(), ("y",)])
def test_the_goals_tokens_are_not_read_where_they_show_what_is_free(free: tuple[str, ...]) -> None:
    sizes = PolicySizes(4, (2, 2), 2, 2, CHUNK, ("x", "y"), free=free)
    policy = stirred(WorldActionModel(sizes, WamConfig(32, 2, 2, 48, 32, tokens=2, told=True)))
    present, goal, states = torch.randn(2, 4, 4), torch.randn(2, 4, 4), (torch.randn(2, 2),) * 2
    for patches in (None, torch.tensor([[0, 2], [1, 3]])):
        one, other = (policy.read(present, torch.zeros(2, 2), x, patches, states) for x in (goal, goal + 1))
        assert torch.equal(one[-1][0], other[-1][0]) is bool(free)
