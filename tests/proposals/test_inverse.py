"""Inverse dynamics: it learns both ways and the goal, is kept beside its world model, and proposes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsewm import envs
from sparsewm.agent import Agent
from sparsewm.config import PlanConfig, ProposalConfig
from sparsewm.errors import UserError
from sparsewm.model.checkpoint import load_pretrained, pretrained_path
from sparsewm.model.interface import Interface
from sparsewm.model.latent import Standardizer
from sparsewm.model.world_model import WorldModel
from sparsewm.proposals import check_proposals, load_sampler, reads_tokens
from sparsewm.proposals.flow import PolicySizes
from sparsewm.proposals.inverse import InverseConfig, InverseDynamics
from sparsewm.proposals.latent import (
    ABOUT,
    WEIGHTS,
    LatentProposals,
    kept_beside,
    load_policy,
    policy_folder,
    save_policy,
)
from tests.model.tiny import random_latent, tiny_encoder, tiny_model
from tests.proposals.small import HOW, SIZES, forked, frames_of, inverse, stirred, taught

CPU = torch.device("cpu")


def told(model: WorldModel) -> Interface:
    found = model.interface
    assert found is not None
    return found


def views(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (count, 56, 56, 3), np.uint8)
    return {"pixels": pixels, "proprio": rng.normal(30, 10, (count, 2)).astype(np.float32)}


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model()


@pytest.fixture
def folder(model: WorldModel, tmp_path: Path) -> Path:
    save_policy(inverse(model), model, tmp_path / "inverse", {"steps": 0})
    return tmp_path / "inverse"


@pytest.mark.slow
def test_it_learns_how_far_and_both_ways() -> None:
    """A regression would propose the mean of left and right, which leads nowhere."""
    torch.manual_seed(0)
    policy = taught(InverseDynamics(SIZES, InverseConfig(width=64, heads=2, depth=2)), 400)
    batch = forked(64, torch.Generator().manual_seed(7))
    chunks = policy.propose(*frames_of(batch), 16, [torch.Generator().manual_seed(0)], HOW)[:, 1:, 0, 0]
    far = batch["goal"][:, 0, -1]
    error = (chunks.abs() - far[:, None]).abs()
    assert error.median() < 0.15, "as far as the goal says"
    assert (error.median() < 0.5 * (chunks.abs() - far.roll(1)[:, None]).abs().median()).item()
    right = (chunks > 0).float().mean(1)
    assert 0.2 < right.mean() < 0.8 and ((right > 0.1) & (right < 0.9)).float().mean() > 0.7


def test_candidates_differ_by_their_noise(model: WorldModel) -> None:
    policy, seeds = inverse(model), torch.Generator().manual_seed(0)
    frames = [random_latent(model, 2, seeds) for _ in range(2)]
    one, two = (policy.propose(*frames, 5, [torch.Generator().manual_seed(seed)], HOW) for seed in (1, 2))
    assert not torch.isclose(one, two).any()
    assert len({tuple(row.flatten().tolist()) for row in one[0]}) == 5


def test_unknown_actions_teach_nothing(model: WorldModel) -> None:
    policy = inverse(model)
    batch = forked(8, torch.Generator().manual_seed(0))
    small = InverseDynamics(SIZES, InverseConfig(width=32, heads=2, depth=1))
    batch["weight"][:, 1] = 0
    changed = batch | {"action": batch["action"].clone()}
    changed["action"][:, 1] += 5
    losses = [small.loss(one, torch.Generator().manual_seed(3))["loss"].item() for one in (batch, changed)]
    # what is noised is read, so outputs differ, but an untrained head answers zero to both
    assert losses[0] == pytest.approx(losses[1])
    assert policy.kind == "inverse"


def test_it_is_kept_beside_its_world_model(model: WorldModel, folder: Path) -> None:
    seeds = torch.Generator().manual_seed(0)
    frames = [random_latent(model, 2, seeds) for _ in range(2)]
    chunks = [
        policy.propose(*frames, 3, [torch.Generator().manual_seed(1)], HOW)
        for policy in (inverse(model), load_policy(folder, model))
    ]
    assert torch.equal(*chunks)
    about = json.loads((folder / ABOUT).read_text())
    assert about["encoder"]["hash"] == model.encoder.hash and about["training"] == {"steps": 0}
    assert not list(folder.glob(".*")), "nothing temporary is left"


def test_a_world_model_may_learn_on(model: WorldModel, folder: Path) -> None:
    """A policy reads tokens, not the predictor."""
    later = tiny_model()
    with torch.no_grad():
        next(later.predictor.parameters()).add_(1)
    load_policy(folder, later)


def other_statistics() -> WorldModel:
    model = tiny_model()
    model.standardizer.proprio_mean.add_(1)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_model(encoder=tiny_encoder(weights_hash="f" * 64)), "reads tokens of encoder embedded"),
        (other_statistics, "was trained beside another world model of wall"),
        (lambda: tiny_model(frameskip=3), "was trained beside another world model of wall"),
    ],
)
def test_another_world_model_is_refused(make: Any, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_policy(folder, make())


TABLE = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")


def feeling() -> Standardizer:
    """With a scale of proprioception that bfloat16 does not hold."""
    made = Standardizer(16, 8, 2, 4)
    made.fit({"proprio_mean": np.array([256.37, -130.71]), "proprio_std": np.array([70.313, 0.03371])})
    return made


def of_states(
    names: tuple[str, ...] = TABLE,
    symmetry: int = 1,
    turned: bool = True,
    free: tuple[str, ...] = (),
    felt: tuple[int, ...] = (),
) -> InverseDynamics:
    torch.manual_seed(0)
    sizes = PolicySizes(8, (4, 4), 2, 4, 2, names, symmetry, turned, free, felt=felt)
    policy = InverseDynamics(sizes, InverseConfig(32, 2, 2, "state"))
    policy.bodies.reader.fit(256 + 100 * torch.randn(40, len(names), dtype=torch.float64))
    policy.bodies.fit(dict.fromkeys(names, 2.0), feeling())
    return stirred(policy)


def test_it_reads_the_state_that_it_is_told_of(model: WorldModel, tmp_path: Path) -> None:
    policy = of_states()
    assert policy.bodies.error.tolist() == pytest.approx([2.9652] * 5, rel=0.01)
    assert policy.bodies.unit == pytest.approx(100, rel=0.2)
    save_policy(policy, model, tmp_path / "inverse", {})
    frames = [random_latent(model, 2, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    seeds = [torch.Generator().manual_seed(1) for _ in range(3)]
    chunks = policy.propose(frames[0], frames[1], 3, [seeds[0]], HOW)
    kept = load_policy(tmp_path / "inverse", model)
    assert torch.equal(chunks, kept.propose(frames[0], frames[1], 3, [seeds[1]], HOW))
    assert not torch.allclose(chunks, policy.propose(frames[0], frames[0], 3, [seeds[2]], HOW)), (
        "sees its goal"
    )


def test_what_is_free_at_the_goal_is_not_told(model: WorldModel) -> None:
    told, untold = of_states(), of_states(free=("agent_x", "agent_y"))
    now, goal = torch.rand(2, 5), torch.rand(2, 5)
    elsewhere = goal + torch.tensor([3.0, 4.0, 0, 0, 0])
    assert not torch.equal(told.bodies(now, goal), told.bodies(now, elsewhere))
    assert torch.equal(untold.bodies(now, goal), untold.bodies(now, elsewhere))
    assert not torch.equal(untold.bodies(now, goal), untold.bodies(now, goal + 1)), "the rest is"
    before = goal.clone()
    untold.bodies(now, goal)
    assert torch.equal(goal, before)


def test_what_proprioception_says_is_not_read(model: WorldModel, tmp_path: Path) -> None:
    policy = of_states(felt=(-1, -1, 1, 0, -1))
    save_policy(policy, model, tmp_path / "inverse", {})
    kept = load_policy(tmp_path / "inverse", model)
    raw = torch.tensor([[255.123, -130.712], [401.2, -130.69]])
    frame = random_latent(model, 2, torch.Generator().manual_seed(0))
    frame = replace(frame, proprio=feeling().proprio(raw))
    for one in (policy, kept):
        shown, felt = one.bodies.told(frame), one.bodies.told(frame, felt=True)
        assert torch.equal(shown[:, [0, 1, 4]], felt[:, [0, 1, 4]])
        assert torch.allclose(felt[:, [3, 2]], raw, rtol=1e-6)
        assert not torch.allclose(shown[:, [3, 2]], raw, rtol=1e-3)
    states = torch.zeros(3, 5)
    for felt, columns in ((False, 5), (True, 3)):
        drawn = policy.bodies.blurred(states, 1.0, torch.Generator().manual_seed(0), felt)
        assert (drawn != 0).any(0).sum() == columns
    assert not of_states().bodies.felt and "bodies.felt_scale" not in of_states().state_dict()


@pytest.mark.parametrize("name", ["pusht", "blockpush", "swm/cube"])
def test_included_ones_are_found_beside_their_world_models(name: str) -> None:
    if name == "swm/cube":
        pytest.importorskip("ogbench")
    folder = policy_folder("inverse", name, pretrained_path(name))
    assert folder is not None and folder.parent == pretrained_path(name)
    assert (folder / WEIGHTS).stat().st_size < 8e6 and (folder / "README.md").is_file()
    shipped, env = load_pretrained(name), envs.make_simulated(name)
    observation, _ = env.reset(seed=0)
    policy = load_policy(folder, shipped)
    seen = shipped.encode(observation["pixels"][None], observation["proprio"][None])
    state = np.concatenate([*env.shown_state(env.state[None]).values()])
    assert tuple(env.shown_state(env.state[None])) == policy.sizes.shown
    away = np.abs(policy.bodies.told(seen)[0].numpy() - state) / np.abs(policy.bodies.unit.numpy())
    places = [i for i, n in enumerate(policy.sizes.shown) if not n.endswith("angle")]
    assert away[places].max() < 0.15, "of the deviation of places: it sees where everything is"


def test_actions_are_turned_with_the_body_and_back() -> None:
    policy = of_states()
    state = torch.tensor([[0, 0, 0, 0, np.pi / 2], [0, 0, 0, 0, 0]], dtype=torch.float32)
    actions = torch.randn(2, 2, 4)
    seen = policy.bodies.turned(actions, state, -1)
    x, y = actions[0].unflatten(-1, (2, 2)).unbind(-1)
    assert torch.allclose(seen[0].unflatten(-1, (2, 2)), torch.stack([y, -x], -1), atol=1e-6)
    assert torch.equal(seen[1], actions[1])
    assert torch.allclose(policy.bodies.turned(seen, state, 1), actions, atol=1e-6)
    many = policy.bodies.turned(actions[:, None].expand(-1, 3, -1, -1), state[:, None], -1)
    assert torch.allclose(many, seen[:, None].expand(-1, 3, -1, -1), atol=1e-6)


def test_a_scene_turned_as_a_whole_is_seen_alike_by_its_body() -> None:
    """All but places and directions on the table."""
    bodies = of_states().bodies
    rng = np.random.default_rng(0)
    now, goal = (torch.from_numpy(rng.normal(256, 80, (30, 5)).astype(np.float32)) for _ in range(2))
    now[:, 4], goal[:, 4] = now[:, 4] / 100, goal[:, 4] / 100
    cosine, sine = np.cos(0.8), np.sin(0.8)

    def moved(state: torch.Tensor) -> torch.Tensor:
        x, y = state[:, [0, 2]], state[:, [1, 3]]
        columns = [cosine * x - sine * y, sine * x + cosine * y]
        agent, block = (torch.stack([part[:, i] for part in columns], -1) for i in (0, 1))
        return torch.cat([agent, block, state[:, 4:] + 0.8], 1)

    same = torch.isclose(bodies(now, goal), bodies(moved(now), moved(goal)), atol=1e-3).all(0)
    assert int(same.sum()) >= bodies.features // 2


@pytest.mark.parametrize(
    ("names", "symmetry", "turned", "message"),
    [
        (("angle",), 1, False, r"needs places \(x and y\) in it, and `env` names angle"),
        (TABLE[:4], 1, True, "a body whose angle shows"),
        (TABLE, 4, True, "a body whose angle shows"),
        ((*TABLE[:4], "hinge_angle"), 1, True, "hinge_angle would be left out: give `reads` tokens"),
    ],
)
def test_states_that_say_too_little_are_refused(
    names: tuple[str, ...], symmetry: int, turned: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        of_states(names, symmetry, turned)


@pytest.mark.parametrize("damage", ["cut", "other", "infinite", "missing", "sizes", "kind"])
def test_a_damaged_policy_is_one_sentence(damage: str, folder: Path, model: WorldModel) -> None:
    weights, about = folder / WEIGHTS, folder / ABOUT
    content = json.loads(about.read_text())
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "other":
        save_file({name: 2 * value for name, value in load_file(weights).items()}, weights)
    elif damage == "infinite":
        with pytest.raises(UserError, match=r"of this policy is not finite"):
            policy = inverse(model)
            policy.out.weight.fill_(float("inf"))
            save_policy(policy, model, folder, {})
        return
    elif damage == "missing":
        weights.unlink()
    elif damage == "sizes":
        content["sizes"]["chunk"] = 3
    else:
        content["kind"] = "nothing"
    about.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"policy .* is damaged .*copy it again or train anew"):
        load_policy(folder, model)


def test_actions_are_the_environments(model: WorldModel) -> None:
    """Inside the bounds, one per environment step, cut to the horizon or going on with the last."""
    sampler = LatentProposals(inverse(model), model, told(model))
    actions = sampler.propose(views(2), views(2, 1), None, 5, 7)
    assert actions.shape == (2, 5, 7, 2) and actions.abs().max() <= 1
    assert torch.equal(actions[:, :, 3], actions[:, :, 6])
    again = LatentProposals(inverse(model), model, told(model))
    assert torch.equal(again.propose(views(2), views(2, 1), None, 5, 3), actions[:, :, :3])
    wide = replace(told(model), action_low=(-9.0, -9.0), action_high=(9.0, 9.0))
    free = LatentProposals(inverse(model), model, wide).propose(views(2), views(2, 1), None, 5, 4)
    frames = [model.encode(one["pixels"], one["proprio"]) for one in (views(2), views(2, 1))]
    chunk = inverse(model).propose(*frames, 5, [torch.Generator().manual_seed(0)], HOW)
    mean, std = model.standardizer.action_mean, model.standardizer.action_std
    assert torch.allclose(free, (chunk.reshape(2, 5, 4, 2) * std + mean).clamp(-9, 9), atol=1e-5)


def test_what_is_encoded_is_not_encoded_again(
    model: WorldModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent hands on its frames; alone, the policy reads the goal once."""
    config = PlanConfig.of("wall").updated(proposals=str(folder), samples=3, objective="mse", horizon=2)
    plain = Agent(model, config.updated(proposals="none", candidates=4, elites=2, iterations=1))
    counts = {}
    encode, asked = type(model).encode, []
    monkeypatch.setattr(type(model), "encode", lambda self, *a, **k: asked.append(1) or encode(self, *a, **k))
    for name, agent in (("plain", plain), ("policy", Agent(model, config))):
        asked.clear()
        goal, seen = ({k: v[0] for k, v in views(1, seed).items()} for seed in (0, 1))
        agent.reset(goal)
        assert agent.act(seen).shape[1] == 2
        counts[name] = len(asked)
    assert counts["policy"] == counts["plain"] == 2
    asked.clear()
    alone = LatentProposals(inverse(model), model, told(model))
    for step in range(3):
        alone.propose(views(1, step), views(1, 9), None, 1, 4)
    assert len(asked) == 4


