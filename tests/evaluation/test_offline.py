"""A world model judged by recorded data: what must rank first does, what knows nothing is at chance."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.data import Dataset, DatasetWriter, open_dataset
from sparsewm.encoders import load_encoder
from sparsewm.errors import UserError
from sparsewm.evaluation.hindsight import Cases, held_out, warnings
from sparsewm.evaluation.offline import OfflineJudge, Scores, report
from sparsewm.evaluation.ranking import chance, mean_with_interval, rank_scores
from sparsewm.model import WorldModel, save
from sparsewm.model.interface import Interface
from sparsewm.model.latent import gather_patches
from sparsewm.model.predictor import PredictorConfig
from tests.cli.commands import call
from tests.data.tiny import ATTRIBUTES, episode, write_dataset
from tests.model.tiny import tiny_model

SIDE = 7  # of the square, in pixels


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    found = open_dataset(write_dataset(tmp_path_factory.mktemp("offline") / "squares.h5", [12] * 30))
    yield found
    found.close()


def perfect(model: WorldModel) -> WorldModel:
    """A double that imagines what the square of the tiny dataset really does."""

    def imagine(
        tokens: Tensor, proprio: Tensor, actions: Tensor, patches: Tensor, past: Any = ()
    ) -> Iterator[tuple[Tensor, Tensor]]:
        standardizer, (b, s, _, _) = model.standardizer, actions.shape
        place = (proprio * standardizer.proprio_std + standardizer.proprio_mean) / 60
        place = place[:, None].expand(-1, s, -1).double()
        for step in actions.unbind(2):
            for action in step.view(b, s, -1, 2).unbind(2):
                place = (place + 0.1 * action).clamp(0, 1)
            corners = (place * (28 - SIDE)).round().int().flatten(0, 1)
            pixels = np.full((b * s, 28, 28, 3), 30, np.uint8)
            for picture, (x, y) in zip(pixels, corners.tolist(), strict=True):
                picture[y : y + SIDE, x : x + SIDE] = 220
            frame = model.encode(pixels, 60 * place.flatten(0, 1))
            shown = gather_patches(frame.tokens.unflatten(0, (b, s)), patches)
            yield shown, frame.proprio.unflatten(0, (b, s))

    model.packed = lambda: None  # type: ignore[method-assign]
    model.imagine = imagine  # type: ignore[method-assign]
    return model


def copying(model: WorldModel) -> WorldModel:
    """A double for which nothing ever moves."""

    def imagine(
        tokens: Tensor, proprio: Tensor, actions: Tensor, patches: Tensor, past: Any = ()
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(actions.shape[2]):
            s = actions.shape[1]
            yield tokens[:, None].expand(-1, s, -1, -1), proprio[:, None].expand(-1, s, -1)

    model.packed = lambda: None  # type: ignore[method-assign]
    model.imagine = imagine  # type: ignore[method-assign]
    return model


def judged(
    model: WorldModel,
    dataset: Dataset,
    windows: int = 24,
    candidates: int = 6,
    horizon: int = 3,
    ranked: int = 2,
    drops: tuple[float, ...] = (0.0, 0.5),
    **cost: Any,
) -> tuple[Cases, Scores, dict[str, Any]]:
    config = PlanConfig.of("square", cost=cost)
    judge = OfflineJudge(model, dataset, config, drops, horizon, ranked)
    cases = judge.cases(np.arange(dataset.episodes), windows, candidates)
    scores = judge.score(cases)
    return cases, scores, report(cases, scores, model)


def test_a_perfect_model_ranks_what_was_done_first(dataset: Dataset) -> None:
    model = perfect(tiny_model())
    for cost in ({}, {"proprio_weight": 0.0}, {"frame": "min"}):
        _, scores, found = judged(model, dataset, **cost)
        for drop in ("drop_0", "drop_0.5"):
            assert max(found["errors"][drop]["tokens_ratio"]) < 1e-3
            assert max(found["errors"][drop]["proprio_ratio"]) < 1e-3
            ranking = found["ranking"][drop]["all"]
            # by vision alone two sequences may end in one picture
            assert ranking["mean_reciprocal_rank"]["value"] > (
                0.99 if cost != {"proprio_weight": 0.0} else 0.8
            )
        assert scores.costs.shape == (2, 24, 6)


def test_a_model_that_copies_is_at_chance_and_as_good_as_copying(dataset: Dataset) -> None:
    _, _, found = judged(copying(tiny_model()), dataset)
    for drop in ("drop_0", "drop_0.5"):
        assert found["errors"][drop]["tokens_ratio"] == pytest.approx([1, 1, 1])
        assert found["errors"][drop]["proprio_ratio"] == pytest.approx([1, 1, 1])
        for name, level in found["chance"].items():
            assert found["ranking"][drop]["all"][name]["value"] == pytest.approx(level)
    assert found["chance"] == pytest.approx(chance(6))


def test_an_untrained_model_is_near_chance(dataset: Dataset) -> None:
    _, _, found = judged(tiny_model(), dataset, windows=120)
    for drop in ("drop_0", "drop_0.5"):
        measure = found["ranking"][drop]["all"]["percentile"]
        low, high = measure["ci95"]
        assert low < measure["value"] < high and high - low < 0.3
        assert low - 0.1 < 0.5 < high + 0.1
    assert 0 < found["moving_share"] < 1
    assert found["ranking"]["drop_0"]["moving"]["windows"] == round(found["moving_share"] * 120)


def test_errors_are_sums_over_windows_not_means_of_ratios(dataset: Dataset) -> None:
    _, scores, found = judged(tiny_model(), dataset)
    ours, copy = scores.errors["tokens"][1], scores.errors["tokens_copy"][1]
    part = found["errors"]["drop_0.5"]
    assert part["kept"] == 8
    assert part["tokens_ratio"] == pytest.approx((ours.sum(0) / copy.sum(0)).tolist())
    assert part["tokens"] == pytest.approx(ours.mean(0).tolist())


def test_it_scores_as_planning_does(dataset: Dataset) -> None:
    model = tiny_model()
    cases, scores, _ = judged(model, dataset, drops=(0.0,), frame="min", proprio_weight=0.3)
    i = int(np.flatnonzero(cases.depth == 2)[0])
    row = int(cases.rows[i])
    config = PlanConfig.of("square", cost={"frame": "min", "proprio_weight": 0.3}, search={"horizon": 2})
    agent = Agent(model, config.updated(drop=0.0, action_repeat=False))

    def seen(at: int) -> dict[str, np.ndarray]:
        return {"pixels": dataset.pixels[at], "proprio": dataset.proprio[at]}

    agent.reset({name: value[None] for name, value in seen(row + 4).items()})
    first = int(dataset.offsets[cases.episodes[i]])
    agent.problem({name: value[None] for name, value in seen(first).items()})
    for at in range(first, row):
        agent.observe(seen(at + 1), dataset.action[at])
    judge = OfflineJudge(model, dataset, config, (0.0,), 3, 2)
    sequences = judge.sequences(cases, np.array([i]))
    assert agent.problem().cost(sequences)[0].tolist() == pytest.approx(scores.costs[0, i].tolist(), rel=1e-4)


def test_the_same_seed_draws_the_same_for_all_models(dataset: Dataset) -> None:
    first, second = (judged(tiny_model(seed=seed), dataset, drops=(0.5,))[0] for seed in (0, 1))
    assert np.array_equal(first.rows, second.rows) and np.array_equal(first.others, second.others)
    of = np.searchsorted(dataset.offsets, first.others, "right") - 1
    assert (of != first.episodes[:, None]).all()
    assert all(len(set(line)) == len(line) for line in first.others.tolist())
    steps = first.others - dataset.offsets[of]
    assert steps.min() == 0 and steps.max() == 12 - 1 - 4  # the last sequences end with the episode
    assert (first.depth == np.minimum((first.rows - dataset.offsets[first.episodes]) // 2, 2)).all()


def test_actions_stay_within_bounds(dataset: Dataset) -> None:
    model = tiny_model()
    low, high = (-0.5, -0.25), (0.5, 0.25)
    content = dict(model.metadata["interface"]) | {"action_low": low, "action_high": high}
    model.metadata["interface"] = content
    judge = OfflineJudge(model, dataset, PlanConfig.of("square"), horizon=2)
    cases = judge.cases(np.arange(30), windows=8, candidates=4)
    sequences = judge.sequences(cases, np.arange(8)).unflatten(-1, (2, 2))
    assert sequences[..., 0].abs().max() == 0.5 and sequences[..., 1].abs().max() == 0.25


def test_data_of_another_kind_is_warned_of(dataset: Dataset) -> None:
    shown = Interface("square", (28, 28), (-1, -1), (1, 1), ("x", "y"), ("x", "y"), 2, fps=10)
    assert warnings(dataset, shown) == []
    tight = replace(shown, action_low=(-0.5, -0.5), action_high=(0.5, 0.5))
    assert "outside the bounds" in warnings(dataset, tight)[0]
    dataset.fps = 30.0
    try:
        (said,) = warnings(dataset, shown)
    finally:
        dataset.fps = None
    assert "30 rows a second" in said and "10: a model step spans another time" in said


def test_rows_without_an_action_are_outside_no_bounds(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last row of an episode is zero, which bounds need not hold."""
    action = np.where(dataset.acting[:, None], 0.25, 0.0) * np.ones((1, 2))
    monkeypatch.setattr(dataset, "action", action.astype(np.float32))
    shown = Interface("square", (28, 28), (0.25, 0.2), (0.25, 0.3), ("x", "y"), ("x", "y"), 2)
    assert warnings(dataset, shown) == []


