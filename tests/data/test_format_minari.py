"""Datasets of Minari, written by its own function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from sparsewm.data import open_dataset
from sparsewm.errors import UserError

LENGTHS = (5, 8)
PICTURE = gym.spaces.Box(0, 255, (32, 40, 3), np.uint8)


def box(size: int, high: float = np.inf) -> gym.spaces.Box:
    return gym.spaces.Box(-high, high, (size,), np.float32)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Minari wants authors and descriptions


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def write(
    name: str, space: gym.Space, observations: list[Any], action_space: gym.Space | None = None, **more: Any
) -> list[np.ndarray]:
    """A dataset of episodes with these observations (one more than actions); returns the actions."""
    rng = np.random.default_rng(0)
    action_space = action_space or box(2, 1.0)
    discrete = isinstance(action_space, gym.spaces.Discrete)
    actions, buffers = [], []
    for seen, length in zip(observations, LENGTHS, strict=True):
        action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        actions.append(np.zeros(length, np.int64) if discrete else action)
        buffers.append(
            EpisodeBuffer(
                observations=seen,
                actions=actions[-1],
                rewards=[0.0] * length,
                terminations=[False] * length,
                truncations=[False] * (length - 1) + [True],
                **more,
            )
        )
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=space, action_space=action_space, jpeg_encoding=False
    )
    return actions


def numbers(size: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length + 1, size)).astype(np.float32) for length in LENGTHS]


def pictures(seed: int = 0, shape: tuple[int, ...] = (32, 40, 3)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (length + 1, *shape), dtype=np.uint8) for length in LENGTHS]


def dictionaries(**columns: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    return [{name: values[i] for name, values in columns.items()} for i in range(len(LENGTHS))]


@pytest.mark.parametrize("by", ["name", "path", "data"])
def test_a_dictionary_comes_back_as_written(tmp_path: Path, by: str) -> None:
    shown, felt, state = pictures(), numbers(3), numbers(4, 1)
    space = gym.spaces.Dict({"pixels": PICTURE, "proprio": box(3), "state": box(4)})
    actions = write("wall/own-v0", space, dictionaries(pixels=shown, proprio=felt, state=state))
    folder = tmp_path / "minari" / "wall" / "own-v0"
    source = {"name": "minari:wall/own-v0", "path": folder, "data": folder / "data"}[by]
    seen: list[tuple[int, int]] = []
    dataset = open_dataset(source, progress=lambda done, total: seen.append((done, total)))
    assert dataset.lengths.tolist() == [6, 9] and seen == [(1, 2), (2, 2)]
    assert np.array_equal(dataset.pixels[:], np.concatenate(shown))
    assert np.array_equal(dataset.pixels[[2, 4, 13]], np.concatenate(shown)[[2, 4, 13]])
    assert np.array_equal(dataset.proprio, np.concatenate(felt)) and dataset.state.shape == (15, 4)
    zero = np.zeros((1, 2), np.float32)
    assert np.array_equal(dataset.action, np.concatenate([actions[0], zero, actions[1], zero]))
    assert dataset.declared_bounds and dataset.action_high.tolist() == [1, 1] and dataset.fps is None
    assert dataset.proprio_names == ("proprio_0", "proprio_1", "proprio_2")
    dataset.close()


def test_goals_are_no_proprioception_and_cameras_are_named(tmp_path: Path) -> None:
    space = gym.spaces.Dict(
        {
            "observation": box(3),
            "achieved_goal": box(2),
            "desired_goal": box(2),
            "images": gym.spaces.Dict(
                {"front": PICTURE, "wrist": gym.spaces.Box(0, 255, (3, 32, 32), np.uint8)}
            ),
        }
    )
    front, wrist = pictures(), pictures(1, (3, 32, 32))
    seen = [
        {
            "observation": numbers(3)[i],
            "achieved_goal": numbers(2)[i],
            "desired_goal": numbers(2)[i],
            "images": {"front": front[i], "wrist": wrist[i]},
        }
        for i in range(2)
    ]
    write("arm-v0", space, seen)
    dataset = open_dataset("minari:arm-v0", cameras=("images/front", "images/wrist"))
    assert dataset.cameras == ("images/front", "images/wrist") and dataset.pixels.shape == (15, 32, 72, 3)
    assert np.array_equal(dataset.proprio, np.concatenate(numbers(3))) and dataset.state is None
    one = open_dataset("minari:arm-v0?proprio=achieved_goal&fps=20", cameras=("images/wrist",))
    assert np.array_equal(one.pixels[7], np.concatenate(wrist)[7].transpose(1, 2, 0))
    assert np.array_equal(one.proprio, np.concatenate(numbers(2))) and one.fps == 20
    with pytest.raises(UserError, match=r"no camera 'side': it has images/front, images/wrist"):
        open_dataset("minari:arm-v0", cameras=("side",))
    with pytest.raises(UserError, match=r"no numbers 'joints': it has"):
        open_dataset("minari:arm-v0?proprio=joints")


class Dot(gym.Env):
    """A grey picture that gets lighter."""

    observation_space = gym.spaces.Dict({"pixels": PICTURE, "state": box(1)})
    action_space = box(1, 2.0)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.level = 20
        return self.seen(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.level += 10
        return self.seen(), 0.0, False, False, {}

    def seen(self) -> dict[str, np.ndarray]:
        return {"pixels": np.full((32, 40, 3), self.level, np.uint8), "state": np.float32([self.level])}


def test_a_gymnasium_environment_and_pictures_kept_as_jpeg(tmp_path: Path) -> None:
    gym.register("Dot-v0", "tests.data.test_format_minari:Dot")
    env = gym.make("Dot-v0", disable_env_checker=True)
    buffers = []
    for _ in range(2):
        observations = [env.reset()[0]] + [env.step(np.float32([1]))[0] for _ in range(4)]
        columns = {name: np.stack([seen[name] for seen in observations]) for name in ("pixels", "state")}
        none = [0] * 4
        buffers.append(
            EpisodeBuffer(
                observations=columns,
                actions=[np.float32([1])] * 4,
                rewards=none,
                terminations=none,
                truncations=none,
            )
        )
    minari.create_dataset_from_buffers("dot/own-v0", buffers, env=env)
    dataset = open_dataset("minari:dot/own-v0", "Dot-v0")
    assert dataset.lengths.tolist() == [5, 5] and dataset.pixels.shape == (10, 32, 40, 3)
    assert dataset.attributes["environment"] == "Dot-v0" and dataset.action_high.tolist() == [2]
    levels = np.tile([20, 30, 40, 50, 60], 2)
    assert dataset.proprio[:, 0].tolist() == levels.tolist()
    assert np.abs(dataset.pixels[:] - levels[:, None, None, None]).max() < 3
    with pytest.raises(UserError, match=r"recorded in Dot-v0, not wall"):
        open_dataset("minari:dot/own-v0", "wall")


def damage(folder: Path) -> None:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"]


def cut(folder: Path) -> None:
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:900])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "an episode lost": (damage, r"episode 1 of .* is damaged"),
    "cut": (cut, r"episode 0 of .* is damaged|Minari cannot open"),
    "description": (
        lambda f: (f / "data" / "metadata.json").write_text("{"),
        r"Minari cannot open .*: copy it again",
    ),
    "no data": (lambda f: (f / "data" / "main_data.hdf5").unlink(), r"Minari cannot open .*No data found"),
}


@pytest.mark.parametrize("kind", BAD)
def test_damaged_datasets_are_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    space = gym.spaces.Dict({"pixels": PICTURE, "proprio": box(3)})
    write("own-v0", space, dictionaries(pixels=pictures(), proprio=numbers(3)))
    break_it, said = BAD[kind]
    break_it(tmp_path / "minari" / "own-v0")
    with pytest.raises(UserError, match=said):
        open_dataset(tmp_path / "minari" / "own-v0")


def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path) -> None:
    write("blind-v0", box(3), numbers(3))
    with pytest.raises(
        UserError, match=r"holds no pictures: record it anew with pixels among the observations"
    ):
        open_dataset("minari:blind-v0")
    write("choice-v0", PICTURE, pictures(), gym.spaces.Discrete(4))
    with pytest.raises(UserError, match=r"actions of choice-v0 are Discrete\(4\), not numbers"):
        open_dataset("minari:choice-v0")
    space = gym.spaces.Dict({"pixels": PICTURE, "pos": box(2)})
    seen = dictionaries(pixels=pictures(), pos=numbers(2))
    write("late-v0", space, seen, infos={"state": np.zeros((5, 3))})  # none after the last action
    with pytest.raises(UserError, match=r"has 5 actions, so 6 of 'state' are needed"):
        open_dataset("minari:late-v0")
    with pytest.raises(UserError, match=r"no dataset of Minari called nowhere-v0 on this machine"):
        open_dataset("minari:nowhere-v0")
    write("seen-v0", PICTURE, pictures())
    assert not open_dataset("minari:seen-v0").has_proprio
