"""A policy is whole, normalised as it was trained, and a folder is never completed from the hub."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from sparsewm import load_pretrained
from sparsewm.agent import interface_of
from sparsewm.errors import UserError
from sparsewm.proposals import check_proposals, load_sampler, shipped_vlas
from sparsewm.proposals.lerobot import LeRobotProposals
from sparsewm.proposals.loading import load_policy
from tests.model.fake_hub import reset
from tests.proposals.tiny import tiny_policy

ARM = SimpleNamespace(
    name="an arm", action_low=[-1.0, -1.0], action_high=[1.0, 1.0], proprio_names=("shoulder", "elbow")
)
"""What a world model without an environment class says of itself."""
BEFORE = "policy_preprocessor_step_3_normalizer_processor.safetensors"
AFTER = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("act"), "act")


@pytest.fixture
def folder(act: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(act, tmp_path / "policy"))


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The hub's library would use the network, which fails; where to is noted."""
    asked: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        asked.append(address)
        raise OSError("no network")

    def look_up(host: Any, *_: Any, **__: Any) -> None:
        asked.append(host)
        raise socket.gaierror("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    reset()
    yield asked  # type: ignore[misc]
    monkeypatch.undo()
    reset()


def renamed(folder: Path, file: str, change: Callable[[str], str]) -> None:
    """Other names for what a file of statistics holds."""
    save_file({change(name): value for name, value in load_file(folder / file).items()}, folder / file)


def changed(folder: Path, file: str, change: Callable[[Any], Any]) -> None:
    """Other content for what a file of statistics holds."""
    save_file({name: change(value) for name, value in load_file(folder / file).items()}, folder / file)


def step_config(folder: Path, which: str, step: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A processor's file, its content, and the configuration of a step in it."""
    file = folder / f"policy_{which}processor.json"
    content = json.loads(file.read_text())
    (entry,) = (entry for entry in content["steps"] if entry["registry_name"] == step)
    return file, content, entry["config"]


def test_a_policy_needs_no_environment_class(folder: Path) -> None:
    sampler = LeRobotProposals(folder, ARM)
    pixels, proprio = np.zeros((1, 48, 48, 3), np.uint8), np.full((1, 2), 30, np.float32)
    seen = {"pixels": pixels, "proprio": proprio}
    actions = sampler.propose(seen, seen, "go", 3, 10)
    assert actions.shape == (1, 3, 10, 2) and actions.abs().max() <= 1
    with pytest.raises(UserError, match="an arm has no proprioception 'wrist': known are shoulder, elbow"):
        names = folder / "names.yaml"
        names.write_text("state: [shoulder, wrist]")
        LeRobotProposals(folder, ARM, names=names)


def test_a_policy_is_described_by_all_its_files(folder: Path) -> None:
    """Its processors and their statistics are as much of it as its weights."""
    before = check_proposals(str(folder), "wall")["policy"]
    assert before == check_proposals(str(folder), "wall")["policy"]
    state = sorted(folder.glob("*.safetensors"))
    for path in [folder / "config.json", folder / "policy_preprocessor.json", *state]:
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert check_proposals(str(folder), "wall")["policy"]["files"] != before["files"], path
        path.write_bytes(content)
    assert len(state) > 1 and check_proposals(str(folder), "wall")["policy"] == before


def test_foreign_statistics_are_refused(folder: Path) -> None:
    for file in (BEFORE, AFTER):
        renamed(folder, file, lambda name: name.replace("action.", "so100.buffer.action."))
    with pytest.raises(
        UserError, match=r"statistics of action are not in policy .* \(found .*so100.buffer.action"
    ):
        LeRobotProposals(folder, ARM)
    (folder / "names.yaml").write_text(json.dumps({"statistics": {"actoin": "so100.action"}}))
    with pytest.raises(UserError, match=r"has no feature 'actoin', but observation.* action: say what they"):
        LeRobotProposals(folder, ARM)


@pytest.mark.slow
def test_foreign_statistics_are_mapped_by_names(act: Path, folder: Path) -> None:
    """As in `lerobot/smolvla_base`, whose statistics have a robot's name before theirs."""
    for file in (BEFORE, AFTER):
        renamed(folder, file, lambda name: f"so100.buffer.{name}")
    kept = {name: f"so100.buffer.{name}" for name in ("action", "observation.state")}
    kept |= {
        f"observation.images.{name}": f"so100.buffer.observation.images.{name}" for name in ("camera", "goal")
    }
    (folder / "names.yaml").write_text(json.dumps({"statistics": kept}))
    pixels, proprio = np.zeros((1, 48, 48, 3), np.uint8), np.full((1, 2), 30, np.float32)
    seen = {"pixels": pixels, "proprio": proprio}
    proposed = [LeRobotProposals(place, ARM).propose(seen, seen, "go", 2, 10) for place in (act, folder)]
    assert torch.equal(*proposed)
    (folder / "names.yaml").write_text(json.dumps({"statistics": kept | {"action": "so101.action"}}))
    with pytest.raises(
        UserError, match=r"statistics so101.action are not in policy .* \(found .*so100.buffer"
    ):
        LeRobotProposals(folder, ARM)
    (folder / "names.yaml").write_text("statistics: [action]")
    with pytest.raises(UserError, match=r"statistics of names .* must be names by feature"):
        LeRobotProposals(folder, ARM)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (AFTER, lambda name: name.replace("action.", "actions."), "statistics of action are not .* actions,"),
        (BEFORE, lambda name: name.replace("state", "pose"), "statistics of observation.state are not"),
        (BEFORE, lambda name: name.replace("images.goal", "images.top"), "statistics of .*images.goal are"),
        (AFTER, lambda name: name.replace("std", "deviation"), "the std of action is not .* deviation"),
    ],
)
def test_statistics_that_do_not_match_the_features(
    file: str, change: Callable[[str], str], message: str, folder: Path
) -> None:
    renamed(folder, file, change)
    with pytest.raises(UserError, match=message):
        LeRobotProposals(folder, ARM)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: torch.cat([value] * 3), r"mean of action in policy .* has shape \(6,\), not \(2,\)"),
        (lambda value: value[:1], r"mean of action in policy .* has shape \(1,\), not \(2,\)"),
        (lambda value: value * float("nan"), "mean of action in policy .* numbers that are not finite"),
    ],
)
def test_statistics_of_another_shape(change: Callable[[Any], Any], message: str, folder: Path) -> None:
    changed(folder, AFTER, lambda value: change(value).contiguous())
    with pytest.raises(UserError, match=message):
        LeRobotProposals(folder, ARM)


