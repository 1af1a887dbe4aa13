"""Training: the loss falls, a killed run continues bit for bit, and what cannot go on says why."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsewm.errors import UserError
from sparsewm.model import load
from sparsewm.training import trainer as trainer_module
from sparsewm.training.config import DecoderTrainConfig, DistanceTrainConfig, ModelConfig, OptimConfig
from sparsewm.training.draws import rollout_length
from sparsewm.training.optim import MasterAdamW, MasterMuon, orthogonalized
from sparsewm.training.trainer import STATE_FILE, Trainer, validate
from tests.data.tiny import write_dataset
from tests.model.tiny import tiny_encoder
from tests.training.tiny import make_trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d.h5", [14] * 20, resolution=56)


def weights(trainer: Trainer) -> list[Tensor]:
    """Everything that training changes: live weights, masters, average, moments."""
    live = [p.detach() for p in trainer.model.predictor.parameters()]
    optimizer = trainer.optimizer
    adaptive = [state for master in optimizer.masters if (state := optimizer.adamw.state.get(master))]
    moments = [state[name] for state in adaptive for name in ("step", "exp_avg", "exp_avg_sq")]
    assert len(adaptive) + len(optimizer.momenta) == len(optimizer.masters)
    return [t.clone() for t in (*live, *optimizer.masters, *trainer.average, *moments, *optimizer.momenta)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_loss_falls_and_beats_copying_the_last_frame(data: Path, tmp_path: Path, groups: int) -> None:
    """Grouped, and ungrouped: the ablation."""
    trainer = make_trainer(
        data,
        tmp_path,
        torch.float32,
        groups=groups,
        trained_groups=groups,
        steps=120,
        batch=16,
        lr=3e-3,
        warmup=10,
        horizon=1,
        full_every=0,
        ema=0.9,
        validate_every=120,
        checkpoint_every=120,
    )
    losses: list[float] = []
    trainer.run(lambda _, values: losses.append(values["loss"]))
    assert len(losses) == 120
    assert np.mean(losses[-15:]) < 0.6 * np.mean(losses[:5])
    (entry,) = trainer.metrics
    assert entry["step"] == 120
    for drop in ("drop_0", "drop_0.5"):
        assert entry["validation"][drop]["ratio"] < 0.85
        assert entry["validation"][drop]["proprio_ratio"][0] < 0.5
    model = load(tmp_path / "checkpoint", encoder=tiny_encoder())
    assert model.metadata["training"]["step"] == 120
    assert model.metadata["validation"] == entry["validation"]


def test_ungrouped_training_sees_all_patches_together(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[int]] = {}

    def watch(trainer: Trainer, name: int) -> None:
        loss = trainer.model.loss

        def record(batch: dict[str, Tensor], real: int, groups: list[Tensor]) -> dict[str, Tensor]:
            seen.setdefault(name, []).append(sum(group.shape[1] for group in groups))
            return loss(batch, real, groups)

        monkeypatch.setattr(trainer.model, "loss", record)

    for groups in (1, 2):
        trainer = make_trainer(data, tmp_path / str(groups), groups=groups, trained_groups=1, full_every=4)
        watch(trainer, groups)
        for step in range(8):
            trainer.losses(step)
    assert seen[1] == [16] * 8
    assert [step for step, patches in enumerate(seen[2]) if patches == 16] == [
        0,
        4,
    ]  # every fourth step is whole
    assert all(3 <= patches <= 13 for step, patches in enumerate(seen[2]) if step % 4)


def test_loss_of_a_step_is_a_function_of_the_step(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path, torch.float32)
    first = trainer.losses(3)["loss"]
    other = trainer.losses(4)["loss"]
    assert torch.equal(trainer.losses(3)["loss"], first) and not torch.equal(first, other)
    assert not torch.equal(make_trainer(data, tmp_path, torch.float32, seed=1).losses(3)["loss"], first)


@pytest.mark.slow
def test_killed_run_continues_bit_for_bit(data: Path, tmp_path: Path) -> None:
    whole = make_trainer(data, tmp_path / "whole")
    whole.run()

    command = [sys.executable, "-m", "tests.training.tiny", str(data), str(tmp_path / "killed"), "7"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment)
    assert done.returncode == -signal.SIGKILL

    resumed = make_trainer(data, tmp_path / "killed")
    assert resumed.resume() and resumed.step == 4  # the last checkpoint before step 7
    steps: list[int] = []
    resumed.run(lambda trainer, _: steps.append(trainer.step))
    assert steps == list(range(5, 13))
    assert same(weights(resumed), weights(whole))
    for part in ("model.safetensors", "config.yaml"):
        a, b = (tmp_path / run / "checkpoint" / part for run in ("whole", "killed"))
        assert a.read_bytes() == b.read_bytes()
    assert [(m["step"], m["train"], m["validation"]) for m in resumed.metrics] == [
        (m["step"], m["train"], m["validation"]) for m in whole.metrics
    ]
    assert [m["step"] for m in whole.metrics] == [5, 10, 12]


@pytest.mark.usefixtures("ctrl_c")
def test_a_run_that_is_asked_to_stop_keeps_its_last_step(data: Path, tmp_path: Path) -> None:
    """Ctrl-C waits for the step, and for its state."""
    whole = make_trainer(data, tmp_path / "whole", torch.float32)
    whole.run()

    def ask(trainer: Trainer, values: dict[str, float]) -> None:
        if trainer.step == 6:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(data, tmp_path / "asked", torch.float32).run(ask)
    resumed = make_trainer(data, tmp_path / "asked", torch.float32)
    assert resumed.resume() and resumed.step == 6
    resumed.run()
    assert same(weights(resumed), weights(whole))
    assert [m["validation"] for m in resumed.metrics] == [m["validation"] for m in whole.metrics]


def test_stopped_run_continues_bit_for_bit(data: Path, tmp_path: Path) -> None:
    """Stopping between two checkpoints costs the steps since the last one and changes nothing."""
    whole = make_trainer(data, tmp_path / "whole", torch.float32)
    whole.run()
    make_trainer(data, tmp_path / "parts", torch.float32).run(until=6)
    killed = tmp_path / "parts" / ".training_state-0abcdefg"  # while saving
    killed.mkdir()
    (killed / ".tmp123456").write_bytes(b"half a state")
    resumed = make_trainer(data, tmp_path / "parts", torch.float32)
    assert resumed.resume() and resumed.step == 4
    resumed.run()
    assert same(weights(resumed), weights(whole))
    left = {path.name for path in (tmp_path / "parts").iterdir()}
    assert left == {"checkpoint", "metrics.json", STATE_FILE}


@pytest.mark.parametrize("part", ["save", "write_json", "write_state"])
def test_a_run_that_ends_while_it_saves_for_the_last_time(
    part: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished state beside an older checkpoint would leave nothing to do, and the wrong weights."""
    make_trainer(data, tmp_path / "whole", torch.float32).run()
    ended = make_trainer(data, tmp_path / "ended", torch.float32)
    write: Callable[..., None] = getattr(trainer_module, part)

    def until_the_last(*arguments: Any) -> None:
        if ended.step == 12:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module, part, until_the_last)
        ended.run()
    resumed = make_trainer(data, tmp_path / "ended", torch.float32)
    assert resumed.resume()
    resumed.run()
    weights_of = [tmp_path / run / "checkpoint" / "model.safetensors" for run in ("whole", "ended")]
    assert weights_of[0].read_bytes() == weights_of[1].read_bytes()
    said = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("whole", "ended")]
    assert [one["training"]["step"] for one in said] == [12, 12]
    assert [len(one["metrics"]) for one in said] == [3, 3]


