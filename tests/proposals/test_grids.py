"""Grid sampling: places are learned, few tokens reach the transformer, and the policy saves and plans."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from lerobot.policies.factory import get_policy_class
from lerobot.policies.smolvla import smolvlm_with_expert

from scripts.lab.states import observations
from sparsewm import envs
from sparsewm.proposals.lerobot import LeRobotProposals
from sparsewm.proposals.modeling_grids import GridSampler, SmolVLAGridsPolicy, spread
from tests.proposals.tiny import tiny_policy


def test_sampling_at_the_middles_of_patches_gives_the_patches() -> None:
    features = torch.randn(2, 16, 8)
    sampler = GridSampler(8, 16)
    assert torch.allclose(sampler.sample(features, spread(16).expand(2, -1, -1)), features, atol=1e-5)
    places = GridSampler(8, 16, "random").coordinates(features, 4)
    assert torch.allclose(sampler.sample(features, places).sum(1), features.sum(1), atol=1e-4)


def test_places_are_learned() -> None:
    """Sampled between patches the loss tells where to go."""
    column = torch.linspace(-1, 1, 8)
    features = column.repeat(8)[None, :, None].expand(1, -1, 4).contiguous()
    torch.manual_seed(0)
    sampler = GridSampler(4, 1)
    optimiser = torch.optim.Adam(sampler.places.parameters(), lr=0.02)
    for _ in range(60):
        loss = (sampler.sample(features, sampler.coordinates(features, 8)) - 0.5).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 1e-3


def test_tokens_know_their_place() -> None:
    features, sampler = torch.ones(1, 16, 8), GridSampler(8, 4)
    assert torch.pdist(sampler(features)[0]).min() > 1e-3
    bare = sampler.sample(features, sampler.coordinates(features, 4))[0]
    assert torch.pdist(bare).max() < 1e-5


@pytest.mark.parametrize("choice", ["grids", "random"])
def test_the_policy_is_saved_loaded_trained_and_asked(choice: str, tmp_path: Path) -> None:
    folder = tiny_policy(tmp_path, "smolvla_grids", image_tokens=3, choice=choice, train_expert_only=False)
    env = envs.make("wall", resolution=32)
    env.reset(seed=0)
    sampler = LeRobotProposals(folder, env)
    assert isinstance(sampler.policy, SmolVLAGridsPolicy)
    pictures = torch.rand(2, 3, 32, 32)
    assert sampler.policy.model.vlm_with_expert.embed_image(pictures).shape == (2, 3, 24)
    seen, goal = (observations(env, state[None]) for state in (env.state, env.goal))
    actions = sampler.propose(seen, goal, "go", 4, 12)
    assert actions.shape == (1, 4, 12, 2) and actions.std(1).min() > 0
    policy = get_policy_class("smolvla_grids")(sampler.config).train()
    batch = sampler._batch(seen, goal, ["go"]) | {"action": torch.rand(1, sampler.config.chunk_size, 2)}
    policy.forward(batch)[0].backward()
    learned = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in policy.grids.parameters()]
    assert learned and all(learned)


def asked(folder: Path, **changes: object) -> tuple[SmolVLAGridsPolicy, dict[str, torch.Tensor]]:
    """A policy, and what it is shown."""
    env = envs.make("wall", resolution=32)
    env.reset(seed=0)
    sampler = LeRobotProposals(tiny_policy(folder, "smolvla_grids", **changes), env)
    return sampler.policy, sampler._batch(
        *(observations(env, state[None]) for state in (env.state, env.goal)), ["go"]
    )


@pytest.mark.slow
def test_the_order_of_tokens_says_nothing(tmp_path: Path) -> None:
    """Chunks are the same however all tokens of a picture are shuffled."""
    policy, batch = asked(tmp_path, image_tokens=16, choice="random")
    camera = next(iter(policy.config.image_features))
    tokens = [policy.model.vlm_with_expert.embed_image(batch[camera]) for _ in range(2)]
    assert not torch.allclose(*tokens, atol=1e-3)  # another order each time
    noise = torch.randn(1, policy.config.chunk_size, policy.config.max_action_dim)
    chunks = [policy.predict_action_chunk(batch, noise=noise) for _ in range(2)]
    assert torch.allclose(*chunks, atol=1e-5)


def test_text_stays_where_it_is_however_many_tokens_come_before(tmp_path: Path) -> None:
    places = []
    for tokens in (2, 9):
        policy, batch = asked(tmp_path / str(tokens), image_tokens=tokens)
        with mock.patch.object(
            smolvlm_with_expert, "apply_rope", side_effect=smolvlm_with_expert.apply_rope
        ) as rope:
            policy.predict_action_chunk(batch)
        first = rope.call_args_list[0].args[1][0]  # of the whole prefix, (L,)
        assert first[: 2 * tokens].eq(0).all()
        places.append(first[2 * tokens :].tolist())
    assert places[0] == places[1] and places[0][0] == 1
