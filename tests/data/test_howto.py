"""The page on data: its programs run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsewm.data import open_dataset
from sparsewm.data.oddities import warnings
from tests.cli.commands import call

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "data.md"
RECORD, READER = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def commands(word: str) -> list[str]:
    """Commands of the page that hold a word, without the program's name and what stands before it."""
    lines = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    ")]
    return [line.split("sparsewm ", 1)[1] for line in lines if "sparsewm " in line and word in line]


@pytest.mark.slow
def test_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", RECORD], check=True)
    dataset = open_dataset("arm.h5", cameras=("front", "wrist"))
    assert dataset.pixels.shape[1:] == (48, 112, 3) and dataset.episodes == 4 and warnings(dataset) == []
    inspect, convert = commands("arm.h5 --cameras")[0], commands("wave")[0]
    code, out, err = call(inspect)
    assert code == 0, err
    assert "10 rows a second" in out and "2 steps apart" in out and "shoulder" in out
    code, out, err = call(convert)
    assert code == 0, err
    assert "4 episodes" in out and (tmp_path / "arm-lerobot" / "meta" / "info.json").is_file()


def test_a_reader_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("npz_folder.py").write_text(READER)
    Path("recordings").mkdir()
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8) for length in (30, 40, 50)]
    for i, part in enumerate(frames):
        numbers = rng.uniform(-1, 1, (len(part), 3))
        np.savez(f"recordings/{i}.npz", frames=part, action=numbers, joints=numbers + 1)
    inspect, convert = commands("recordings")
    code, out, err = call(inspect, "--frameskip 2")
    assert code == 0, err
    assert "3 episodes of 30 to 50 rows" in out and "training: windows" in out
    code, _, err = call(convert)
    assert code == 0, err
    dataset = open_dataset("recordings.h5")
    assert np.array_equal(dataset.pixels[:], np.concatenate(frames)) and dataset.fps == 10