def test_finished_run_has_nothing_left_to_do(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, steps=4).run()
    again = make_trainer(data, tmp_path, steps=4)
    before = (tmp_path / STATE_FILE).read_bytes()
    assert again.resume()
    again.run(lambda *_: pytest.fail("trained beyond the last step"))
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_nothing_to_resume(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path)
    assert trainer.resume() is False and trainer.step == 0


def test_resume_with_other_settings(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, steps=4).run()
    with pytest.raises(
        UserError, match=r"other settings \(batch, lr\): give the same to resume it, or another"
    ):
        make_trainer(data, tmp_path, steps=4, batch=5, lr=1e-4).resume()


def test_resume_with_another_model(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, steps=4).run()
    with pytest.raises(
        UserError, match=r"a run with other model: give the same to resume it, or another `output`"
    ):
        make_trainer(data, tmp_path, steps=4, history=3).resume()


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_resume_from_a_truncated_state(data: Path, tmp_path: Path, kept: float) -> None:
    make_trainer(data, tmp_path, steps=4).run()
    content = (tmp_path / STATE_FILE).read_bytes()
    (tmp_path / STATE_FILE).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"is damaged .*: delete it to start this run anew"):
        make_trainer(data, tmp_path, steps=4).resume()


def test_a_flipped_bit_of_a_state_is_noticed(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, steps=4).run()
    content = bytearray((tmp_path / STATE_FILE).read_bytes())
    content[-100] ^= 1
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged \(its checksum is another"):
        make_trainer(data, tmp_path, steps=4).resume()
    (tmp_path / STATE_FILE).unlink()
    (tmp_path / STATE_FILE).mkdir()
    with pytest.raises(UserError, match=r"is damaged .*: delete it"):
        make_trainer(data, tmp_path, steps=4).resume()


def test_diverged_training_says_so_and_keeps_the_last_checkpoint(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path, torch.float32)
    trainer.run(until=4)
    before = (tmp_path / STATE_FILE).read_bytes()
    with torch.no_grad():
        trainer.optimizer.masters[0].fill_(1e38)
        trainer.model.predictor.embed_tokens.weight.fill_(1e38)
    with pytest.raises(
        UserError, match=r"training diverged at step 4 \(loss (nan|inf), .*\): train anew with a lower `lr`"
    ):
        trainer.run()
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert load(tmp_path / "checkpoint", encoder=tiny_encoder())


def test_full_disk_while_saving_keeps_the_last_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(data, tmp_path)
    trainer.run(until=4)
    before = (tmp_path / STATE_FILE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"disk is full while writing"):
        patch.setattr(os, "fsync", full)
        trainer.run()
    assert (tmp_path / STATE_FILE).read_bytes() == before
    resumed = make_trainer(data, tmp_path)
    assert resumed.resume() and resumed.step == 4


def test_checkpoint_holds_the_average(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path, torch.float32, steps=4)
    trainer.run()
    saved = load(tmp_path / "checkpoint", encoder=tiny_encoder()).predictor.parameters()
    for stored, average in zip(saved, trainer.average, strict=True):
        assert torch.equal(stored, average.bfloat16().float())
    live = trainer.model.predictor.parameters()
    assert all(torch.equal(p, m) for p, m in zip(live, trainer.optimizer.masters, strict=True))
    assert any(not torch.equal(a, m) for a, m in zip(trainer.average, trainer.optimizer.masters, strict=True))


def test_validation_reports_both_drop_ratios_against_copying(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path, torch.float32, horizon=3)
    result = validate(trainer.model, trainer.validation, 3, samples=64)
    assert result.keys() == {"drop_0", "drop_0.5"}
    for values in result.values():
        lists = {"tokens", "tokens_copy", "tokens_ratio", "proprio", "proprio_copy", "proprio_ratio"}
        assert values.keys() == {*lists, "ratio"}
        assert all(len(values[name]) == 3 for name in lists)
        # an untrained predictor changes nothing: it is the copy
        assert values["tokens"] == pytest.approx(values["tokens_copy"]) and values["ratio"] == pytest.approx(
            1
        )
        assert values["tokens_copy"][2] > values["tokens_copy"][0] > 0  # things move on
    assert validate(trainer.model, trainer.validation, 3, samples=64) == result


def test_metrics_file(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path)
    trainer.run()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["metrics"] == trainer.metrics and metrics["training"]["step"] == 12
    assert metrics["training"]["batch"] == 4
    for entry in metrics["metrics"]:
        assert entry.keys() == {"step", "seconds", "train", "validation"}
        assert entry["train"].keys() == {"loss", "tokens", "proprio"}


def test_rollouts_grow_during_training() -> None:
    config = OptimConfig(steps=100, horizon=5, ramp=0.5)
    lengths = [rollout_length(config, step) for step in range(100)]
    assert lengths[0] == 1 and lengths[50:] == [5] * 50 and lengths == sorted(lengths)
    assert [lengths.index(length) for length in range(1, 6)] == [0, 10, 20, 30, 40]
    assert rollout_length(OptimConfig(steps=100, horizon=5, ramp=0), 0) == 5


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("horizon", 0),
        ("groups", 0),
        ("checkpoint_every", 0),
        ("lr", 0.0),
        ("lr", math.nan),
    ],
)
def test_impossible_settings(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{setting}` must be .*, got {value:g}"):
        OptimConfig(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        (DistanceTrainConfig, "lr", -1.0),
        (DistanceTrainConfig, "lr", math.nan),
        (DistanceTrainConfig, "ema", 7.0),
        (DistanceTrainConfig, "smallest", 0),
        (DistanceTrainConfig, "penalty", math.inf),
        (DecoderTrainConfig, "lr", 0.0),
        (DecoderTrainConfig, "weight_decay", -0.1),
        (DecoderTrainConfig, "noise", math.nan),
        (DecoderTrainConfig, "batch", 0),
        (ModelConfig, "width", 0),
        (ModelConfig, "depth", 0),
        (ModelConfig, "head_dim", 0),
    ],
)
def test_impossible_settings_of_heads_and_sizes(settings: type, name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"`[a-z.]*{name}` must be .*, got {value:g}"):
        settings(**{name: value})


def test_sizes_that_do_not_fit_together() -> None:
    with pytest.raises(UserError, match="width 30 must be a multiple of 4"):
        ModelConfig(width=30)


def test_more_groups_than_patches(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"6 groups of at least 3 patches do not fit into 16 patches: lower `groups`"
    ):
        make_trainer(data, tmp_path, groups=6)


def test_optimizer_takes_the_steps_of_adamw() -> None:
    """In float32, masters are the parameters: the result is torch's AdamW, same schedule and clipping."""
    torch.manual_seed(0)
    module, twin = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    twin.load_state_dict(module.state_dict())
    ours = MasterAdamW(module, lr=0.1, steps=20, warmup=4, weight_decay=0.1, clip=0.5)
    groups = [{"params": [twin.weight], "weight_decay": 0.1}, {"params": [twin.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.98))
    inputs = torch.randn(20, 8, 4)
    for step in range(20):
        for network in (module, twin):
            network.zero_grad()
            network(inputs[step]).square().sum().backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        for group in reference.param_groups:
            group["lr"] = ours.learning_rate(step)
        reference.step()
        assert ours.step(step) == pytest.approx(float(expected_norm), rel=1e-5)
    torch.testing.assert_close(module.weight, twin.weight)
    torch.testing.assert_close(module.bias, twin.bias)


def test_bfloat16_weights_follow_masters_that_keep_small_updates() -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 4).bfloat16()
    optimizer = MasterAdamW(module, lr=1e-5, steps=200, warmup=1, weight_decay=0.0, final_lr_ratio=1.0)
    start = [master.clone() for master in optimizer.masters]
    for step in range(200):
        optimizer.zero_grad()
        module(torch.ones(1, 4).bfloat16()).sum().backward()
        optimizer.step(step)
    for master, live, before in zip(optimizer.masters, optimizer.live, start, strict=True):
        torch.testing.assert_close(before - master, torch.full_like(master, 2e-3), rtol=0.02, atol=0)
        assert torch.equal(live, master.bfloat16())


def test_learning_rate_warms_up_and_follows_a_cosine() -> None:
    optimizer = MasterAdamW(torch.nn.Linear(1, 1), lr=1.0, steps=110, warmup=10, final_lr_ratio=0.1)
    rates = [optimizer.learning_rate(step) for step in range(120)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1
    assert rates[60] == pytest.approx(0.55) and rates[110] == rates[119] == pytest.approx(0.1)
    assert rates[10:110] == sorted(rates[10:110], reverse=True)


@pytest.mark.parametrize("shape", [(4, 24, 24), (2, 24, 96), (2, 96, 24)])
def test_orthogonalized_matrices_keep_their_directions_at_one_size(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-4, 1.0, 5.0, 1e4])[: shape[0], None, None]
    found = orthogonalized(matrices).float()
    assert found.shape == shape
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    sizes = (u.mT @ found @ v.mT).diagonal(dim1=1, dim2=2)
    assert sizes[:, : shape[1] // 2].min() > 0.5 and sizes.max() < 1.4
    assert torch.linalg.matrix_norm(found - u @ (sizes[..., None] * v)).max() < 0.7  # of about 5


def test_muon_moves_each_stacked_matrix_by_its_own_direction() -> None:
    """One step from rest: the nearest orthogonal matrix to the gradient, 0.2 on average, times the rate."""
    torch.manual_seed(0)
    module = torch.nn.Linear(8, 16)
    before = module.weight.detach().clone()
    optimizer = MasterMuon(
        module, lr=0.1, steps=9, warmup=1, weight_decay=0.5, clip=1e9, hidden={"weight": 2}, muon=2.0
    )
    gradient = torch.randn(16, 8)
    module.weight.grad, module.bias.grad = gradient, torch.ones(16)
    optimizer.step(0)
    directions = torch.cat([orthogonalized(part[None])[0] for part in gradient.chunk(2)]).float()
    expected = before * (1 - 0.2 * 0.5) - 0.2 * 0.2 * 8**0.5 * directions
    torch.testing.assert_close(module.weight.detach(), expected, rtol=0, atol=8e-3)  # of 0.1
    update = (module.weight.detach() - before * 0.9) / 0.2
    assert 0.14 < float(update.square().mean().sqrt()) < 0.26
    assert len(optimizer.adamw.param_groups[0]["params"]) == 0  # only the bias is left to AdamW


def test_without_muon_adamw_moves_all(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path, muon=0.0)
    optimizer, weight = trainer.optimizer, trainer.model.predictor.get_parameter("blocks.0.up.weight")
    before = weight.detach().clone()
    trainer.run(until=4)
    assert not torch.equal(weight, before)
    assert sum(len(group["params"]) for group in optimizer.adamw.param_groups) == len(optimizer.masters)


def test_windows_loaded_ahead_change_nothing(data: Path, tmp_path: Path) -> None:
    runs = [make_trainer(data, tmp_path / name, torch.float32) for name in ("ahead", "when needed")]
    loaded = list[str]()
    for trainer in runs:
        trainer.load = trainer.batch
        load = trainer.batch

        def watched(step: int, load: Any = load) -> Any:
            loaded.append(threading.current_thread().name)
            return load(step)

        trainer.batch = watched  # type: ignore[method-assign]
    runs[1].train.tokens.ahead = False
    before = threading.active_count()
    runs[0].run()
    assert sum(name.startswith("windows") for name in loaded) == len(loaded) - 1 == 11
    assert threading.active_count() == before
    runs[1].run()
    assert loaded[12:] == [threading.current_thread().name] * 12
    assert same(weights(runs[0]), weights(runs[1]))
    assert [m["validation"] for m in runs[0].metrics] == [m["validation"] for m in runs[1].metrics]


def test_what_goes_wrong_while_loading_ahead_is_raised_at_its_step(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path)
    real = trainer.train.batch

    def batch(windows: np.ndarray, frames: int | None = None) -> dict[str, Tensor]:
        if trainer.step >= 3:
            raise UserError("the disk is gone")
        return real(windows, frames)

    trainer.train.batch = batch  # type: ignore[method-assign]
    before = threading.active_count()
    with pytest.raises(UserError, match="the disk is gone"):
        trainer.run()
    assert trainer.step >= 3 and threading.active_count() == before
