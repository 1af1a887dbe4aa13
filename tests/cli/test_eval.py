"""`sparsewm eval`: every cell once, kept when interrupted, the same whoever runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from sparsewm.cli import evaluate
from sparsewm.cli.evaluate import Eval
from sparsewm.config import PlanConfig
from sparsewm.encoders import load_encoder
from sparsewm.errors import UserError
from sparsewm.evaluation.cells import Cell, told_apart
from sparsewm.evaluation.foreign import foreign_code
from sparsewm.evaluation.run import check_checkpoint
from sparsewm.evaluation.table import policy_labels
from sparsewm.model import checkpoint, load_pretrained, save
from sparsewm.model.checkpoint import pretrained_path
from sparsewm.proposals import SAMPLERS
from sparsewm.report.plots import plot_success
from tests.cli.commands import PROGRAM, call

QUICK = "--episodes 2 --drops 0 0.5 --yardsticks nothing random_actions proprio --candidates 8 --iterations 2"
QUICK += " --max-steps 20 --timed 1"
ROW = {"environment", "selection", "drop", "planner", "proposals", "episodes", "success_rate", "success_ci95"}
ROW |= {"seconds_per_iteration", "command", "seed"}


def called(place: Path, *arguments: object) -> tuple[int, str]:
    """Exit code and standard error of a command run in a folder, by this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        code, _, err = call(*arguments)
    return code, err


