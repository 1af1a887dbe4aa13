"""Policies that LeRobot's own classes saved propose chunks: in units, bounds and number as asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor

from scripts.lab.states import observations
from sparsewm import envs
from sparsewm.envs import GoalEnv
from sparsewm.errors import UserError
from sparsewm.planners import ProposalSampler
from sparsewm.proposals import load_sampler
from sparsewm.proposals.lerobot import LeRobotProposals
from tests.cli.commands import call
from tests.proposals.tiny import ACTION_MEAN, ACTION_STD, CHUNK, POLICIES, tiny_policy


@pytest.fixture(scope="module")
def env() -> GoalEnv:
    return envs.make("wall", resolution=48)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tiny_policy(tmp_path_factory.mktemp(kind), kind) for kind in POLICIES}


def seen(env: GoalEnv, frames: int = 1, episodes: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """Observation and goal of some episodes."""
    env.reset(seed=0)
    states = np.stack([[env.sample_state() for _ in range(frames)] for _ in range(episodes)])
    goals = np.stack([env.sample_state() for _ in range(episodes)])
    return observations(env, states if frames > 1 else states[:, 0]), observations(env, goals)


def propose(
    sampler: LeRobotProposals, env: GoalEnv, samples: int = 3, horizon: int = 10, **changes: Any
) -> Tensor:
    present, goal = seen(env, sampler.frames)
    return sampler.propose(
        changes.get("observation", present), changes.get("goal", goal), "go", samples, horizon
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", POLICIES)
def test_chunks_differ_and_have_the_promised_shape_units_and_bounds(
    kind: str, folders: dict[str, Path], env: GoalEnv
) -> None:
    sampler = LeRobotProposals(folders[kind], env, seed=3)
    assert isinstance(sampler, ProposalSampler)
    assert sampler.frames == (2 if kind == "diffusion" else 1)
    actions = propose(sampler, env, samples=5)
    assert actions.shape == (2, 5, 10, 2) and actions.dtype == torch.float32
    assert actions.abs().max() <= 1
    chunks = actions.flatten(2)
    for episode in range(2):
        assert torch.cdist(chunks[episode], chunks[episode]).fill_diagonal_(1).min() > 1e-4
    assert not torch.allclose(chunks[0], chunks[1], atol=1e-4)
    if kind != "diffusion":  # un-normalised by the policy's own statistics; diffusion's are the bounds
        assert (actions.mean((0, 1, 2)) - ACTION_MEAN).abs().max() < 3 * ACTION_STD.max()
    again = LeRobotProposals(folders[kind], env, seed=3)
    assert torch.equal(propose(again, env, samples=5), actions)
    assert not torch.equal(propose(again, env, samples=5), actions)


@pytest.mark.slow
@pytest.mark.parametrize("kind", POLICIES)
def test_chunks_depend_on_picture_goal_and_state(kind: str, folders: dict[str, Path], env: GoalEnv) -> None:
    sampler = LeRobotProposals(folders[kind], env)
    present, goal = seen(env, sampler.frames)
    black = {name: np.zeros_like(values) for name, values in present.items()}
    changed: list[dict[str, Any]] = [
        {},
        {"observation": present | {"pixels": black["pixels"]}},
        {"observation": present | {"proprio": black["proprio"]}},
        {"goal": goal | {"pixels": np.zeros_like(goal["pixels"])}},
    ]
    found = [propose(LeRobotProposals(folders[kind], env), env, **change) for change in changed]
    for other in found[1:]:
        assert not torch.allclose(found[0], other, atol=1e-6)


@pytest.mark.parametrize("kind", POLICIES)
def test_short_chunks_go_on_with_their_last_action(kind: str, folders: dict[str, Path], env: GoalEnv) -> None:
    actions = propose(LeRobotProposals(folders[kind], env), env, horizon=40)
    length = CHUNK - 1 if kind == "diffusion" else CHUNK  # its first action lies in the past
    assert actions.shape == (2, 3, 40, 2)
    assert torch.equal(
        actions[:, :, length:], actions[:, :, length - 1 : length].expand(-1, -1, 40 - length, -1)
    )
    assert not torch.equal(actions[:, :, length - 1], actions[:, :, length - 2])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes"), [("smolvla", {}), ("smolvla_grids", {"image_tokens": 3})])
def test_smolvla_reads_once_what_lerobot_reads_per_chunk(
    kind: str, changes: dict[str, Any], tmp_path: Path, env: GoalEnv
) -> None:
    """The chunks of LeRobot's own `predict_action_chunk` on repeated observations, from the same noise.

    The texts differ in length, so that one is padded; layers of the expert read the chunk itself or the
    prefix alone, in turns.
    """
    folder, texts = tiny_policy(tmp_path, kind, **changes), ["go", "go to the left"]
    present, goal = seen(env)
    sampler = LeRobotProposals(folder, env, seed=5)
    actions = sampler.propose(present, goal, texts, 3, CHUNK)
    config = sampler.config
    policy = get_policy_class(kind).from_pretrained(folder, config=config)
    assert isinstance(policy, SmolVLAPolicy)
    override = {"tokenizer_processor": {"tokenizer_name": config.vlm_model_name}}
    before, after = make_pre_post_processors(config, str(folder), preprocessor_overrides=override)
    rows = {
        f"observation.images.{name}": torch.nn.functional.interpolate(
            torch.as_tensor(shown["pixels"]).permute(0, 3, 1, 2) / 255,
            (32, 32),
            mode="bilinear",
            antialias=True,
        ).repeat_interleave(3, 0)
        for name, shown in (("camera", present), ("goal", goal))
    }
    rows["observation.state"] = torch.as_tensor(present["proprio"]).repeat_interleave(3, 0)
    batch = before(rows | {"task": [text for text in texts for _ in range(3)]})
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    expected = after(policy.predict_action_chunk(batch)).clamp(-1, 1).unflatten(0, (2, 3))
    assert torch.allclose(actions, expected, atol=1e-5)
    rounded = LeRobotProposals(folder, env, seed=5, dtype=torch.bfloat16).propose(
        present, goal, texts, 3, CHUNK
    )
    apart = (actions - rounded).norm() / (actions - actions.mean(1, keepdim=True)).norm()
    assert 0 < apart < 0.05


def test_an_expert_of_fewer_layers_is_left_to_lerobot(tmp_path: Path, env: GoalEnv) -> None:
    sampler = LeRobotProposals(tiny_policy(tmp_path, "smolvla", num_expert_layers=1), env)
    assert sampler._expert is None
    actions = propose(sampler, env)
    assert actions.shape == (2, 3, 10, 2) and actions.std(1).min() > 0


def test_a_goal_is_looked_at_once(folders: dict[str, Path], env: GoalEnv) -> None:
    sampler, (present, goal) = LeRobotProposals(folders["smolvla"], env), seen(env)
    vision = sampler.policy.model.vlm_with_expert.get_vlm_model().vision_model
    looks: list[int] = []
    vision.encoder.register_forward_hook(lambda *_: looks.append(1))
    for shown, wanted in ((present, 2), (present, 2), (goal, 2), (present, 3)):
        sampler.propose(shown, goal, "go", 2, 8)
        assert len(looks) == wanted


def test_the_instruction_is_read(folders: dict[str, Path], env: GoalEnv) -> None:
    present, goal = seen(env)
    found = [
        LeRobotProposals(folders["smolvla"], env).propose(present, goal, text, 2, 8)
        for text in ("go left", "go right", ["go left", "go right"])
    ]
    assert not torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.allclose(found[2][0], found[0][0], atol=1e-5) and torch.allclose(
        found[2][1], found[1][1], atol=1e-5
    )


@pytest.mark.slow
def test_names_map_cameras_states_and_actions(tmp_path: Path, env: GoalEnv) -> None:
    folder = tiny_policy(tmp_path / "policy", "act", cameras=("top", "wrist"))
    with pytest.raises(
        UserError, match=r"observation\.images\.top, observation\.images\.wrist, not .*: say .* file of names"
    ):
        LeRobotProposals(folder, env)
    cameras = "cameras: {observation.images.top: pixels, observation.images.wrist: goal}\n"
    found = []
    for text in (cameras, cameras + "state: [y, x]\n", cameras + "action: [1, 0]\nscale: 0.5\noffset: 0.1\n"):
        (folder / "names.yaml").write_text(text)
        found.append(propose(LeRobotProposals(folder, env), env))
    assert not torch.allclose(found[1], found[0])
    assert torch.allclose(found[2], 0.5 * found[0].flip(-1) + 0.1, atol=1e-6)  # none is cut at a bound
    other = tmp_path / "other.yaml"
    other.write_text(cameras)
    assert torch.equal(propose(LeRobotProposals(folder, env, names=other), env), found[0])


@pytest.mark.parametrize(
    ("more", "weights"), [("", (0.299, 0.587, 0.114)), ("grey: [192, 64, 0]\n", (0.75, 0.25, 0))]
)
def test_one_camera_may_see_present_and_goal(
    more: str, weights: tuple[float, ...], tmp_path: Path, env: GoalEnv
) -> None:
    """The policy is shown the two pictures in grey, the goal in red, the present in green and blue."""
    folder = tiny_policy(tmp_path / "policy", "smolvla", cameras=("both",))
    (folder / "names.yaml").write_text("cameras: {observation.images.both: both}\n" + more)
    sampler, shown = LeRobotProposals(folder, env), []
    look = sampler.policy.prepare_images
    sampler.policy.prepare_images = lambda batch: (shown.append(batch), look(batch))[1]
    (present, goal), size = seen(env), (32, 32)
    propose(sampler, env)
    picture = shown[0]["observation.images.both"]
    for channel, pixels in ((0, goal["pixels"]), (1, present["pixels"]), (2, present["pixels"])):
        grey = torch.as_tensor(pixels @ np.array(weights), dtype=torch.float32)
        wanted = torch.nn.functional.interpolate(grey[:, None] / 255, size, mode="bilinear", antialias=True)
        assert torch.allclose(picture[:, channel], wanted[:, 0], atol=1.5 / 255)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cameras: [a]", "must each be pixels, goal, both or null"),
        ("camera: {}", "must hold some of cameras, grey, state, action, scale, offset"),
        ("grey: [77, 150, 30]", "grey of names .* must be three whole numbers from 0, 256 in all"),
        ("grey: [256, 0]", "must be three whole numbers"),
        ("state: [x, 3]", "a list of names, null for zero"),
        ("state: [x, z]", "wall has no proprioception 'z': known are x, y"),
        ("state: [x]", "has 2 numbers, that of wall 1: say"),
        ("action: [0, -1]", "a list of whole numbers from 0"),
        ("action: [0]", "have 2 numbers, those of wall 2: say"),
        ("action: [0, 2]", "have 2 numbers, those of wall 2: say"),
        ("scale: much", "scale of names .* must be a number"),
        (": : :", "is not readable YAML"),
    ],
)
def test_names_that_make_no_sense(
    text: str, message: str, folders: dict[str, Path], env: GoalEnv, tmp_path: Path
) -> None:
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        LeRobotProposals(folders["act"], env, names=tmp_path / "names.yaml")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "policy_preprocessor.json"])
def test_missing_and_damaged_files_are_named(
    name: str, folders: dict[str, Path], env: GoalEnv, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["act"], tmp_path / "policy"))
    (folder / name).write_bytes((folder / name).read_bytes()[:40])
    with pytest.raises(UserError, match=f"{folder} is damaged or of another version"):
        LeRobotProposals(folder, env)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"is no LeRobot policy, {name} is missing"):
        LeRobotProposals(folder, env)


def test_a_policy_of_another_environment_is_refused(folders: dict[str, Path]) -> None:
    env = envs.make("rope", resolution=32)
    with pytest.raises(UserError, match="a file of names"):
        LeRobotProposals(folders["act"], env)


@pytest.mark.slow
def test_act_without_a_latent_has_one_chunk_only(tmp_path: Path, env: GoalEnv) -> None:
    with pytest.raises(UserError, match="all its chunks are one"):
        LeRobotProposals(tiny_policy(tmp_path, "act", use_vae=False), env)


def test_a_hub_name_without_the_hub_is_one_sentence(env: GoalEnv) -> None:
    with pytest.raises(UserError, match=r"policy lerobot/smolvla_base is not to be had from the hub"):
        load_sampler("lerobot/smolvla_base", env, torch.device("cpu"))


@pytest.mark.slow
def test_without_lerobot_the_extra_is_named(folders: dict[str, Path]) -> None:
    code = (
        "import sys; sys.modules['lerobot'] = None\n"
        "from sparsewm.cli import main\n"
        f"main(['plan', '--env', 'wall', '--run.actor', 'policy', '--proposals', {str(folders['act'])!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folders["act"].parent
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "error: policies of LeRobot need packages that are not installed" in done.stderr
    assert "pip install 'sparsewm[vla]'" in done.stderr


@pytest.mark.slow
def test_a_saved_policy_plans_on_the_command_line(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "plan --env wall --max-steps 20 --run.no-video --candidates 6 --iterations 2"
    flags += " --proposals.samples 4 --output"
    found = {}
    for kind, more in (
        ("smolvla", "--proposals.mode replace --proposals.instruction 'go there'"),
        ("act", "--proposals.mode seed"),
        ("diffusion", "--run.actor policy"),
        ("smolvla", "--proposals.mode prior --planner mppi --episodes 2 --run.batch 2"),
    ):
        code, out, err = call(f"{flags} {kind} {more} --proposals", folders[kind])
        assert code == 0, err
        assert str(folders[kind]) in out.replace("\n", "")
        found[kind, more] = json.loads((tmp_path / kind / "results.json").read_text())
    replaced, seeded, alone, prior = found.values()
    assert replaced["proposals"] == str(folders["smolvla"])
    assert replaced["settings"]["proposals"]["instruction"] == "go there"
    assert [one["settings"]["search"]["action_repeat"] for one in (replaced, seeded)] == [False, True]
    assert alone["checkpoint"] is None and alone["seconds_per_plan"]["median"] > 0
    assert prior["settings"]["proposals"]["mode"] == "prior" and prior["episodes"] == 2
