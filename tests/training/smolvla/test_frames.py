"""Frames with goals from their future: rows of one episode, actions up to the goal and then none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparsewm.data import Dataset, open_dataset
from sparsewm.data.cameras import BOTH, CAMERA, LUMINANCE, ROWS, grey, overlay
from sparsewm.training.smolvla.frames import HindsightFrames
from tests.data.tiny import write_dataset

CHUNK, LONGEST = 6, 8
TOLD = ["go"] * 9 + ["wait"] * 5 + ["go"] * 12  # each row


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_dataset(tmp_path_factory.mktemp("data") / "wall.h5", (9, 5, 12)))


def frames_of(dataset: Dataset, longest: int | None = LONGEST, **options: Any) -> HindsightFrames:
    return HindsightFrames(dataset, ("x", "y"), ["go", "wait", "go"], CHUNK, longest, **options)


def way(dataset: Dataset, first: int, goal: int) -> np.ndarray:
    """Actions from a row to its goal, then none."""
    actions = np.zeros((CHUNK, 2), np.float32)
    taken = dataset.action[first : min(goal, first + CHUNK)]
    actions[: len(taken)] = taken
    return actions


@pytest.mark.parametrize("longest", [LONGEST, None])
@pytest.mark.parametrize("ends", [0.0, 1.0])
def test_goals_are_later_frames_of_the_episode(dataset: Dataset, ends: float, longest: int | None) -> None:
    frames = frames_of(dataset, longest, ends=ends)
    assert len(frames) == dataset.rows == 26
    last = np.repeat(dataset.offsets + dataset.lengths - 1, dataset.lengths)
    ahead = set()
    for step in range(20):
        batch = frames.batch(0, step, 26)
        rows, goals = batch[ROWS].numpy().T
        assert sorted(rows) == list(range(26)) and batch["task"] == [TOLD[i] for i in rows]
        assert torch.equal(batch["observation.state"], torch.from_numpy(dataset.proprio[rows]))
        farthest = np.minimum(rows + (longest or 99), last[rows])
        assert (goals == farthest).all() if ends else ((rows <= goals) & (goals <= farthest)).all()
        wanted = [way(dataset, row, goal) for row, goal in zip(rows, goals, strict=True)]
        assert np.array_equal(batch["action"].numpy(), wanted)
        ahead |= set(goals - rows)
    assert ahead == set(range((longest or 11) + 1))


def test_without_the_goal_a_frame_shows_the_present_and_goes_on_to_the_end(dataset: Dataset) -> None:
    frames = frames_of(dataset, 3, ends=0.0, goal=False)
    assert [name for name in frames.features if "images" in name] == [CAMERA]
    batch, last = frames.batch(0, 0, 26), dataset.offsets + dataset.lengths - 1
    for row, action in zip(batch[ROWS][:, 0].tolist(), batch["action"].numpy(), strict=True):
        end = last[last >= row][0]
        before = max(row, end - 1)  # the last row's own action leads nowhere
        assert np.array_equal(action, dataset.action[np.minimum(row + np.arange(CHUNK), before)])
        assert row == end or action[-1].any()


@pytest.mark.parametrize("weights", [LUMINANCE, (256, 0, 0)])
def test_present_and_goal_in_one_picture(dataset: Dataset, weights: tuple[int, int, int]) -> None:
    frames = frames_of(dataset, together=True, weights=weights)
    assert [name for name in frames.features if "images" in name] == [BOTH]
    pixels = grey(torch.from_numpy(dataset.pixels[:]), weights)
    rows, ahead = torch.tensor([0, 3, 14]), torch.tensor([5, 0, 2])
    shown = frames.sample(rows, ahead)[BOTH]
    assert torch.equal((255 * shown).round().byte(), overlay(pixels[rows], pixels[rows + ahead]))


def test_grey_is_luminance() -> None:
    colours = torch.tensor([[255, 255, 255], [0, 0, 0], [255, 0, 0], [65, 105, 225]], dtype=torch.uint8)
    assert grey(colours).tolist() == [255, 0, 76, 106]
    assert grey(colours, (192, 64, 0)).tolist() == [255, 0, 191, 75]


def test_an_epoch_shows_every_row_once_and_a_step_is_always_the_same(dataset: Dataset) -> None:
    frames, other = frames_of(dataset), frames_of(dataset)
    epochs = [torch.cat([frames.batch(0, 3 * epoch + i, 8)[ROWS] for i in range(3)]) for epoch in range(2)]
    for epoch in epochs:
        assert len(set(epoch[:, 0].tolist())) == 24
    assert not torch.equal(*epochs)
    assert torch.equal(other.batch(0, 4, 8)[ROWS], epochs[1][8:16])
    assert len(frames.batch(0, 0, 100)["action"]) == 26


def test_statistics_are_those_of_the_file(dataset: Dataset) -> None:
    stats = frames_of(dataset).stats
    assert np.allclose(stats["action"]["mean"], dataset.action.mean(0))
    assert np.allclose(stats["observation.state"]["std"], dataset.proprio.std(0))
