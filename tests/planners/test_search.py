"""What every planner promises: it finds known optima, for every episode, within the bounds, reproducibly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsewm.planners import (
    CEM,
    ICEM,
    MPPI,
    PLANNERS,
    DoubleIntegrator,
    GradientDescent,
    PlanningError,
    Quadratic,
    generator,
)
from sparsewm.planners.base import lowest
from sparsewm.planners.icem import coloured
from sparsewm.planners.mppi import path_weights
from sparsewm.planners.proposals import ProposalMode

ALL = pytest.mark.parametrize("name", PLANNERS.names())
SAMPLERS = pytest.mark.parametrize("name", ["cem", "icem", "mppi"])


def targets(batch: int = 6, horizon: int = 4, size: int = 2, reach: float = 0.8) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return (torch.rand(batch, horizon, size, generator=generator) * 2 - 1) * reach


def integrator(batch: int = 4) -> DoubleIntegrator:
    generator = torch.Generator().manual_seed(12)
    position, velocity, goal = torch.randn(3, batch, 2, generator=generator)
    return DoubleIntegrator(position, 0.3 * velocity, goal, horizon=6, effort=0.1, limit=3.0)


class MaskedQuadratic(Quadratic):
    """Like a world model with dropped tokens: each iteration sees other features, at another cost scale."""

    def __init__(self, target: Tensor, features: int = 64, kept: int = 24) -> None:
        super().__init__(target)
        self.generator = torch.Generator().manual_seed(13)
        self.project = torch.randn(features, target[0].numel(), generator=self.generator)
        self.features, self.kept = features, kept

    def resample(self, iteration: int) -> None:
        self.rows = torch.randperm(self.features, generator=self.generator)[: self.kept]
        self.scale = 10 ** (6 * torch.rand((), generator=self.generator).item() - 3)

    def cost(self, actions: Tensor) -> Tensor:
        error = (actions - self.target[:, None]).flatten(2) @ self.project[self.rows].T
        return self.scale * (100 + error.square().mean(dim=2))


class Recorder(Quadratic):
    """Remembers in which order a planner calls, and what it asks for."""

    def __init__(self, target: Tensor) -> None:
        super().__init__(target)
        self.calls: list[str] = []
        self.asked: list[Tensor] = []

    def resample(self, iteration: int) -> None:
        self.calls.append(f"resample {iteration}")

    def cost(self, actions: Tensor) -> Tensor:
        self.calls.append("cost")
        self.asked.append(actions.detach().clone())
        return super().cost(actions)


@ALL
def test_finds_the_optimum_of_every_episode_of_a_quadratic(name: str) -> None:
    problem = Quadratic(targets())
    plan = PLANNERS.get(name)(iterations=40).plan(problem)
    assert (plan.actions - problem.target).abs().max() < 0.06
    assert torch.equal(plan.cost, problem.cost(plan.actions[:, None])[:, 0])


@ALL
def test_reaches_the_lqr_optimum_of_a_double_integrator(name: str) -> None:
    problem = integrator()
    best, lowest = problem.optimum()
    idle = problem.cost(torch.zeros_like(best)[:, None])[:, 0]
    plan = PLANNERS.get(name)(iterations=60).plan(problem)
    assert (plan.cost >= lowest - 1e-4).all()
    assert ((plan.cost - lowest) < 0.02 * (idle - lowest) + 0.04).all()


def test_the_lqr_optimum_is_a_minimum() -> None:
    problem = integrator()
    best, lowest = problem.optimum()
    assert torch.allclose(problem.cost(best[:, None])[:, 0], lowest, atol=1e-5)
    best = best[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(problem.cost(best).sum(), best)
    assert slope.abs().max() < 1e-4


@ALL
def test_solves_a_problem_whose_cost_changes_scale_and_features_each_iteration(name: str) -> None:
    problem = MaskedQuadratic(targets())
    plan = PLANNERS.get(name)(iterations=40).plan(problem)
    assert (plan.actions - problem.target).abs().max() < 0.2


@ALL
def test_an_episode_is_solved_alike_in_any_company(name: str) -> None:
    easy, hard = torch.zeros(1, 4, 2), torch.full((1, 4, 2), 0.9)
    alone = PLANNERS.get(name)(iterations=30).plan(Quadratic(hard)).actions
    together = PLANNERS.get(name)(iterations=30).plan(Quadratic(torch.cat([easy, hard, 1e3 * hard]))).actions
    copies = PLANNERS.get(name)(iterations=30).plan(Quadratic(hard.expand(5, -1, -1))).actions
    for actions in (alone, together[1:2], copies):
        assert (actions - hard).abs().max() < 0.1


@ALL
def test_the_same_seed_gives_the_same_sequence_of_plans_whatever_the_global_state(name: str) -> None:
    problem = Quadratic(targets())
    first = PLANNERS.get(name)(seed=5)
    plans = [first.plan(problem).actions for _ in range(2)]
    torch.manual_seed(99)
    again, other = PLANNERS.get(name)(seed=5), PLANNERS.get(name)(seed=6)
    assert all(torch.equal(again.plan(problem).actions, actions) for actions in plans)
    assert not torch.equal(plans[0], plans[1])
    assert not torch.equal(other.plan(problem).actions, plans[0])


@ALL
def test_planning_leaves_the_global_random_state_alone(name: str) -> None:
    before = torch.get_rng_state()
    PLANNERS.get(name)().plan(Quadratic(targets()))
    assert torch.equal(torch.get_rng_state(), before)


@ALL
def test_resamples_once_before_each_iteration(name: str) -> None:
    problem = Recorder(targets())
    plan = PLANNERS.get(name)(iterations=3).plan(problem)
    assert problem.calls == ["resample 0", "cost", "resample 1", "cost", "resample 2", "cost"]
    assert len(plan.history) == len(plan.seconds_per_iteration) == 3
    assert all(seconds > 0 for seconds in plan.seconds_per_iteration)
    assert all(entry["best"] <= entry["elite"] <= entry["mean"] for entry in plan.history)


@ALL
def test_the_plan_is_the_best_candidate_of_the_last_iteration(name: str) -> None:
    problem = Recorder(targets())
    scales = iter([1e-6, 1.0, 1.0])  # the first iteration looks far better than it is
    exact = problem.cost
    problem.cost = lambda actions: exact(actions) * next(scales)  # type: ignore[method-assign]
    plan = PLANNERS.get(name)(iterations=3).plan(problem)
    last = Quadratic(problem.target).cost(problem.asked[-1])
    assert torch.equal(plan.cost, last.min(dim=1).values)
    assert torch.equal(plan.actions, problem.asked[-1][torch.arange(problem.batch), last.argmin(dim=1)])
    assert torch.equal(plan.elites[:, 0], plan.actions)


@ALL
def test_no_candidate_and_no_plan_leaves_the_bounds(name: str) -> None:
    problem = Recorder(targets(reach=3.0))  # optima outside: the search pushes against the bounds
    problem.low = torch.tensor([-0.5, -2.0])
    problem.high = torch.tensor([0.25, 1.0])
    outside = torch.full_like(problem.target, 100.0)
    plan = PLANNERS.get(name)(iterations=40).plan(problem)
    pushed = PLANNERS.get(name)(iterations=2).plan(problem, warm_start=outside)
    for actions in [*problem.asked, plan.actions, plan.elites, pushed.actions]:
        assert (actions >= problem.low).all()
        assert (actions <= problem.high).all()
    optimum = problem.cost(problem.target.clamp(problem.low, problem.high)[:, None])[:, 0]
    assert (plan.cost < 1.05 * optimum).all()


@ALL
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_failed_candidate_counts_as_the_worst(name: str, bad: float) -> None:
    class Half(Quadratic):
        def cost(self, actions: Tensor) -> Tensor:
            return torch.where(actions[..., 0, 0] < 0.1, bad, super().cost(actions))

    target = targets()
    target[:, 0, 0] = 0.6  # the optimum lies on the good side, the prior mean on the bad one
    problem = Half(target)
    plan = PLANNERS.get(name)(iterations=40).plan(problem)
    assert (plan.actions - target).abs().max() < 0.1
    assert all(torch.isfinite(torch.tensor(list(entry.values()))).all() for entry in plan.history)


@ALL
def test_fewer_finite_candidates_than_elites_still_plan(name: str) -> None:
    class Only(Quadratic):
        def cost(self, actions: Tensor) -> Tensor:
            costs = super().cost(actions)
            return torch.where(torch.arange(costs.shape[1]) == 3, costs, torch.nan)

    plan = PLANNERS.get(name)(candidates=10, iterations=4).plan(Only(targets()))
    assert plan.actions.isfinite().all()
    assert plan.elites.isfinite().all()
    assert plan.cost.isfinite().all()


def test_elites_are_sorted_and_never_failed_candidates() -> None:
    candidates = torch.arange(8.0).reshape(2, 4, 1, 1)
    costs = torch.tensor([[3.0, 1.0, torch.inf, 2.0], [torch.inf, torch.inf, 5.0, torch.inf]])
    best, values = lowest(candidates, costs, 3)
    assert best.flatten(1).tolist() == [[1, 3, 0], [6, 6, 6]]
    assert values.tolist() == [[1, 2, 3], [5, 5, 5]]


@ALL
def test_an_episode_without_any_finite_cost_is_an_error_that_names_it(name: str) -> None:
    class Broken(Quadratic):
        def cost(self, actions: Tensor) -> Tensor:
            costs = super().cost(actions)
            return torch.where(torch.arange(self.batch)[:, None] == 1, torch.nan, costs)

    with pytest.raises(PlanningError, match=r"every candidate of episode\(s\) \[1\]"):
        PLANNERS.get(name)().plan(Broken(targets()))


@ALL
def test_a_warm_start_near_the_optimum_saves_iterations(name: str) -> None:
    problem = Quadratic(targets())
    cold = PLANNERS.get(name)(iterations=1).plan(problem)
    warm = PLANNERS.get(name)(iterations=1).plan(problem, warm_start=problem.target + 0.1)
    assert (warm.cost < 0.5 * cold.cost).all()
    assert (warm.cost <= problem.cost(problem.target[:, None] + 0.1)[:, 0]).all()


@ALL
def test_a_warm_start_keeps_the_prior_noise(name: str) -> None:
    problem = Recorder(targets())
    PLANNERS.get(name)(candidates=200, iterations=1, seed=1).plan(problem, warm_start=problem.target * 0.2)
    spread = problem.asked[0].std(dim=1)
    assert ((spread > 0.35) & (spread < 0.6)).all()  # a quarter of the range of 2


@ALL
def test_extra_warm_starts_join_the_first_iteration(name: str) -> None:
    problem = Recorder(targets())
    starts = torch.stack([torch.zeros_like(problem.target), problem.target], dim=1)
    plan = PLANNERS.get(name)(iterations=1).plan(problem, warm_start=starts)
    assert torch.equal(plan.actions, problem.target)
    assert torch.equal(problem.asked[0][:, 0], starts[:, 0])


@ALL
def test_the_prior_of_the_problem_shapes_the_first_iteration(name: str) -> None:
    problem = Recorder(targets())
    problem.mean = torch.full((4, 2), 0.3)
    problem.std = torch.full((4, 2), 0.05)
    PLANNERS.get(name)(candidates=200, iterations=1).plan(problem)
    asked = problem.asked[0]
    assert torch.allclose(asked[:, 0], problem.mean.expand(6, -1, -1))
    assert (asked.mean(dim=1) - 0.3).abs().max() < 0.03
    assert ((asked.std(dim=1) > 0.03) & (asked.std(dim=1) < 0.07)).all()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the test moves: its one entry is the time."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    return clock


@ALL
def test_a_deadline_ends_the_search_after_at_least_one_iteration(name: str, now: list[float]) -> None:

    class Slow(Quadratic):
        def cost(self, actions: Tensor) -> Tensor:
            now[0] += 1.0
            return super().cost(actions)

    planner = PLANNERS.get(name)(iterations=10)
    counts = []
    for deadline in (-1.0, 0.5, 2.0, 2.2, 4.5, 100.0, None):  # the next may take a tenth longer
        now[0] = 0.0
        counts.append(len(planner.plan(Slow(targets()), deadline=deadline).history))
    assert counts == [1, 1, 1, 2, 4, 10, 10]


@SAMPLERS
def test_a_deadline_too_short_for_three_iterations_takes_fewer_candidates(
    name: str, now: list[float]
) -> None:

    asked: list[int] = []

    class Slow(Quadratic):
        def cost(self, actions: Tensor) -> Tensor:
            now[0] += 0.01 * actions.shape[1]
            asked.append(actions.shape[1])
            return super().cost(actions)

    planner = PLANNERS.get(name)(candidates=100, iterations=10)
    problem = Slow(targets())
    planner.plan(problem)  # a second per iteration of a hundred
    for deadline in (1.5, 0.6):
        asked.clear()
        started = now[0]
        plan = planner.plan(problem, deadline=deadline)
        assert now[0] - started <= deadline and len(plan.history) >= 3
        assert max(asked) == int(deadline / (3 + 0.1) / 0.01)  # the last may take a tenth longer
    asked.clear()
    planner.plan(problem, deadline=0.01)  # hopeless: no fewer than the elites
    assert asked == [planner.elites]


@pytest.mark.parametrize(("mode", "deadline", "count"), [("replace", 1.0, 90), ("seed", 1.0, 32)])
def test_a_deadline_counts_proposals_too(
    mode: ProposalMode, deadline: float, count: int, now: list[float]
) -> None:
    """A hundredth of a second each: those that fit are scored, the first ones."""
    asked: list[Tensor] = []

    class Slow(Quadratic):
        def cost(self, actions: Tensor) -> Tensor:
            now[0] += 0.01 * actions.shape[1]
            asked.append(actions)
            return super().cost(actions)

    planner, problem = CEM(candidates=20, iterations=10), Slow(targets())
    planner.plan(problem)
    offered = torch.rand(len(targets()), 400, *targets().shape[1:]) - 0.5
    asked.clear()
    started = now[0]
    planner.plan(problem, proposals=offered, deadline=deadline, proposal_mode=mode)
    assert now[0] - started <= deadline and asked[0].shape[1] == count
    first = asked[0] if mode == "replace" else asked[0][:, 1:]
    assert torch.equal(first, offered[:, : first.shape[1]])


def test_icem_keeps_its_elites_under_a_deadline(now: list[float]) -> None:
    class Slow(Recorder):
        def cost(self, actions: Tensor) -> Tensor:
            now[0] += 0.01 * actions.shape[1]
            return super().cost(actions)

    planner, problem = ICEM(candidates=100, elites=10, keep=0.3, iterations=10), Slow(targets())
    planner.plan(problem)
    problem.asked.clear()
    planner.plan(problem, deadline=1.0)
    assert [len(actions[0]) for actions in problem.asked] == [32, 32, 32]
    for before, after in zip(problem.asked[:-1], problem.asked[1:], strict=True):
        best = Quadratic(problem.target).cost(before).argsort(dim=1)[:, :3]
        assert torch.equal(after[:, -3:], before.gather(1, best[..., None, None].expand(-1, -1, 4, 2)))


@ALL
def test_a_warm_up_learns_the_pace_without_what_is_slow_once_and_draws_nothing(
    name: str, now: list[float]
) -> None:
    class SlowAtFirst(Quadratic):
        slow = 100.0

        def cost(self, actions: Tensor) -> Tensor:
            now[0] += self.slow
            self.slow = 1.0
            return super().cost(actions)

    planner, cold = PLANNERS.get(name)(iterations=10), PLANNERS.get(name)(iterations=10)
    planner.warm_up(SlowAtFirst(targets()))
    assert torch.equal(planner.plan(Quadratic(targets())).actions, cold.plan(Quadratic(targets())).actions)
    problem = SlowAtFirst(targets())
    problem.slow = 1.0
    assert len(planner.plan(problem, deadline=5.2).history) == 5


@ALL
def test_what_an_episode_draws_does_not_depend_on_the_others(name: str) -> None:
    """Bit for bit: every row has a generator of its own."""

    def sources(*seeds: int) -> list[torch.Generator]:
        return [generator(seed, "candidates") for seed in seeds]

    together = PLANNERS.get(name)().plan(Quadratic(targets(batch=4)), generators=sources(7, 8, 9, 10))
    for row in range(4):
        alone = PLANNERS.get(name)().plan(
            Quadratic(targets(batch=4)[row : row + 1]), generators=sources(7 + row)
        )
        assert torch.equal(alone.actions[0], together.actions[row])
        assert torch.equal(alone.elites[0], together.elites[row])


def test_streams_of_one_seed_differ_and_are_the_same_anywhere() -> None:
    drawn = [
        torch.randn(4, generator=generator(seed, stream))
        for seed, stream in ((0, "candidates"), (0, "tokens"), (1, "candidates"), ((0, 1), "candidates"))
    ]
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 4
    assert generator(3, "tokens").initial_seed() == 1518292317223730850
    assert torch.equal(torch.randn(4, generator=generator(0, "candidates")), drawn[0])


def test_generators_are_one_per_episode() -> None:
    with pytest.raises(PlanningError, match="one of each of the 6 episodes, on cpu"):
        CEM().plan(Quadratic(targets()), generators=[generator(0, "candidates")])


@ALL
def test_the_shape_of_the_plan_does_not_depend_on_the_planner(name: str) -> None:
    for shape in ((1, 1, 1), (3, 7, 2)):
        plan = PLANNERS.get(name)(candidates=20, iterations=2).plan(Quadratic(torch.zeros(shape)))
        assert plan.actions.shape == shape
        assert plan.cost.shape == shape[:1]
        assert plan.elites.shape[2:] == shape[1:]
        assert not plan.actions.requires_grad


@ALL
def test_plans_inside_inference_mode(name: str) -> None:
    problem = Quadratic(targets())
    with torch.inference_mode():
        plan = PLANNERS.get(name)(iterations=40).plan(problem)
    assert (plan.actions - problem.target).abs().max() < 0.06


@SAMPLERS
def test_sampling_planners_never_build_a_graph(name: str) -> None:
    class Weighted(Quadratic):
        weight = torch.nn.Parameter(torch.ones(()))

        def cost(self, actions: Tensor) -> Tensor:
            costs = self.weight * super().cost(actions)
            assert not costs.requires_grad
            return costs

    PLANNERS.get(name)(iterations=2).plan(Weighted(targets()))


def test_gradient_descent_says_when_there_is_no_gradient() -> None:
    class Detached(Quadratic):
        def cost(self, actions: Tensor) -> Tensor:
            return super().cost(actions.detach())

    class ConstantInActions(Quadratic):
        weight = torch.nn.Parameter(torch.ones(()))

        def cost(self, actions: Tensor) -> Tensor:
            return self.weight * super().cost(actions.detach())

    for problem in (Detached(targets()), ConstantInActions(targets())):
        with pytest.raises(PlanningError, match=r"differentiable.*cem"):
            GradientDescent().plan(problem)


def test_gradient_descent_says_when_the_problem_was_built_in_inference_mode() -> None:
    with torch.inference_mode():
        problem = Quadratic(targets())
        problem.cost = lambda a: (a * problem.target[:, None]).sum(dim=(2, 3))  # type: ignore[method-assign]
    with pytest.raises(PlanningError, match="inference_mode"):
        GradientDescent().plan(problem)


def test_gradient_descent_leaves_a_local_minimum_by_its_restarts() -> None:
    class TwoWells(Quadratic):
        def cost(self, actions: Tensor) -> Tensor:
            x = actions[..., 0, 0]
            return (x.square() - 0.25).square() - 0.05 * x

    problem = TwoWells(torch.zeros(1, 1, 1))
    left = torch.full((1, 1, 1), -0.5)
    stuck = GradientDescent(candidates=1).plan(problem, warm_start=left).actions.item()
    free = GradientDescent(candidates=20).plan(problem, warm_start=left).actions.item()
    assert stuck < -0.4
    assert free > 0.4


def test_gradient_descent_stays_where_the_gradient_is_not_finite() -> None:
    class Distance(Quadratic):
        def cost(self, actions: Tensor) -> Tensor:
            return super().cost(actions).sqrt()  # its slope at the target is 0 / 0

    problem = Distance(targets())
    plan = GradientDescent(candidates=1).plan(problem, warm_start=problem.target)
    assert torch.equal(plan.actions, problem.target)


def test_gradient_descent_settles_under_a_redrawn_cost() -> None:
    problem = MaskedQuadratic(targets(), kept=12)
    plan = GradientDescent(iterations=100).plan(problem)
    assert (plan.actions - problem.target).abs().max() < 0.01


def test_icem_scores_its_elites_again_and_hands_them_on() -> None:
    problem = Recorder(targets())
    plan = ICEM(elites=10, keep=0.3, iterations=3).plan(problem)
    for before, after in zip(problem.asked[:-1], problem.asked[1:], strict=True):
        assert before.shape == after.shape
        best = Quadratic(problem.target).cost(before).argsort(dim=1)[:, :3]
        kept = before.gather(1, best[..., None, None].expand(-1, -1, 4, 2))
        assert torch.equal(after[:, -3:], kept)
    assert plan.elites.shape[1] == 3


def test_icem_shrinks_its_population_down_to_a_floor() -> None:
    problem = Recorder(targets())
    ICEM(candidates=100, elites=10, iterations=5, decay=2.0).plan(problem)
    assert [actions.shape[1] for actions in problem.asked] == [100, 50, 25, 20, 20]


@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_coloured_noise_has_unit_variance_and_grows_smoother(length: int) -> None:
    white = torch.randn(20000, length, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(coloured(white, 0.0), white, atol=1e-5)
    for exponent in (1.0, 3.0):
        assert (coloured(white, exponent).std(dim=0) - 1).abs().max() < 0.03
    if length == 16:
        jumps = [coloured(white, e).diff(dim=1).std().item() for e in (0.0, 1.0, 2.0, 3.0)]
        assert jumps == sorted(jumps, reverse=True)


def test_mppi_weights_do_not_depend_on_scale_or_offset_of_the_costs() -> None:
    costs = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    weights = path_weights(costs, 0.2)
    assert torch.allclose(weights.sum(dim=1), torch.ones(3))
    assert torch.allclose(path_weights(1e6 * costs, 0.2), weights, atol=1e-5)
    assert torch.allclose(path_weights(1e-6 * costs + 1e-6, 0.2), weights, atol=1e-3)
    assert torch.equal(weights.argmax(dim=1), costs.argmin(dim=1))


def test_mppi_weights_are_even_for_equal_costs_and_zero_for_failed_ones() -> None:
    costs = torch.tensor([[2.0, 2.0, torch.inf, 2.0], [1.0, torch.inf, torch.inf, torch.inf]])
    third = 1 / 3
    assert torch.allclose(path_weights(costs, 0.2), torch.tensor([[third, third, 0, third], [1.0, 0, 0, 0]]))


@pytest.mark.parametrize("planner", [CEM, ICEM, MPPI])
def test_the_noise_never_falls_below_its_floor(planner: type[CEM | ICEM | MPPI]) -> None:
    problem = Recorder(torch.zeros(2, 4, 2))
    planner(candidates=400, min_std=0.05, iterations=25).plan(problem)
    assert problem.asked[-1].std(dim=1).min() > 0.08  # 0.05 of the range of 2 is 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CEM(candidates=0), "candidates.*0"),
        (lambda: CEM(iterations=0), "iterations.*0"),
        (lambda: CEM(candidates=10, elites=11), "elites.*10.*11"),
        (lambda: CEM(elites=1), "elites.*1"),
        (lambda: CEM(momentum=1.0), r"momentum.*1\.0"),
        (lambda: CEM(min_std=-0.1), r"min_std.*-0\.1"),
        (lambda: CEM(seed=-1), "seed.*-1"),
        (lambda: ICEM(elites=1), "elites.*1"),
        (lambda: ICEM(noise_exponent=-1.0), r"noise_exponent.*-1\.0"),
        (lambda: ICEM(keep=1.5), r"keep.*1\.5"),
        (lambda: ICEM(decay=0.5), r"decay.*0\.5"),
        (lambda: ICEM(min_std=float("nan")), "min_std.*nan"),
        (lambda: MPPI(temperature=0.0), r"temperature.*0\.0"),
        (lambda: MPPI(candidates=1), "candidates.*1"),
        (lambda: GradientDescent(learning_rate=0.0), r"learning_rate.*0\.0"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_value(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_wrong_problem_or_warm_start_is_refused_by_name() -> None:
    def problem(**changes: object) -> Quadratic:
        made = Quadratic(targets())
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    nan = torch.full((6, 4, 2), torch.nan)
    for made, arguments, message in (
        (problem(batch=0), {}, "batch.*0"),
        (problem(low=torch.zeros(3)), {}, r"low.*\(2,\).*\(3,\)"),
        (problem(high=torch.full((2,), -1.5)), {}, "low must nowhere lie above high"),
        (problem(high=torch.full((2,), torch.inf)), {}, "high contains"),
        (problem(mean=torch.zeros(2)), {}, r"mean.*\(4, 2\)"),
        (problem(std=torch.zeros(4, 2)), {}, "std must be positive, not 0"),
        (problem(cost=lambda a: a.sum(dim=(1, 2, 3))), {}, r"cost.*\(6, 100\).*\(6,\)"),
        (problem(), {"warm_start": torch.zeros(5, 4, 2)}, r"warm_start.*\(6, 1, 4, 2\).*\(5"),
        (problem(), {"warm_start": nan}, "warm_start contains NaN"),
        (problem(), {"proposals": nan}, "proposals must have shape"),
        (problem(), {"proposals": nan[:, None]}, "proposals contains NaN"),
        (problem(), {"proposal_mode": "sed"}, "replace, seed, prior.*'sed'"),
    ):
        with pytest.raises(PlanningError, match=message):
            CEM().plan(made, **arguments)


@pytest.mark.parametrize("planner", [CEM, ICEM, MPPI, GradientDescent])
def test_an_action_without_freedom_stays_as_it_is(planner: type) -> None:
    """Bounds of recorded data may leave none: one motor of a robot that was never moved."""
    for mode in ("seed", "prior"):
        made = Quadratic(targets())
        made.low, made.high = torch.tensor([-1.0, 0.25]), torch.tensor([1.0, 0.25])
        plan = planner(iterations=4).plan(made, proposals=torch.zeros(6, 3, 4, 2), proposal_mode=mode)
        assert (plan.actions[..., 1] == 0.25).all() and (plan.actions[..., 0].abs() > 0.01).any()
