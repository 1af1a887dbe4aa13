"""`sparsewm train`: with and without an environment, killed, resumed, its settings, and what it says."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from sparsewm.cli.train import Train
from sparsewm.training.config import TrainConfig
from tests.cli.commands import PROGRAM, call, shell, words
from tests.data.tiny import write_dataset

SIZES = "--model.width 24 --model.heads 2 --model.depth 1 --model.mlp 48"
TRAIN = (
    f"train --env wall --dataset wall.h5 --encoder random --steps 8 --batch 4 --horizon 2 {SIZES} "
    "--validate-every 100 --checkpoint-every 2 --distance-steps 3 --decoder-steps 3"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset, wall.h5."""
    folder = tmp_path_factory.mktemp("place of training")
    write_dataset(folder / "wall.h5", [14] * 12)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """A run folder of an uninterrupted training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        code, out, err = call(TRAIN, "--output run")
    assert code == 0, err
    assert "8 steps in" in out and "as a share of copying the last frame" in out
    return place / "run"


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained.parent)
    return trained.parent


def hint(out: str) -> list[str]:
    """The words of the command that training ends with."""
    (line,) = [line for line in out.splitlines() if " with it: sparsewm " in line or "judge it: " in line]
    return shlex.split(line.split(": ", 1)[1])


def test_training_writes_checkpoint_log_and_metrics(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())["metrics"]
    assert metrics[-1]["step"] == 8
    for drop in ("drop_0", "drop_0.5"):
        assert len(metrics[-1]["validation"][drop]["tokens_ratio"]) == 2
    metadata = json.loads((trained / "checkpoint" / "metadata.json").read_text())
    assert metadata["environment"] == "wall" and metadata["encoder"]["name"] == "random"
    assert metadata["dataset"]["episodes"] == 12 and metadata["interface"]["frameskip"] == 2
    assert metadata["interface"]["action_low"] == [-1, -1], "the environment's, where the data declare none"
    assert list((trained / "tensorboard").glob("events.*"))
    for picture in ("training.png", "imagination_drop_0.5.png"):
        assert cv2.imread(str(trained / picture)) is not None


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_weights(trained: Path) -> None:
    place, run = trained.parent, trained.parent / "killed"
    tokens = {path: path.stat().st_mtime_ns for path in place.glob("*.tokens-*")}
    assert tokens
    with subprocess.Popen(
        [PROGRAM, *words((TRAIN, "--output killed"))],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        state = run / "training_state.safetensors"
        while process.poll() is None and not state.is_file():
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with safe_open(state, "pt") as file:
        assert 0 < json.loads(file.metadata()["run"])["step"] < 8
    done = shell(place, TRAIN, "--output killed --resume")
    assert done.returncode == 0, done.stderr
    assert "continuing at step" in done.stdout
    for name in ("checkpoint/model.safetensors", "training_state.safetensors"):
        expected, found = load_file(trained / name), load_file(run / name)
        assert expected.keys() == found.keys()
        assert all(expected[key].equal(found[key]) for key in expected), name
    before, after = (
        json.loads((folder / "metrics.json").read_text())["metrics"][-1] for folder in (trained, run)
    )
    assert before["validation"] == after["validation"]
    assert {path: path.stat().st_mtime_ns for path in place.glob("*.tokens-*")} == tokens  # reused


@pytest.mark.slow
def test_an_interrupted_training_says_how_it_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sparsewm.training.run.plot_training", interrupt)
        code, _, err = call(TRAIN, "--output stopped")
    assert code == 130 and "the same command with --resume" in " ".join(err.split())
    code, _, err = call(TRAIN, "--output stopped")
    assert code == 2 and "--resume" in err and "another --output" in err
    code, out, err = call(TRAIN, "--output stopped --resume")
    assert code == 0 and "continuing at step 8 of 8" in out, err


def test_resume_refuses_other_settings_in_flags(here: Path) -> None:
    code, _, err = call(TRAIN, "--batch 5 --output run --resume")
    said = " ".join(err.split())
    assert code == 2 and "settings (batch)" in said and "another --output" in said


def test_a_finished_run_is_not_trained_over(here: Path) -> None:
    before = (here / "run" / "checkpoint" / "model.safetensors").read_bytes()
    code, _, err = call(TRAIN, "--output run")
    assert code == 2 and "--resume" in err and "another --output" in err
    assert (here / "run" / "checkpoint" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint(here: Path) -> None:
    """Its statistics stay, its weights are where the new run starts, and the card's source says so."""
    more = TRAIN.replace("--steps 8", "--steps 1 --lr 1e-9").replace("--encoder random ", "")
    code, _, err = call(more, "--start run/checkpoint --output more")
    assert code == 0, err
    before, after = (load_file(here / run / "checkpoint/model.safetensors") for run in ("run", "more"))
    kept = [key for key in before if key.startswith(("predictor", "standardizer"))]
    assert kept and all(torch.allclose(before[key], after[key], atol=1e-6) for key in kept)
    metadata = json.loads((here / "more/checkpoint/metadata.json").read_text())
    assert metadata["start"]["training"]["step"] == 8 and metadata["training"]["step"] == 1
    code, _, err = call(more, "--start run/checkpoint --extend run/checkpoint --output no")
    assert code == 2 and "--start and --extend exclude each other" in err and not (here / "no").exists()
    code, _, err = call(more, "--start run/checkpoint --output more --resume")
    assert code == 0, err
    code, _, err = call(more, "--start more/checkpoint --output more --resume")
    assert code == 2 and "other start" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "encoder"), [("--encoder embedded", "embedded"), ("--whitening 0", "random")]
)
def test_training_goes_on_in_other_tokens(flag: str, encoder: str, here: Path) -> None:
    """On another encoder, or measured otherwise: the predictor is translated, the rest of it stays."""
    folder = "translated-to-" + flag.split()[-1]
    more = TRAIN.replace("--steps 8", "--steps 1 --lr 1e-9").replace("--encoder random ", "")
    code, out, err = call(more, "--start run/checkpoint", flag, "--output", folder)
    assert code == 0, err
    assert f"translated to other tokens: {flag.split()[0][2:]}" in out
    before, after = (load_file(here / run / "checkpoint/model.safetensors") for run in ("run", folder))
    assert not torch.equal(before["standardizer.token_map"], after["standardizer.token_map"])
    tokens = ("predictor.embed_tokens.weight", "predictor.token_change.weight", "predictor.token_change.bias")
    for key in [key for key in before if key.startswith("predictor")]:
        assert torch.allclose(before[key], after[key], atol=1e-6) == (key not in tokens), key
    metadata = json.loads((here / folder / "checkpoint/metadata.json").read_text())
    assert metadata["encoder"]["name"] == encoder and metadata["start"]["encoder"]["name"] == "random"


