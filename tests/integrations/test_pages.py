"""The examples of the pages about other projects run as they stand there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.model.fake_hub import FakeHub, hub_server  # noqa: F401

PAGES = Path(__file__).parents[2] / "docs" / "howto"


def run(page: str) -> None:
    """The Python of a page, in one piece."""
    (program,) = re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(program, page, "exec"), {"__name__": "__main__"})


def test_hub(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    run("hub.md")
    out = capsys.readouterr().out
    assert f"{hub.address}/user/wall-world-model\nwall " in out


@pytest.mark.slow
def test_robot(capsys: pytest.CaptureFixture[str]) -> None:
    run("robot.md")
    assert "after 20 actions at [" in capsys.readouterr().out


@pytest.mark.slow
def test_lerobot(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lerobot")
    run("lerobot_policy.md")
    assert re.search(r"success: (50|100)\.0 %", capsys.readouterr().out)


def test_stable_worldmodel(capsys: pytest.CaptureFixture[str]) -> None:
    os.environ.setdefault("STABLEWM_HOME", "/nowhere")
    pytest.importorskip("stable_worldmodel")
    run("stable_worldmodel.md")
    out = capsys.readouterr().out
    for name in ("theirs", "ours"):
        assert re.search(rf"^{name} (50|100)\.0$", out, re.MULTILINE), out