def test_a_single_number_has_statistics_of_one(tmp_path: Path) -> None:
    from lerobot.configs.types import FeatureType, PolicyFeature

    features = {"action": PolicyFeature(FeatureType.ACTION, (1,))}
    folder = tiny_policy(tmp_path, "act", output_features=features)
    changed(folder, AFTER, lambda value: value[:1].clone())
    arm = SimpleNamespace(**vars(ARM) | {"action_low": [-1.0], "action_high": [1.0]})
    LeRobotProposals(folder, arm)


def test_quantiles_need_quantiles(tmp_path: Path) -> None:
    modes = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "QUANTILES")
    from lerobot.configs.types import NormalizationMode

    mapping = {name: NormalizationMode(mode) for name, mode in modes.items()}
    folder = tiny_policy(tmp_path, "act", normalization_mapping=mapping)
    with pytest.raises(UserError, match=r"the q01 of observation.* is not in policy .* \(found "):
        LeRobotProposals(folder, ARM)


def test_processors_that_do_not_normalise_are_refused(folder: Path) -> None:
    """The policy's configuration says how it was trained; processors of another one would pass all on."""
    file, content, config = step_config(folder, "post", "unnormalizer_processor")
    config["norm_map"]["ACTION"] = "IDENTITY"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"action of policy .* is normalised by MEAN_STD, but by IDENTITY"):
        LeRobotProposals(folder, ARM)
    content["steps"] = [step for step in content["steps"] if "normalizer" not in step["registry_name"]]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"action of policy .* is normalised by MEAN_STD, but by IDENTITY"):
        LeRobotProposals(folder, ARM)


def test_a_feature_that_its_preprocessor_does_not_know(folder: Path) -> None:
    file, content, config = step_config(folder, "pre", "normalizer_processor")
    del config["features"]["observation.state"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"observation.state of policy .* but by IDENTITY in its"):
        LeRobotProposals(folder, ARM)


def test_cameras_that_are_left_out_need_no_statistics(tmp_path: Path) -> None:
    folder = tiny_policy(tmp_path, "act", cameras=("camera", "goal", "left"))
    (folder / "names.yaml").write_text(
        "cameras: {observation.images.camera: pixels, observation.images.goal: goal,"
        " observation.images.left: null}"
    )
    LeRobotProposals(folder, ARM)


@pytest.mark.parametrize("file", [BEFORE, AFTER])
def test_a_folder_without_its_statistics_asks_nobody(
    file: str, folder: Path, connected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / file).unlink()
    monkeypatch.chdir(folder.parent.parent)
    for path in (folder, f"{folder.parent.name}/{folder.name}"):
        with pytest.raises(UserError, match=f"is no LeRobot policy, {file} is missing"):
            load_sampler(str(path), ARM, torch.device("cpu"))
    assert not connected


def test_a_state_file_outside_the_folder_is_refused(folder: Path) -> None:
    file = folder / "policy_postprocessor.json"
    (folder.parent / AFTER).write_bytes((folder / AFTER).read_bytes())
    file.write_text(file.read_text().replace(AFTER, f"../{AFTER}"))
    with pytest.raises(UserError, match=f"is no LeRobot policy, ../{AFTER} is missing"):
        LeRobotProposals(folder, ARM)


