"""The pictures of the docs: what a choice of tokens keeps, and success against time."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from scripts.experiments.measure_decisions import success
from scripts.pictures import DECISIONS, Iterations, draw_decisions, draw_groups, show, start, with_lines
from sparsewm.errors import UserError
from sparsewm.model.checkpoint import checkpoint_hash, pretrained_path
from sparsewm.model.latent import blend, patch_places
from sparsewm.planners import CEM

SCENE = np.full((8, 8, 3), 200, np.uint8)


def shown(tokens: torch.Tensor) -> tuple[str, np.ndarray, int, int]:
    """What is said, the picture, lines and dots of tokens on a grid of 2 x 2 patches."""
    figure, axis = plt.subplots()
    words = show(axis, SCENE, tokens, (2, 2))
    picture = axis.images[0].get_array()
    found = words, np.asarray(picture), len(axis.lines), sum(len(c.get_offsets()) for c in axis.collections)
    plt.close(figure)
    return found


def test_patches_are_bright_where_they_are_kept() -> None:
    words, picture, lines, dots = shown(torch.tensor([0, 3]))
    assert (words, lines, dots) == ("2 patches", 0, 0)
    assert (picture[:4, :4] == 200).all() and (picture[4:, 4:] == 200).all() and (picture[:4, 4:] < 100).all()


def test_merged_patches_lie_inside_one_line() -> None:
    weights = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 1, 0]])  # the upper two in one, one alone, one dropped
    words, picture, lines, _ = shown(blend(weights, weights @ patch_places(2, 2)))
    assert words == "3 patches in 2" and lines == 3  # below the upper two, and between the lower two
    assert (picture[4:, 4:] < 100).all() and (picture[:4] == 200).all()


def test_places_between_patches_are_dots() -> None:
    weights = torch.tensor([[0.5, 0.5, 0, 0], [0, 0.5, 0, 0.5]])
    words, _, lines, dots = shown(blend(weights, torch.rand(2, 2)))
    assert (words, lines, dots) == ("2 places", 0, 2)


def test_success_against_time(tmp_path: Path) -> None:
    draw_decisions(tmp_path / "plot.png")
    assert cv2.imread(str(tmp_path / "plot.png")).std() > 5
    report = json.loads(DECISIONS.read_text())
    weights = checkpoint_hash(pretrained_path("pusht"))
    assert report["weights"] == weights and {row["rollout"] for row in report["rows"]} == {
        "sparsewm",
        "DINO-WM",
    }
    for row in report["rows"]:
        if row["rollout"] == "sparsewm":
            assert success("pusht", row["drop"], weights).items() <= row.items()
    with pytest.raises(UserError, match="holds no success of the shipped weights"):
        success("pusht", 0.5, "of other weights")


def test_every_iteration_is_remembered() -> None:
    agent, _, grid, observation, _ = start("wall", 0.5)
    watched = Iterations(agent.problem(observation))
    CEM(8, 2, 3).plan(watched)  # type: ignore[arg-type]
    assert [len(kept) for kept in watched.kept] == [32] * 3 and grid == (8, 8)
    assert len({tuple(kept) for kept in watched.kept}) == 3, "another half every time"
    assert all(best.shape == watched.best[0].shape for best in watched.best)


def test_lines_lie_between_patches(tmp_path: Path) -> None:
    cut = with_lines(SCENE, (2, 4))
    assert (cut[4] == 128).all() and (cut[:, [2, 4, 6]] == 128).all() and (cut == 200).sum() == 3 * 7 * 5
    draw_groups(tmp_path / "groups.png")
    assert cv2.imread(str(tmp_path / "groups.png")).std() > 20
