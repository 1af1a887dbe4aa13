"""`train-policy --kind smolvla`: from demonstrations to a folder that is carried away and planned with."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import pytest
import torch
from safetensors.torch import load_file

from sparsewm import envs
from sparsewm.data import collect, open_dataset
from sparsewm.errors import UserError
from sparsewm.evaluation.oracle import demonstration_steps, demonstrator
from sparsewm.proposals.lerobot import LeRobotProposals
from sparsewm.settings import instructions
from sparsewm.training.policy import train_policy
from sparsewm.training.policy_config import PolicyTrainConfig, SmolVLATrainConfig
from sparsewm.training.smolvla import run
from sparsewm.training.smolvla.backbone import BackboneSizes
from tests.cli.commands import call
from tests.data.tiny import write_dataset
from tests.envs.test_benchmarks import make_both
from tests.training.test_policy import interrupting


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations of Wall."""
    path = tmp_path_factory.mktemp("data") / "wall-expert.h5"
    env = envs.make("wall")
    return collect("wall", 3, path, demonstration_steps(env), 1, resolution=32, expert=demonstrator(env))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy of a few numbers."""
    monkeypatch.setattr(run, "SIZES", BackboneSizes(32, 8, width=24, layers=2, heads=2, mlp=32))
    monkeypatch.setattr(run, "CHUNK", 12)


def config(data: Path, output: Path, steps: int, look: int = 0, **changes: Any) -> PolicyTrainConfig:
    """Half of the steps with learned places."""
    own = {name: changes.pop(name) for name in ("goal", "together", "places") if name in changes}
    section = SmolVLATrainConfig(look=look, image_tokens=8, **{"places": 0.5} | own)
    usual = PolicyTrainConfig("smolvla", "wall", str(data), steps=steps, batch=4, save_every=2, device="cpu")
    return replace(usual, smolvla=section, output=output, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


@pytest.mark.slow
def test_from_the_command_to_a_plan(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy has no path of this machine in it, and plans where it is carried."""
    monkeypatch.chdir(tmp_path)
    usual = f"train-policy --kind smolvla --env wall --dataset {data} --batch 4 --device cpu --output run"
    code, out, err = call(usual, "--steps 2 --smolvla.look 2")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("plan with it: sparsewm ")]
    assert shlex.split(line)[-1] == "run/policy" and "is read from pictures with an error" in err
    assert "holds a run already: --resume it" in call(usual, "--steps 2 --smolvla.look 2")[2]
    assert "with another smolvla: give" in call(usual, "--steps 2 --smolvla.look 3 --resume")[2]
    first = weights(Path("run/policy"))
    code, _, err = call(usual, "--steps 3 --smolvla.look 2 --resume")
    assert code == 0 and "continuing at step 2" in err, err
    after = weights(Path("run/policy"))
    assert any(not torch.equal(first[name], after[name]) for name in after)
    metrics = json.loads(Path("run/metrics.json").read_text())["metrics"]
    assert [entry["step"] for entry in metrics] == [1, 2, 3]
    carried = Path("run/policy").rename(tmp_path / "elsewhere")
    Path("run").rename("gone")
    assert not [path for path in carried.rglob("*.json") if str(tmp_path) in path.read_text()]
    card = " ".join((carried / "README.md").read_text().split())
    assert "3 steps of 4 frames" in card and "16 learned places" in card
    assert f"--env wall --dataset {data} --steps 3 --batch 4 --smolvla.look 2`" in card
    flags = "--env wall --run.actor policy --episodes 1 --max-steps 3 --run.no-video --output plan"
    code, _, err = call(f"plan --proposals {carried} {flags}")
    assert code == 0, err


@pytest.mark.slow
def test_a_policy_of_several_tasks_is_told_which(tmp_path: Path) -> None:
    name, path = "tests.envs.test_benchmarks:make_both", tmp_path / "both.h5"
    collect(name, 4, path, 3, 1, resolution=32)
    usual = config(path, tmp_path / "run", 2)
    found = train_policy(replace(usual, env=name))
    with closing(open_dataset(path)) as data:
        tasks = [int(data.state[int(first)][0]) for first in data.offsets]
        texts = [("move the rope", "move the granular")[task] for task in tasks]
        both = make_both()
        assert set(tasks) == {0, 1} and instructions(both, data) == texts
        last = SimpleNamespace(path=path, episodes=2, state=data.state[:5], offsets=[0, 5], lengths=[5, 0])
        assert instructions(both, last) == [texts[0], ""], "an empty episode says nothing"
        last.state = None
        with pytest.raises(UserError, match=r"both\.h5 has no states, and .* to say its task"):
            instructions(both, last)
        last.state = data.state[:5, :-1]
        with pytest.raises(UserError, match=r"has states of .* numbers"):
            instructions(both, last)
    with h5py.File(path, "r+") as file:
        file["state"][1, 0] = 7
    with pytest.raises(UserError, match="are of no task"):
        train_policy(replace(config(path, tmp_path / "odd", 2, look=1), env=name))
    card = (found.folder / "README.md").read_text()
    assert 'of "move the granular", "move the rope"' in " ".join(card.split())
    words = (tmp_path / "run" / "backbone" / "tokenizer.json").read_text()
    assert "rope" in words and "granular" in words


