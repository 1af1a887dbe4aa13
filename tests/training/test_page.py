"""docs/howto/train_own_data.md runs as it stands there, on the dataset that docs/howto/data.md writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsewm.model import load
from tests.cli.commands import call

HOWTO = Path(__file__).parents[2] / "docs" / "howto"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (HOWTO / page).read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_page_on_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("data.md", "python")[0], "record.py", "exec"), {})
    (settings,), (program,) = blocks("train_own_data.md", "yaml"), blocks("train_own_data.md", "python")
    Path("runs").mkdir()
    Path("runs/arm.yaml").write_text(settings)
    (shell,) = blocks("train_own_data.md", "sh")
    train, show = shell.replace("\\\n", " ").strip().splitlines()
    code, out, err = call(train.removeprefix("sparsewm "))
    assert code == 0, err
    assert "judge it: sparsewm evaluate --dataset arm.h5 --cameras front wrist" in out
    model = load("runs/arm/checkpoint")
    shown = model.metadata["interface"]
    assert shown["cameras"] == ["front", "wrist"] and shown["picture"] == [48, 112] and shown["fps"] == 10
    assert shown["action_names"] == ["shoulder", "elbow"] and model.frameskip == 2
    code, out, err = call(show.removeprefix("sparsewm "))
    assert code == 0 and "steps: 20000" in out, err
    exec(compile(program, "look.py", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("8000 ")
