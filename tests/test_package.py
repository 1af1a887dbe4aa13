"""What is published: a source archive and a wheel that plan from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(*words: str, place: Path, **variables: str) -> str:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words], cwd=place, env=own | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_from_the_source_archive_plans_from_another_folder(tmp_path: Path) -> None:
    """Nothing is downloaded, nothing of the repository is needed. Compressing weights would take the time."""
    words = ["-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "--formats", "tar"]
    words += ["--dist-dir", str(tmp_path)]
    python("-c", f"from setuptools import setup; setup(script_args={words!r})", place=ROOT)
    (archive,) = tmp_path.glob("*.tar")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check", "-q")
    how = ("--no-build-isolation", "--config-settings=--build-option=--compression=stored", "-w", ".")
    python("-m", "pip", "wheel", *offline, *how, str(source), place=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sparsewm"}
    python("-m", "pip", "install", *offline, "--no-compile", "--target", "site", str(wheel), place=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    plan = "plan --env wall --max-steps 5 --iterations 1 --candidates 8 --run.no-video"
    python("-m", "sparsewm", *plan.split(), place=elsewhere, PYTHONPATH=str(tmp_path / "site"))
    found = json.loads((elsewhere / "runs" / "plan" / "results.json").read_text())
    version = wheel.name.split("-")[1]
    assert found["version"] == version and found["per_episode"][0]["steps"] == 5
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
