"""Mistakes on the command line end in one sentence with the remedy, exit code 2, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import tempfile
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import sparsewm
from sparsewm import envs
from sparsewm.data import DatasetWriter
from sparsewm.encoders import load_encoder
from sparsewm.evaluation.actors import interface_of_env
from sparsewm.model import PredictorConfig, WorldModel
from sparsewm.model.distance import DistanceConfig
from tests.cli.commands import call, shell

TRAIN = "train --env wall --encoder random --steps 1 --batch 2 --horizon 1 --distance-steps 0"
PLAN = "plan --env wall"
QUICK = "--candidates 4 --iterations 1 --max-steps 5"


def write_dataset(path: Path, rows: int = 30, episodes: int = 4) -> Path:
    """A small wall dataset of noise."""
    rng = np.random.default_rng(0)
    with DatasetWriter(path, {"environment": "wall", "frameskip": 5}) as writer:
        for _ in range(episodes):
            writer.append(
                {
                    "pixels": rng.integers(0, 255, (rows, 16, 16, 3), dtype=np.uint8),
                    "action": rng.normal(size=(rows, 2)).astype(np.float32),
                    "proprio": rng.normal(size=(rows, 2)).astype(np.float32),
                    "state": rng.normal(size=(rows, 2)),
                }
            )
    return path


@pytest.fixture(scope="module")
def wall_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained checkpoint for wall, on the random encoder."""
    encoder, env = load_encoder("random"), envs.make("wall")
    torch.manual_seed(0)
    sizes = {"width": 24, "depth": 1, "heads": 2, "mlp": 48}
    config = PredictorConfig(
        encoder.dim, encoder.grid, env.proprio_dim, env.action_dim * env.frameskip, **sizes
    )
    distance = DistanceConfig(width=24, heads=2, features=8)
    metadata = {"interface": interface_of_env(env).to_dict()}
    model = WorldModel(encoder, config, "wall", env.frameskip, metadata, distance=distance)
    return sparsewm.save(model, tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture
def checkpoint(wall_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(wall_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset to damage."""
    return write_dataset(tmp_path / "wall.h5")


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[Path, int]:
    """All files below a folder, with their sizes; not what Python writes beside a module."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {path: path.stat().st_size for path in found}


def sentence(err: str) -> str:
    """The one sentence an error consists of; nothing else is printed but a progress bar."""
    assert "Traceback" not in err, err
    *_, last = err.strip().splitlines()
    assert last.startswith("error: ") and err.count("error: ") == 1, err
    return last.removeprefix("error: ")


def refused(*arguments: object) -> str:
    """The sentence a command ends with, after checking that it ends with 2 and leaves no file behind."""
    before = files(Path.cwd())
    code, _, err = call(*arguments)
    assert code == 2, err
    assert files(Path.cwd()) == before
    return sentence(err)


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("plan --env pushd", ["unknown environment 'pushd'", "Did you mean 'pusht'?", "pointmaze"]),
        ("collect --env wal", ["Did you mean 'wall'?"]),
        ("train --env pointmase", ["Did you mean 'pointmaze'?"]),
        ("bench --env ???", ["unknown environment", "pusht, wall, pointmaze"]),
        (f"{PLAN} --planner cen", ["unknown planner 'cen'", "Did you mean 'cem'?", "mppi"]),
        ("plam --env wall", ["unknown command 'plam'", "Did you mean 'plan'?"]),
        (f"{PLAN} --proposals ./nowhere", ["there is no folder ./nowhere"]),
        (f"{TRAIN} --encoder embeded", ["unknown encoder", "Did you mean 'embedded'?"]),
        (f"{TRAIN} --preset papper", ["unknown --preset", "Did you mean 'paper'?"]),
        ("bench --preset defualt", ["unknown --preset", "Did you mean 'default'?"]),
        (f"{PLAN} --run.dtype bfloat", ["unknown --run.dtype", "Did you mean 'bfloat16'?"]),
        (f"{PLAN} --device cuda:77", ["--device cuda:77 does not work", "give cpu"]),
        (f"{PLAN} --device gpu", ["--device gpu does not work", "give cpu"]),
        (f"{PLAN} --planner gd --run.actor oracle", ["give another --planner"]),
    ],
)
def test_unknown_names_get_the_nearest_known_one(arguments: str, parts: list[str]) -> None:
    said = refused(arguments)
    for part in parts:
        assert part in said


# -------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("drop", ["-0.1", "1", "1.5", "nan", "inf"])
def test_drop_outside_its_range(drop: str) -> None:
    for arguments in (f"{PLAN} --drop {drop}", f"bench --env wall --drops 0 {drop}"):
        assert re.search(r"--drops? must be at least 0 and below 1", refused(arguments))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (f"{PLAN} --episodes 0", "--episodes must be at least 1, got 0"),
        (f"{PLAN} --run.batch -1", "--run.batch must be at least 1"),
        (f"{PLAN} --candidates 1", "--candidates must be at least 2"),
        (f"{PLAN} --candidates -5", "--candidates must be at least 2"),
        (f"{PLAN} --search.elites 0", "--search.elites must be at least 2"),
        (f"{PLAN} --search.elites 9 --candidates 8", "--search.elites 9 is more than --candidates 8"),
        (f"{PLAN} --iterations 0", "--iterations must be at least 1"),
        (f"{PLAN} --horizon 0", "--horizon must be at least 1"),
        (f"{PLAN} --search.execute 0", "--search.execute must be at least 1"),
        (f"{PLAN} --max-steps 0", "--max-steps must be at least 1"),
        (f"{PLAN} --cost.proprio-weight -1", "--cost.proprio-weight must be at least 0"),
        (f"{PLAN} --search.deadline-ms 0", "--search.deadline-ms must be at least 1"),
        (
            f"{PLAN} --search.deadline-ms 100 --run.batch 2",
            "--search.deadline-ms is for one episode at a time",
        ),
        (f"{PLAN} --search.deadline-ms 100 --run.actor nothing", "for an actor that plans"),
        (f"{PLAN} --cost.proprio-weight nan", "--cost.proprio-weight must be at least 0, got nan"),
        (f"{PLAN} --cost.proprio-weight inf", "--cost.proprio-weight must be at least 0, got inf"),
        (f"{PLAN} --cost.objective tempral", "unknown objective 'tempral'. Did you mean 'temporal'?"),
        ("collect --env wall --held 1", "--held must be at least 0 and below 1"),
        ("collect --env wall --held nan", "--held must be at least 0 and below 1"),
        (f"{PLAN} --goal.offset 0", "--goal.offset must be at least 1"),
        ("plan --env pusht --goal.offset 61 --max-steps 60", "more than the 60 steps of --max-steps"),
        (f"{PLAN} --seed -1", "--seed must be at least 0"),
        (f"{PLAN} --seed 9000", "--seed must be at least 0 and below 9000, got 9000"),
        (f"{TRAIN} --steps 0", "--steps must be at least 1"),
        (f"{TRAIN} --batch 0", "--batch must be at least 1"),
        (f"{TRAIN} --horizon -2", "--horizon must be at least 1"),
        (f"{TRAIN} --lr 0", "lr must be a number above 0"),
        (f"{TRAIN} --lr nan", "lr must be a number above 0"),
        (f"{TRAIN} --groups 0", "--groups must be at least 1"),
        (f"{TRAIN} --validate-every 0", "--validate-every must be at least 1"),
        (f"{TRAIN} --checkpoint-every -1", "--checkpoint-every must be at least 1"),
        (f"{TRAIN} --seed -3", "--seed must be at least 0"),
        ("bench --candidates 0", "--candidates must be at least 1"),
        ("bench --horizon 0", "--horizon must be at least 1"),
        ("bench --repeats 0", "--repeats must be at least 1"),
        ("bench --seed -1", "--seed must be at least 0"),
        ("bench --batches 1 0", "--batches must be at least 1"),
        ("bench --what encode --batches", "--batches is empty: give at least one"),
        ("bench --drops", "--drops is empty: give at least one"),
        ("evaluate --dataset nowhere.h5 --checkpoint wall --seed -1", "--seed must be at least 0"),
        ("bench --what encode --resolution 1 2 3", "--resolution is a height and a width in pixels"),
        ("collect --env wall --episodes -1", "--episodes must be at least 0"),
        ("collect --env wall --steps -1", "--steps must be at least 0"),
        ("collect --env wall --workers 0", "--workers must be at least 1"),
        ("collect --env wall --resolution 3", "resolution must be a whole number from 16"),
        ("collect --env wall --seed -1", "--seed must be at least 0"),
    ],
)
def test_numbers_out_of_range_name_their_flag(arguments: str, part: str) -> None:
    assert part in refused(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "plane",
        f"{PLAN} --drop half",
        f"{PLAN} --episodes 1.5",
        f"{PLAN} --no-such-flag",
        f"{PLAN} --goal.source x",
    ],
)
def test_what_cannot_be_parsed_ends_with_2_too(arguments: str) -> None:
    code, out, err = call(arguments)
    assert code == 2 and "Traceback" not in err and "sparsewm" in (err or out)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--proposals vla", "no VLA for wall is shipped, there is one for blockpush, metaworld/mt10, p"),
        ("--run.actor policy", "say with --proposals where they come from"),
        ("--proposals vla --run.actor nothing", "--run.actor nothing asks for no proposals"),
        ("--proposals owner/name --proposals.samples 0", "--proposals.samples must be at least 1, got 0"),
    ],
)
def test_proposals_that_make_no_sense(arguments: str, part: str) -> None:
    assert part in refused(PLAN, arguments)


