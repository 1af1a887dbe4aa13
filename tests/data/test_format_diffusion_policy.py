"""Replay buffers of Diffusion Policy, written by zarr; recordings of PushT become our PushT's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from sparsewm import envs
from sparsewm.data import open_dataset
from sparsewm.data.relative import relative_actions
from sparsewm.errors import UserError

LENGTHS = (9, 14)


def pusht(seed: int = 0) -> dict[str, np.ndarray]:
    """What our PushT does under absolute targets; Diffusion Policy records it without the velocity."""
    rng = np.random.default_rng(seed)
    env = envs.make("pusht")
    states, targets = [], []
    for length in LENGTHS:
        env.reset(seed=int(rng.integers(1000)))
        for _ in range(length):
            target = np.clip(env.state[:2] + rng.uniform(-90, 90, 2), 30, 480)
            states.append(env.state)
            targets.append(target)
            env.step((target - env.state[:2]) / 100)
    return {"state": np.array(states), "action": np.array(targets, np.float32)}


def write(path: Path, zarr_format: int = 2, **columns: np.ndarray) -> Path:
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    for name, values in columns.items():
        array = group.create_array(
            f"data/{name}", shape=values.shape, dtype=values.dtype, chunks=(4, *values.shape[1:])
        )
        array[:] = values
    ends = np.cumsum(LENGTHS)
    group.create_array("meta/episode_ends", shape=ends.shape, dtype=ends.dtype)[:] = ends
    return path


def pictures(side: int = 24) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (sum(LENGTHS), side, side, 3), dtype=np.uint8)


def make(path: Path, **more: np.ndarray) -> Path:
    recorded = pusht()
    columns = {"img": pictures().astype(np.float32), "state": recorded["state"][:, :5].astype(np.float32)}
    return write(path, **{**columns, "action": recorded["action"], **more})


@pytest.mark.parametrize("kind", ["bytes", "255", "1", "channels first", "zarr 3"])
def test_pictures_and_numbers_come_back_as_written(tmp_path: Path, kind: str) -> None:
    shown = pictures()
    stored = {
        "bytes": shown,
        "zarr 3": shown,
        "255": shown.astype(np.float32),
        "1": (shown / 255).astype(np.float32),
        "channels first": shown.transpose(0, 3, 1, 2),
    }[kind]
    action = np.random.default_rng(0).normal(size=(23, 2)).astype(np.float32)
    path = write(
        tmp_path / "d.zarr", 3 if kind == "zarr 3" else 2, img=stored, action=action, agent_pos=2 * action
    )
    dataset = open_dataset(path)
    assert dataset.lengths.tolist() == [9, 14] and dataset.fps == 10 and dataset.cameras == ("img",)
    action[[8, 22]] = 0
    assert np.array_equal(dataset.action, action) and dataset.proprio_names == ("agent_pos_0", "agent_pos_1")
    assert np.array_equal(dataset.pixels[:], shown) and np.array_equal(
        dataset.pixels[[2, 3, 17]], shown[[2, 3, 17]]
    )


def test_each_chunk_is_decoded_once_when_reading_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(make(tmp_path / "d.zarr"))
    read = []
    get = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda self, key: (read.append(key), get(self, key))[1])
    for first in range(0, dataset.rows, 3):
        dataset.pixels[first : first + 3]
    assert len(read) == 6


def test_what_counts_as_proprioception(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    action = rng.normal(size=(23, 7)).astype(np.float32)
    names = {"robot0_eef_pos": 3, "robot0_eef_vel": 3, "robot0_gripper": 1, "object": 4}
    columns = {name: rng.normal(size=(23, size)).astype(np.float32) for name, size in names.items()}
    path = write(tmp_path / "d.zarr", front=pictures(), wrist=pictures(16), action=action, **columns)
    dataset = open_dataset(path, cameras=("front", "wrist"))
    assert dataset.proprio_names == (*(f"robot0_eef_pos_{i}" for i in range(3)), "robot0_gripper")
    assert dataset.cameras == ("front", "wrist") and dataset.pixels.shape == (23, 24, 48, 3)
    dataset = open_dataset(f"{path}?proprio=object:2,robot0_eef_vel", cameras=("wrist",))
    assert np.array_equal(dataset.proprio, np.c_[columns["object"][:, :2], columns["robot0_eef_vel"]])
    assert open_dataset(make(tmp_path / "p.zarr")).proprio_names == ("agent_x", "agent_y")
    with pytest.raises(UserError, match=r"no numbers 'grip' in data/: it has "):
        open_dataset(f"{path}?proprio=grip", cameras=("front",))
    with pytest.raises(UserError, match=r"no camera 'side': it has front, wrist"):
        open_dataset(path, cameras=("side",))


def test_targets_become_relative_actions(tmp_path: Path) -> None:
    path, recorded = make(tmp_path / "d.zarr"), pusht()
    step = (recorded["action"] - recorded["state"][:, :2]) / 50
    dataset = open_dataset(path, relative=50.0)
    expected = np.clip(step, -1, 1)
    expected[[8, 22]] = 0
    assert np.allclose(dataset.action, expected, atol=1e-5)
    assert dataset.action_low.tolist() == [-1, -1] and dataset.action_high.tolist() == [1, 1]
    inner = np.delete(step, [8, 22], 0)
    assert dataset.attributes["actions_clipped"] == (np.abs(inner) > 1).any(1).mean() > 0
    whole = open_dataset(f"{path}?relative=auto&position=agent_x,agent_y")
    assert whole.attributes["actions_clipped"] == 0 and np.abs(whole.action).max() == 1
    assert np.allclose(
        whole.action * whole.attributes["action_scale"] / 50, np.where(expected, step, 0), atol=1e-4
    )
    with pytest.raises(UserError, match=r"relative must be a number or auto, got 'x'"):
        open_dataset(f"{path}?relative=x")
    with pytest.raises(UserError, match=r"need 2 columns of proprioception"):
        open_dataset(path, relative=1.0, position=("agent_x",))
    with pytest.raises(UserError, match="above 0"):
        relative_actions(np.ones((1, 1)), np.zeros((1, 1)), 0.0)


def test_a_recording_of_pusht_is_one_of_ours(tmp_path: Path) -> None:
    path, recorded = make(tmp_path / "d.zarr"), pusht()
    dataset = open_dataset(f"{path}?environment=pusht", "pusht")
    assert dataset.attributes["environment"] == "pusht" and dataset.attributes["actions_clipped"] == 0
    assert np.allclose(dataset.state, recorded["state"], atol=0.02)  # positions are float32
    assert np.allclose(dataset.proprio, recorded["state"][:, [0, 1, 5, 6]], atol=0.02)
    env = envs.make("pusht")
    for row in range(5):
        env.reset(options={"state": dataset.state[row], "goal": dataset.state[row]})
        env.step(dataset.action[row])
        assert np.allclose(env.state, recorded["state"][row + 1], atol=0.1)
    drawn = open_dataset(f"{path}?environment=pusht&pictures=rendered&resolution=40")
    assert drawn.pixels.shape == (23, 40, 40, 3)
    expected = envs.make("pusht", resolution=40).reset(
        options={"state": drawn.state[3], "goal": drawn.state[3]}
    )
    assert np.array_equal(drawn.pixels[3], expected[0]["pixels"])
    backwards = make(tmp_path / "e.zarr", action=pusht()["action"][::-1])
    with pytest.raises(UserError, match=r"does not move as PushT does .*: leave out environment"):
        open_dataset(f"{backwards}?environment=pusht")
    with pytest.raises(UserError, match=r"`resolution` must be at least 1, got 0"):
        open_dataset(f"{path}?environment=pusht&pictures=rendered&resolution=0")
    with pytest.raises(UserError, match=r"rendered pictures need an environment"):
        open_dataset(f"{path}?pictures=rendered")


def shorten(path: Path) -> None:
    zarr.open_group(str(path), mode="a")["data/action"].resize((20, 2))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no actions": (lambda p: shutil.rmtree(p / "data/action"), r"no numbers 'action' in data/: it has state"),
    "no pictures": (lambda p: shutil.rmtree(p / "data/img"), r"holds no pictures: record it with a camera"),
    "short column": (shorten, r"data/action of .* has 20 rows, meta/episode_ends needs 23"),
    "damaged chunk": (
        lambda p: (p / "data/action/1.0").write_bytes(b"nonsense"),
        r"data/action of .* is damaged \(.*\): copy",
    ),
    "cut chunk": (
        lambda p: os.truncate(p / "data/img/1.0.0.0", (p / "data/img/1.0.0.0").stat().st_size // 2),
        r"data/img of .* is damaged \(chunk 1.0.0.0 is cut off\): copy",
    ),
    "missing chunk": (
        lambda p: (p / "data/action/1.0").unlink(),
        r"data/action of .* lacks 1 of its \d+ chunks: copy the dataset again",
    ),
    "no data": (lambda p: shutil.rmtree(p / "data"), r"is damaged or no dataset of Diffusion Policy"),
    "not finite": (
        lambda p: zarr.open_group(str(p), mode="a")["data/action"].__setitem__((3, 0), np.nan),
        r"'action' is not finite in row 3",
    ),
    "ends": (
        lambda p: zarr.open_group(str(p), mode="a")["meta/episode_ends"].__setitem__(0, 30),
        r"meta/episode_ends of .* must ascend",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    break_it, said = BAD[kind]
    path = make(tmp_path / "d.zarr")
    break_it(path)
    with pytest.raises(UserError, match=said):
        open_dataset(path, format="diffusion_policy")


@pytest.mark.slow
def test_a_zip_file(tmp_path: Path) -> None:
    path = make(tmp_path / "d.zarr")
    shutil.make_archive(str(path), "zip", path)
    dataset = open_dataset(tmp_path / "d.zarr.zip")
    assert np.array_equal(dataset.pixels[:], pictures())
    dataset.close()
    (tmp_path / "d.zarr.zip").write_bytes((tmp_path / "d.zarr.zip").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"d.zarr.zip is damaged or no dataset of Diffusion Policy"):
        open_dataset(tmp_path / "d.zarr.zip")


def test_a_dark_start_does_not_tell_the_brightness(tmp_path: Path) -> None:
    shown = pictures()
    shown[:8] = 1
    dataset = open_dataset(make(tmp_path / "d.zarr", img=shown.astype(np.float32)))
    assert np.array_equal(dataset.pixels[:], shown)
    late = np.full(shown.shape, 0.5, np.float32)
    late[8, 0] = -1
    with pytest.raises(UserError, match=r"rows 8 to 8 \(their numbers are from -1 to 0.5, not from 0 to 1\)"):
        open_dataset(make(tmp_path / "e.zarr", img=late)).pixels[8]


def test_damaged_pictures_are_said_when_they_are_read(tmp_path: Path) -> None:
    path = make(tmp_path / "d.zarr")
    dataset = open_dataset(path)
    (path / "data/img/1.0.0.0").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"cannot be read in rows 4 to 7"):
        dataset.pixels[4:8]
