"""Training in several processes: the run of one process, files written once, errors said once."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from sparsewm.errors import UserError
from sparsewm.training import TrainConfig, connect, train
from sparsewm.training.launch import launch
from sparsewm.training.parallel import Processes
from sparsewm.training.trainer import STATE_FILE
from tests.cli.commands import call
from tests.data.tiny import write_dataset
from tests.training.tiny import make_trainer
from tests.training.together import BATCH, run_page

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d.h5", [14] * 20, resolution=56)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program of "several_devices.md" ran alone."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page()
    return folder


@pytest.fixture(scope="module")
def together(
    data: Path, page: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of two processes that trained together, and what each of them found."""
    folder = tmp_path_factory.mktemp("together")
    make_trainer(data, folder / "tokens", torch.float32)  # encodes
    for file in page.glob("several.*"):
        shutil.copy(file, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.together", data, folder],
            cwd=ROOT,
            env=os.environ
            | {k: str(v) for k, v in variables.items()}
            | {"RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert printed[1] == ("", "")
    assert printed[0][0] == "6 steps, checkpoint in runs/several/checkpoint\n"
    assert printed[0][1].count("error: ") == printed[0][1].count("\n") == 1
    return folder, [json.loads((folder / f"{i}.json").read_text()) for i in range(2)]


@pytest.mark.slow
def test_two_processes_train_as_one(
    data: Path, tmp_path: Path, together: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, (first, second) = together
    alone = make_trainer(data, tmp_path, torch.float32, batch=BATCH)
    losses: list[float] = []
    alone.run(lambda _, values: losses.append(values["loss"]))
    assert first["losses"] == second["losses"] == pytest.approx(losses, rel=1e-4)
    assert first["masters"] == second["masters"], "all processes take the same step"
    sums = [float(master.double().sum()) for master in alone.optimizer.masters]
    assert first["masters"] == pytest.approx(sums, rel=1e-2, abs=1e-2)
    assert first["metrics"] == [5, 10, 12] and second["metrics"] == []
    saved = json.loads((folder / "whole" / "metrics.json").read_text())["metrics"]
    for found, expected in zip(saved, alone.metrics, strict=True):
        for drop in ("drop_0", "drop_0.5"):
            ratios = [entry["validation"][drop]["ratio"] for entry in (found, expected)]
            assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_as_many_processes_or_others(
    data: Path, together: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, found = together
    assert [(one["resumed at"], one["same"]) for one in found] == [([4], True)] * 2  # bit for bit
    both = make_trainer(data, folder / "parts", torch.float32, batch=BATCH)
    assert both.resume() and both.step == 12
    alone = make_trainer(data, folder / "left", torch.float32, batch=BATCH)
    assert alone.resume() and alone.step == 4
    alone.run()
    for a, b in zip(alone.average, both.average, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_one_process_meets_is_raised_by_all(together: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (first, second) = together
    assert first["failing"] == second["failing"] == "a picture of the second process is damaged"
    assert first["diverging"] == second["diverging"]
    assert re.match(r"training diverged at step 3 \(loss nan", first["diverging"])
    assert first["other"] == second["other"] and "other settings, data or checkpoints" in first["other"]
    assert first["refused"] == second["refused"] == "the main process cannot write"
    assert first["exit"] == second["exit"] == 2
    assert first["turn"] == second["turn"] == 1
    assert not (folder / "diverging" / STATE_FILE).exists()


def test_parts_of_a_batch() -> None:
    for count in (1, 2, 3, 8):
        parts = []
        for index in range(count):
            processes = Processes()
            processes.count, processes.index = count, index
            parts.append(list(range(5))[processes.part(5)])
        assert [window for part in parts for window in part] == list(range(5))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


SIZES = (
    "--encoder random --model.width 24 --model.heads 2 --model.depth 1 --model.mlp 48 --model.history 2 "
    "--steps 3 --batch 3 --horizon 1 --distance-steps 1 --decoder-steps 1"
)


@pytest.mark.slow
def test_the_command_line_starts_processes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    line = f"train --dataset {data} --devices 2 --output two {SIZES}"
    code, *_ = call(line)
    printed = capfd.readouterr()
    assert code == 0, printed.err
    assert printed.out.count("checkpoint in two/checkpoint") == 1 and "Gloo" not in printed.out
    code, *_ = call(f"train --dataset {data} --output one {SIZES}")
    assert code == 0
    files = [
        sorted(re.sub(r"events.*", "events", str(f.relative_to(name))) for f in Path(name).rglob("*"))
        for name in ("one", "two")
    ]
    assert files[0] == files[1]
    done = [
        json.loads(Path(name, "metrics.json").read_text())["metrics"][-1]["train"] for name in ("one", "two")
    ]
    assert done[0] == pytest.approx(done[1], rel=1e-2)  # in bfloat16, if this machine is fast in it


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([2, -15], 2),
        ([1, 2], 1),
        ([-9, 2], "a process of this training was ended by SIGKILL; if memory is short lower `batch`"),
    ],
)
def test_the_first_process_that_fails_decides(
    codes: list[int], expected: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        failures = {i: ProcessFailure(i, 1000 + i, code, "<N/A>") for i, code in enumerate(codes)}
        for i, failure in failures.items():
            failure.timestamp = i
        raise ChildFailedError("sparsewm", failures)

    monkeypatch.setattr("accelerate.commands.launch.launch_command", fail)
    if isinstance(expected, int):
        assert launch(2, "cpu", ["train"]) == expected
    else:
        with pytest.raises(UserError, match=expected):
            launch(2, "cpu", ["train"])


def test_devices_need_a_launcher_in_python(data: Path) -> None:
    run = {"devices": 2, "device": "cpu"}
    with pytest.raises(UserError, match=r"`devices` 2 need a launcher: start this program by accelerate"):
        train(TrainConfig.of(content={"dataset": str(data), "run": run}))


def test_accelerate_that_starts_one_process_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    sentences: list[str] = []
    assert connect("cpu", sentences.append).count == 1
    assert sentences and "give it --multi_gpu in place of --cpu" in sentences[0]


def test_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setitem(sys.modules, "accelerate.commands.launch", None)
    code, _, err = call("train --dataset nowhere.h5 --devices 2 --device cpu")
    assert code == 2 and "pip install 'sparsewm[parallel]'" in err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"several processes need packages .*sparsewm\[parallel\]"):
        connect("cpu")
    with pytest.raises(UserError, match="`device` cuda:1 cannot be shared by several processes: give cuda"):
        connect("cuda:1")


@pytest.mark.slow
def test_the_page(page: Path, together: tuple[Path, list[dict[str, Any]]]) -> None:
    """Its program alone, and in two processes."""
    one, two = (
        json.loads((folder / "runs/several/metrics.json").read_text())["metrics"]
        for folder in (page, together[0])
    )
    assert one[-1]["step"] == two[-1]["step"] == 6
    assert one[-1]["train"] == pytest.approx(two[-1]["train"], rel=1e-2)