def test_where_a_policy_is_found(
    model: WorldModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reads_tokens("inverse") and reads_tokens(str(folder)) and not reads_tokens(str(tmp_path))
    for place in (tmp_path / "checkpoint", tmp_path):  # beside a run's checkpoint, or in a shipped model's
        found = check_proposals("inverse", "wall", checkpoint=place)
        assert found["policy"] == check_proposals(str(folder), "wall")["policy"]
    assert kept_beside("inverse", "wall", pretrained_path("wall")) == Path("runs/wall/inverse")
    assert kept_beside("wam", "wall", Path("a/checkpoint")) == Path("a/wam")
    (tmp_path / "a" / "checkpoint").mkdir(parents=True)
    assert kept_beside("wam", "wall", "a") == Path("a/wam")
    with pytest.raises(
        UserError, match=r"no policy 'inverse' of wall in .* sparsewm train-policy --kind inv"
    ):
        check_proposals("inverse", "wall")
    with pytest.raises(UserError, match=r"give the `model`"):
        load_sampler(str(folder), told(model), CPU)
    model.folder = tmp_path / "checkpoint"
    try:
        assert isinstance(load_sampler("inverse", told(model), CPU, model=model), LatentProposals)
    finally:
        model.folder = None


def test_a_policy_of_ones_own_goes_before_the_included_one(
    model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both read the same tokens; else the included one is the one that fits."""
    monkeypatch.chdir(tmp_path)
    shipped = pretrained_path("pusht")
    included = json.loads((shipped / "inverse" / ABOUT).read_text())
    own = kept_beside("inverse", "pusht", shipped)
    save_policy(inverse(model), model, own, {})
    with pytest.warns(
        UserWarning, match="is .*pusht/inverse, not runs/pusht/inverse, which reads the tokens"
    ):
        assert policy_folder("inverse", "pusht", shipped) == shipped / "inverse"
    about = json.loads((own / ABOUT).read_text()) | {"token_space": included["token_space"]}
    (own / ABOUT).write_text(json.dumps(about))
    with pytest.warns(UserWarning, match="policy 'inverse' is runs/pusht/inverse, not .*: give the folder"):
        assert policy_folder("inverse", "pusht", shipped) == own
    with pytest.warns(UserWarning):
        assert (
            check_proposals("inverse", "pusht", checkpoint=shipped)["policy"]["weights"] == about["weights"]
        )
    (own / ABOUT).write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        policy_folder("inverse", "pusht", shipped)


def test_inverse_dynamics_imagine_nothing(model: WorldModel) -> None:
    for how in (ProposalConfig(future_steps=1), ProposalConfig(ranked=4)):
        with pytest.raises(UserError, match=r"imagines no future: leave `future_steps` and `ranked` out"):
            LatentProposals(inverse(model), model, told(model), how)