@pytest.mark.slow
def test_a_whole_folder_asks_nobody(tmp_path: Path, connected: list[Any]) -> None:
    """Not even for the weights that training began with."""
    weights = "ResNet18_Weights.IMAGENET1K_V1"
    folder = tiny_policy(tmp_path / "act", "act")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_backbone_weights": weights}))
    load_policy(str(folder), torch.device("cpu"))
    load_policy(str(tiny_policy(tmp_path / "vla", "smolvla", load_vlm_weights=False)), torch.device("cpu"))
    assert not connected
    assert not constants.HF_HUB_OFFLINE  # it may be asked again


def test_a_backbone_that_is_nowhere_is_named(tmp_path: Path, connected: list[Any]) -> None:
    folder = tiny_policy(tmp_path, "smolvla")
    shutil.rmtree(folder / "backbone")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vlm_model_name": "someone/a-backbone"}))
    with pytest.raises(UserError, match=r"needs the backbone someone/a-backbone, .*download someone/a-back"):
        LeRobotProposals(folder, ARM)
    assert not connected


def test_weights_that_are_missing_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "action_head" not in name}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"damaged .* weights are missing: model.action_head"):
        LeRobotProposals(folder, ARM)


def test_without_network_a_hub_name_fails_at_once(connected: list[Any]) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="policy someone/a-policy is not to be had from the hub"):
        load_sampler("someone/a-policy", ARM, torch.device("cpu"))
    assert connected and time.monotonic() - started < 10


def in_the_cache(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy as the hub's library keeps someone/a-policy."""
    place, revision = cache / "models--someone--a-policy", "a" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    shutil.copytree(folder, place / "snapshots" / revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def test_a_policy_in_the_hubs_cache_is_as_its_folder(
    folder: Path, tmp_path: Path, connected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own file of names."""
    (folder / "names.yaml").write_text("scale: 0.5")
    in_the_cache(folder, tmp_path / "cache", monkeypatch)
    sampler = load_sampler("hf:someone/a-policy", ARM, torch.device("cpu"))
    assert isinstance(sampler, LeRobotProposals) and sampler.names.scale == 0.5
    (folder / "names.yaml").write_text("scale: 2.0")
    assert LeRobotProposals("someone/a-policy", ARM, names=folder / "names.yaml").names.scale == 2


def test_a_smolvla_in_the_hubs_cache_brings_its_backbone(
    tmp_path: Path, connected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_policy(tmp_path / "vla", "smolvla")
    config = json.loads((folder / "config.json").read_text()) | {"vlm_model_name": "backbone"}
    (folder / "config.json").write_text(json.dumps(config))
    in_the_cache(folder, tmp_path / "cache", monkeypatch)
    shutil.rmtree(folder)
    LeRobotProposals("someone/a-policy", ARM)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("policies/misspelt", "no folder policies/misspelt. .* or hf:policies/misspelt for the hub"),
        ("policies/pushed", "no folder policies/pushed. Did you mean 'pusht'?"),
        ("./policies/pushed", "no folder ./policies/pushed. Did you mean 'pusht'?"),
        ("nowhere/deep/down", "no folder nowhere/deep/down"),
        ("policies/pusht/config.json", "policies/pusht/config.json is a file: give the folder"),
        ("vlaa", "unknown proposals 'vlaa'. Did you mean 'vla'?"),
    ],
)
def test_names_that_mean_no_policy_fail_at_once(
    name: str, message: str, tmp_path: Path, connected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policies" / "pusht").mkdir(parents=True)
    (tmp_path / "policies" / "pusht" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_sampler(name, ARM, torch.device("cpu"))
    assert not connected


@pytest.mark.slow
def test_shipped_policies_are_whole() -> None:
    assert {"pusht", "metaworld/mt10"} <= set(shipped_vlas())
    for name in shipped_vlas():
        interface = interface_of(load_pretrained(name))
        sampler = load_sampler("vla", interface, torch.device("cpu"))
        sizes = len(interface.proprio_names), len(interface.action_low)
        seen = {
            "pixels": np.zeros((1, 112, 112, 3), np.uint8),
            "proprio": np.zeros((1, sizes[0]), np.float32),
        }
        assert sampler.propose(seen, seen, "push", 2, 25).shape == (1, 2, 25, sizes[1])


def test_a_policy_that_only_looks_is_told_no_state(tmp_path: Path) -> None:
    from lerobot.configs.types import FeatureType, PolicyFeature

    cameras = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 32, 32))
        for name in ("camera", "goal")
    }
    folder = tiny_policy(tmp_path, "act", input_features=cameras)
    (folder / "names.yaml").write_text("state: []")
    seen = {"pixels": np.zeros((1, 48, 48, 3), np.uint8), "proprio": np.zeros((1, 2), np.float32)}
    assert LeRobotProposals(folder, ARM).propose(seen, seen, "go", 3, 10).shape == (1, 3, 10, 2)