def test_frames_that_are_not_finite_are_refused(dataset: Dataset) -> None:
    model = tiny_model()
    model.predictor.token_change.bias += torch.inf
    with pytest.raises(UserError, match="are not finite: train it again"):
        judged(model, dataset, windows=2)


def test_ranks_with_ties_and_with_costs_that_are_no_numbers() -> None:
    costs = np.array([[1, 2, 3, 4], [4, 1, 2, 3], [1, 1, 1, 1], [1, 1, 0, 2], [np.nan, 1, 2, 3]])
    found = rank_scores(costs)
    assert found["rank"].tolist() == [1, 4, 2.5, 2.5, 4]
    assert found["top1"].tolist() == [1, 0, 0.25, 0, 0]
    assert found["percentile"].tolist() == [1, 0, 0.5, 0.5, 0]
    assert found["mean_reciprocal_rank"] == pytest.approx([1, 1 / 4, 25 / 48, (1 / 2 + 1 / 3) / 2, 1 / 4])


def test_intervals_draw_episodes() -> None:
    rng = np.random.default_rng(0)
    values, episodes = np.repeat(rng.normal(size=50), 20), np.repeat(np.arange(50), 20)
    low, high = mean_with_interval(values, episodes, rng)["ci95"]
    assert 0.4 < high - low < 0.7  # 2 * 1.96 / sqrt(50), not / sqrt(1000)
    assert mean_with_interval(values[:20], episodes[:20], rng)["ci95"] is None


