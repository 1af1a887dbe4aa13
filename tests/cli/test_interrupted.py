"""Ctrl-C: what is said about what is kept is true, and the exit code is that of a shell."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsewm import cli
from sparsewm.cli import collect, convert
from sparsewm.evaluation.actors import Nothing
from sparsewm.files import only_one
from tests.cli.commands import call


def stop(*arguments: Any, **options: Any) -> None:
    raise KeyboardInterrupt


def test_plan_keeps_the_finished_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decide, asked = Nothing.act, []

    def act(self: Nothing, episodes: Any, active: Any) -> Any:
        asked.append(episodes[0].task.seed)
        return stop() if len(set(asked)) == 3 else decide(self, episodes, active)

    monkeypatch.setattr(Nothing, "act", act)
    flags = "--env wall --run.actor nothing --episodes 5 --max-steps 5 --run.no-video"
    code, out, err = call("plan", flags, "--output", tmp_path)
    assert code == 130 and "these are the 2 finished of 5 episodes" in out, err
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["episodes"] == len(found["per_episode"]) == 2
    assert found["settings"]["run"]["episodes"] == 5


def test_a_polite_request_to_end_keeps_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decide, asked = Nothing.act, []

    def act(self: Nothing, episodes: Any, active: Any) -> Any:
        asked.append(episodes[0].task.seed)
        if len(set(asked)) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return decide(self, episodes, active)

    monkeypatch.setattr(Nothing, "act", act)
    before = signal.getsignal(signal.SIGTERM)
    flags = "--env wall --run.actor nothing --episodes 5 --max-steps 5 --run.no-video"
    code, out, err = call("plan", flags, "--output", tmp_path)
    assert code == 143 and "these are the 2 finished of 5 episodes" in out, err
    assert json.loads((tmp_path / "results.json").read_text())["episodes"] == 2
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_one_output_is_one_processs(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("of another process")
    flags = "--env wall --run.actor nothing --max-steps 5 --run.no-video"
    with only_one(tmp_path):
        code, _, err = call("plan", flags, "--output", tmp_path)
    assert code == 2 and "another process writes to" in err and "give another --output" in err
    assert (tmp_path / "results.json").read_text() == "of another process"


def test_results_record_the_command_that_python_ran(tmp_path: Path) -> None:
    flags = ["--env", "wall", "--run.actor", "nothing", "--max-steps", "5", "--run.no-video"]
    words = ["plan", *flags, "--output", str(tmp_path / "a folder")]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    found = json.loads((tmp_path / "a folder" / "results.json").read_text())
    assert found["command"] == shlex.join(["sparsewm", *words])


def test_collect_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(collect, "collect", stop)
        code, _, err = call("collect --env wall --output", tmp_path)
    assert code == 130 and "finished parts are kept: the same command continues" in err


def test_what_keeps_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "open_dataset", stop)
    code, _, err = call("convert nothing.h5", tmp_path / "other.h5")
    assert code == 130 and "nothing is kept" in err and not list(tmp_path.iterdir())


def test_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_run", stop)
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan"])
    assert ended.value.code == 130
