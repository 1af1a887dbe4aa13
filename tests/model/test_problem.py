"""The planning problem of a world model: what the cost depends on, and what it does not."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm.data import token_statistics
from sparsewm.errors import UserError
from sparsewm.evaluation.statistics import spearman
from sparsewm.model import Latent, LatentProblem, WorldModel, kept_patches, world_model
from sparsewm.model.latent import Standardizer, gather_patches
from sparsewm.planners import GradientDescent, PlanningError, PlanningProblem
from tests.model.tiny import latent_problem, random_actions, random_latent, tiny_model


def make_problem(
    model: WorldModel, episodes: int = 2, seen: int = 0, seed: int = 0, **options: Any
) -> LatentProblem:
    generator = torch.Generator().manual_seed(3)
    start, goal = random_latent(model, episodes, generator), random_latent(model, episodes, generator)
    history = [
        (random_latent(model, episodes, generator), random_actions(model, episodes, generator=generator))
        for _ in range(seen)
    ]
    return latent_problem(model, start, goal, seed=seed, history=history, **options)


def candidates(model: WorldModel, episodes: int = 2, count: int = 7, horizon: int = 5) -> Tensor:
    return random_actions(model, episodes, count, horizon, generator=torch.Generator().manual_seed(4))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_cost_is_the_error_of_the_last_imagined_frame() -> None:
    model = tiny_model()
    problem, actions = make_problem(model, drop=0.5, weight=0.3), candidates(model)
    tokens, proprio = model.rollout(
        gather_patches(problem.start.tokens, problem.patches), problem.start.proprio, actions, problem.patches
    )
    goal = gather_patches(problem.goal.tokens, problem.patches)
    expected = torch.empty(2, 7)
    for b in range(2):
        for s in range(7):
            token_error = ((tokens[b, s, -1] - goal[b]) ** 2).mean()
            expected[b, s] = token_error + 0.3 * ((proprio[b, s, -1] - problem.goal.proprio[b]) ** 2).mean()
    close(problem.cost(actions), expected)
    assert isinstance(problem, PlanningProblem)


def test_proprio_selection_leaves_the_tokens_out() -> None:
    model = tiny_model()
    actions = candidates(model)
    problem = make_problem(model, tokens=False, weight=2.0)
    *_, (_, proprio) = model.imagine(problem.start.tokens, problem.start.proprio, actions, problem.patches)
    close(problem.cost(actions), 2.0 * (proprio - problem.goal.proprio[:, None]).square().mean(-1))


@pytest.mark.parametrize("memory", [1, 2e5, 1e12])
def test_cost_in_little_memory_equals_cost_at_once(memory: float) -> None:
    model = tiny_model()
    actions = candidates(model)
    whole = make_problem(model, seen=2, drop=0.5).cost(actions)
    close(make_problem(model, seen=2, drop=0.5, memory=memory).cost(actions), whole)


def test_a_gradient_in_little_memory_is_that_at_once() -> None:
    model, found = tiny_model(), []
    for memory in (1e12, 1):
        problem = make_problem(model, seen=2, drop=0.5, memory=memory)
        actions = candidates(model).requires_grad_()
        (slope,) = torch.autograd.grad(problem.cost(actions).sum(), actions)
        found.append(slope)
        assert problem._part(7, gradient=True) == (7 if memory > 1 else 1)
    close(found[0], found[1])


def test_what_does_not_fit_into_half_of_free_memory_is_imagined_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    actions, parts, cost = candidates(model), [], LatentProblem._cost
    whole = make_problem(model, drop=0.5).cost(actions)

    def noted(problem: LatentProblem, some: Tensor, view: Any) -> Tensor:
        parts.append(some.shape[1])
        return cost(problem, some, view)

    monkeypatch.setattr(LatentProblem, "_cost", noted)
    monkeypatch.setattr("sparsewm.model.problem.free_memory", lambda: 4e5)
    close(make_problem(model, drop=0.5).cost(actions), whole)
    monkeypatch.setattr("sparsewm.model.problem.PLENTY", 0)
    close(make_problem(model, drop=0.5).cost(actions), whole)
    assert parts[0] == 7 and len(parts) > 2 and sum(parts[1:]) == 7


def test_cost_does_not_depend_on_the_order_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    import sparsewm.model.choices.uniform as module

    model, actions = tiny_model(), candidates(tiny_model())
    cost = make_problem(model, seen=2, drop=0.5).cost(actions)
    draw, order = module.random_patches, torch.randperm(8, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(module, "random_patches", lambda *arguments: draw(*arguments)[:, order])
    shuffled = make_problem(model, seen=2, drop=0.5)
    assert not torch.equal(shuffled.patches, shuffled.patches.sort(1).values)
    close(shuffled.cost(actions), cost)


def test_drop_mask_is_redrawn_by_every_resample_for_each_episode() -> None:
    problem = make_problem(tiny_model(), episodes=4, drop=0.5)
    drawn = [problem.patches]
    for iteration in range(4):
        problem.resample(iteration)
        drawn.append(problem.patches)
    for patches in drawn:
        assert patches.shape == (4, 8)
        assert all(len(set(row.tolist())) == 8 for row in patches)
        assert len({tuple(row.tolist()) for row in patches}) == 4  # episodes differ
    assert len({tuple(patches.flatten().tolist()) for patches in drawn}) == 5  # iterations differ
    again = make_problem(tiny_model(), episodes=4, drop=0.5)
    assert torch.equal(again.patches, drawn[0])  # the seed decides
    assert not torch.equal(make_problem(tiny_model(), episodes=4, drop=0.5, seed=1).patches, drawn[0])


def test_candidates_of_an_episode_see_the_same_tokens() -> None:
    model = tiny_model()
    problem = make_problem(model, drop=0.7)
    same = candidates(model, count=1).expand(-1, 6, -1, -1)
    first = problem.cost(same)
    close(first, first[:, :1].expand(-1, 6))
    close(problem.cost(same), first)  # nothing is drawn in between
    problem.resample(1)
    assert not torch.allclose(problem.cost(same), first, atol=1e-3)


def test_dropped_patches_have_no_say() -> None:
    model = tiny_model()
    actions, problem = candidates(model), make_problem(model, drop=0.5)
    cost = problem.cost(actions)
    start, goal = problem.start.tokens.clone(), problem.goal.tokens.clone()
    for row, patches in enumerate(problem.patches):
        dropped = torch.ones(16, dtype=torch.bool).index_fill(0, patches, False)
        start[row, dropped], goal[row, dropped] = 9.0, -9.0
    changed = latent_problem(
        model,
        Latent(start, problem.start.proprio),
        Latent(goal, problem.goal.proprio),
        drop=0.5,
    )
    close(changed.cost(actions), cost)


def test_held_actions_cost_what_their_repetition_costs() -> None:
    model = tiny_model(frameskip=3)
    held = make_problem(model, drop=0.5, action_repeat=True)
    assert (held.action_dim, held.low.shape, held.mean.shape, held.std.shape) == (2, (2,), (5, 2), (5, 2))
    actions = torch.rand(2, 4, 5, 2, generator=torch.Generator().manual_seed(8)) * 2 - 1
    repeated = torch.cat([actions] * 3, -1)
    assert torch.equal(held.executed(actions), repeated)
    close(held.cost(actions), make_problem(model, drop=0.5).cost(repeated))
    plan = GradientDescent(candidates=2, iterations=8).plan(held)
    assert plan.actions.shape == (2, 5, 2)
    assert bool((plan.cost < held.cost(held.mean[None, None].expand(2, 1, -1, -1))[:, 0]).all())
    free = make_problem(model)
    assert torch.equal(free.executed(repeated), repeated)


def test_history_changes_the_cost() -> None:
    model = tiny_model()
    actions = candidates(model)
    assert not torch.allclose(
        make_problem(model, seen=2).cost(actions), make_problem(model).cost(actions), atol=1e-3
    )


def test_bfloat16_ranks_candidates_like_float32() -> None:
    actions = candidates(tiny_model(), count=64)
    exact = make_problem(tiny_model(), seen=2, drop=0.5).cost(actions)
    rough = make_problem(tiny_model().place("cpu", torch.bfloat16), seen=2, drop=0.5).cost(actions)
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    for a, b in zip(exact.numpy(), rough.numpy(), strict=True):
        assert spearman(a, b) > 0.97


def test_weights_are_packed_once_until_they_change() -> None:
    model, actions = tiny_model(), candidates(tiny_model())
    before = make_problem(model).cost(actions)
    packed = model.packed()
    assert packed is not None and model.packed() is packed
    close(make_problem(copy.deepcopy(model)).cost(actions), before)
    with torch.no_grad():
        model.predictor.blocks[0].up.weight *= 2
    assert model.packed() is not packed
    assert not torch.allclose(make_problem(model).cost(actions), before, atol=1e-4)
    with torch.inference_mode():
        other = tiny_model().place("cpu", torch.bfloat16)
        assert other.packed() is not None


def test_integers_are_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_model, "no_integers", lambda device: "the processor has no avx512_vnni")
    model = tiny_model()
    with pytest.raises(UserError, match=r"no avx512_vnni.*`dtype` auto"):
        model.place("cpu", torch.int8)
    assert model.precision == torch.float32


@pytest.mark.parametrize("seen", [0, 2])
@pytest.mark.parametrize("trainable", [False, True])
def test_gradient_descent_lowers_the_cost(seen: int, trainable: bool) -> None:
    model = tiny_model().requires_grad_(trainable)
    problem = make_problem(model, seen=seen)
    before = problem.cost(problem.mean[None, None].expand(2, 1, -1, -1))[:, 0]
    plan = GradientDescent(candidates=3, iterations=12).plan(problem)
    assert bool((plan.cost < 0.95 * before).all())
    close(problem.cost(plan.actions[:, None])[:, 0], plan.cost)


def test_gradient_of_the_cost_equals_finite_differences() -> None:
    model = tiny_model()
    problem = make_problem(model, episodes=1, seen=2, drop=0.5, horizon=3)
    actions = candidates(model, episodes=1, count=2, horizon=3).requires_grad_(True)
    (slope,) = torch.autograd.grad(problem.cost(actions).sum(), actions)
    direction = torch.randn(actions.shape, generator=torch.Generator().manual_seed(6))
    step = 1e-3 * direction  # small: the network has many kinks
    ahead, behind = problem.cost(actions.detach() + step), problem.cost(actions.detach() - step)
    torch.testing.assert_close((slope * 2 * step).sum((2, 3)), ahead - behind, atol=1e-5, rtol=5e-2)


def observation(seed: int, episodes: int | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lead = () if episodes is None else (episodes,)
    return {
        "pixels": rng.integers(0, 256, (*lead, 40, 40, 3), dtype=np.uint8),
        "proprio": rng.uniform(0, 60, (*lead, 2)).astype(np.float32),
    }


def test_encoded_frames_are_standardised() -> None:
    model = tiny_model()
    seen = observation(0, 2)
    latent = model.encode(seen["pixels"], seen["proprio"], attention=True)
    raw = model.encoder.encode(seen["pixels"]).patches
    statistics = model.standardizer
    close(latent.tokens, (raw - statistics.token_mean) @ statistics.token_map)
    close(
        latent.proprio,
        (torch.as_tensor(seen["proprio"]) - torch.tensor([30.0, 20.0])) / torch.tensor([15.0, 10.0]),
    )
    assert latent.attention is not None and latent.attention.shape == (2, 16)
    second = latent[1:]
    assert torch.equal(second.tokens, latent.tokens[1:]) and torch.equal(
        second.attention, latent.attention[1:]
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patches", "drop", "kept"),
    [(64, 0.0, 64), (64, 0.5, 32), (64, 0.8, 13), (64, 0.999, 1), (1, 0.5, 1), (3, 0.99, 1), (196, 0.5, 98)],
)
def test_kept_patches(patches: int, drop: float, kept: int) -> None:
    assert kept_patches(patches, drop) == kept


@pytest.mark.parametrize("drop", [1.0, 1.5, -0.1, math.nan, math.inf])
def test_impossible_drop_ratio(drop: float) -> None:
    with pytest.raises(UserError, match=r"`drop` must be at least 0 and below 1, got .*: 0.5 drops half"):
        kept_patches(64, drop)


def test_standardizer_makes_zero_mean_and_unit_deviation() -> None:
    generator = torch.Generator().manual_seed(7)
    tokens = 3 * torch.randn(500, 4, 6, generator=generator) + torch.randn(4, 6, generator=generator)
    proprio = 5 + 2 * torch.randn(500, 3, generator=generator)
    action = -1 + 0.1 * torch.randn(500, 2, generator=generator)
    standardizer = Standardizer(4, 6, 3, 2)
    standardizer.fit(
        {
            **token_statistics(tokens),
            "proprio_mean": proprio.mean(0).numpy(),
            "proprio_std": proprio.std(0).numpy(),
            "action_mean": action.mean(0),
            "action_std": action.std(0),
        }
    )
    scaled = standardizer.tokens(tokens.bfloat16())
    assert scaled.dtype == torch.float32
    assert scaled.mean(0).abs().max() < 1e-2 and (scaled.square().mean((0, 1)) - 1).abs().max() < 1e-2
    assert standardizer.proprio(proprio).std(0).sub(1).abs().max() < 1e-3
    joined = action.reshape(100, 10)  # five environment steps of one model step
    close(standardizer.actions(joined).reshape(500, 2), (action - action.mean(0)) / action.std(0))


def test_standardizer_survives_features_that_never_change() -> None:
    standardizer = Standardizer(4, 6, 3, 2)
    standardizer.fit({"proprio_std": np.zeros(3), **token_statistics(torch.ones(5, 4, 6), 0.5)})
    assert bool(torch.isfinite(standardizer.proprio(torch.ones(1, 3))).all())
    assert bool(torch.isfinite(standardizer.tokens(torch.ones(1, 4, 6))).all())


def test_checkpoint_from_before_the_map_divides_by_deviations() -> None:
    standardizer, deviations = Standardizer(4, 6, 3, 2), torch.rand(6) + 0.5
    state = standardizer.state_dict()
    del state["token_map"]
    standardizer.load_state_dict(state | {"token_std": deviations})
    tokens = torch.randn(2, 4, 6)
    close(standardizer.tokens(tokens), tokens / deviations)


def test_predictor_taken_over_imagines_the_same_in_other_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    other = tiny_model()
    model = tiny_model(seed=1)
    theirs = torch.randn(300, 16, other.config.token_dim, generator=generator)
    change = torch.randn(theirs.shape[-1], theirs.shape[-1], generator=generator)
    model.take_over(other, theirs @ change, theirs)
    latent, patches = random_latent(other, 2, generator), torch.arange(16).expand(2, -1)
    actions = random_actions(other, 2, 3, 2, generator=generator)
    model.standardizer.load_state_dict(other.standardizer.state_dict())
    expected, _ = other.rollout(latent.tokens, latent.proprio, actions, patches)
    found, _ = model.rollout(latent.tokens @ change, latent.proprio, actions, patches)
    torch.testing.assert_close(found, expected @ change, rtol=0.02, atol=0.05)
    with pytest.raises(ValueError, match="does not fit"):
        model.take_over(tiny_model(width=48), theirs, theirs)


def test_temporal_cost_reads_the_last_imagined_frame_and_the_kept_patches_only() -> None:
    model = tiny_model()
    assert model.distance is not None
    problem, actions = make_problem(model, drop=0.5, objective="temporal"), candidates(model)
    patches = problem.patches
    tokens, proprio = model.rollout(
        gather_patches(problem.start.tokens, patches), problem.start.proprio, actions, patches
    )
    there = model.distance.embed(tokens[:, :, -1], proprio[:, :, -1], patches)
    goal = model.distance.embed(
        gather_patches(problem.goal.tokens, patches)[:, None], problem.goal.proprio[:, None], patches
    )
    close(problem.cost(actions), model.distance.between(there, goal))


def test_temporal_cost_by_vision_alone_does_not_know_where_the_goals_sensors_were() -> None:
    model = tiny_model()
    actions = candidates(model)
    costs = []
    for shift in (0.0, 5.0):
        problem = make_problem(model, objective="temporal", weight=0.0)
        problem.goal.proprio += shift
        costs.append(problem.cost(actions))
    close(costs[0], costs[1])
    seeing = make_problem(model, objective="temporal", weight=1.0)
    assert not torch.allclose(seeing.cost(actions), costs[0])


def test_temporal_cost_needs_a_model_that_has_one() -> None:
    model = tiny_model()
    model.distance = None
    with pytest.raises(UserError, match="`objective` mse"):
        make_problem(model, objective="temporal")


def test_spread_widens_the_first_candidates() -> None:
    model = tiny_model()
    close(make_problem(model, init_std=1.5).std, 1.5 * make_problem(model).std)


def test_best_scoring_takes_the_nearest_imagined_frame_and_stops_there() -> None:
    """A sequence that passes the goal half-way is as good as one that ends there, and is executed so far."""
    model = tiny_model()
    problem = make_problem(model, drop=0.5, weight=0.3, frame="min")
    last, actions = make_problem(model, drop=0.5, weight=0.3), candidates(model)
    costs = []
    for horizon in range(1, 6):  # the same masks and frames, but sequences of one to five steps
        shorter = make_problem(model, drop=0.5, weight=0.3, horizon=horizon)
        costs.append(shorter.cost(actions[:, :, :horizon]))
    frames = torch.stack(costs, -1)
    close(problem.cost(actions), frames.amin(-1))
    assert not torch.allclose(problem.cost(actions), last.cost(actions))
    for candidate in range(7):
        assert problem.steps(actions[:, candidate]).tolist() == (frames[:, candidate].argmin(-1) + 1).tolist()
        assert last.steps(actions[:, candidate]).tolist() == [5, 5]


def test_a_cost_draws_nothing_and_changes_nothing() -> None:
    model = tiny_model()
    problem, actions = make_problem(model, drop=0.5, seen=1), candidates(model)
    states = [each.get_state() for each in problem.generators]
    patches, first = problem.patches.clone(), problem.cost(actions)
    assert torch.equal(problem.cost(actions), first)
    assert torch.equal(problem.patches, patches)
    assert all(torch.equal(a, b.get_state()) for a, b in zip(states, problem.generators, strict=True))


def test_an_episodes_subset_does_not_depend_on_what_is_planned_beside_it() -> None:
    model = tiny_model()
    alone, beside = (make_problem(model, episodes=n, drop=0.5) for n in (1, 3))
    for iteration in range(3):
        assert torch.equal(alone.patches[0], beside.patches[0])
        alone.resample(iteration)
        beside.resample(iteration)


class NearestPatch:
    """An objective of one's own: the error of the best patch."""

    def __init__(self, model: WorldModel, proprio_weight: float) -> None:
        self.key = "nearest patch"

    def goal(self, tokens: Tensor, proprio: Tensor, patches: Tensor) -> Tensor:
        return tokens

    def distance(self, tokens: Tensor, proprio: Tensor, goal: Tensor, patches: Tensor) -> Tensor:
        return (tokens - goal).square().mean(-1).amin(-1)


