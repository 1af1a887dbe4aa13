"""Denormal numbers are zero while it computes, on all threads, and what they were to the user's program."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsewm.kernels import denormals, flushed
from tests.data.tiny import write_dataset
from tests.model.test_problem import candidates, make_problem
from tests.model.tiny import tiny_model
from tests.test_agent import acted, make_agent, seen
from tests.training.tiny import make_trainer

LIBRARY = denormals._library()
MANY = 1 << 17  # numbers that torch shares out to its threads


@pytest.fixture(params=[1] if isinstance(LIBRARY, str) else [1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def denormal(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((MANY,), 1e-40 if dtype == torch.float32 else 1e-310, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("threads")
def test_they_are_zero_meanwhile(dtype: torch.dtype) -> None:
    numbers = denormal(dtype)
    small = torch.full((MANY,), 1e-30 if dtype == torch.float32 else 1e-200, dtype=dtype)
    assert ((numbers * 1) != 0).all()  # and torch's threads are there
    with flushed():
        assert ((numbers * 1) == 0).all()  # operands
        with flushed():
            pass
        assert ((small * 1e-10 if dtype == torch.float32 else small * 1e-110) == 0).all()  # results
        assert np.float64(1e-310) * np.float64(1) == 0
    assert ((numbers * 1) != 0).all()
    assert np.float64(1e-310) * np.float64(1) != 0


def test_what_fails_leaves_nothing_behind() -> None:
    @flushed()
    def fails() -> None:
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fails()
    assert ((denormal() * 1) != 0).all() and denormals._here.depth == 0


def test_what_the_user_chose_stays() -> None:
    torch.set_flush_denormal(True)
    try:
        with flushed():
            pass
        assert ((denormal() * 1) == 0).all()
    finally:
        torch.set_flush_denormal(False)


def test_threads_do_not_share_it() -> None:
    found = []
    with flushed():
        thread = threading.Thread(target=lambda: found.append(bool(((denormal() * 1) == 0).any())))
        torch.set_flush_denormal(False)  # or the new one begins with it
        thread.start()
        thread.join()
        torch.set_flush_denormal(True)
    assert found == [False]


def test_backward_flushes_too() -> None:
    weight = torch.ones(MANY, requires_grad=True)
    with flushed():
        (weight * denormal()).sum().backward()
    assert weight.grad is not None and (weight.grad == 0).all()


@pytest.mark.filterwarnings("error")
def test_least_numbers_can_be_asked_for() -> None:
    with flushed():
        least = np.finfo(np.float64).smallest_subnormal
    assert least > 0


def test_without_a_compiler_the_calling_thread_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denormals, "_library", lambda: "no C compiler")
    few = denormal()[:10]
    with flushed():
        assert ((few * 1) == 0).all()
    assert ((few * 1) != 0).all()


def noted(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether denormal numbers are zero, at every call of a method from now on."""
    found, method = [], getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        found.append(bool((denormal()[:1] * 1 == 0).all()))
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    return found


def test_agents_and_problems_flush_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(frameskip=5)
    agent = make_agent(model)
    encoded = noted(model.encoder, "encode", monkeypatch)
    planned = noted(agent._receding, "plan", monkeypatch)
    acted(agent, seen(0), seen(1))
    assert encoded and all(encoded) and planned and all(planned)
    problem = make_problem(model)
    scored = noted(problem, "_cost", monkeypatch)
    problem.cost(candidates(model))
    assert scored == [True]


def test_training_and_its_tokens_flush_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = noted(type(tiny_model().encoder), "encode", monkeypatch)
    trainer = make_trainer(write_dataset(tmp_path / "d.h5", [14] * 20, resolution=56), tmp_path / "run")
    steps = noted(trainer, "losses", monkeypatch)
    trainer.run(until=2)
    assert encoded and all(encoded) and steps == [True, True]
