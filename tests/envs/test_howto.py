"""The page on environments of one's own: its program is a module that is recorded and stepped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsewm.data import open_dataset

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


@pytest.mark.skip(reason="needs the closed loop by env.step: train and plan as the page shows")
def test_it_is_trained_and_planned_in(place: Path) -> None:
    command = (sys.executable, "-c", "import sys; from sparsewm.cli import main; sys.exit(main())")
    lines = re.findall(r"^    sparsewm (.*)$", PAGE.read_text(), re.MULTILINE)
    plan = "--run.episodes 1 --goal.max-steps 30 --run.no-video"
    small = {"collect": "--steps 30", "train": "--steps 20", "plan": plan}
    for line in lines:
        extra = small[line.split()[0]].split()
        words = line.replace("--episodes 300", "--episodes 12").split()
        run(place, *command[1:], *words, *extra)
    assert "reached after" in run(place, "pushing.py")
