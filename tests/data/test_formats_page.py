"""What docs/howto/formats.md shows runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import call

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "formats.md"


@pytest.mark.slow
def test_the_example_of_the_page(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6 240 10.0 ('a0',) ('p0',) (64, 64, 3)\n"
    code, out, err = call("inspect", tmp_path / "demos", "--output", tmp_path / "out")
    assert code == 0 and "6 episodes of 40 to 40 rows" in out, err
    code, out, err = call("convert", f"{tmp_path}/demos?action=a0", tmp_path / "demos.h5")
    assert code == 0 and "6 episodes, 240 rows in" in out, err
