"""Exported datasets: LeRobot itself reads the frames, actions and ends that were recorded."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from sparsewm.cli import convert
from sparsewm.data import Dataset, collect, open_dataset
from sparsewm.data.lerobot import Segment, check_lerobot, export_lerobot, segments
from sparsewm.errors import UserError
from tests.cli.commands import call
from tests.data.tiny import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_dataset(tmp_path_factory.mktemp("data") / "wall.h5", (30, 5, 24)))


def test_segments_lie_inside_episodes_and_are_as_long_as_asked(dataset: Dataset) -> None:
    chosen = segments(dataset, count=40, shortest=6, longest=12)
    assert len(chosen) == 81  # the short episode is one
    starts, ends = dataset.offsets, dataset.offsets + dataset.lengths
    for segment in chosen:
        episode = int(np.searchsorted(ends, segment.first, "right"))
        assert starts[episode] <= segment.first < segment.last < ends[episode]
        assert segment.last - segment.first in ([4] if episode == 1 else range(6, 13))
    assert {s.last - s.first for s in chosen} >= {6, 12} and chosen != segments(dataset, 40, 6, 12, seed=1)
    assert chosen == segments(dataset, 40, 6, 12)


@pytest.mark.parametrize(("shortest", "longest", "count"), [(0, 4, 1), (5, 4, 1), (1, 4, 0)])
def test_impossible_segments(dataset: Dataset, shortest: int, longest: int, count: int) -> None:
    with pytest.raises(UserError, match=r"`(shortest` must be from 1 to|segments` must be at least 1)"):
        segments(dataset, count, shortest, longest)


def test_the_command_writes_what_lerobot_reads(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    flags = ("convert", dataset.path, folder, "--segments 2 --shortest 6 --longest 12 --fps 10")
    code, out, err = call(*flags)
    assert code == 0, err
    chosen = segments(dataset, 2, 6, 12)
    assert f"{len(chosen)} episodes" in out and list(tmp_path.iterdir()) == [folder]
    read = LeRobotDataset(
        "sparsewm/wall", root=folder, delta_timestamps={"action": [i / 10 for i in range(8)]}
    )
    assert read.num_episodes == len(chosen) and read.fps == 10
    assert json.loads((folder / "meta/info.json").read_text())["codebase_version"] == "v3.0"
    index = 0
    for number, segment in enumerate(chosen):
        for row in range(segment.first, segment.last + 1):
            frame = read[index]
            for camera, shown in (("camera", row), ("goal", segment.last)):
                pixels = (255 * frame[f"observation.images.{camera}"]).round().byte().permute(1, 2, 0)
                assert np.array_equal(pixels, dataset.pixels[shown])
            assert np.array_equal(frame["observation.state"], dataset.proprio[row])
            assert int(frame["episode_index"]) == number and frame["task"].startswith("go to the goal")
            left = segment.last - row  # actions up to the goal, then standing still
            expected = np.zeros((8, 2), np.float32)
            expected[: min(left, 8)] = dataset.action[row : min(segment.last, row + 8)]
            assert np.array_equal(frame["action"], expected)
            assert int(frame["action_is_pad"].sum()) == max(0, 7 - left)
            index += 1
    assert index == len(read)
    code, _, err = call(*flags)
    assert code == 2 and "exists: delete it, or write to another place" in err


def test_other_data_than_were_recorded_are_noticed(dataset: Dataset, tmp_path: Path) -> None:
    chosen = [Segment(2, 9), Segment(40, 48)]
    export_lerobot(dataset, chosen, tmp_path / "a", ("x", "y"), ["go"] * dataset.episodes, 10)
    for wrong in ([Segment(2, 9), Segment(41, 49)], [Segment(2, 8), Segment(40, 49)], [Segment(2, 9)]):
        with pytest.raises(UserError, match="LeRobot reads"):
            check_lerobot(dataset, wrong, tmp_path / "a")


def test_nothing_is_left_behind_when_writing_fails(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LeRobotDataset, "save_episode", fail)
    with pytest.raises(UserError, match="the disk is full"):
        export_lerobot(dataset, [Segment(2, 9)], tmp_path / "a", ("x", "y"), ["go"] * dataset.episodes, 10)
    assert list(tmp_path.iterdir()) == []


def test_lerobots_loader_makes_batches_of_it(dataset: Dataset, tmp_path: Path) -> None:
    export_lerobot(
        dataset, segments(dataset, 1, 6, 12), tmp_path / "a", ("x", "y"), ["go"] * dataset.episodes, 10
    )
    loader = torch.utils.data.DataLoader(LeRobotDataset("sparsewm/wall", root=tmp_path / "a"), batch_size=4)
    batch = next(iter(loader))
    assert batch["observation.images.goal"].shape == (4, 3, 28, 28) and batch["task"] == ["go"] * 4


def test_each_episode_has_the_text_of_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = collect("tests.envs.test_benchmarks:make_both", 3, tmp_path / "both.h5", 8, 1, resolution=28)
    monkeypatch.setattr(convert, "packages_of", lambda name: ("ours",))  # as of a benchmark
    with closing(open_dataset(path)) as both:
        tasks = [int(both.state[int(first)][0]) for first in both.offsets]
    texts = [("move the rope", "move the granular")[task] for task in tasks]
    assert len(set(texts)) == 2
    name = "sparsewm/tests.envs.test_benchmarks-make_both"
    for folder, flags in (("a", ""), ("b", "--segments 2 --shortest 2 --longest 5")):
        code, _, err = call("convert", path, tmp_path / folder, flags)
        assert code == 0, err
        read = LeRobotDataset(name, root=tmp_path / folder)
        ends = read.meta.episodes["dataset_to_index"]
        found = [read[end - 1]["task"] for end in ends]
        assert found == (texts if folder == "a" else [text for text in texts for _ in range(2)])
    with h5py.File(path, "r+") as file:
        file["state"][:, 0] = 5
    code, _, err = call("convert", path, tmp_path / "c")
    assert code == 2 and "are of no task (" in err and "has tasks 0 to 1, not 5" in err
    code, _, err = call("convert", path, tmp_path / "c", "--instruction move")
    assert code == 0 and LeRobotDataset(name, root=tmp_path / "c")[0]["task"] == "move", err