def test_going_on_takes_a_lower_rate_unless_one_is_given() -> None:
    usual = TrainConfig().optim.lr
    assert Train.parse(["--env", "wall", "--start", "run/checkpoint"]).config.optim.lr == usual / 4
    assert Train.parse(["--start", "run/checkpoint", "--lr", "3e-3"]).config.optim.lr == 3e-3


@pytest.mark.slow
def test_what_to_do_next_can_be_copied(here: Path) -> None:
    """Paths are quoted, and what the encoder was loaded from is said again."""
    folder = here / "with blanks" / "run"
    quick = "--steps 1 --batch 2 --decoder-steps 0 --distance-steps 0"
    weights = Path(__file__).parents[2] / "sparsewm/encoders"
    code, out, err = call(TRAIN, quick, "--output", folder)
    assert code == 0, err
    expected = ["sparsewm", "plan", "--env", "wall", "--checkpoint", str(folder / "checkpoint")]
    assert hint(out) == [*expected, "--cost.objective", "mse"], "no distance was trained"
    code, out, err = call(TRAIN.replace("--env wall ", ""), quick, "--output alone")
    assert code == 0, err
    assert hint(out)[:4] == ["sparsewm", "evaluate", "--dataset", "wall.h5"]
    files = sorted(weights.rglob("*.safetensors"))
    if files:
        local = TRAIN.replace("--encoder random", "--encoder embedded")
        code, out, err = call(local, quick, "--output local --encoder-weights", files[0])
        assert code == 0, err
        assert hint(out)[6:8] == ["--encoder-weights", str(files[0])]


def test_settings_come_from_flags_a_file_a_preset_and_the_environment(here: Path) -> None:
    (here / "mine.yaml").write_text("optim: {steps: 7, batch: 3}\nencoder: {resolution: [56, 112]}\n")
    words = shlex.split("--env pusht --preset paper --config mine.yaml --batch 5 --heads.distance.blind 2")
    config = Train.parse(words).config
    assert (config.optim.steps, config.optim.batch, config.optim.horizon) == (7, 5, 3)
    assert config.model.width == 384 and config.encoder.resolution == (56, 112)
    assert config.heads.distance.blind == 2
    code, out, _ = call("train", shlex.join(words), "--show-config")
    assert code == 0
    (here / "shown.yaml").write_text(out)
    assert Train.parse(["--config", "shown.yaml"]).config == config
    assert yaml.safe_load(out)["run"]["seed"] == 0
    (here / "wrong.yaml").write_text("optim: {stepz: 7}\n")
    code, _, err = call("train --dataset wall.h5 --config wrong.yaml")
    assert code == 2 and "Did you mean 'steps'?" in err


def test_help_fits_on_two_screens() -> None:
    code, out, _ = call("train --help")
    lines = out.splitlines()
    assert code == 0 and len(lines) <= 120
    assert any("--dataset FILE --output FOLDER" in line for line in lines[:8]), (
        "what most people need comes first"
    )
    code, out, _ = call("train --help-verbose")
    assert code == 0 and "Random groups the patches are split into" in out
