"""The scripts behind the tables: all start, and what a user can put right is one sentence and exit code 2."""

from __future__ import annotations

import dataclasses
import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import tyro

from scripts import common

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = sorted(
    ".".join(path.relative_to(SCRIPTS.parent).with_suffix("").parts)
    for place in (SCRIPTS, SCRIPTS / "experiments", SCRIPTS / "trust")
    for path in place.glob("*.py")
    if path.stem not in ("__init__", "common", "damage", "emulation", "samples", "site_pages")
)


def start(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of a script."""
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    return int(stop.value.code or 0)


def test_a_seed_below_0_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("scripts.experiments.turned", "--seed -1", monkeypatch) == 2
    assert "`seed` must be at least 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_script_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = importlib.import_module(name).Arguments
    assert start(name, "--help", monkeypatch) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(arguments):
        assert f"--{field.name.replace('_', '-')}"[:12] in shown


@pytest.mark.parametrize(
    "command",
    [
        "calibrate --environments nowhere",
        "experiments.compare_recipes --env nowhere",
        "experiments.diagnose --environments nowhere",
        "experiments.gate_encoder --environments nowhere",
        "experiments.probe_policy --env nowhere --dataset nothing.h5",
    ],
)
def test_bad_input_is_one_sentence(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, words = command.split(maxsplit=1)
    monkeypatch.chdir(tmp_path)
    assert start(f"scripts.{script}", words, monkeypatch) == 2
    assert "unknown environment 'nowhere'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_results_say_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "said.py").write_text(
        "import json, pathlib\n"
        "from scripts.common import typed_command\n"
        "if __name__ == '__main__':\n"
        "    pathlib.Path('said.json').write_text(json.dumps(typed_command()))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/some/where/said.py", "--words", "two words"])
    runpy.run_module("said", run_name="__main__", alter_sys=True)
    assert json.loads(Path("said.json").read_text()) == "python -m said --words 'two words'"


def test_what_ends_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Arguments:
        """None."""

    monkeypatch.setattr(tyro, "cli", lambda arguments: arguments())
    for ending, code in ((None, 0), (KeyboardInterrupt(), 130)):

        def main(arguments: object, ending: BaseException | None = ending) -> None:
            if ending is not None:
                raise ending

        with pytest.raises(SystemExit) as stop:
            common.launch(main, Arguments)
        assert stop.value.code == code
