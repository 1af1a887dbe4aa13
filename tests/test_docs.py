"""What the documentation shows runs as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "proposals.md"


def run(place: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs of the page."""
    folder = tmp_path_factory.mktemp("docs")
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, text in zip(("straight.py", "usage.py"), programs, strict=True):
        (folder / name).write_text(text)
    return folder


def test_a_sampler_of_ones_own_plans_on_the_command_line(place: Path) -> None:
    flags = "plan --env wall --proposals straight --candidates 8 --episodes 2 --budget 20 --no-video"
    assert "candidates from straight (replace)" in run(
        place, "straight.py", *flags.split(), "--output", "out"
    )
    results = json.loads((place / "out" / "results.json").read_text())
    assert results["proposals"] == "straight" and results["settings"]["candidates"] == 8
    assert results["settings"]["hold"] is False and results["instruction"].startswith("go to the goal")


def test_a_sampler_of_ones_own_runs_in_python(place: Path) -> None:
    successes = json.loads(run(place, "usage.py").lower())
    assert len(successes) == 2
