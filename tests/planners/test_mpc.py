"""Re-planning: what was planned is not thought up again, and episodes do not mix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsewm.planners import CEM, ICEM, MPC, PLANNERS, DoubleIntegrator, PlanningError, Quadratic
from sparsewm.planners.mpc import shift


def wanted(batch: int = 3, horizon: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(batch, horizon, 2, generator=generator) - 0.5


class FirstCandidates(Quadratic):
    """Remembers the candidates of the first iteration."""

    def resample(self, iteration: int) -> None:
        self.iteration = iteration

    def cost(self, actions: Tensor) -> Tensor:
        if self.iteration == 0:
            self.first = actions.detach().clone()
        return super().cost(actions)


def test_shift_moves_actions_forward_and_fills_the_end() -> None:
    actions = torch.arange(4.0).reshape(1, 4, 1)
    fill = torch.tensor([[10.0], [11.0], [12.0], [13.0]])
    assert shift(actions, 1, fill).flatten().tolist() == [1, 2, 3, 13]
    assert shift(actions, 3, fill).flatten().tolist() == [3, 11, 12, 13]
    assert shift(actions, 4, fill).flatten().tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize("name", PLANNERS.names())
def test_the_next_plan_starts_from_the_shifted_one(name: str) -> None:
    loop = MPC(PLANNERS.get(name)(iterations=10), execute=2)
    first = loop.plan(FirstCandidates(wanted()))
    problem = FirstCandidates(wanted(), mean=torch.full((5, 2), 0.25))
    loop.plan(problem)
    assert torch.equal(problem.first[:, 0, :3], first.actions[:, 2:])


def test_reset_forgets_the_plan() -> None:
    loop = MPC(CEM(iterations=3))
    loop.plan(Quadratic(wanted()))
    loop.reset()
    problem = FirstCandidates(wanted(batch=2))
    loop.plan(problem)
    assert torch.equal(problem.first[:, 0], torch.zeros(2, 5, 2))


def test_icem_elites_are_shifted_into_the_next_plan() -> None:
    loop = MPC(ICEM(iterations=5), execute=1)
    elites = loop.plan(FirstCandidates(wanted())).elites
    problem = FirstCandidates(wanted())
    loop.plan(problem)
    assert elites.shape[1] == 3
    assert torch.equal(problem.first[:, -2:, :4], elites[:, 1:, 1:])


def test_finished_episodes_drop_out_without_mixing_up_the_others() -> None:
    loop = MPC(CEM(iterations=3), execute=1)
    plans = loop.plan(Quadratic(wanted())).actions
    some = FirstCandidates(wanted()[[0, 2]])
    second = loop.plan(some, active=torch.tensor([True, False, True])).actions
    assert torch.equal(some.first[:, 0, :4], plans[[0, 2], 1:])
    everyone = FirstCandidates(wanted())
    loop.plan(everyone)
    assert torch.equal(everyone.first[:, 0, :4], torch.stack([second[0], plans[1], second[1]])[:, 1:])


def test_episodes_that_join_late_start_from_the_prior() -> None:
    loop = MPC(CEM(iterations=3))
    loop.plan(Quadratic(wanted()[:1]), active=torch.tensor([True, False, False]))
    problem = FirstCandidates(wanted(), mean=None)
    loop.plan(problem)
    assert torch.equal(problem.first[1:, 0], torch.zeros(2, 5, 2))


@pytest.mark.parametrize("name", PLANNERS.names())
def test_an_episode_is_planned_alike_alone_and_in_a_batch(name: str) -> None:
    """Bit for bit, over re-plans, while others finish."""

    def plans(rows: list[int], ends: list[int]) -> list[Tensor]:
        loop, found = MPC(PLANNERS.get(name)(iterations=4)), []
        loop.reset([40 + row for row in rows])
        for step in range(3):
            active = torch.tensor([step < end for end in ends])
            goals = wanted(batch=4)[rows][active]
            actions = loop.plan(Quadratic(goals), active=active).actions
            found.append(actions[active.nonzero().flatten().tolist().index(rows.index(2))])
        return found

    together, alone = plans([0, 1, 2, 3], [1, 3, 3, 2]), plans([2], [3])
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_seeds_are_one_per_episode() -> None:
    loop = MPC(CEM(iterations=1))
    loop.reset([1, 2])
    with pytest.raises(PlanningError, match="2 episodes were planned or given seeds before, now 3"):
        loop.plan(Quadratic(wanted()))


def test_a_replanned_point_mass_comes_to_rest_at_its_goal() -> None:
    position, velocity = torch.tensor([[1.0, -0.5], [-2.0, 0.3]]), torch.tensor([[0.5, 0.0], [0.0, -0.5]])
    goal = torch.zeros(2, 2)
    loop = MPC(CEM(candidates=200, iterations=15), execute=2)
    for _ in range(8):
        problem = DoubleIntegrator(position, velocity, goal, horizon=6)
        for action in loop.plan(problem).actions[:, :2].unbind(dim=1):
            position = position + problem.dt * velocity + problem.dt**2 / 2 * action
            velocity = velocity + problem.dt * action
    assert position.abs().max() < 0.15
    assert velocity.abs().max() < 0.25


def test_a_warm_start_from_inference_mode_serves_outside_of_it() -> None:
    loop = MPC(CEM(iterations=2))
    with torch.inference_mode():
        loop.plan(Quadratic(wanted()))
    assert loop.plan(Quadratic(wanted())).actions.isfinite().all()


def test_wrong_use_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"execute.*0"):
        MPC(CEM(), execute=0)
    with pytest.raises(PlanningError, match="execute 6 actions of 5"):
        MPC(CEM(), execute=6).plan(Quadratic(wanted()))
    loop = MPC(CEM(iterations=1))
    with pytest.raises(PlanningError, match="active must mark the problem's 3 episodes, not 2"):
        loop.plan(Quadratic(wanted()), active=torch.tensor([True, True]))
    loop.plan(Quadratic(wanted()))
    with pytest.raises(PlanningError, match=r"3 episodes.*now 2.*reset\(\)"):
        loop.plan(Quadratic(wanted()[:2]))


def test_each_episode_goes_on_after_what_was_taken_of_its_plan() -> None:
    loop = MPC(CEM(iterations=3), execute=1)
    plans = loop.plan(Quadratic(wanted())).actions
    problem = FirstCandidates(wanted())
    loop.plan(problem, taken=[0, 2, 9])
    assert torch.equal(problem.first[0, 0], plans[0])
    assert torch.equal(problem.first[1, 0, :3], plans[1, 2:])
    assert torch.equal(problem.first[2, 0], torch.zeros(5, 2))
    with pytest.raises(
        PlanningError, match=r"taken must be a number of actions for each of 3 .*\[1, -1, 0\]"
    ):
        loop.plan(Quadratic(wanted()), taken=[1, -1, 0])
