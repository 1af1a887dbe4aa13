"""The script that makes the shipped policies: data, backbone, LeRobot's training, and a folder that plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from scripts import train_vla
from scripts.lab.backbone import BackboneSizes
from scripts.lab.states import observations
from sparsewm import envs
from sparsewm.data import collect
from sparsewm.errors import UserError
from sparsewm.evaluation.oracle import demonstration_steps, demonstrator
from sparsewm.proposals.lerobot import LeRobotProposals


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations of Wall."""
    path = tmp_path_factory.mktemp("data") / "wall-expert.h5"
    env = envs.make("wall")
    return collect("wall", 3, path, demonstration_steps(env), 1, resolution=32, expert=demonstrator(env))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy of a few numbers."""
    sizes = BackboneSizes(image=32, patch=8, width=24, layers=2, heads=2, mlp=32)
    for name, value in {"SIZES": sizes, "CHUNK": 12, "SAVE_EVERY": 2}.items():
        monkeypatch.setattr(train_vla, name, value)


def train(data: Path, output: Path, steps: int, **changes: Any) -> Path:
    """Run the script; the folder of the run."""
    options = {"look": 2, "batch": 4, "workers": 0} | changes
    train_vla.main(train_vla.Arguments("wall", data, steps=steps, output=output, **options))
    return output / "wall"


@pytest.mark.slow
def test_training_goes_on_and_ends_in_a_policy_that_can_be_carried_away(data: Path, tmp_path: Path) -> None:
    run = train(data, tmp_path / "vla", 2)
    made = (run / "backbone").stat().st_mtime_ns
    first = load_file(run / "policy" / "model.safetensors")
    train(data, tmp_path / "vla", 3)
    assert (run / "backbone").stat().st_mtime_ns == made
    checkpoints = [path.name for path in sorted((run / "training/checkpoints").iterdir())]
    assert checkpoints == ["000002", "000003", "last"]
    after = load_file(run / "policy" / "model.safetensors")
    assert any(not torch.equal(first[name], after[name]) for name in after)
    carried = (run / "policy").rename(tmp_path / "elsewhere")
    run.rename(tmp_path / "gone")
    assert not [path for path in carried.rglob("*.json") if str(tmp_path) in path.read_text()]
    assert json.loads((carried / "config.json").read_text())["vlm_model_name"] == "backbone"
    assert "3 steps of 4 frames" in (carried / "README.md").read_text()
    assert proposed(carried).std() > 0


@pytest.mark.slow
def test_an_interrupted_training_ends_as_one_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same schedule, same weights, same state of the optimiser; batches are drawn anew."""
    whole = train(data, tmp_path / "whole", 4, look=0)
    optimiser_step = torch.optim.AdamW.step
    steps: list[int] = []

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return optimiser_step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.AdamW, "step", step)
        train(data, tmp_path / "cut", 4, look=0)
    assert not (tmp_path / "cut" / "wall" / "policy").exists()
    cut = train(data, tmp_path / "cut", 4, look=0)
    states = [
        json.loads((run / "training/checkpoints/last/training_state/scheduler_state.json").read_text())
        for run in (whole, cut)
    ]
    assert states[0] == states[1]
    first = [
        load_file(run / "training/checkpoints/000002/pretrained_model/model.safetensors")
        for run in (whole, cut)
    ]
    assert all(torch.equal(first[0][name], first[1][name]) for name in first[0])


@pytest.mark.slow
def test_a_policy_of_few_tokens_goes_on_with_more_of_them(data: Path, tmp_path: Path) -> None:
    """Frozen vision looks at every picture once; its weights stay, those of the transformer do not."""
    few = train(data, tmp_path / "few", 2, image_tokens=4, choice="random")
    more = train(data, tmp_path / "more", 2, look=0, start=few / "policy")
    before, after = (load_file(run / "policy/model.safetensors") for run in (few, more))
    assert {name.split(".")[1] for name in after if name not in before} == {"places"}
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert all(name in same for name in before if "vision_model" in name or "connector" in name)
    assert "model.action_out_proj.weight" not in same


@pytest.mark.slow
def test_a_policy_of_one_picture_of_present_and_goal_carries_its_names(data: Path, tmp_path: Path) -> None:
    policy = train(data, tmp_path, 2, together=True) / "policy"
    sampler = LeRobotProposals(policy, envs.make("wall"))
    assert list(sampler.config.image_features) == ["observation.images.both"]
    assert proposed(policy).std() > 0


def proposed(policy: Path) -> Tensor:
    """Candidates of a saved policy."""
    env = envs.make("wall")
    env.reset(seed=0)
    seen, goal = (observations(env, state[None]) for state in (env.state, env.goal))
    actions = LeRobotProposals(policy, env).propose(seen, goal, "go", 4, 10)
    assert actions.shape == (1, 4, 10, 2)
    return actions


def test_what_training_is_told_wrong(data: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"start": tmp_path}, "holds no policy"),
        ({"grey": (1, 2, 3)}, "--grey must be three whole numbers"),
        ({"look": -1}, "look.* must be at least 0"),
    ):
        with pytest.raises(UserError, match=message):
            train(data, tmp_path / "new", 1, **changes)
    assert not (tmp_path / "new").exists()
