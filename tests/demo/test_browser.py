"""The demonstration in a real browser: everything a visitor can do is done once, by a headless Chromium."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("gradio", "PyQt6.QtWebEngineCore")


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not all(map(installed, NEEDED)), reason="pip install 'sparsewm[demo]' PyQt6-WebEngine")
def test_a_visit(tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "scripts.screenshot",
            "--env",
            "wall",
            "--output",
            picture,
            "--seconds",
            "600",
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert "Traceback" not in done.stderr
    seen = {name: part["pictures"] for name, part in found.items() if isinstance(part, dict)}
    text = {name: part["text"] for name, part in found.items() if isinstance(part, dict)}

    assert "ready" in text["begin"] and len(seen["begin"]) == 4  # scene, goal, patches, costs
    assert seen["goal"][1] != seen["begin"][1] and "ready" in text["goal"], "a click sets the goal"
    assert "32 of 64 tokens" in text["plan"] and " ms a decision" in text["plan"]
    assert len(seen["plan"]) == 5, "imagination is shown, too"
    assert seen["plan"][1] == seen["goal"][1] and seen["plan"][2] != seen["goal"][2]
    assert "16 of 64 tokens" in text["other settings"], "the sliders hold"
    assert "ready" in text["again"] and seen["again"][1] == seen["goal"][1], "the goal stays"
    assert seen["another environment"][0] != seen["again"][0]
    assert "no world model of pointmaze-large on dinov2_vits14" in found["refused"]
    assert found["loaded"] and all(name.startswith("http://127.0.0.1:") for name in found["loaded"])
    assert cv2.imread(str(picture)).std() > 10
