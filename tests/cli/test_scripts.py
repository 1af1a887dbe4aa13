"""The scripts behind the tables: what a user can put right is one sentence and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(
    "command",
    ["diagnose.py --environments nowhere", "train_vla.py --env nowhere", "compare_recipes.py --env nowhere"],
)
def test_bad_input_is_one_sentence(command: str, tmp_path: Path) -> None:
    script, *words = command.split()
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "unknown environment 'nowhere'" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
