"""Folders of DINO-WM, written by torch.save, pickle and av, as its own code reads them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsewm import envs
from sparsewm.data import open_dataset
from sparsewm.errors import UserError
from tests.data.test_format_videos import levels, write_video

LENGTHS = [7, 11, 4]


def write_pusht(folder: Path, lengths: Any = LENGTHS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Padded tensors and a video for each episode."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    size = (len(LENGTHS), max(LENGTHS))
    tensors = {
        "states": torch.rand(*size, 5, generator=generator, dtype=torch.float64) * 400 + 50,
        "velocities": torch.randn(*size, 2, generator=generator) * 50,
        "rel_actions": torch.randn(*size, 2, generator=generator) * 60,
    }
    tensors["abs_actions"] = tensors["states"][..., :2].float() + tensors["rel_actions"]
    for name, values in tensors.items():
        torch.save(values, folder / f"{name}.pth")
    with open(folder / "seq_lengths.pkl", "wb") as file:
        pickle.dump(lengths, file)
    for episode, length in enumerate(LENGTHS):
        write_video(folder / "obses" / f"episode_{episode:03d}.mp4", levels(length, 20 + 50 * episode))
    return tensors


def rows(values: torch.Tensor) -> np.ndarray:
    return np.concatenate([values[i, :length].numpy() for i, length in enumerate(LENGTHS)])


@pytest.mark.parametrize(
    "lengths", [LENGTHS, np.array(LENGTHS), np.array(LENGTHS, np.int32), torch.tensor(LENGTHS)]
)
def test_pusht_comes_back_as_dino_wm_reads_it(tmp_path: Path, lengths: Any) -> None:
    tensors = write_pusht(tmp_path / "train", lengths)
    dataset = open_dataset(tmp_path / "train")
    assert dataset.lengths.tolist() == LENGTHS and dataset.cameras == ("camera",)
    ends = dataset.last_rows
    action = rows(tensors["rel_actions"]) / 100
    action[ends] = 0
    assert np.allclose(dataset.action, action)
    state, velocity = rows(tensors["states"]), rows(tensors["velocities"])
    assert np.allclose(dataset.state, np.c_[state, velocity])
    assert np.allclose(dataset.proprio, np.c_[state[:, :2], velocity])
    grey = np.concatenate([levels(n, 20 + 50 * i) for i, n in enumerate(LENGTHS)])
    assert np.abs(dataset.pixels[:].mean((1, 2, 3)) - grey).max() < 3
    assert np.abs(dataset.pixels[[1, 9, 20]].mean((1, 2, 3)) - grey[[1, 9, 20]]).max() < 3


def test_pusht_as_ours(tmp_path: Path) -> None:
    tensors = write_pusht(tmp_path)
    for kind in ("relative", "absolute"):
        dataset = open_dataset(f"{tmp_path}?environment=pusht&actions={kind}", "pusht")
        expected = np.clip(rows(tensors["rel_actions"]) / 100, -1, 1)
        expected[dataset.last_rows] = 0
        assert np.allclose(dataset.action, expected, atol=1e-5)
        assert dataset.action_low.tolist() == [-1, -1] and 0 < dataset.attributes["actions_clipped"] < 0.3
    env = envs.make("pusht")
    assert dataset.state.shape[1] == env.reset(seed=0)[1]["state"].shape[0]
    absolute = open_dataset(f"{tmp_path}?actions=absolute")
    assert np.allclose(absolute.action[0], tensors["abs_actions"][0, 0])


@pytest.mark.parametrize("channels_first", [True, False])
def test_tensors_of_pictures(tmp_path: Path, channels_first: bool) -> None:
    """As in its point maze and wall: actions.pth, pictures as tensors, lengths as a tensor or none."""
    shown = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 6, 16, 20, 3), dtype=np.uint8))
    states, actions = torch.rand(2, 6, 4), torch.rand(2, 6, 2)
    torch.save(states, tmp_path / "states.pth")
    torch.save(actions, tmp_path / "actions.pth")
    if not channels_first:
        torch.save(torch.tensor([6, 5]), tmp_path / "seq_lengths.pth")
    (tmp_path / "obses").mkdir()
    for episode in range(2):
        pictures = shown[episode].permute(0, 3, 1, 2).float() if channels_first else shown[episode]
        torch.save(pictures.clone(), tmp_path / "obses" / f"episode_{episode:03d}.pth")
    dataset = open_dataset(tmp_path)
    if channels_first:  # the same from 0 to 1
        for file in (tmp_path / "obses").iterdir():
            torch.save(torch.load(file) / 255, file)
        dataset = open_dataset(tmp_path)
    last = 6 if channels_first else 5
    assert dataset.lengths.tolist() == [6, last] and dataset.pixels.shape == (6 + last, 16, 20, 3)
    assert np.array_equal(dataset.pixels[:], np.concatenate([shown[0], shown[1, :last]]))
    assert np.allclose(dataset.proprio, np.concatenate([states[0], states[1, :last]]))
    assert np.allclose(dataset.action[:5], actions[0, :5])


class Harm:
    """What a pickle of a stranger may do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def pickled(path: Path, what: object) -> None:
    with open(path, "wb") as file:
        pickle.dump(what, file)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "harmful lengths": (
        lambda f: pickled(f / "seq_lengths.pkl", Harm()),
        r"more than numbers \(it holds .*mkdir\)",
    ),
    "harmful array": (
        lambda f: pickled(f / "seq_lengths.pkl", np.array([Harm()], object)),
        r"more than numbers \(it holds",
    ),
    "harmful tensor": (
        lambda f: torch.save({"a": Harm()}, f / "states.pth"),
        r"states.pth is damaged or holds more",
    ),
    "no tensor": (
        lambda f: torch.save([1, 2], f / "states.pth"),
        r"must hold a tensor of 3 dimensions, has list",
    ),
    "lengths that fill the memory": (  # a memo of 168 million entries
        lambda f: (f / "seq_lengths.pkl").write_bytes(bytes.fromhex("887272310a0a2e")),
        r"more than numbers \(it remembers more than it holds",
    ),
    "lengths that fill it in digits": (
        lambda f: (f / "seq_lengths.pkl").write_bytes(b"\x88p168000000\n."),
        r"more than numbers \(it remembers more than it holds",
    ),
    "lengths of unequal lists": (
        lambda f: pickled(f / "seq_lengths.pkl", [[7], [7, 11]]),
        r"must hold the length of each episode",
    ),
    "lengths without end": (
        lambda f: pickled(f / "seq_lengths.pkl", [7.0, float("inf"), 4.0]),
        r"must hold the length of each episode",
    ),
    "lengths of text": (
        lambda f: pickled(f / "seq_lengths.pkl", ["a"]),
        r"must hold the length of each episode",
    ),
    "too long": (
        lambda f: pickled(f / "seq_lengths.pkl", [7, 12, 4]),
        r"states.pth is \(3, 11, 5\), .* \(3, 12",
    ),
    "too many": (
        lambda f: pickled(f / "seq_lengths.pkl", [7, 11, 4, 4]),
        r"the lengths of its 4 episodes need",
    ),
    "cut states": (
        lambda f: (f / "states.pth").write_bytes((f / "states.pth").read_bytes()[:300]),
        r"states.pth is damaged",
    ),
    "no actions": (
        lambda f: [(f / f"{kind}_actions.pth").unlink() for kind in ("rel", "abs")],
        r"no rel_actions.pth or actions.pth or abs_actions.pth in",
    ),
    "no states": (lambda f: (f / "states.pth").unlink(), r"no states.pth in .*: give the folder"),
    "missing video": (lambda f: (f / "obses/episode_001.mp4").unlink(), r"episode_001.mp4 is missing"),
    "cut video": (
        lambda f: (f / "obses/episode_001.mp4").write_bytes((f / "obses/episode_001.mp4").read_bytes()[:500]),
        r"episode_001.mp4 is cut off or no video",
    ),
    "short video": (
        lambda f: write_video(f / "obses/episode_001.mp4", levels(5)),
        r"episode_001.mp4 has 5 frames, the rows of its episodes need 11",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_folders_are_refused_in_one_sentence(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it, said = BAD[kind]
    monkeypatch.chdir(tmp_path)
    write_pusht(tmp_path)
    break_it(tmp_path)
    with pytest.raises(UserError, match=said):
        open_dataset(tmp_path, format="dino_wm")
    assert not (tmp_path / "harmed").exists()


def test_the_folder_above_says_where_the_data_are(tmp_path: Path) -> None:
    write_pusht(tmp_path / "train")
    with pytest.raises(UserError, match=r"no states.pth in .*: give .*train"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match=r"no camera 'wrist': it has camera"):
        open_dataset(tmp_path / "train", cameras=("wrist",))