def done(place: Path, *arguments: object) -> None:
    """Run a command in a folder."""
    code, err = called(place, *arguments)
    assert code == 0, err


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation of the shipped world model of Wall, `ev` in its folder."""
    place = tmp_path_factory.mktemp("eval")
    done(place, "eval --envs wall", QUICK, "--output ev")
    return place


def rows(place: Path, folder: str = "ev") -> dict[str, dict[str, object]]:
    """Rows of eval.json by cell file name, without times."""
    content = json.loads((place / folder / "eval.json").read_text())
    kept = ("success_rate", "drop", "selection", "proprio_weight", "cost", "episodes", "seed")
    return {row["command"]: {key: row[key] for key in kept} for row in content["rows"]}


def test_eval_writes_every_row_a_table_and_two_plots(wall: Path) -> None:
    content = json.loads((wall / "ev" / "eval.json").read_text())
    assert all(row.keys() >= ROW for row in content["rows"])
    cells = [(row["selection"], row["drop"], row["proprio_weight"], row["cost"]) for row in content["rows"]]
    expected = [("nothing", 0.0, 1.0, "temporal"), ("random_actions", 0.0, 1.0, "temporal")]
    expected += [("proprio", 0.5, 1.0, "mse")]
    for alpha, cost in ((1.0, "temporal"), (0.0, "temporal"), (1.0, "mse")):
        expected += [("random", drop, alpha, cost) for drop in (0.0, 0.5)]
    assert cells == expected
    table = (wall / "ev" / "eval.md").read_text()
    rows, pairs = table.split("Fewer tokens against all")
    assert rows.count("| wall |") == len(cells) and "drop 50%" in rows and "vision only" in rows
    assert pairs.count("| wall |") == 3 and pairs.count("| drop 50% |") == 3
    for plot in ("success_by_drop.png", "success_by_time.png"):
        assert (wall / "ev" / plot).stat().st_size > 1000


def test_rows_say_how_much_is_owed_to_chance_to_tokens_and_to_the_budget(wall: Path) -> None:
    content = json.loads((wall / "ev" / "eval.json").read_text())
    for row in content["rows"]:
        assert (row["over_random"] is None) == (row["selection"] == "random_actions")
        assert (row["against_all_tokens"] is None) == (row["selection"] != "random" or row["drop"] == 0)
        assert row["strict"].keys() == {"success_rate", "success_ci95"}
        assert row["strict"]["success_rate"] <= row["success_rate"]
    pair = content["rows"][-1]["against_all_tokens"]
    assert pair["rates"] == [row["success_rate"] for row in content["rows"][-2:]]
    assert pair["success"]["difference"] == pytest.approx(pair["rates"][1] - pair["rates"][0])


def test_a_table_says_once_what_it_was_made_with(wall: Path) -> None:
    content = json.loads((wall / "ev" / "eval.json").read_text())
    caption = (wall / "ev" / "eval.md").read_text().splitlines()[0]
    row = content["rows"][-1]
    assert caption.startswith("2 drawn tasks a cell, seed 0, cem; ")
    assert caption.endswith(f"; code {row['code']}, {row['dtype']}, {row['machine']}")
    kept = json.loads((wall / "ev" / "cells" / "wall-random-drop0.5.json").read_text())
    made = {name: kept["request"][name] for name in ("code", "dtype", "machine", "tasks")}
    assert made == {name: row[name] for name in ("code", "dtype", "machine")} | {"tasks": None}


def test_cells_made_elsewhere_are_kept_but_in_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Cell.run

    def elsewhere(cell: Cell, on_share: object = None) -> dict[str, object]:
        result = real(cell)
        result["machine"]["kind"] = "another processor"
        return result

    monkeypatch.setattr(Cell, "run", elsewhere)
    monkeypatch.chdir(tmp_path)
    flags = "--envs wall --episodes 1 --max-steps 5 --drops --yardsticks nothing --timed 0 --output ev"
    code, _, err = call("eval", flags)
    assert code == 2 and "another kind of machine" in err and "wall-nothing.json" in err
    kept = json.loads((tmp_path / "ev" / "cells" / "wall-nothing.json").read_text())
    assert kept["request"]["machine"] == "another processor"
    monkeypatch.setattr(Cell, "run", real)
    assert call("eval", flags)[0] == 0  # it was no cell of this machine: it is run here


@pytest.mark.slow
def test_frozen_tasks_and_smaller_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--envs wall --episodes 3 --drops --yardsticks random_actions oracle --goal.tasks validation"
    flags += " --candidates 16 --iterations 2 --max-steps 40 --budgets 20 40 --timed 0 --output ev"
    code, _, err = call("eval", flags)
    assert code == 0, err
    content = json.loads((tmp_path / "ev" / "eval.json").read_text())
    assert "3 validation tasks a cell" in (tmp_path / "ev" / "eval.md").read_text()
    for row in content["rows"]:
        assert [one["budget"] for one in row["within"]] == [20, 40]
        assert row["within"][0]["success_rate"] <= row["within"][1]["success_rate"] == row["success_rate"]
        assert row["goal"]["tasks"] == "validation" and len(row["goal"]["tasks_sha256"]) == 64
    shorter = flags.replace("--max-steps 40 --budgets 20 40", "--max-steps 20").replace("ev", "short")
    assert call("eval", shorter)[0] == 0
    short = json.loads((tmp_path / "short" / "eval.json").read_text())["rows"]
    for row, alone in zip(content["rows"], short, strict=True):
        assert row["within"][0]["success_rate"] == alone["success_rate"]


def cells_of(flags: str) -> list[Cell]:
    """The cells of a command."""
    return told_apart(list(Eval.parse(flags.split()).cells()))


def test_settings_of_a_file_in_which_rows_differ_are_refused(tmp_path: Path) -> None:
    for text, flag in (
        ("env: wall", "--env"),
        ("tokens: {drop: 0.3}", "--tokens.drop"),
        ("tokens: {selection: none}", "--tokens.selection"),
        ("run: {actor: nothing}", "--run.actor"),
    ):
        (tmp_path / "plan.yaml").write_text(f"search: {{iterations: 2}}\n{text}\n")
        with pytest.raises(UserError, match=f"{flag} is what rows of this table differ in"):
            Eval.parse(["--envs", "wall", "--config", str(tmp_path / "plan.yaml")])


def test_every_cell_is_there_once() -> None:
    flags = "--envs wall Wall --yardsticks nothing nothing --drops 0.5 0.5 --no-mse"
    names = ["wall-nothing", "wall-random-drop0.5", "wall-random-drop0.5-proprio0"]
    assert [cell.name for cell in cells_of(flags)] == names
    blind = [cell.name for cell in cells_of(f"{flags} --cost.proprio-weight 0")]
    assert blind == ["wall-nothing-proprio0", "wall-random-drop0.5-proprio0"]


def test_yardsticks_that_do_not_plan_have_no_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--envs wall --drops 0.5 --yardsticks nothing random_actions oracle --no-mse --no-vision-only"
    found = {cell.selection: cell.config for cell in cells_of(f"{flags} --search.deadline-ms 50")}
    limits = {name: config.checked().search.deadline_ms for name, config in found.items()}
    assert limits == {"nothing": None, "random_actions": None, "oracle": 50, "random": 50}
    assert capsys.readouterr().err == ""
    found = {cell.selection: cell.config for cell in cells_of(f"{flags} --planner gd")}
    assert all(config.checked().search.planner == "gd" for config in found.values())
    assert [*found] == ["nothing", "random_actions", "random"]
    assert "no oracle, left out: wall" in capsys.readouterr().err


def test_all_stands_for_our_own_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(name: str) -> Any:
        return SimpleNamespace(name=name)

    monkeypatch.setattr(evaluate, "make_env", named)
    ours = Eval.parse(["--envs", "all"]).models()
    assert "wall" in ours and not any("/" in name for name in ours)
    found = Eval.parse(["--envs", "dmc/reacher", "all", "swm/tworoom"]).models()
    assert [*found] == ["dmc/reacher", *ours, "swm/tworoom"]


def test_policies_have_cells_and_labels_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    for folder in (here / "pa", tmp_path / "pa", here / "other" / "pa"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    flags = "--envs wall --drops 0.5 --yardsticks --no-noise --no-mse --no-vision-only --policies"
    one, two, three = (cell.name for cell in cells_of(f"{flags} pa ../pa ./pa other/pa"))
    assert one != two and {one[:-9], two[:-9]} == {"wall-random-drop0.5-pa-replace"}
    assert three == "wall-random-drop0.5-other-pa-replace"  # as before
    assert [cell.name for cell in cells_of(f"{flags} ../pa")] == ["wall-random-drop0.5-pa-replace"]
    rows = [{"proposals": source} for source in ("pa", "../pa", "other/pa", "vla", "none")]
    assert [*policy_labels(rows).values()] == ["pa", "../pa", "other/pa", "vla", "none"]
    rows = [{"proposals": source} for source in ("runs/a/best", "runs/b/best", "runs/last")]
    assert [*policy_labels(rows).values()] == ["a/best", "b/best", "last"]


PLANNER = """
from sparsewm.planners import CEM

