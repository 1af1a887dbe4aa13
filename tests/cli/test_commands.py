"""The command line end to end, on a small recording: collect, train, plan, bench.

One small trained checkpoint serves all tests of this file; a file stays in one worker (`--dist loadfile`).
Most commands run in this process, which has imported everything.
"""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import cv2
import imageio.v2 as imageio
import pytest
import torch
import tyro
from safetensors.torch import load_file

from sparsewm.cli import COMMANDS
from sparsewm.data import open_dataset
from sparsewm.precision import fastest_dtype
from tests.cli.commands import call, shell

COLLECT = "collect --env wall --episodes 30 --steps 20 --resolution 32 --workers 1 --output data"
TRAIN = (
    "train --env wall --dataset data/wall.h5 --encoder random --steps 8 --batch 4 --horizon 2 "
    "--validate-every 100 --checkpoint-every 2 --distance-steps 3 --decoder-steps 3 "
    "--model.width 48 --model.heads 2 --model.depth 2 --model.mlp 96"
)
QUICK = (
    "--env wall --candidates 8 --iterations 2 --horizon 3 --search.execute 2 --max-steps 20 --run.no-video"
)

RESULTS = {
    "environment": str,
    "drop": float,
    "tokens": {"kept": int, "total": int},
    "planner": str,
    "proposals": str,
    "encoder": dict,
    "checkpoint": str,
    "device": str,
    "dtype": str,
    "seed": int,
    "episodes": int,
    "goal": {"source": str, "budget": int},
    "success_rate": float,
    "success_ci95": list,
    "seconds_per_iteration": {"median": float, "p25": float, "p75": float},
    "seconds_per_plan": {"median": float, "p25": float, "p75": float},
    "peak_memory_bytes": int,
    "per_episode": list,
    "version": str,
    "command": str,
}
ROW = {
    "rollout": str,
    "drop": float,
    "tokens": int,
    "candidates": int,
    "horizon": int,
    "dtype": str,
    "seconds_per_iteration": {"median": float, "p25": float, "p75": float},
    "speedup_over_full": float,
    "speedup_over_dino_wm_float32": float,
    "speedup_over_dino_wm_bfloat16": float,
    "operations_per_candidate": float,
    "tokens_per_second": float,
}
BENCH = {"machine": dict, "matmul_peak_flops": {"bfloat16": float, "float32": float}, "rows": list}


def assert_keys(content: dict[str, Any], contract: dict[str, Any]) -> None:
    """Every key of the contract is there, with a value of its type; more keys are welcome."""
    for key, kind in contract.items():
        assert key in content, key
        if isinstance(kind, dict):
            assert_keys(content[key], kind)
        else:
            assert isinstance(content[key], kind), (key, content[key])


def done(folder: Path, *arguments: object) -> str:
    """Standard output of a command run in a folder, by this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, out, err = call(*arguments)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/wall.h5."""
    folder = tmp_path_factory.mktemp("place")
    done(folder, COLLECT)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """A run folder of an uninterrupted training."""
    done(place, TRAIN, "--output run")
    return place / "run"


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder for commands that use the trained checkpoint."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(*arguments: object) -> dict[str, Any]:
    """results.json of a plan command run in the working folder."""
    code, _, err = call("plan", QUICK, *arguments, "--output out")
    assert code == 0, err
    return json.loads(Path("out/results.json").read_text())


def test_collect_records_what_was_asked_for(place: Path) -> None:
    dataset = open_dataset(place / "data" / "wall.h5", "wall")
    assert dataset.lengths.tolist() == [21] * 30
    assert dataset.pixels.shape == (630, 32, 32, 3)
    summary = json.loads((place / "data" / "wall.json").read_text())
    assert summary["episodes"] == 30 and summary["hash"] == dataset.hash
    assert summary["command"] == f"sparsewm {COLLECT}"
    assert cv2.imread(str(place / "data" / "wall.png")) is not None
    assert not list(place.glob("data/*.parts"))


