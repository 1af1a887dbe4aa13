"""The page on environments of one's own: its program is a module that is recorded and stepped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsewm.data import open_dataset
from tests.cli.commands import call

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "howto" / "environment.md"

RECORD = """
import sys
from sparsewm import envs
from sparsewm.data import collect

if __name__ == "__main__":
    for workers in (1, 2):
        collect("pushing:Pushing", 3, f"data/{workers}.h5", steps=8, workers=workers, resolution=48)
    env = envs.make("pushing:Pushing", resolution=48)
    observation, info = env.reset(seed=0, options={"goal_offset": 25})
    goal = env.goal_observation()
    assert not info["is_success"] and (goal["pixels"] != observation["pixels"]).any()
    for _ in range(25):
        observation, *_ , info = env.step(goal["proprio"])
    assert abs(observation["proprio"] - goal["proprio"]).max() < 5
    print(env.name, envs.max_episode_steps(env.name), info["distance"]["proprio"] < 0.5)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program of the page."""
    folder = tmp_path_factory.mktemp("howto")
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "pushing.py").write_text(program)
    return folder


def run(place: Path, *arguments: str) -> str:
    paths = os.pathsep.join([str(place), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_is_short(place: Path) -> None:
    assert len((place / "pushing.py").read_text().splitlines()) < 40


@pytest.mark.slow
def test_an_environment_of_ones_own_is_recorded(place: Path) -> None:
    (place / "record.py").write_text(RECORD)
    assert run(place, "record.py").split() == ["pushing:Pushing", "100", "True"]
    dataset, same = (open_dataset(place / "data" / f"{workers}.h5") for workers in (1, 2))
    assert dataset.lengths.tolist() == [9, 9, 9] and dataset.state is None
    assert dataset.pixels.shape == (27, 48, 48, 3) and dataset.proprio.shape == (27, 2)
    assert dataset.attributes["environment"] == "pushing:Pushing" and dataset.attributes["frameskip"] == 5
    np.testing.assert_array_equal(dataset.action, same.action)  # for any number of workers
    np.testing.assert_array_equal(dataset.pixels[:], same.pixels[:])
    held = (np.diff(dataset.action.reshape(3, 9, 2)[:, :8], axis=1) == 0).all(-1)
    assert held[:, :4].all() and dataset.action.min() >= 0 and dataset.action.max() <= 512
    assert not dataset.obstacles


@pytest.mark.slow
def test_it_is_trained_and_planned_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the page, with little data and few steps."""
    few = {
        "collect": "--steps 30 --workers 1 --resolution 56",
        "train": "--steps 3 --batch 4 --horizon 2 --distance-steps 0 --decoder-steps 2",
        "plan": "--max-steps 30 --candidates 8 --iterations 2 --run.no-video",
    }
    lines = re.findall(r"^    sparsewm (.*)$", PAGE.read_text(), re.MULTILINE)
    assert [line.split()[0] for line in lines] == list(few)
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    for line in lines:
        words = line.replace("--episodes 300", "--episodes 8")
        code, _, err = call(words, few[words.split()[0]])
        assert code == 0, err
    [results] = place.glob("runs/plan/results.json")
    content = json.loads(results.read_text())
    assert content["environment"] == "pushing:Pushing" and content["goal"]["offset"] == 25
    [episode] = content["per_episode"]
    assert 0 < episode["steps"] <= 30 and episode["distance"].keys() == {"proprio"}
    said = run(place, "pushing.py").split()
    assert said[-1] == "steps" and 0 < int(said[-2]) <= 100
