"""`sparsewm inspect`: what a dataset holds, and why training would refuse it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from sparsewm.data import Windows, open_dataset
from sparsewm.data.inspect import contact_sheet, describe
from sparsewm.data.oddities import warnings
from tests.cli.commands import call
from tests.data.tiny import write_dataset


def test_description_of_a_sound_dataset(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5", [30] * 20 + [5])
    with h5py.File(path, "r+") as file:
        file.attrs["fps"] = 10
        file.attrs["proprio_names"] = ["x", "y"]
    code, out, err = call("inspect", path, "--horizon 2 --output", tmp_path / "out")
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "d.json").read_text())
    assert (found["episodes"], found["rows"], found["fps"]) == (21, 605, 10)
    assert found["length"] == {"min": 5, "median": 30, "max": 30}
    assert found["columns"]["pixels"] == "uint8 (605, 28, 28, 3)" and "ep_len" in found["columns"]
    dataset = open_dataset(path)
    assert [row["name"] for row in found["numbers"]["proprio"]] == ["x", "y"]
    assert np.isclose(found["numbers"]["proprio"][1]["mean"], dataset.proprio[:, 1].mean(dtype=np.float64))
    use = found["training"]
    assert use["frameskip"] == 2 and use["window_rows"] == 9 and use["too_short_episodes"] == 1
    assert use["tokens_per_frame"] == 64 and use["frames_encoded"] == 605
    assert use["token_cache_bytes"] == 605 * 64 * use["token_size"] * 2
    for part, episodes in zip(("train", "held_out"), dataset.split(shortest=9), strict=True):
        windows = Windows(dataset, None, 5, 2, episodes)  # type: ignore[arg-type]
        assert use[f"{part}_windows"] == len(windows) and use[f"{part}_episodes"] == len(episodes)
    assert found["warnings"] == found["obstacles"] == []
    assert "21 episodes of 5 to 30 rows" in out and "10 rows a second, 1.0 min" in out
    sheet = cv2.imread(str(tmp_path / "out" / "d.png"))
    assert sheet is not None and sheet.shape == (8 * 98, 8 * 98, 3)
    assert np.array_equal(sheet[..., ::-1], contact_sheet(dataset))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda file: file["action"].__setitem__((3, 0), np.nan), "'action' is not finite in row 3"),
        (lambda file: file["state"].__setitem__((3, 0), 1e300), "'state' holds 1e+300 in row 3"),
        (lambda file: file.attrs.__setitem__("fps", np.nan), "fps must be a number above 0, is nan"),
        (lambda file: file.__delitem__("pixels"), "lacks the column 'pixels'"),
        (lambda file: file.__delitem__("action"), "lacks the column 'action'"),
        (lambda file: file.__delitem__("ep_len"), "lacks the column 'ep_len'"),
        (lambda file: file["ep_len"].__setitem__(0, 12), "but the episodes need"),
        (lambda file: file["ep_len"].__setitem__(0, -9), "episode 0 has a negative length"),
    ],
)
def test_what_training_would_refuse_is_described(
    tmp_path: Path, damage: Callable[[h5py.File], None], sentence: str
) -> None:
    path = write_dataset(tmp_path / "d.h5", [9] * 3)
    with h5py.File(path, "r+") as file:
        file.attrs["temperature"] = np.nan  # which JSON does not know
        damage(file)
        del file["ep_offset"], file["episode_idx"]
    code, out, err = call("inspect", path, "--output", tmp_path / "out")
    assert code == 0, err
    assert "training refuses it: " in out and sentence in out
    found = json.loads((tmp_path / "out" / "d.json").read_text())
    assert found["training"] is None and any(sentence in obstacle for obstacle in found["obstacles"])


def test_too_short_episodes_are_a_reason_too(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "d.h5", [9] * 3))
    found = describe(dataset, 8, 2, 64, 64)
    assert found["training"] is None and "0 of them with 15 rows or more" in found["obstacles"][0]


def test_damaged_pictures_are_red_on_the_sheet(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5", (40, 40))
    with h5py.File(path) as file:
        place = file["pixels"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(bytes(content))
    code, out, err = call("inspect", path, "--output", tmp_path / "out")
    assert code == 0, err
    assert "training refuses it" in out and "cannot be read" in out
    sheet = cv2.imread(str(tmp_path / "out" / "d.png"))
    assert sheet is not None and (sheet[98 * 0 + 50, 98 * 6 + 50] == (0, 0, 200)).all()
    assert (sheet[50, 50] != (0, 0, 200)).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f["proprio"].__setitem__((slice(None), 1), 7), "proprio proprio_1 never changes"),
        (lambda f: f["action"].__setitem__((5, 0), 1e6), "action action_0 is 1e+06 in row 5, though"),
        (lambda f: f["action"].__setitem__((5, 0), 1.5), "of 1 rows are outside the action space, first in"),
        (lambda f: f["pixels"].__setitem__(slice(None), 9), "pictures of .* never change"),
        (lambda f: None, None),
    ],
)
def test_oddities_are_warned_about(
    tmp_path: Path, change: Callable[[h5py.File], None], sentence: str | None
) -> None:
    path = write_dataset(tmp_path / "d.h5", [40] * 5)
    with h5py.File(path, "r+") as file:
        change(file)
        file.attrs["action_low"], file.attrs["action_high"] = np.full(2, -1.0), np.ones(2)
    found = warnings(open_dataset(path))
    if sentence is None:
        assert found == []
    else:
        assert any(re.search(sentence.replace("+", r"\+"), text) for text in found)


def test_what_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "d.h5").write_text("hello")
    code, out, err = call("inspect", tmp_path / "d.h5")
    assert (code, out) == (2, "") and "is truncated or no HDF5 file" in err
