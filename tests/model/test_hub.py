"""World models go to the hub and come back; what is on this machine is never looked for there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

import sparsewm
from sparsewm.cli import main
from sparsewm.errors import UserError
from sparsewm.model import WorldModel, save
from sparsewm.model.checkpoint import checkpoint_hash
from sparsewm.model.hub import checkpoint_folder
from sparsewm.model.publish import model_card
from tests.model.fake_hub import FakeHub, hub_server, reset  # noqa: F401
from tests.model.tiny import tiny_encoder, tiny_model

FILES = ["README.md", "config.yaml", "metadata.json", "model.safetensors"]


def load(path: Any, **options: Any) -> WorldModel:
    return sparsewm.load(path, **({"encoder": tiny_encoder()} | options))


def read(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def said(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_a_model_goes_to_the_hub_and_comes_back(hub: FakeHub) -> None:
    model = tiny_model(seed=3)
    address = sparsewm.push_to_hub(model, "somebody/wall")
    assert address == f"{hub.address}/somebody/wall" and hub.private == {"somebody/wall": False}
    _, files = hub.commits["somebody/wall"]
    assert sorted(files) == FILES
    copy = load("somebody/wall")
    for name, value in model.predictor.state_dict().items():
        assert torch.equal(copy.predictor.state_dict()[name], value.bfloat16().float()), name
    assert copy.metadata["note"] == "tiny"


def test_a_folder_goes_to_the_hub_without_what_is_not_the_model(hub: FakeHub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = save(tiny_model(), run / "checkpoint")
    (folder / "optimizer.pt").write_text("secret")
    (folder / "README.md").write_text("my own words")
    for source in (folder, str(run)):
        sparsewm.push_to_hub(source, "somebody/wall", private=True)
        files = hub.commits["somebody/wall"][-1]
        assert sorted(files) == FILES and files["README.md"] == b"my own words"
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert hub.private == {"somebody/wall": True}
    assert checkpoint_hash("somebody/wall") == checkpoint_hash(run) == checkpoint_hash(folder)


def test_a_card_says_what_the_model_is_and_changes_no_hash(hub: FakeHub, tmp_path: Path) -> None:
    interface = {"picture": [112, 112], "action_names": ["x", "y"], "fps": 10.0, "cameras": []}
    folder = save(tiny_model(), tmp_path / "checkpoint", {"interface": interface, "training": {"steps": 7}})
    before = checkpoint_hash(folder)
    card = model_card(folder, "somebody/wall", license="mit")
    (folder / "README.md").write_text(card)
    assert checkpoint_hash(folder) == before
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head) | {"license": "mit", "library_name": "sparsewm"} == yaml.safe_load(head)
    for part in ("Environment: wall", "Picture: 112, 112", "Action names: x, y", "steps 7", "`embedded`"):
        assert part in text, part
    assert 'sparsewm.load("somebody/wall")' in text and "--checkpoint somebody/wall" in text
    assert "license" not in model_card(folder, "somebody/wall")


def test_a_revision_is_that_revision(hub: FakeHub, tmp_path: Path) -> None:
    first = hub.add("a/b", read(save(tiny_model(seed=1), tmp_path / "one")))
    hub.add("a/b", read(save(tiny_model(seed=2), tmp_path / "two")))
    hashes = {place: checkpoint_hash(place) for place in (f"a/b@{first}", "a/b", "hub:a/b")}
    assert hashes[f"a/b@{first}"] == checkpoint_hash(tmp_path / "one")
    assert hashes["a/b"] == hashes["hub:a/b"] == checkpoint_hash(tmp_path / "two")
    with pytest.raises(UserError) as error:
        load("a/b@v9")
    assert "a/b on the Hugging Face hub has no revision 'v9'" in said(error)


def test_nothing_but_the_model_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    files = read(save(tiny_model(), tmp_path / "one"))
    hub.add("a/b", files | {"modeling.py": b"print('hello')", "weights.pt": b"pickle"})
    folder, downloaded = checkpoint_folder("a/b")
    assert downloaded and {file.name for file in folder.iterdir()} == {*FILES} - {"README.md"}
    assert not [path for path in hub.asked if path.endswith((".py", ".pt"))]


def test_without_a_network_the_cache_is_enough(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("a/b", read(save(tiny_model(), tmp_path / "one")))
    load("a/b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reset()
    hub.asked.clear()
    assert load("a/b").environment == "wall" and not hub.asked
    with pytest.raises(UserError) as error:
        load("a/other")
    assert "no folder a/other here" in said(error) and "HF_HUB_OFFLINE is set" in said(error)


def test_a_hub_that_does_not_answer_is_one_sentence(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for act in (lambda: load("a/b"), lambda: sparsewm.push_to_hub(tiny_model(), "a/b")):
        with pytest.raises(UserError) as error:
            act()
        assert "the Hugging Face hub cannot be asked about a/b" in said(error)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/nothing", "no repository a/nothing on the Hugging Face hub is open to this machine"),
        ("a/gated", "has conditions: accept them on its page"),
        ("a/forbidden", "does not allow that on a/forbidden"),
        ("a/half", "a/half on the Hugging Face hub has no config.yaml"),
        ("hub:one", "'one' is no name on the Hugging Face hub"),
        ("one", "one is no checkpoint folder (it does not exist)"),
        ("runs/deep/one", "runs/deep/one is no checkpoint folder"),
        ("../a/b", "../a/b is no checkpoint folder"),
        ("a--b/..", "is no name on the Hugging Face hub"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(hub: FakeHub, name: str, reason: str) -> None:
    hub.closed = {"a/gated": "GatedRepo", "a/forbidden": ""}
    hub.add("a/half", {"model.safetensors": b""})
    with pytest.raises(UserError) as error:
        load(name)
    assert reason in said(error)


def test_what_exists_here_is_never_completed_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    files = read(save(tiny_model(), tmp_path / "whole"))
    for name in ("a/b", "runs/typo"):
        hub.add(name, files)
    half = save(tiny_model(), tmp_path / "a" / "b")
    (half / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"a/b is no checkpoint folder \(config.yaml is missing\)"):
        load("a/b")
    save(tiny_model(), tmp_path / "runs" / "type" / "checkpoint")
    with pytest.raises(
        UserError, match=r"there is no folder runs/typo, .*Did you mean 'type'\?.*hub:runs/typo"
    ):
        load(Path("runs/typo"))
    assert not hub.asked
    assert load("runs/type").environment == "wall"  # a run holds its checkpoint
    assert load("hub:runs/typo").environment == "wall" and hub.asked


def test_a_repository_chooses_no_code(hub: FakeHub, tmp_path: Path) -> None:
    files = read(save(tiny_model(), tmp_path / "one"))
    metadata = json.loads(files["metadata.json"])
    metadata["encoder"]["name"] = "antigravity:fly"
    hub.add("a/b", files | {"metadata.json": json.dumps(metadata).encode()})
    with pytest.raises(UserError, match="antigravity:fly, code that nothing from the hub may choose"):
        sparsewm.load("a/b")


def test_publishing_needs_a_login_and_a_checkpoint(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tiny_model(), tmp_path / "one")
    with pytest.raises(SystemExit) as code:
        main(["push", str(folder), "somebody/wall", "--license", "mit"])
    assert code.value.code == 0 and f"{hub.address}/somebody/wall" in capsys.readouterr().out
    assert b"license: mit" in hub.commits["somebody/wall"][1]["README.md"]
    for arguments in (["nowhere", "a/b"], [str(folder), "b"], [str(folder), "a/b@main"]):
        with pytest.raises(SystemExit) as code:
            main(["push", *arguments])
        assert code.value.code == 2
        assert "error: " in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="log in with `hf auth login`"):
        sparsewm.push_to_hub(folder, "a/b")
    assert list(hub.commits) == ["somebody/wall"]


@pytest.mark.slow
def test_plan_takes_a_world_model_of_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    """As any other command: what a checkpoint is called goes through `load`."""
    sparsewm.push_to_hub(sparsewm.load_pretrained("wall"), "somebody/wall")
    small = ["--candidates", "4", "--iterations", "1", "--max-steps", "5", "--run.no-video"]
    with pytest.raises(SystemExit) as code:
        main(
            [
                "plan",
                "--env",
                "wall",
                "--checkpoint",
                "somebody/wall",
                *small,
                "--output",
                str(tmp_path / "plan"),
            ]
        )
    assert code.value.code == 0
    results = json.loads((tmp_path / "plan" / "results.json").read_text())
    assert "somebody/wall" in json.dumps(results)
