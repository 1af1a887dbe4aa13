"""Proposals from elsewhere: scored, mixed in, or taken as the prior."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sparsewm.errors import UserError
from sparsewm.planners import (
    CEM,
    MPC,
    PLANNERS,
    GaussianProposals,
    PlanningProblem,
    ProposalSampler,
    Quadratic,
)

ALL = pytest.mark.parametrize("name", PLANNERS.names())


class Counting(Quadratic):
    """Remembers all candidates."""

    def __init__(self, target: Tensor) -> None:
        super().__init__(target)
        self.asked: list[Tensor] = []

    def cost(self, actions: Tensor) -> Tensor:
        self.asked.append(actions.detach().clone())
        return super().cost(actions)


def problem() -> Counting:
    return Counting(torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(1)) - 0.5)


def around(target: Tensor, count: int, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return target[:, None] + noise * torch.randn(len(target), count, 4, 2, generator=generator)


@ALL
def test_replace_scores_the_proposals_once_and_takes_the_best(name: str) -> None:
    made = problem()
    offered = around(made.target, 7, 0.1)
    plan = PLANNERS.get(name)().plan(made, proposals=offered, proposal_mode="replace")
    best = Quadratic(made.target).cost(offered).argmin(dim=1)
    assert torch.equal(plan.actions, offered[torch.arange(3), best])
    assert [actions.shape[1] for actions in made.asked] == [7]


@ALL
def test_seed_mixes_the_proposals_into_the_first_iteration_only(name: str) -> None:
    made = problem()
    offered = around(made.target, 3, 0.01)
    PLANNERS.get(name)(candidates=20, iterations=2).plan(made, proposals=offered)
    assert torch.equal(made.asked[0][:, -3:], offered)
    assert made.asked[0].shape[1] == 20
    assert not torch.isin(made.asked[1][:, 1:, 0, 0], offered[..., 0, 0]).all()


@ALL
def test_no_proposal_is_lost_when_there_are_more_than_candidates(name: str) -> None:
    made = problem()
    offered = around(made.target, 30, 0.1)
    plan = PLANNERS.get(name)(candidates=10, iterations=3).plan(made, proposals=offered)
    assert torch.equal(made.asked[0][:, 1:], offered)
    assert plan.actions.shape == made.target.shape


@ALL
def test_prior_searches_around_the_proposals(name: str) -> None:
    made = problem()
    offered = around(made.target, 50, 0.2)
    PLANNERS.get(name)(candidates=300, iterations=1).plan(made, proposals=offered, proposal_mode="prior")
    assert torch.allclose(made.asked[0][:, 0], offered.mean(dim=1), atol=1e-6)
    assert ((made.asked[0].std(dim=1) > 0.1) & (made.asked[0].std(dim=1) < 0.3)).all()


def test_prior_of_a_single_proposal_still_searches() -> None:
    made = problem()
    off = made.target[:, None] + 0.1
    plan = CEM(iterations=30).plan(made, proposals=off, proposal_mode="prior")
    assert (plan.actions - made.target).abs().max() < 0.08


def test_prior_keeps_the_warm_start_as_a_candidate() -> None:
    made = problem()
    far = -torch.ones(3, 5, 4, 2)
    plan = CEM(iterations=1).plan(made, warm_start=made.target, proposals=far, proposal_mode="prior")
    assert torch.equal(plan.actions, made.target)


def test_proposals_out_of_bounds_are_cut_to_them() -> None:
    made = problem()
    plan = CEM().plan(made, proposals=torch.full((3, 2, 4, 2), 9.0), proposal_mode="replace")
    assert torch.equal(plan.actions, torch.ones(3, 4, 2))


def test_the_loop_passes_proposals_on() -> None:
    made = problem()
    plan = MPC(CEM()).plan(made, proposals=made.target[:, None], proposal_mode="replace")
    assert torch.equal(plan.actions, made.target)


def test_gaussian_proposals_have_the_promised_shape_bounds_and_spread() -> None:
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])
    sampler = GaussianProposals(low, high, batch=3, seed=4)
    assert isinstance(sampler, ProposalSampler)
    first = sampler.propose(None, None, "push the block", samples=500, horizon=6)
    assert first.shape == (3, 500, 6, 2)
    assert (first >= low).all()
    assert (first <= high).all()
    assert torch.allclose(first.mean(dim=(0, 1, 2)), torch.tensor([0.0, 2.0]), atol=0.05)
    assert not torch.equal(first, sampler.propose(None, None, None, 500, 6))
    again = GaussianProposals(low, high, batch=3, seed=4)
    assert torch.equal(first, again.propose(None, None, None, 500, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"high": torch.zeros(3)}, r"high.*\(2,\).*\(3,\)"),
        ({"high": torch.tensor([1.0, -2.0])}, "low must lie below high"),
        ({"std": torch.tensor([1.0, 0.0])}, "std must be positive"),
        ({"batch": 0}, "batch.*0"),
    ],
)
def test_gaussian_proposals_refuse_what_makes_no_sense(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianProposals(**{"low": -torch.ones(2), "high": torch.ones(2), **arguments})


def test_the_analytic_problems_speak_the_protocol() -> None:
    assert isinstance(problem(), PlanningProblem)


@pytest.mark.slow
def test_planners_need_torch_only() -> None:
    code = (
        "import sys; from sparsewm import planners; "
        "foreign = {'gymnasium', 'mujoco', 'pymunk', 'h5py', 'cv2', 'yaml'} & set(sys.modules); "
        "foreign |= {m for m in sys.modules if m.startswith('sparsewm.') and 'planners' not in m} "
        "- {'sparsewm.registry', 'sparsewm.errors'}; "
        "sys.exit(str(foreign) if foreign else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_planner_is_one_sentence_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"unknown planner 'icme'\. Did you mean 'icem'\? Known: cem, icem"):
        PLANNERS.get("icme")
    assert PLANNERS.get("cem") is CEM