# ------------------------------------------------------------------------------------------- datasets


def edit(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


def drop_column(name: str) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return edit(change)


def replace_column(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def swap(file: h5py.File) -> None:
        values = change(file[name][:])
        del file[name]
        file[name] = values

    return edit(swap)


def set_number(name: str, row: int, value: float) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        file[name][row, 0] = value

    return edit(change)


def set_environment(file: h5py.File) -> None:
    file.attrs["environment"] = "pusht"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (drop_column("pixels"), ["lacks the column 'pixels'", "it has action, ep_len"]),
        (replace_column("pixels", lambda x: x[..., 0]), ["'pixels'", "(rows, height, width, 3)"]),
        (replace_column("pixels", lambda x: x.astype(np.float32)), ["must be uint8", "is float32"]),
        (
            replace_column("action", lambda x: np.repeat(x, 2, 1)),
            ["has 4 numbers a row", "wall has 2"],
        ),
        (replace_column("action", lambda x: x[:-3]), ["117 rows, but the episodes need 120"]),
        (replace_column("ep_offset", lambda x: x + 1), ["ep_offset and ep_len", "do not fit"]),
        (set_number("action", 7, np.nan), ["'action'", "not finite in row 7", "remove those episodes"]),
        (set_number("state", 3, np.inf), ["'state'", "not finite in row 3"]),
        (edit(set_environment), ["recorded in pusht, not wall", "name that environment"]),
        (truncate, ["truncated or no HDF5 file", "collect it again"]),
        (lambda path: path.write_text("not a dataset"), ["truncated or no HDF5 file"]),
        (
            lambda path: write_dataset(path, rows=5),
            ["long enough", "the longest of these 4 has 5", "longer episodes"],
        ),
        (lambda path: write_dataset(path, episodes=1), ["too few to hold some out", "collect more"]),
        (Path.unlink, ["no dataset at", "sparsewm collect"]),
    ],
)
def test_damaged_datasets(dataset: Path, damage: Callable[[Path], Any], parts: list[str]) -> None:
    damage(dataset)
    said = refused(TRAIN, "--dataset", dataset, "--output run")
    assert "wall.h5" in said
    for part in parts:
        assert part in said


