"""Choices of tokens: their number, their randomness, and what each prefers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsewm.errors import UserError
from sparsewm.model import Latent, WorldModel
from sparsewm.model.choices import CHOICES, Scene, ScoredChoice, TokenChoice, compared_by, drawn
from sparsewm.model.choices.grids import bilinear
from sparsewm.model.choices.uniform import bayer
from sparsewm.model.latent import blend, gather_patches, nearest_patches, patch_places, random_patches
from sparsewm.planners import CEM, GradientDescent
from sparsewm.planners.seeding import generator
from sparsewm.positions import sincos_at, sincos_positions
from tests.model.tiny import latent_problem, random_actions, random_latent, tiny_model

NAMES = CHOICES.names()
SCORED = ["attention", "ranking", "motion", "goal", "mixture"]
BLENDED = ["merge", "drop_merge", "grids"]


def scene_of(model: WorldModel, episodes: int = 3, seen: int = 2) -> Scene:
    source = torch.Generator().manual_seed(11)
    frames = [random_latent(model, episodes, source) for _ in range(2 + seen)]
    weights = torch.rand(episodes, model.patches, generator=source)
    frames = [replace(frame, attention=weights) for frame in frames]
    history = [(frame, random_actions(model, episodes, generator=source)) for frame in frames[2:]]
    return Scene(frames[0], frames[1], history, torch.rand(episodes, model.patches, generator=source))


def masks(episodes: int, seed: int = 0) -> list[torch.Generator]:
    return [generator((seed, i), "tokens") for i in range(episodes)]


def choice_of(name: str, model: WorldModel, temperature: float = 1.0) -> TokenChoice:
    return CHOICES.get(name)(model, temperature)


def problem_of(model: WorldModel, scene: Scene, name: str, **options: Any) -> Any:
    usual: dict[str, Any] = {"choice": choice_of(name, model), "history": scene.history, "drop": 0.5}
    return latent_problem(model, scene.start, scene.goal, **(usual | options))


@pytest.mark.parametrize("kept", [1, 2, 5, 8, 11, 15])
@pytest.mark.parametrize("name", NAMES)
def test_a_choice_keeps_so_many_distinct_tokens(name: str, kept: int) -> None:
    model = tiny_model()
    scene = scene_of(model)
    chosen = choice_of(name, model).choose(scene, kept, masks(3))
    if name in BLENDED:
        assert chosen.shape == (3, kept, 18) and chosen.dtype == torch.float32
        torch.testing.assert_close(chosen[..., :-2].sum(-1), torch.ones(3, kept))
        assert bool(((chosen[..., -2:] > 0) & (chosen[..., -2:] < 1)).all())
        assert all(len({tuple(row) for row in rows}) == kept for rows in chosen.tolist())
    else:
        assert chosen.shape == (3, kept) and chosen.dtype == torch.int64
        assert bool((chosen.diff(dim=1) > 0).all())
        assert int(chosen.min()) >= 0 and int(chosen.max()) < 16


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_for_an_episode_is_its_own(name: str) -> None:
    model = tiny_model()
    scene, choice = scene_of(model), choice_of(name, model)
    together, again = masks(3), masks(3)
    alone = masks(3)[1]
    rounds = []
    for _ in range(3):
        chosen = choice.choose(scene, 6, together)
        rounds.append(chosen)
        assert torch.equal(choice.choose(scene, 6, again), chosen)  # the generator decides
        assert torch.equal(choice.choose(scene[1:2], 6, [alone]), chosen[1:2])  # not the batch
    assert not all(torch.equal(rounds[0], other) for other in rounds[1:])  # drawn anew


def test_random_patches_are_those_of_before() -> None:
    model = tiny_model()
    scene = scene_of(model, episodes=2)
    sources = masks(2)
    expected = [torch.cat([random_patches(1, 16, 8, each) for each in sources]) for _ in range(4)]
    for problem in (
        latent_problem(model, scene.start, scene.goal, drop=0.5),
        problem_of(model, scene, "random"),
    ):
        assert torch.equal(problem.patches, expected[0])
        for iteration in range(3):
            problem.resample(iteration)
            assert torch.equal(problem.patches, expected[iteration + 1])


@pytest.mark.parametrize("name", SCORED)
def test_the_coldest_draw_keeps_the_highest_scores(name: str) -> None:
    model = tiny_model()
    scene, choice = scene_of(model), choice_of(name, model, 0.0)
    assert isinstance(choice, ScoredChoice)
    chosen = choice.choose(scene, 6, masks(3))
    if name == "mixture":  # its shares depend on how many are kept
        assert torch.equal(chosen, choice.choose(scene, 6, masks(3, seed=1)))
        return
    assert torch.equal(chosen, choice.scores(scene).topk(6).indices.sort().values)


def test_a_draw_goes_by_scores_and_never_forgets_a_patch() -> None:
    scores = torch.zeros(1, 16)
    scores[0, 3], scores[0, 7] = 3.0, 1.0
    source = masks(1)
    rounds = 600
    counts = sum(torch.bincount(drawn(scores, 1, 1.0, source)[0], minlength=16) for _ in range(rounds))
    assert isinstance(counts, Tensor)
    assert abs(counts[3] / rounds - (0.9 * 0.75 + 0.1 / 16)) < 0.06
    assert abs(counts[7] / rounds - (0.9 * 0.25 + 0.1 / 16)) < 0.06
    half = sum(torch.bincount(drawn(scores, 8, 1.0, source)[0], minlength=16) for _ in range(200))
    assert isinstance(half, Tensor) and bool((half > 50).all())
    ties = {tuple(drawn(torch.zeros(1, 16), 8, 0.0, source)[0].tolist()) for _ in range(20)}
    assert len(ties) > 10  # chance decides among equals


def test_each_choice_prefers_what_it_says() -> None:
    model = tiny_model()
    blank, proprio = torch.zeros(2, 16, 8), torch.zeros(2, 2)
    moved, wanted = blank.clone(), blank.clone()
    moved[0, 5], moved[1, 6] = 2.0, 2.0
    wanted[0, 9], wanted[1, 10] = 2.0, 2.0
    still = Latent(blank, proprio)

    def kept(name: str, scene: Scene, count: int = 1) -> list[list[int]]:
        return choice_of(name, model, 0.0).choose(scene, count, masks(2)).tolist()

    assert kept("goal", Scene(still, Latent(wanted, proprio))) == [[9], [10]]
    action = torch.zeros(2, 4)
    assert kept("motion", Scene(Latent(moved, proprio), still, [(still, action)])) == [[5], [6]]
    imagined = torch.zeros(2, 16)
    imagined[0, 1], imagined[1, 2] = 1.0, 1.0
    assert kept("motion", Scene(still, still, [], imagined)) == [[1], [2]]
    both = Scene(Latent(moved, proprio), Latent(wanted, proprio), [(still, action)])
    assert kept("mixture", both, 2) == [[5, 9], [6, 10]]
    assert kept("ranking", Scene(Latent(moved, proprio), still)) == [[5], [6]]  # no neighbour tells of it
    smooth = torch.linspace(0, 1, 16)[None, :, None].expand(2, 16, 8)
    ranking = choice_of("ranking", model)
    assert isinstance(ranking, ScoredChoice)
    scores = ranking.scores(Scene(Latent(smooth, proprio), Latent(smooth, proprio)))
    inner = [5, 6, 9, 10]
    assert float(scores[:, inner].max()) < 0.05 * float(smooth.square().mean())
    seen = Latent(blank, proprio, attention=imagined)
    assert kept("attention", Scene(seen, still)) == [[1], [2]]


def test_a_grid_is_even() -> None:
    assert bayer(2).tolist() == [[0, 2], [3, 1]]
    assert bayer(5).shape == (8, 8) and bayer(8).unique().numel() == 64
    model = tiny_model()
    scene, choice = scene_of(model), choice_of("grid", model)
    for _ in range(5):
        half, quarter = (
            torch.zeros(3, 16).scatter(1, choice.choose(scene, kept, masks(3)), 1.0).view(3, 4, 4)
            for kept in (8, 4)
        )
        assert bool((half.sum(1) == 2).all()) and bool((half.sum(2) == 2).all())
        assert quarter.sum(1).unique().tolist() == [0, 2] and quarter.sum(2).unique().tolist() == [0, 2]


def test_merging_nothing_changes_nothing() -> None:
    model = tiny_model()
    scene = scene_of(model)
    merged = choice_of("merge", model).choose(scene, 16, masks(3))
    assert torch.equal(merged[..., :-2], torch.eye(16).expand(3, -1, -1))
    actions = random_actions(model, 3, 5, 5, generator=generator(1, "candidates"))
    plain = latent_problem(model, scene.start, scene.goal, history=scene.history)
    same = latent_problem(model, scene.start, scene.goal, history=scene.history, patches=merged)
    torch.testing.assert_close(same.cost(actions), plain.cost(actions), atol=1e-4, rtol=1e-4)
    assert torch.equal(nearest_patches(merged), torch.arange(16).expand(3, -1))


def test_merging_joins_what_is_alike() -> None:
    model = tiny_model()
    tokens = torch.zeros(1, 16, 8)
    tokens[0, [0, 1, 4, 5]] = 5.0  # a corner stands out
    frame = Latent(tokens, torch.zeros(1, 2))
    merged = choice_of("merge", model).choose(Scene(frame, frame), 4, masks(1))
    weights = merged[0, :, :-2]
    corner = weights[:, [0, 1, 4, 5]].sum(-1)
    torch.testing.assert_close(corner, (corner > 0.5).float())  # each token is of the corner or of the rest
    assert torch.equal((weights > 0).sum(0), torch.ones(16, dtype=torch.int64))  # each patch is in one token
    torch.testing.assert_close(merged[0, :, -2:], weights @ patch_places(4, 4))
    fewer = choice_of("drop_merge", model).choose(Scene(frame, frame), 4, masks(1))
    assert int((fewer[0, :, :-2] > 0).sum()) == 8  # (4 * 16) ** 0.5


def test_tokens_at_the_centres_of_patches_are_the_patches() -> None:
    model = tiny_model()
    scene = scene_of(model)
    centres = patch_places(4, 4)
    torch.testing.assert_close(sincos_at(centres, 32, 4), sincos_positions(4, 4, 32), atol=1e-5, rtol=1e-5)
    some = torch.tensor([[1, 6, 11, 12]]).expand(3, -1)
    blended = blend(bilinear(centres[some[0]], (4, 4)), centres[some[0]]).expand(3, -1, -1)
    torch.testing.assert_close(
        gather_patches(scene.start.tokens, blended), gather_patches(scene.start.tokens, some)
    )
    actions = random_actions(model, 3, 5, 5, generator=generator(1, "candidates"))
    for objective in ("mse", "temporal"):
        common: dict[str, Any] = {"history": scene.history, "drop": 0.75, "objective": objective}
        plain, same = (
            latent_problem(model, scene.start, scene.goal, patches=patches, **common)
            for patches in (some, blended)
        )
        torch.testing.assert_close(same.cost(actions), plain.cost(actions), atol=1e-4, rtol=1e-4)
    held = random_actions(model, 3, 5, generator=generator(1, "candidates"))
    assert (plain.imagined(held).int() - same.imagined(held).int()).abs().max() <= 1
    between = bilinear(torch.tensor([[0.25, 0.25]]), (4, 4))  # where four patches meet
    assert between[0, [0, 1, 4, 5]].tolist() == [0.25] * 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("planner", [CEM(8, 2, 2), GradientDescent(2, 2)])
def test_plans_are_made_with_every_choice(name: str, planner: Any) -> None:
    model = tiny_model()
    scene = scene_of(model)
    plan = planner.plan(problem_of(model, scene, name))
    assert plan.actions.shape == (3, 5, 4) and bool(plan.cost.isfinite().all())


def test_motion_asks_what_the_last_mean_would_change() -> None:
    model = tiny_model()
    scene = scene_of(model, seen=0)
    problem = problem_of(model, scene, "motion")
    assert problem.scene(True).imagined is None
    actions = random_actions(model, 3, 5, 5, generator=generator(1, "candidates"))
    problem.cost(actions)
    found = problem.scene(True).imagined
    every = torch.arange(16).expand(3, -1)
    *_, (tokens, _) = model.imagine(scene.start.tokens, scene.start.proprio, actions[:, :1], every)
    errors = ((tokens[:, 0] - scene.start.tokens) @ model.standardizer.cost_map).square().mean(-1)
    torch.testing.assert_close(found, errors, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["random", "grids"])
def test_the_cost_can_be_of_some_of_the_imagined_tokens(name: str) -> None:
    model = tiny_model()
    scene = scene_of(model)
    actions = random_actions(model, 3, 5, 5, generator=generator(1, "candidates"))
    problem = problem_of(model, scene, name, comparison=compared_by(model, "goal", 0.0), weight=0.0)
    assert problem.compared.shape == (3, 4)
    start, goal = (gather_patches(frame.tokens, problem.patches) for frame in (scene.start, scene.goal))
    if name == "random":
        largest = (start - goal).square().mean(-1).topk(4).indices.sort().values
        assert torch.equal(problem.compared, largest)
    *_, (tokens, _) = model.imagine(
        start, scene.start.proprio, actions, problem.patches, model.remember(scene.history, problem.patches)
    )
    errors = (tokens - goal[:, None]).square().mean(-1)  # (B, S, M)
    expected = errors.gather(2, problem.compared[:, None].expand(-1, 5, -1)).mean(-1)
    torch.testing.assert_close(problem.cost(actions), expected, atol=1e-4, rtol=1e-4)
    before = problem.compared
    problem.resample(1)
    assert not torch.equal(problem.compared, before) or name == "grids"


def test_what_cannot_be_chosen() -> None:
    model = tiny_model()
    scene = scene_of(model)
    blind = Scene(Latent(scene.start.tokens, scene.start.proprio), scene.goal)
    with pytest.raises(UserError, match="encoder 'embedded' gives no attention to patches"):
        choice_of("attention", model).choose(blind, 4, masks(3))
    with pytest.raises(UserError, match=r"`tokens\.cost` merge has no scores"):
        compared_by(model, "merge", 1.0)
    with pytest.raises(UserError, match=r"unknown choice of tokens .gaol.\. Did you mean .goal."):
        CHOICES.get("gaol")
    assert compared_by(model, "all", 1.0) is None