class OfAll(NearestPatch):
    """One that forgets the candidates."""

    def distance(self, tokens: Tensor, proprio: Tensor, goal: Tensor, patches: Tensor) -> Tensor:
        return super().distance(tokens, proprio, goal, patches).mean(1)


def test_an_objective_of_ones_own_scores_frames() -> None:
    model = tiny_model()
    place = f"{__name__}:NearestPatch"
    problem, actions = make_problem(model, drop=0.5, objective=place), candidates(model)
    tokens, _ = model.rollout(
        gather_patches(problem.start.tokens, problem.patches), problem.start.proprio, actions, problem.patches
    )
    goal = gather_patches(problem.goal.tokens, problem.patches)[:, None]
    close(problem.cost(actions), (tokens[:, :, -1] - goal).square().mean(-1).amin(-1))
    flat = make_problem(model, drop=0.5, objective=f"{__name__}:OfAll", memory=1)
    with pytest.raises(PlanningError, match=r"distance must have shape \(2, 1\), got \(2,\)"):
        flat.cost(actions)
    with pytest.raises(UserError, match=r"unknown objective .tempral.\. Did you mean .temporal."):
        make_problem(model, objective="tempral")
    with pytest.raises(UserError, match="`frame` must be last or min"):
        make_problem(model, frame="best")
