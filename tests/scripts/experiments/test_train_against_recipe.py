"""Both trainings run, are validated alike, and get better than when they began."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch

from scripts.experiments.train_against_recipe import plot, train_ours, train_recipe, windows_seen
from sparsewm.data import TokenCache, Windows, open_dataset
from sparsewm.training.config import OptimConfig
from tests.data.tiny import write_dataset
from tests.model.tiny import tiny_encoder
from tests.training.tiny import CONFIG, make_model


def test_steps_on_all_tokens_have_fewer_windows() -> None:
    config = OptimConfig(batch=8, groups=4, trained_groups=1, full_every=3)
    assert [windows_seen(config, steps) for steps in (1, 2, 3, 4)] == [2, 10, 18, 20]


@pytest.mark.slow
def test_both_learn_for_the_same_time(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "wall.h5", [16] * 12, resolution=56))
    tokens = TokenCache(dataset, tiny_encoder())
    train, held_out = dataset.split(0.2)
    shown = Windows(dataset, tokens, 4, 2, train)
    judged = Windows(dataset, tokens, 6, 2, held_out)
    told: list[str] = []

    def progress(done: float, total: float, text: str) -> None:
        told.append(text)

    config = OptimConfig(**CONFIG)
    settings, ours = train_ours(
        lambda: make_model(dataset, tokens), shown, judged, config, torch.float32, 2.0, 3, 0, progress, 2
    )
    spent = ours[-1]["seconds"]
    assert 0.3 < spent < 20 and ours[-1]["windows"] == windows_seen(settings, settings.steps)
    model = make_model(dataset, tokens)
    training, theirs = train_recipe(
        model, Windows(dataset, tokens, 3, 2, train), judged, spent, 3, 0, progress
    )
    assert theirs[-1]["seconds"] >= spent and training.network.config.history == model.history
    for curve in (ours, theirs):
        assert 3 <= len(curve) <= 4
        assert all(row[name] > 0 for row in curve for name in ("all", "half"))
        assert [row["seconds"] for row in curve] == sorted(row["seconds"] for row in curve)
    assert ours[-1]["all"] < 1.05 and theirs[-1]["all_error"] < theirs[0]["all_error"]
    assert any(text.startswith("ours") for text in told) and any(text.startswith("recipe") for text in told)
    report = {
        name: {"curve": curve, "dtype": "float32"} for name, curve in (("ours", ours), ("recipe", theirs))
    }
    plot(tmp_path / "recipe.png", report)
    assert cv2.imread(str(tmp_path / "recipe.png")) is not None