@pytest.mark.slow
def test_an_interrupted_training_goes_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    """Cut in the middle of either phase, and between two checkpoints."""
    whole = train_policy(config(data, tmp_path / "whole", 6))
    half = config(data, tmp_path / "half", 6)
    for stop in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            train_policy(replace(half, resume=stop > 1), interrupting(stop))
    assert not (tmp_path / "half" / "policy").exists()
    record = tmp_path / "half" / "training" / "run.json"
    content = json.loads(record.read_text())
    del content["settings"]["smolvla"]["goal"]  # of a run begun before there was this choice
    record.write_text(json.dumps(content))
    cut = train_policy(replace(half, resume=True))
    one, two = (weights(done.folder) for done in (whole, cut))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    steps = [[entry["step"] for entry in done.metrics["metrics"]] for done in (whole, cut)]
    assert steps == [[2, 3, 4, 6]] * 2


@pytest.mark.slow
def test_a_policy_of_few_tokens_goes_on_with_more_of_them(data: Path, tmp_path: Path) -> None:
    """Frozen vision looks at every picture once; its weights stay, those of the transformer do not."""
    few = train_policy(config(data, tmp_path / "few", 2, places=0.0)).folder
    more = train_policy(config(data, tmp_path / "more", 2, places=1.0, start=tmp_path / "few")).folder
    before, after = weights(few), weights(more)
    assert {name.split(".")[1] for name in after if name not in before} == {"places"}
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert all(name in same for name in before if "vision_model" in name or "connector" in name)
    assert "model.action_out_proj.weight" not in same


@pytest.mark.slow
def test_a_policy_of_one_picture_of_present_and_goal_carries_its_names(data: Path, tmp_path: Path) -> None:
    policy = train_policy(config(data, tmp_path / "run", 2, look=1, together=True)).folder
    sampler = LeRobotProposals(policy, envs.make("wall"))
    assert list(sampler.config.image_features) == ["observation.images.both"]
    assert sampler.names.cameras == {"observation.images.both": "both"}


@pytest.mark.slow
def test_a_policy_that_is_told_and_not_shown_the_goal(data: Path, tmp_path: Path) -> None:
    policy = train_policy(config(data, tmp_path / "run", 2, look=1, goal=False)).folder
    sampler, env = LeRobotProposals(policy, envs.make("wall")), envs.make("wall")
    assert sampler.names.cameras == {"observation.images.camera": "pixels"}
    card = " ".join((policy / "README.md").read_text().split())
    assert "from the present picture, proprioception and" in card and "goals are not shown" in card
    seen, _ = env.reset(seed=0)
    now = {name: value[None] for name, value in seen.items()}
    other = now | {"pixels": 255 - now["pixels"]}
    chunks = [
        sampler.propose(now, goal, "reach the goal", 3, 5, [torch.Generator().manual_seed(0)])
        for goal in (now, other)
    ]
    assert torch.equal(*chunks), "it sees the goal"
    ahead = sampler.propose(other, now, "reach the goal", 3, 5, [torch.Generator().manual_seed(0)])
    assert not torch.equal(ahead, chunks[0]), "it does not see the scene"


def test_a_damaged_checkpoint_is_one_sentence(data: Path, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"training is damaged \(entries are missing\): delete it"):
        train_policy(config(data, tmp_path, 2, resume=True))


@pytest.mark.slow
def test_without_lerobot_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['lerobot'] = None\n"
        "from sparsewm.cli import main\n"
        "main('train-policy --kind smolvla --env wall'.split())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "pip install 'sparsewm[vla]'" in done.stderr


def test_pictures_that_are_no_squares_are_refused(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "wall.h5")
    with h5py.File(path, "r+") as file:
        pixels = file["pixels"][:, :14]
        del file["pixels"]
        file["pixels"] = pixels
    with pytest.raises(UserError, match=r"are 14 x 28, a SmolVLA sees squares: .* --resolution 14 14"):
        train_policy(config(path, tmp_path / "out", 2))
    assert not (tmp_path / "out").exists()


def test_what_is_usual_is_the_kinds_and_the_environments() -> None:
    usual = PolicyTrainConfig.of("smolvla", "PushT")
    assert usual.smolvla.together and usual.smolvla.look == 12000 and usual.steps == 9500
    assert PolicyTrainConfig.of("smolvla", "blockpush").smolvla.grey == (192, 64, 0)
    assert PolicyTrainConfig.of("inverse", "wall") == PolicyTrainConfig(env="wall")
    told = PolicyTrainConfig.of("inverse", "pusht").inverse
    assert told.reads == "state" and replace(told, reads="tokens").reads == "tokens", "one flag goes back"
    on = PolicyTrainConfig.of("smolvla", "pusht", Path("policy"))
    assert on.smolvla == replace(usual.smolvla, look=0, places=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "a SmolVLA is trained for an environment: give an --env"),
        ("--env nowhere --dataset nothing.h5", "unknown environment 'nowhere'"),
        ("--env wall", "--dataset, or record one by sparsewm collect --env wall --policy expert"),
        ("--env wall --start .", "--start . holds no policy"),
        ("--env wall --chunk 3", "--chunk is of policies that read a world model's tokens"),
        ("--env wall --smolvla.grey 1 2 3", "--smolvla.grey must be three whole numbers"),
        ("--env wall --smolvla.look -1", "--smolvla.look must be at least 0"),
        (
            "--env wall --smolvla.no-goal --smolvla.together",
            "--smolvla.together shows the goal: let it be false",
        ),
        ("--env wall --smolvla.no-goal --longest 9", "--longest is of goals that are shown: leave it out"),
        ("--env wall --smolvla.places 2", "--smolvla.places must be between 0 and 1"),
        ("--env wall --smolvla.image-tokens 17", "--smolvla.image-tokens must be at most 16"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(f"train-policy --kind smolvla {arguments}")
    said = " ".join(err.split())
    assert code == 2 and message in said and said.startswith("error: ")
    assert not list(tmp_path.iterdir())