def test_collect_keeps_a_finished_recording(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    before = Path("data/wall.h5").stat()
    code, out, _ = call(COLLECT)
    after = Path("data/wall.h5").stat()
    assert code == 0 and "30 episodes, 630 frames" in out
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    code, _, err = call(COLLECT, "--seed", 1)  # another recording must not replace this one
    assert code == 2 and "delete it or give another --output" in err


@pytest.mark.slow
def test_temporal_distance_is_added_to_a_checkpoint_and_planned_with(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = trained.parent
    monkeypatch.chdir(place)
    done(place, TRAIN, "--distance-steps 0 --output plain")
    temporal = f"plan {QUICK} --cost.objective temporal"
    code, _, err = call(temporal, "--checkpoint plain/checkpoint --output none")
    assert code == 2 and "--cost.objective mse" in err and not (place / "none").exists()
    extend = "train --env wall --dataset data/wall.h5 --distance-steps 2 --output added"
    extend += " --extend plain/checkpoint --decoder-steps 0"
    done(place, extend)
    plain, both = (load_file(place / run / "checkpoint" / "model.safetensors") for run in ("plain", "added"))
    assert all(plain[key].equal(both[key]) for key in plain) and len(both) > len(plain)
    code, _, err = call(extend)
    assert code == 2 and "another --output" in err, err
    done(place, temporal, "--checkpoint added/checkpoint --output planned-so")
    content = json.loads((place / "planned-so/results.json").read_text())
    assert content["settings"]["cost"]["objective"] == "temporal"


@pytest.mark.slow
def test_imagination_is_shown_and_changes_no_plan(trained: Path) -> None:
    assert (trained / "imagination_drop_0.5.png").stat().st_size > 1000
    place, sizes, episodes = trained.parent, [], []
    arguments = "plan --env wall --checkpoint run/checkpoint --candidates 8 --iterations 2 --max-steps 20"
    for flag, folder in (("--run.imagine", "shown"), ("--run.no-imagine", "hidden")):
        done(place, arguments, flag, "--output", folder)
        episodes.append(json.loads((place / folder / "results.json").read_text())["per_episode"])
        with imageio.get_reader(place / folder / "episode-000.mp4") as reader:
            sizes.append(reader.get_data(0).shape[1])
    assert episodes[0] == episodes[1]
    assert sizes == [4 * 256, 3 * 256]


@pytest.mark.slow
def test_plan_writes_results_video_and_picture(trained: Path) -> None:
    """As a shell calls it."""
    place = trained.parent
    arguments = "plan --env wall --checkpoint run/checkpoint --candidates 8 --iterations 2 --max-steps 20"
    arguments += " --output planned"
    process = shell(place, arguments)
    assert process.returncode == 0, process.stderr
    assert "success" in process.stdout and "planned" in process.stdout
    content = json.loads((place / "planned" / "results.json").read_text())
    assert_keys(content, RESULTS)
    assert content["tokens"] == {"kept": 32, "total": 64}
    assert content["command"] == f"sparsewm {arguments}"
    assert content["checkpoint"] == "run/checkpoint" and content["goal"]["budget"] == 20
    (episode,) = content["per_episode"]
    assert 0 < episode["steps"] <= 20 and episode["distance"].keys() == {"position", "path"}
    assert content["success_rate"] == float(episode["success"])
    with imageio.get_reader(place / "planned" / "episode-000.mp4") as video:
        frames = list(video.iter_data())
    assert len(frames) > episode["steps"]
    height, width, _ = frames[0].shape
    assert width == pytest.approx(4 * height, rel=0.15)  # real scene, goal, kept patches, imagined
    picture = cv2.imread(str(place / "planned" / "plan.png"))
    assert picture is not None and picture.std() > 1


@pytest.mark.slow
def test_bench_times_the_checkpoint(trained: Path) -> None:
    place = trained.parent
    out = done(
        place,
        "bench --env wall --checkpoint run/checkpoint --drops 0 0.5 0.8",
        "--candidates 8 --horizon 2 --repeats 3 --baseline 2 --plans 2 --iterations 3 --output timed",
    )
    assert "sparse" in out and "dino_wm" in out and "per candidate" in out
    content = json.loads((place / "timed" / "bench.json").read_text())
    assert_keys(content, BENCH)
    for row in content["rows"]:
        assert_keys(row, ROW)
    keys = ("rollout", "dtype", "repeats", "drop", "tokens")
    cells = [tuple(row[key] for key in keys) for row in content["rows"]]
    kept, fastest = {0.0: 64, 0.5: 32, 0.8: 13}, content["rows"][0]["dtype"]
    ways = ("sparse", fastest, 3), ("dino_wm", "float32", 2), ("dino_wm", "bfloat16", 2)
    assert cells == [(*way, drop, tokens) for way in ways for drop, tokens in kept.items()]
    assert fastest == str(fastest_dtype(torch.device("cpu"))).removeprefix("torch.")
    ours, theirs, halved = (content["rows"][i : i + 3] for i in (0, 3, 6))
    assert all(0 < row["peak_fraction"] < 1.5 for row in content["rows"])
    sizes = content["sizes"]
    assert sizes["sparse"]["parameters"] == sizes["dino_wm"]["parameters"]
    for mine, other in zip(ours, theirs, strict=True):
        counts = [row["operations_per_candidate"] for row in (mine, other)]
        assert counts[0] < counts[1] and "GFLOP a candidate" in out
        for name, count in zip(("sparse", "dino_wm"), counts, strict=True):
            assert sizes[name]["operations_per_candidate"][str(mine["tokens"])] == count
    assert ours[0]["speedup_over_full"] == theirs[0]["speedup_over_full"] == 1
    for mine, exact, half in zip(ours, theirs, halved, strict=True):
        for other in (exact, half):
            ratio = other["seconds_per_iteration"]["median"] / mine["seconds_per_iteration"]["median"]
            times = f"speedup_over_dino_wm_{other['dtype']}"
            assert mine[times] == pytest.approx(ratio) and other[times] == 1
            assert other["encoding_seconds_per_iteration"]["median"] > 0
    assert "a plan at drop 0.5" in out
    for row, iteration in zip(content["plans"], ours, strict=True):  # in a closed loop, three iterations each
        assert row["tokens"] == iteration["tokens"] and row["plans"] == 2
        assert row["seconds_per_plan"]["median"] > iteration["seconds_per_iteration"]["p25"]
        assert row["plans_per_second"] == pytest.approx(1 / row["seconds_per_plan"]["median"])
    assert cv2.imread(str(place / "timed" / "bench.png")) is not None


@pytest.mark.slow
def test_bench_times_encoders_and_training(here: Path) -> None:
    code, out, err = call(
        "bench --env wall --what encode train --batches 1 3 --encoder random --resolution 56",
        "--repeats 1 --baseline 1 --output timed",
    )
    assert code == 0, err
    assert "of deviation" in out or "error of" in out
    for name, key, ways in (
        ("encode", "encoder", ["sparsewm", "torch"]),
        ("train", "recipe", ["sparsewm", "plain"]),
    ):
        content = json.loads(Path(f"timed/{name}.json").read_text())
        assert_keys(content, BENCH)
        assert {row[key] for row in content["rows"]} == set(ways) and content["environment"] == "wall"
        for row in content["rows"]:
            assert row["seconds"]["p25"] <= row["seconds"]["median"] <= row["seconds"]["p75"]
            assert row["flops"] > 0 and row["peak_fraction"] > 0
        reference = {row["dtype"] for row in content["rows"] if row[key] == ways[1]}
        assert reference == {"float32", "bfloat16"}
        assert cv2.imread(f"timed/{name}.png") is not None
    content = json.loads(Path("timed/encode.json").read_text())
    assert content["encoder"]["tokens"] == 16 and {row["batch"] for row in content["rows"]} == {1, 3}
    for row in content["rows"]:
        assert row["pictures_per_second"] == pytest.approx(row["batch"] / row["seconds"]["median"])
        judged = row["encoder"] == "sparsewm" and row["dtype"] == "bfloat16"
        assert (row["token_error"] is not None) == judged == (row["accepted"] is not None)
    rows = json.loads(Path("timed/train.json").read_text())["rows"]
    kinds = {row["kind"]: row for row in rows if row["recipe"] == "sparsewm"}
    assert set(kinds) == {"group", "all tokens", "as trained"}
    rates = [kinds[kind]["windows_per_second"] for kind in ("all tokens", "as trained", "group")]
    assert rates == sorted(rates)
    for row in rows:
        exact = next(other for other in rows if (other["recipe"], other["dtype"]) == ("plain", "float32"))
        ratio = row["windows_per_second"] / exact["windows_per_second"]
        assert row["speedup_over_plain_float32"] == pytest.approx(ratio)


@pytest.mark.slow
def test_plans_keep_a_deadline_and_say_so(trained: Path, here: Path) -> None:
    options = ("--checkpoint", trained / "checkpoint", "--candidates 64 --iterations 100000")
    content = results(*options, "--search.deadline-ms 400")
    report = content["deadline"]
    assert report["deadline_ms"] == 400 and report["plans"] == 2 * len(content["per_episode"])
    late = report["overshoot_ms"]
    assert late is None or late["max"] < 400  # a busy machine may be late, but not by a search
    assert 0.1 < content["seconds_per_plan"]["median"] < 0.5
    seconds = content["seconds_per_plan"]["median"]
    assert content["actions_per_second"] == pytest.approx(10 / seconds, rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("planner", ["cem", "icem", "mppi", "gd"])
def test_every_planner_plans(planner: str, trained: Path, here: Path) -> None:
    content = results("--planner", planner, "--checkpoint", trained / "checkpoint", "--drop 0.8")
    assert content["planner"] == planner and content["tokens"]["kept"] == 13
    assert content["per_episode"][0]["steps"] == 20  # re-planned with history
    assert content["seconds_per_iteration"]["median"] > 0


def test_proprioception_alone_is_a_yardstick(trained: Path, here: Path) -> None:
    content = results("--tokens.selection none --cost.objective mse --checkpoint", trained / "checkpoint")
    assert content["tokens"] == {"kept": 0, "total": 64} and content["encoder"]["name"] == "random"
    assert 0 < content["per_episode"][0]["steps"] <= 20


@pytest.mark.slow
def test_yardsticks_without_a_model_need_no_checkpoint(here: Path) -> None:
    still = results("--run.actor nothing --episodes 2")
    assert still["encoder"] is None and still["checkpoint"] is None
    for episode in still["per_episode"]:
        assert episode["distance"] == episode["initial_distance"]
    moved = results("--run.actor random --episodes 2")
    for episode in moved["per_episode"]:
        assert episode["distance"] != episode["initial_distance"]
    oracle = results(
        "--run.actor oracle --candidates 64 --iterations 4 --horizon 8 --search.execute 8 --max-steps 100"
    )
    assert oracle["success_rate"] == 1


@pytest.mark.slow
def test_a_seed_repeats_every_episode(trained: Path, here: Path) -> None:
    first, second, other = (
        results("--checkpoint", trained / "checkpoint", "--episodes 2 --seed", seed)["per_episode"]
        for seed in (3, 3, 5)
    )
    assert first == second != other
    assert [episode["seed"] for episode in first] == [300_000, 300_001]


@pytest.mark.slow
def test_several_episodes_are_planned_at_once(trained: Path, here: Path) -> None:
    content = results(
        "--checkpoint", trained / "checkpoint", "--episodes 3 --run.batch 2 --run.memory-gb 0.001"
    )
    assert [episode["seed"] for episode in content["per_episode"]] == [0, 1, 2]


@pytest.mark.slow
def test_devices_share_episodes_and_change_none(trained: Path, here: Path) -> None:
    words = ["--checkpoint", trained / "checkpoint", "--episodes 3"]
    one, two = (results(*words, "--device", device) for device in ("cpu", "cpu,cpu"))
    assert two["device"] == "cpu,cpu"
    assert [episode["seed"] for episode in two["per_episode"]] == [0, 1, 2]
    assert two["per_episode"] == one["per_episode"]  # every episode has its own seed


def test_a_configuration_file_is_what_flags_are(trained: Path, here: Path) -> None:
    Path("fast.yaml").write_text("env: Wall\ntokens: {drop: 0.8}\nsearch: {iterations: 3}\n")
    content = results("--checkpoint", trained / "checkpoint", "--config fast.yaml")
    assert content["tokens"]["kept"] == 13
    assert content["settings"]["search"]["iterations"] == 2  # the flag goes first
    Path("wrong.yaml").write_text("search: {iteratons: 3}\n")
    code, _, err = call("plan --env wall --config wrong.yaml")
    assert code == 2 and "there is no setting" in err and "Did you mean 'iterations'" in err


@pytest.mark.slow
def test_settings_of_results_are_a_configuration_file(trained: Path, here: Path) -> None:
    first = results("--checkpoint", trained / "checkpoint", "--drop 0.7 --seed 4")
    Path("again.yaml").write_text(json.dumps(first["settings"]))
    code, _, err = call("plan --config again.yaml --output again")
    assert code == 0, err
    again = json.loads(Path("again/results.json").read_text())
    assert again["per_episode"] == first["per_episode"]


def test_results_of_an_earlier_run_do_not_stay(trained: Path, here: Path) -> None:
    Path("out").mkdir()
    for name in ("episode-004.mp4", "plan.png", "mine.txt"):
        Path("out", name).write_text("old")
    results("--checkpoint", trained / "checkpoint")
    assert not Path("out/episode-004.mp4").exists() and Path("out/mine.txt").exists()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_shows_an_example_that_is_a_command(command: str) -> None:
    assert call(command, "-H")[0] == 0
    code, out, _ = call(command, "--help")
    assert code == 0
    lines = [line.strip(" │") for line in out.splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith(f"Example: sparsewm {command}"))
    example = " ".join(lines[first : lines.index("", first)]).removeprefix(f"Example: sparsewm {command}")
    place, _, name = COMMANDS[command][0].partition(":")
    made = getattr(importlib.import_module(place), name)
    if hasattr(made, "parse"):
        made.parse(shlex.split(example))
    else:
        tyro.cli(made, args=shlex.split(example))


def test_help_of_plan_fits_on_two_screens() -> None:
    _, out, _ = call("plan --help")
    assert len(out.splitlines()) <= 100