def test_held_out_episodes_are_those_of_training(dataset: Dataset) -> None:
    model = tiny_model()
    assert held_out(model, dataset).tolist() == dataset.split()[1].tolist()
    model.metadata["training"] = {"horizon": 4}
    with pytest.raises(UserError, match="with 13 rows or more"):
        held_out(model, dataset)


def with_shape(path: Path, picture: tuple[int, int] = (28, 28), action: int = 2, proprio: int = 2) -> Dataset:
    with DatasetWriter(path, ATTRIBUTES) as writer:
        for seed in range(3):
            rng, part = np.random.default_rng(seed), episode(12, seed)
            part["pixels"] = rng.integers(0, 255, (12, *picture, 3), np.uint8)
            part["action"] = rng.uniform(-1, 1, (12, action)).astype(np.float32)
            part["proprio"] = rng.uniform(-1, 1, (12, proprio)).astype(np.float32)
            writer.append(part)
    return open_dataset(path)


def test_what_does_not_fit_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    model = tiny_model()
    for shapes, words in (
        ({"action": 3}, "'action' of .* has 3 numbers a row, the checkpoint was trained on 2"),
        ({"proprio": 4}, "'proprio' of .* has 4 numbers a row, the checkpoint was trained on 2"),
        ({"picture": (28, 40)}, "28 x 40 .* another aspect ratio than the 56 x 56"),
    ):
        with pytest.raises(UserError, match=words):
            judged(model, with_shape(tmp_path / f"{next(iter(shapes))}.h5", **shapes))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"unknown objective 'tempral'. Did you mean 'temporal'"):
        judged(model, dataset, objective="tempral")
    with pytest.raises(UserError, match="`horizon` 6 needs 13 rows, the longest of these 30 has 12"):
        judged(model, dataset, horizon=6)
    with pytest.raises(UserError, match="`ranked` 4 is more than `horizon` 3"):
        judged(model, dataset, ranked=4)
    with pytest.raises(UserError, match="too few for `candidates` 300"):
        judged(model, dataset, candidates=300)
    with pytest.raises(UserError, match="`candidates` must be at least 2"):
        judged(model, dataset, candidates=1)
    with pytest.raises(UserError, match="`drops` must be numbers from 0 on and below 1"):
        judged(model, dataset, drops=(0.5, 1.0))
    model.metadata["interface"] = dict(model.metadata["interface"]) | {"cameras": ["front", "wrist"]}
    with pytest.raises(UserError, match=r"shows .*, the checkpoint was trained on front, wrist"):
        judged(model, dataset)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained checkpoint on the shipped encoder."""
    encoder = load_encoder("embedded")
    torch.manual_seed(0)
    config = PredictorConfig(encoder.dim, encoder.grid, 2, 4, 2, width=16, depth=1, heads=1, mlp=16)
    shown = Interface("square", (112, 112), (-1, -1), (1, 1), ("x", "y"), ("x", "y"), 2)
    model = WorldModel(encoder, config, "square", 2, {"interface": shown.to_dict()})
    return save(model, tmp_path_factory.mktemp("offline-model") / "checkpoint")


@pytest.mark.slow
def test_the_command_line(checkpoint: Path, dataset: Dataset, tmp_path: Path) -> None:
    common = ["evaluate", "--dataset", dataset.path, "--checkpoint", checkpoint, "--output", tmp_path / "out"]
    few = "--windows 5 --candidates 4 --horizon 2 --ranked 1 --drops 0 0.9 --episodes all"
    code, out, err = call(*common, few)
    assert code == 0, err
    assert "reciprocal rank" in out and "1.00" in out
    found = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert found["errors"]["drop_0.9"]["kept"] == 6 and len(found["errors"]["drop_0"]["tokens"]) == 2
    assert found["windows"] == 5 and found["evaluated"] == "all" and found["cost"]["objective"] == "mse"
    assert [case["rank"]["drop_0"] for case in found["cases"]] == [2.5] * 5  # it copies
    assert "--ranked 1" in found["command"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluate.json",
        "errors.png",
        "cases.png",
    }
    code, out, err = call(*common, "--windows 4 --candidates 3 --horizon 1 --drops 0")
    assert code == 0, err
    held = set(dataset.split()[1].tolist())
    found = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert {case["episode"] for case in found["cases"]} <= held


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--horizon 8", "--horizon 8 needs 17 rows"),
        ("--cost.objective temporal", "trained without a temporal distance"),
        ("--objective squared", "unknown objective 'squared'"),
        ("--drops 1", "--drops must be numbers from 0 on and below 1"),
        ("--drops", "--drops must be numbers"),
        ("--selection none --proprio-weight 0", "raise --cost.proprio-weight"),
        ("--windows 0", "--windows must be at least 1"),
    ],
)
def test_bad_flags(checkpoint: Path, dataset: Dataset, tmp_path: Path, flags: str, words: str) -> None:
    common = ["evaluate", "--dataset", dataset.path, "--checkpoint", checkpoint, "--output", tmp_path / "out"]
    code, _, err = call(*common, flags)
    assert code == 2 and words in err, err
    assert "Traceback" not in err and not (tmp_path / "out").exists()


def test_a_source_with_options(checkpoint: Path, dataset: Dataset, tmp_path: Path) -> None:
    code, _, err = call(
        "evaluate --episodes all --windows 2 --candidates 2 --horizon 1 --drops 0",
        "--dataset",
        f"{dataset.path}?relative=auto&position=proprio_0,proprio_1",
        "--checkpoint",
        checkpoint,
        "--output",
        tmp_path / "out",
    )
    assert code == 0, err


@pytest.mark.slow
def test_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "howto" / "judge_offline.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    Path("judge.py").write_text(program)
    runpy.run_path("judge.py", run_name="__main__")
    ratios, ranking = capsys.readouterr().out.splitlines()[-2:]
    assert len(json.loads(ratios)) == 3 and "mean_reciprocal_rank" in ranking
    command = next(line for line in page.splitlines() if "--dataset square.h5" in line)
    code, out, err = call(command.strip().removeprefix("sparsewm "))
    assert code == 0, err
    assert "results in runs/evaluate" in out and Path("runs/evaluate/cases.png").is_file()
