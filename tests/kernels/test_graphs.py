"""CUDA graphs: recorded at the second sight of a shape, the least used one forgotten, the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sparsewm.kernels import graphs
from sparsewm.kernels.graphs import Function, Graphs
from sparsewm.model.choices import CHOICES, compared_by
from tests.model.test_problem import candidates, make_problem
from tests.model.tiny import tiny_model


class Noted:
    """Stands in for a graph where there is no GPU."""

    made: list[tuple[int, ...]]

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.function = function
        Noted.made.append(tuple(inputs[0].shape))

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.function(inputs)


def test_shapes_are_recorded_when_they_return_and_the_least_used_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs, "Recorded", Noted)
    Noted.made, kept = [], Graphs(capacity=2)

    def see(size: int) -> None:
        assert kept.run("sum", lambda inputs: inputs[0].sum(), [torch.ones(size)]) == size

    see(1)
    assert Noted.made == []
    see(1)
    see(1)
    assert Noted.made == [(1,)]
    for size in (2, 2, 1, 3, 3):  # 2 has waited longest when 3 is recorded
        see(size)
    see(1)
    assert Noted.made == [(1,), (2,), (3,)]
    see(2)
    see(2)
    assert Noted.made == [(1,), (2,), (3,), (2,)]


@pytest.mark.parametrize("frame", ["last", "min"])
@pytest.mark.parametrize(("choose", "cost"), [("random", "all"), ("goal", "motion"), ("merge", "goal")])
def test_a_problem_hands_in_all_that_changes(
    monkeypatch: pytest.MonkeyPatch, frame: str, choose: str, cost: str
) -> None:
    """What was recorded for one observation must be right for the next one, whose tensors lie elsewhere."""
    monkeypatch.setattr(graphs, "Recorded", Noted)
    Noted.made = []
    model = tiny_model()
    choice = CHOICES.get(choose)(model, 1.0)
    comparison = compared_by(model, cost, 1.0)
    for seed in range(4):
        problem = make_problem(
            model, seen=2, seed=seed, drop=0.5, frame=frame, choice=choice, comparison=comparison
        )
        shift = torch.randn(1, generator=torch.Generator().manual_seed(seed))
        problem.start.proprio.add_(shift)
        problem.goal.proprio.sub_(shift)
        for seen, action in problem.history:
            seen.tokens.mul_(1 + shift)
            action.mul_(1 - 0.1 * shift)
        actions = candidates(model) + 0.1 * shift
        with torch.inference_mode():
            found = problem._recorded_cost(actions)
            assert torch.allclose(found, problem._cost(actions, problem.view), atol=1e-5)
    assert len(Noted.made) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_computation_keeps_its_values_on_new_inputs() -> None:
    kept, weight = Graphs(), torch.randn(8, 8, device="cuda")
    with torch.inference_mode():
        for _ in range(4):
            x = torch.randn(3, 8, device="cuda")
            found = kept.run("product", lambda inputs: inputs[0] @ weight, [x])
            assert torch.allclose(found, x @ weight, atol=1e-4)
    assert isinstance(next(iter(kept._seen.values())), graphs.Recorded)


def test_shapes_that_never_return_are_forgotten() -> None:
    kept = Graphs(capacity=2)
    for size in range(1, 50):
        kept.run("sum", lambda inputs: inputs[0].sum(), [torch.ones(size)])
    assert len(kept._seen) == 8


def test_copies_record_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph itself cannot be copied, and would compute with the weights of the original."""
    monkeypatch.setattr(graphs, "Recorded", Noted)
    Noted.made, kept = [], Graphs(capacity=3)
    for _ in range(2):
        kept.run("sum", lambda inputs: inputs[0].sum(), [torch.ones(1)])
    other = copy.deepcopy(kept)
    assert other.capacity == 3
    for _ in range(2):
        other.run("sum", lambda inputs: inputs[0].sum(), [torch.ones(1)])
    assert Noted.made == [(1,), (1,)]


def test_only_inputs_that_changed_are_handed_in_again() -> None:
    class Replayed:
        def replay(self) -> None:
            pass

    recorded = object.__new__(graphs.Recorded)
    given = [torch.ones(2), torch.ones(2)]
    recorded.inputs, recorded._given = [x.clone() for x in given], [graphs._version(x) for x in given]
    recorded.graph, recorded.output = Replayed(), torch.zeros(1)  # type: ignore[assignment]

    def lying_there(*inputs: Tensor) -> list[float]:
        recorded(inputs)
        found = [x[0].item() for x in recorded.inputs]
        for x in recorded.inputs:
            x.sub_(100.0)  # where nothing is copied, this shows
        return found

    assert lying_there(*given) == [1, 1]
    assert lying_there(given[0].add_(1), given[1]) == [2, -99]
    assert lying_there(given[0], torch.full((2,), 3.0)) == [-98, 3]
    with torch.inference_mode():
        untold = torch.full((2,), 4.0)
        assert lying_there(given[0], untold) == [-198, 4]
        assert lying_there(given[0], untold.add_(1)) == [-298, 5]