class Mine(CEM):
    pass
"""


def test_a_change_of_ones_own_code_asks_for_the_cell_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("own_planner", "own_choice", "own_cost"):
        (tmp_path / f"{module}.py").write_text(PLANNER)
    monkeypatch.syspath_prepend(tmp_path)
    flags = "--envs wall --drops 0.5 --yardsticks --no-mse --no-vision-only --search.planner own_planner:Mine"
    flags += " --tokens.choose own_choice:Mine --cost.objective own_cost:Mine"
    (cell,) = cells_of(flags)
    before = cell.request()["foreign"]
    assert before == cell.request()["foreign"] and before["packages"] == {}
    assert before["source"].keys() == {"planner", "choose", "objective"}
    (tmp_path / "own_planner.py").write_text(f"{PLANNER}    keep = 2\n")
    after = cell.request()["foreign"]["source"]
    assert {role for role in after if after[role] != before["source"][role]} == {"planner"}


def test_an_environment_of_others_is_told_by_file_and_package() -> None:
    config = PlanConfig.of("tests.envs.test_adapter:Dot").updated(actor="nothing")
    assert foreign_code(config)["source"].keys() == {"env"}
    found = foreign_code(PlanConfig.of("CartPole-v1").updated(actor="nothing"))
    assert found["source"].keys() == {"env"} and found["packages"] == {"gymnasium": version("gymnasium")}
    assert foreign_code(PlanConfig.of("wall")) == {"source": {}, "packages": {}}
    assert foreign_code(PlanConfig.of("dmc/reacher"))["packages"].keys() == {"dm-control", "mujoco"}


def test_what_a_checkpoint_lacks_is_said_before_it_is_loaded(tmp_path: Path) -> None:
    shutil.copytree(pretrained_path("wall"), tmp_path / "wall")
    (tmp_path / "wall" / "model.safetensors").write_bytes(b"")
    config = PlanConfig.of("wall").updated(adapt=True)
    assert check_checkpoint(config, tmp_path / "wall") == "embedded"
    sizes = yaml.safe_load((tmp_path / "wall" / "config.yaml").read_text())
    del sizes["decoder"]
    (tmp_path / "wall" / "config.yaml").write_text(yaml.safe_dump(sizes))
    with pytest.raises(UserError, match="`adapt` needs the mean picture"):
        check_checkpoint(config, tmp_path / "wall")


def test_rows_without_times_are_in_no_plot_over_time(tmp_path: Path, wall: Path) -> None:
    rows = json.loads((wall / "ev" / "eval.json").read_text())["rows"]
    for row in rows:
        row["seconds_per_iteration"] = None  # nothing was planned
        plot_success(tmp_path / "plot.png", rows, "seconds", "some")


def test_proprioception_alone_is_a_cost_where_planning_leaves_it_out() -> None:
    weights = {
        cell.config.env: cell.config.cost.proprio_weight
        for cell in cells_of("--envs rope pusht --yardsticks proprio --drops")
    }
    assert weights == {"rope": 1.0, "pusht": 0.1}  # Rope plans without it, PushT with some


def test_variants_are_planned_at_few_of_the_ratios() -> None:
    cells = cells_of("--envs wall --yardsticks --drops 0 0.3 0.5 --variant-drops 0.5 0.7")
    found = [
        (one.cost.proprio_weight, one.cost.objective, one.tokens.drop) for one in (c.config for c in cells)
    ]
    usual = [(1.0, "temporal", drop) for drop in (0.0, 0.3, 0.5)]
    assert found == [*usual, (0.0, "temporal", 0.5), (1.0, "mse", 0.5)]


def test_flags_of_plan_hold_for_every_cell() -> None:
    cells = cells_of("--envs rope pusht --yardsticks oracle --drops 0.5 --iterations 2 --run.batch 3")
    assert {(c.config.search.iterations, c.config.run.batch) for c in cells} == {(2, 3)}
    assert [c.config.search.horizon for c in cells] == [1, 1, 5, 5]  # the environments' own stay
    assert {c.config.run.episodes for c in cells} == {60}


def test_the_image_token_is_asked_alone_too_where_proprioception_is_the_state(tmp_path: Path) -> None:
    for name in ("wall", "pointmaze", "rope"):
        (tmp_path / name).mkdir()
    found = {
        name: [
            (cell.name, cell.config.cost.proprio_weight)
            for cell in cells_of(
                f"--envs {name} --yardsticks cls --drops --cls-checkpoints {tmp_path} {flag}"
            )
        ]
        for name, flag in (("wall", ""), ("pointmaze", "--no-vision-only"), ("rope", ""))
    }
    assert found["wall"] == [("wall-cls", 1.0), ("wall-cls-proprio0", 0.0)]
    assert found["pointmaze"] == [("pointmaze-cls", 1.0)]
    assert found["rope"] == [("rope-cls", 0.0)]  # plans by vision alone anyway


@pytest.mark.slow
def test_the_command_of_a_row_gives_that_row(wall: Path) -> None:
    row = json.loads((wall / "ev" / "eval.json").read_text())["rows"][6]
    assert row["proprio_weight"] == 0.0
    done(wall, row["command"].removeprefix("sparsewm "), "--output again --run.no-video")
    again = json.loads((wall / "again" / "results.json").read_text())
    assert again["success_rate"] == row["success_rate"] and again["settings"]["cost"]["proprio_weight"] == 0.0


@pytest.mark.slow
def test_finished_cells_are_kept_and_changed_ones_run_again(wall: Path) -> None:
    cells = wall / "ev" / "cells"
    before = {path.name: path.stat().st_mtime_ns for path in cells.iterdir()}
    (cells / "wall-nothing.json").unlink()
    edited = cells / "wall-random-drop0.5-mse.json"
    content = json.loads(edited.read_text())
    content["request"]["search"]["candidates"] = 3
    edited.write_text(json.dumps(content))
    older = cells / "wall-random-drop0.5.json"  # of another version of the code
    content = json.loads(older.read_text())
    content["request"]["code"] = "0" * 12
    older.write_text(json.dumps(content))
    known = rows(wall)
    done(wall, "eval --envs wall", QUICK, "--output ev")
    after = {path.name: path.stat().st_mtime_ns for path in cells.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {
        "wall-nothing.json",
        edited.name,
        older.name,
    }
    assert rows(wall) == known


@pytest.mark.slow
def test_times_of_all_rows_are_taken_in_turns_whatever_the_cells_took(wall: Path) -> None:
    cell = wall / "ev" / "cells" / "wall-random-drop0.5.json"
    before = cell.read_text()
    content = json.loads(before)
    for name in ("seconds_per_iteration", "seconds_per_plan", "seconds_per_episode"):
        content[name] = {key: 1e6 * value for key, value in content[name].items()}  # a machine that was busy
    cell.write_text(json.dumps(content))
    found = {}
    for timed in (0, 2):
        done(wall, "eval --envs wall", QUICK.replace("--timed 1", f"--timed {timed}"), "--output ev")
        report = json.loads((wall / "ev" / "eval.json").read_text())
        found[timed] = next(row for row in report["rows"] if row["command"] == content["command"])
    cell.write_text(before)
    assert found[0]["seconds_per_plan"]["median"] > 1000
    for name in ("iteration", "plan"):
        assert 0 < found[2][f"seconds_per_{name}"]["median"] < 60, name
    assert found[2]["seconds_per_iteration"]["median"] < found[2]["seconds_per_plan"]["median"]
    assert report["timed"] == 2 and report["machine"]["threads"] >= 1


@pytest.mark.slow
def test_a_table_of_what_is_finished_runs_nothing(wall: Path, tmp_path: Path) -> None:
    few = tmp_path / "ev" / "cells"
    few.mkdir(parents=True)
    for name in ("wall-nothing", "wall-random-drop0.5"):
        (few / f"{name}.json").write_bytes((wall / "ev" / "cells" / f"{name}.json").read_bytes())
    untimed = QUICK.replace("--timed 1", "--timed 0")
    done(tmp_path, "eval --envs wall", untimed, "--output ev --no-run-missing --device cpu,cpu")
    found = json.loads((tmp_path / "ev" / "eval.json").read_text())["rows"]
    assert [(row["selection"], row["drop"]) for row in found] == [("nothing", 0.0), ("random", 0.5)]
    assert len(list(few.iterdir())) == 2
    code, err = called(tmp_path, "eval --envs rope", QUICK, "--output ev --no-run-missing")
    assert code == 2 and "no finished cell" in err
    code, _ = called(tmp_path, "eval --envs rope", QUICK, "--output other --no-run-missing")
    assert code == 2 and not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_killed_evaluation_continues(tmp_path: Path, wall: Path) -> None:
    command = [PROGRAM, "eval", "--envs", "wall", *QUICK.split(), "--output", "ev"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = tmp_path / "ev" / "cells" / "wall-random-drop0.json"
    deadline = time.time() + 120
    while not first.exists() and time.time() < deadline:
        time.sleep(0.05)
    run.kill()
    run.wait()
    kept = {path: path.stat().st_mtime_ns for path in first.parent.glob("*.json")}
    assert kept and not (tmp_path / "ev" / "eval.json").exists()
    done(tmp_path, *command[1:])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert rows(tmp_path) == rows(wall)


class Rest:
    """Proposes to do nothing."""

    def __init__(self, env: str) -> None:
        pass

    def propose(self, observation: Any, goal: Any, instruction: str, samples: int, horizon: int) -> Tensor:
        return torch.zeros(len(goal["proprio"]), samples, horizon, 2)


@pytest.mark.slow
def test_candidates_of_a_policy_have_rows_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAMPLERS._known, "rest", Rest)
    flags = (
        "eval --envs wall --episodes 1 --drops 0.5 --yardsticks nothing policy --candidates 8 --iterations 2"
    )
    flags += " --max-steps 10 --no-mse --no-vision-only --policies rest --modes replace seed"
    flags += " --proposals.samples 3 --goal.source trajectory --goal.offset 10 --output ev"
    done(tmp_path, flags)
    found = json.loads((tmp_path / "ev" / "eval.json").read_text())["rows"]
    names = [(row["selection"], row["proposals"], row["proposal_mode"]) for row in found]
    assert names == [
        ("nothing", "none", "replace"),
        ("policy", "rest", "replace"),
        ("random", "none", "replace"),
        ("random", "rest", "replace"),
        ("random", "rest", "seed"),
    ]
    goal = {"source": "trajectory", "offset": 10, "budget": 10, "rule": "arrival"}
    goal |= {"tasks": "drawn", "tasks_sha256": None}
    assert all(row["goal"] == goal | {"solved_at_start": row["goal"]["solved_at_start"]} for row in found)
    table = (tmp_path / "ev" / "eval.md").read_text()
    for words in ("| rest, the first |", "| rest, replace |", "| rest, seed |", "| cem |", "a decision"):
        assert words in table
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "ev" / "cells").iterdir()}
    done(tmp_path, flags)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--workers 2", "--workers 2 --ray-address local"])
def test_workers_and_ray_find_the_same(tmp_path: Path, wall: Path, flags: str) -> None:
    if "ray" in flags:
        pytest.importorskip("ray")
    few = "--yardsticks nothing proprio --drops 0.5 --no-mse --no-vision-only"
    done(tmp_path, "eval --envs wall", QUICK, few, flags, "--output ev")
    found, known = rows(tmp_path), rows(wall)
    assert len(found) == 3 and all(known[command] == row for command, row in found.items())


@pytest.mark.slow
def test_the_image_token_alone_is_a_yardstick(tmp_path: Path) -> None:
    done(tmp_path, "collect --env rope --episodes 10 --steps 6 --workers 1 --output data")
    flags = "train --env rope --encoder embedded:cls --steps 2 --batch 4 --horizon 1 --distance-steps 0"
    done(tmp_path, flags, "--output cls/rope --dataset data/rope.h5")
    flags = "--envs rope --episodes 1 --max-steps 2 --drops 0.5 --yardsticks cls --cls-checkpoints cls"
    done(tmp_path, "eval", flags, "--timed 1 --output ev")
    cls, sparse = json.loads((tmp_path / "ev" / "eval.json").read_text())["rows"]
    assert cls["selection"] == "cls" and cls["tokens"] == {"kept": 1, "total": 1}
    assert sparse["tokens"] == {"kept": 32, "total": 64}


@pytest.mark.slow
def test_several_encoders_stand_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped"
    shutil.copytree(pretrained_path("wall"), shipped / "wall")
    model = load_pretrained("wall")
    model.encoder = load_encoder("random")
    save(model, shipped / "random" / "wall")
    for module in (checkpoint, evaluate):
        monkeypatch.setattr(module, "PRETRAINED", shipped)
    monkeypatch.chdir(tmp_path)
    flags = "--envs all --encoders embedded random --drops 0.5 --yardsticks nothing proprio --episodes 1"
    flags += " --max-steps 5 --candidates 8 --iterations 2 --no-mse --no-vision-only --timed 0 --output ev"
    code, out, err = call("eval", flags)
    assert code == 0, err
    assert "rope on embedded, rope on random" in err and "wall on" not in err
    rows = json.loads(Path("ev/eval.json").read_text())["rows"]
    expected = [("nothing", None)]
    expected += [(row, name) for row in ("proprio", "random") for name in ("embedded", "random")]
    assert [(row["selection"], row["encoder"]) for row in rows] == expected
    assert len(list(Path("ev/cells").iterdir())) == 5 and "| wall | random | drop 50% |" in out
    assert rows[-1]["command"].count("--run.encoder random") == 1
    code, _, err = call("plan --env wall --encoder random --max-steps 5 --run.no-video --output plan")
    assert code == 0, err
    found = json.loads(Path("plan/results.json").read_text())
    assert (found["encoder"]["name"], found["checkpoint"]) == ("random", "pretrained/random/wall")
    code, _, err = call("eval --envs all --encoder dinov2_vits14")
    assert code == 2 and "no world model on dinov2_vits14 is shipped" in err
    code, _, err = call("plan --env wall --encoder dinov2_vits14")
    assert code == 2 and "on encoder 'dinov2_vits14' is shipped for 'wall'" in err


def test_runs_on_other_encoders_lie_in_folders_of_theirs(tmp_path: Path) -> None:
    places = [tmp_path / "rope" / "checkpoint", tmp_path / "dinov2_vits14" / "rope"]
    for place in places:
        place.mkdir(parents=True)
    flags = "--envs rope --encoders embedded dinov2_vits14 --yardsticks cls oracle --drops 0.5 --no-mse"
    found = cells_of(f"{flags} --checkpoints {tmp_path} --cls-checkpoints {tmp_path}")
    assert [(cell.name, cell.config.run.encoder, cell.config.run.checkpoint) for cell in found] == [
        ("rope-cls", "embedded:cls", str(places[0])),
        ("rope-cls-dinov2_vits14", "dinov2_vits14:cls", str(places[1])),
        ("rope-oracle", None, None),
        ("rope-random-drop0.5", "embedded", str(places[0])),
        ("rope-random-drop0.5-dinov2_vits14", "dinov2_vits14", str(places[1])),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--envs wal", ["Did you mean 'wall'?"]),
        ("--envs wall --drops 1", ["--drops must be at least 0 and below 1"]),
        ("--envs wall --yardsticks none", ["unknown --yardsticks 'none'", "nothing"]),
        ("--envs all --checkpoints nowhere", ["nowhere", "holds no run"]),
        ("--envs wall --checkpoints nowhere", ["nowhere", "is no checkpoint"]),
        ("--envs wall --cls-checkpoints nowhere", ["nowhere/wall", "is no checkpoint folder"]),
        ("--envs wall --search.elites 99", ["--search.elites 99 is more than --candidates 64"]),
        ("--envs wall --encoders random", ["no world model on encoder 'random' is shipped for 'wall'"]),
        ("--envs wall --episodes 0", ["--episodes must be at least 1"]),
        ("--envs wall --budgets 50 101", ["--budgets 101 is more than the 100 steps", "--max-steps"]),
        ("--envs wall --goal.tasks tests", ["--goal.tasks", "tests"]),
        (
            "--envs wall --goal.tasks test --goal.source trajectory",
            ["wall-25", "wall-random", "--goal.offset"],
        ),
        ("--envs wall --goal.tasks test --episodes 201", ["holds 200 tasks", "--episodes"]),
        ("--envs wall --workers 0", ["--workers must be at least 1"]),
        ("--env wall", ["--env is what rows", "give --envs instead"]),
        ("--envs wall --drop=0.3", ["--drop is what rows", "give --drops instead"]),
        ("--envs wall --tokens.drop 0.3", ["--tokens.drop is what rows", "give --drops instead"]),
        ("--envs wall --run.actor nothing", ["--run.actor is what rows", "give --yardsticks instead"]),
        ("--envs wall --tokens.selection none", ["--tokens.selection is", "give --yardsticks instead"]),
        ("--envs wall --encoder random --encoders embedded", ["beside --encoders: leave one of them out"]),
        ("--envs", ["--envs is empty"]),
        ("--envs wall --yardsticks --no-noise", ["this table has no row: give --yardsticks"]),
        ("--envs wall --yardsticks policy --no-noise", ["this table has no row", "--policies"]),
        ("--envs wall --encoders embedded:cls", ["trained on encoder embedded, not embedded:cls"]),
        ("--envs wall --tokens.choose gird", ["unknown choice of tokens 'gird'"]),
        ("--envs rope --cost.objective temporal", ["without a temporal distance", "--cost.objective mse"]),
        ("--envs wall rope --checkpoint wall", ["trained for wall, not rope"]),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, parts: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    if "--checkpoint wall" in flags:
        flags = flags.replace("--checkpoint wall", f"--checkpoint {pretrained_path('wall')}")
    code, _, err = call("eval", flags)
    assert code == 2 and all(part in err for part in parts), err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cell_is_named(wall: Path) -> None:
    cell = wall / "ev" / "cells" / "wall-proprio-drop0.5-mse.json"
    content = cell.read_text()
    cell.write_text(content[:50])
    code, err = called(wall, "eval --envs wall", QUICK, "--output ev")
    cell.write_text(content)
    assert code == 2 and cell.name in err and "delete it" in err