# ---------------------------------------------------------------------------------------- checkpoints


def forget_hash(path: Path) -> None:
    file = path / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["encoder"]["hash"] = "0" * 64
    file.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("flags", "damage", "parts"),
    [
        ("--env pusht --max-steps 50", None, ["trained for wall, not pusht", "--env wall"]),
        (
            "--run.encoder dinov2_vits14",
            None,
            ["on encoder random, not dinov2_vits14", "leave --encoder out"],
        ),
        ("", forget_hash, ["differ from those", "--encoder-weights"]),
        ("", lambda path: truncate(path / "model.safetensors"), ["is damaged", "copy it again"]),
        ("", lambda path: truncate(path / "metadata.json"), ["is damaged", "copy it again"]),
        ("", lambda path: (path / "config.yaml").write_text("width: [1"), ["is damaged"]),
        (
            "",
            lambda path: (path / "config.yaml").unlink(),
            ["no checkpoint", "config.yaml is missing"],
        ),
        ("", shutil.rmtree, ["no checkpoint folder", "the folder that `train` wrote"]),
    ],
)
def test_unsuitable_checkpoints(
    checkpoint: Path, flags: str, damage: Callable[[Path], Any] | None, parts: list[str]
) -> None:
    if damage is not None:
        damage(checkpoint)
    said = refused(PLAN, QUICK, "--checkpoint", checkpoint, flags)
    for part in parts:
        assert part in said


def test_bench_refuses_a_checkpoint_of_another_environment(checkpoint: Path) -> None:
    assert "trained for wall, not pusht" in refused("bench --env pusht --checkpoint", checkpoint)


def test_encoder_weights_that_are_none(dataset: Path, tmp_path: Path) -> None:
    arguments = (TRAIN, "--encoder embedded --dataset", dataset, "--encoder-weights")
    assert "give --encoder-weights" in refused(*arguments, tmp_path / "nothing.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights at all")
    assert "not a readable safetensors file" in refused(*arguments, tmp_path / "text.safetensors")


def test_every_command_takes_the_flags_its_errors_name(tmp_path: Path) -> None:
    for command in ("bench --env wall", "plan --env wall"):
        said = refused(command, "--encoder-weights", tmp_path / "nothing", "--output", tmp_path / "runs")
        assert "no encoder weights at" in said and "give --encoder-weights" in said


def test_paths_in_brackets_are_printed_as_they_are() -> None:
    assert "runs/[bold]x" in refused(PLAN, QUICK, "--checkpoint runs/[bold]x")


# -------------------------------------------------------------------------------------------- machine


