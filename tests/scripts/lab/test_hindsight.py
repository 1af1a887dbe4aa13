"""Frames with goals from their future: rows of one episode, actions up to the goal and then none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scripts.lab.hindsight import HindsightFrames
from sparsewm.data import Dataset, open_dataset
from sparsewm.data.cameras import BOTH, CAMERA, GOAL, LUMINANCE, grey, overlay
from sparsewm.errors import UserError
from tests.data.tiny import write_dataset

CHUNK, LONGEST = 6, 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_dataset(tmp_path_factory.mktemp("data") / "wall.h5", (9, 5, 12)))


def frames_of(dataset: Dataset, **options: Any) -> HindsightFrames:
    return HindsightFrames(dataset, ("x", "y"), "go", CHUNK, LONGEST, **options)


def shows(dataset: Dataset, picture: torch.Tensor, row: int) -> bool:
    return np.array_equal(dataset.pixels[row], (255 * picture).round().byte().permute(1, 2, 0).numpy())


def way(dataset: Dataset, first: int, goal: int) -> np.ndarray:
    """Actions from a row to its goal, then none."""
    actions = np.zeros((CHUNK, 2), np.float32)
    taken = dataset.action[first : min(goal, first + CHUNK)]
    actions[: len(taken)] = taken
    return actions


@pytest.mark.parametrize("ends", [0.0, 1.0])
def test_goals_are_later_frames_of_the_episode(dataset: Dataset, ends: float) -> None:
    frames = frames_of(dataset, ends=ends)
    assert len(frames) == dataset.rows == 26 and frames.num_episodes == 3
    last = np.repeat(dataset.offsets + dataset.lengths - 1, dataset.lengths)
    ahead = set()
    torch.manual_seed(0)
    for index in range(len(frames)):
        farthest = min(index + LONGEST, int(last[index]))
        for _ in range(20):
            sample = frames[index]
            assert shows(dataset, sample[CAMERA], index) and sample["task"] == "go"
            assert torch.equal(sample["observation.state"], torch.from_numpy(dataset.proprio[index]))
            goals = [
                row
                for row in range(index, farthest + 1)
                if shows(dataset, sample[GOAL], row)
                and np.array_equal(sample["action"].numpy(), way(dataset, index, row))
            ]
            assert farthest in goals if ends else goals
            ahead |= {row - index for row in goals}
    assert {0, LONGEST} <= ahead


@pytest.mark.parametrize("weights", [LUMINANCE, (256, 0, 0)])
def test_present_and_goal_in_one_picture(dataset: Dataset, weights: tuple[int, int, int]) -> None:
    frames = frames_of(dataset, together=True, weights=weights)
    assert BOTH in frames.meta.features and not {CAMERA, GOAL} & set(frames.meta.features)
    pixels = grey(torch.from_numpy(dataset.pixels[:]), weights)
    torch.manual_seed(0)
    for index in range(len(frames)):
        farthest = min(index + LONGEST, int(frames.last[index]))
        shown = (255 * frames[index][BOTH]).round().byte()
        assert any(torch.equal(shown, overlay(pixels[index], pixels[g])) for g in range(index, farthest + 1))


def test_grey_is_luminance() -> None:
    colours = torch.tensor([[255, 255, 255], [0, 0, 0], [255, 0, 0], [65, 105, 225]], dtype=torch.uint8)
    assert grey(colours).tolist() == [255, 0, 76, 106]
    assert grey(colours, (192, 64, 0)).tolist() == [255, 0, 191, 75]


def test_batches_have_one_size(dataset: Dataset) -> None:
    assert len(frames_of(dataset, batch=8)) == 24 and len(frames_of(dataset, batch=100)) == 26


def test_statistics_are_those_of_the_file(dataset: Dataset) -> None:
    stats = frames_of(dataset).meta.stats
    assert np.allclose(stats["action"]["mean"], dataset.action.mean(0))
    assert np.allclose(stats["observation.state"]["std"], dataset.proprio.std(0))


@pytest.mark.parametrize(("options", "flag"), [({"ends": 1.5}, "--ends"), ({"ends": -0.1}, "--ends")])
def test_impossible_shares(dataset: Dataset, options: dict[str, float], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        frames_of(dataset, **options)
    with pytest.raises(UserError, match="--longest"):
        HindsightFrames(dataset, ("x", "y"), "go", CHUNK, 0)