def test_no_network_for_a_hub_encoder(
    dataset: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("name resolution failed")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    said = refused(TRAIN, "--encoder dinov2_vits14 --dataset", dataset)
    for part in ("cannot download dinov2_vits14", "--hub-repo", "--encoder-weights", "'embedded'"):
        assert part in said


@pytest.mark.slow
def test_no_gl_for_pointmaze(tmp_path: Path) -> None:
    done = shell(
        tmp_path,
        "plan --env pointmaze --run.actor nothing",
        MUJOCO_GL="egl",
        __EGL_VENDOR_LIBRARY_DIRS="/nowhere",  # libglvnd finds no driver
        EGL_PLATFORM="nowhere",
    )
    assert done.returncode == 2, done.stderr
    said = sentence(done.stderr)
    assert "found no OpenGL" in said and "apt-get install" in said
    assert files(tmp_path) == {}


def test_output_is_a_file(checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for output in ("file", "file/inside"):
        for arguments in (
            (PLAN, QUICK, "--checkpoint", checkpoint),
            (TRAIN, "--dataset", dataset),
            ("collect --env wall",),
            ("bench --env wall --checkpoint", checkpoint),
        ):
            assert "is a file or inside one: give a folder" in refused(*arguments, "--output", output)


def test_output_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    said = refused(PLAN, QUICK, "--run.actor nothing --output out")
    assert "cannot write out" in said and "choose another --output" in said


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The system refuses files of more bytes, as it does on a disk that fills up while they are written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def unfinished(folder: Path) -> list[Path]:
    """Temporary files left behind."""
    return [path for path in files(folder) if path.name.startswith(".") or ".tmp" in path.name]


@pytest.mark.parametrize(
    ("size", "said"),
    [(500, "the disk is full while writing"), (1500, "the video"), (12000, "the disk is full while writing")],
)
def test_disk_full_while_planning(size: int, said: str) -> None:
    video = "" if said == "the video" else "--run.no-video"
    with no_file_larger_than(size):
        code, _, err = call(PLAN, "--run.actor nothing --output out", QUICK, video)
    assert code == 2, err
    assert said in sentence(err) and "free some" in sentence(err) and "another --output" in sentence(err)
    assert unfinished(Path()) == []
    assert not list(Path("out").glob("*.mp4")) and not Path("out/plan.png").exists()
    assert Path("out/results.json").exists() == (size == 12000)  # whole, or not there


@pytest.mark.slow
@pytest.mark.parametrize("size", [100_000, 1_500_000])
def test_disk_full_while_training(dataset: Path, size: int) -> None:
    with no_file_larger_than(size):  # the first stops the encoding, the second the checkpoint
        code, _, err = call(TRAIN, "--dataset", dataset, "--output run")
    assert code == 2, err
    assert "the disk is full while writing" in sentence(err)
    assert unfinished(Path()) == []
    assert not Path("run/checkpoint").exists() and not list(Path("run").glob("training_state*"))


def test_the_output_of_collect_is_a_folder() -> None:
    assert "give the folder for wall.h5" in refused("collect --env wall --episodes 2 --output data/wall.h5")
    assert not Path("data").exists()


@pytest.mark.slow
def test_disk_full_while_collecting() -> None:
    with no_file_larger_than(4096):
        code, _, err = call("collect --env wall --episodes 2 --steps 20 --workers 1 --output data")
    assert code == 2, err
    assert "the disk is full while writing" in sentence(err)
    assert not Path("data/wall.h5").exists() and unfinished(Path()) == []


def test_the_disk_fills_when_a_file_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said = refused(PLAN, QUICK, "--run.actor nothing --run.no-video --output out")
    assert "the disk is full while writing out/results.json" in said


def test_an_environment_without_goals_says_how_it_gets_some(tmp_path: Path) -> None:
    """Pictures are drawn by the environment; what it is to reach is a setting."""
    (tmp_path / "aimless.py").write_text(AIMLESS)
    plan = "plan --env aimless:Dot --run.actor random --episodes 1 --max-steps 6 --run.no-video"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        said = refused(plan)
        assert "Dot shows no goal of its own: give --goal.source trajectory" in said
        code, _, err = call(plan, "--goal.source trajectory --goal.offset 4 --output", tmp_path / "out")
    assert code == 0, err


AIMLESS = """
import gymnasium as gym
import numpy as np


class Dot(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1, 1, (2,))
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(10, 20, 2).astype(np.float32)
        return self.place.copy(), {}

    def step(self, action):
        self.place = np.clip(self.place + action, 2, 28).astype(np.float32)
        return self.place.copy(), 0.0, False, False, {}

    def render(self):
        picture = np.zeros((32, 32, 3), np.uint8)
        x, y = self.place.astype(int)
        picture[y - 2 : y + 2, x - 2 : x + 2] = 255
        return picture
"""
