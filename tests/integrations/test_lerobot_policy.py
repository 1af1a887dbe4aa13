"""LeRobot's own evaluation and recording loops drive the agent."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

pytest.importorskip("lerobot")

from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import hw_to_dataset_features
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot.processor import make_default_processors
from lerobot.robots import Robot, RobotConfig
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.import_utils import register_third_party_plugins

from sparsewm import envs
from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.errors import UserError
from sparsewm.integrations.lerobot_policy import SparseWMConfig, SparseWMEnv
from sparsewm.integrations.lerobot_policy.modeling_sparsewm import SparseWMPolicy
from sparsewm.model.interface import Interface
from tests.model.tiny import tiny_model

SEARCH = {"candidates": 8, "elites": 2, "iterations": 2, "horizon": 3, "execute": 2}
STEPS = 9


def tiny_agent(cameras: tuple[str, ...] = (), picture: tuple[int, int] = (56, 56), **changes: Any) -> Agent:
    model = tiny_model()
    names = ("x", "y")
    interface = Interface("wall", picture, (-1.0,) * 2, (1.0,) * 2, names, names, 2, 10.0, cameras)
    model.metadata["interface"] = interface.to_dict()
    return Agent(model, PlanConfig("wall").updated(search=SEARCH, imagine=False, **changes))


def configured(**changes: Any) -> SparseWMConfig:
    return SparseWMConfig(checkpoint="wall", device="cpu", **changes)


def loop_parts(env: SparseWMEnv, config: SparseWMConfig, episodes: int) -> tuple[Any, dict[str, Any]]:
    """LeRobot's environments and pipelines."""
    before, after = make_pre_post_processors(config)
    env_before, env_after = make_env_pre_post_processors(env, config)
    (worlds,) = make_env(env, n_envs=episodes)["sparsewm"].values()
    pipelines = {"preprocessor": before, "postprocessor": after}
    return worlds, pipelines | {"env_preprocessor": env_before, "env_postprocessor": env_after}


def test_lerobots_rollout_takes_the_actions_of_the_agent() -> None:
    config = configured()
    worlds, pipelines = loop_parts(SparseWMEnv("wall", episode_length=STEPS, resolution=56), config, 2)
    policy = SparseWMPolicy(config, tiny_agent()).eval()
    taken = rollout(worlds, policy, seeds=[5, 6], **pipelines)
    assert taken["action"].shape == (2, STEPS, 2) and not taken["success"].any()

    agent, ours = tiny_agent(), [envs.make("wall", resolution=56) for _ in range(2)]
    observations = [env.reset(seed=seed)[0] for env, seed in zip(ours, (5, 6), strict=True)]
    join = lambda parts: {name: np.stack([part[name] for part in parts]) for name in ("pixels", "proprio")}  # noqa: E731
    agent.reset(join([env.goal_observation() for env in ours]))
    step = 0
    while step < STEPS:
        for actions in np.stack(agent.act(join(observations)), 1):
            if step < STEPS:
                assert np.array_equal(taken["action"][:, step], actions), step
            observations = [env.step(action)[0] for env, action in zip(ours, actions, strict=True)]
            for episode, observation in enumerate(observations):
                agent.observe(observation, episode=episode)
            step += 1


def test_a_policy_is_saved_as_its_settings(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("search: {candidates: 12, elites: 3}\ncost: {proprio_weight: 0.5}\n")
    config = configured(drop=0.25, plan=str(tmp_path / "plan.yaml"), seed=4)
    SparseWMPolicy(config, tiny_agent()).save_pretrained(tmp_path / "policy")
    read = PreTrainedConfig.from_pretrained(tmp_path / "policy")
    read.pretrained_path = tmp_path / "policy"
    env = SparseWMEnv("wall")
    policy = make_policy(read, env_cfg=env)
    settings = policy.agent.config
    assert (settings.search.candidates, settings.search.elites) == (12, 3)
    assert (settings.tokens.drop, settings.cost.proprio_weight, settings.run.seed) == (0.25, 0.5, 4)
    before, after = make_pre_post_processors(read, str(read.pretrained_path))
    action = torch.tensor([[300.0, -2.0]])
    assert torch.equal(after(action), action) and before is not None


def seen(side: int = 56, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    picture = torch.from_numpy(rng.integers(0, 256, (1, 3, side, side), dtype=np.uint8)).float() / 255
    return {"observation.image": picture, "observation.state": torch.tensor([[20.0, 30.0]])}


def test_goals_come_from_a_picture_file(tmp_path: Path) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    iio.imwrite(tmp_path / "goal.png", picture)
    first = SparseWMPolicy(
        configured(goal=str(tmp_path / "goal.png"), goal_proprio=[40.0, 10.0]), tiny_agent()
    )
    observed = seen() | {
        "observation.images.goal": torch.from_numpy(picture).movedim(-1, 0)[None].float() / 255,
        "observation.environment_state": torch.tensor([[40.0, 10.0]]),
    }
    second = SparseWMPolicy(configured(), tiny_agent())
    assert torch.equal(first.select_action(seen()), second.select_action(observed))
    blind = SparseWMPolicy(configured(goal=str(tmp_path / "goal.png")), tiny_agent())
    with pytest.warns(UserWarning, match="picture alone"):
        assert not torch.equal(blind.select_action(seen()), first.select_action(seen(seed=1)))
    first.reset()
    chunk = first.predict_action_chunk(seen())
    assert chunk.shape == (1, 4, 2)  # two model steps of two environment steps
    with pytest.raises(UserError, match=r"no\.png is no readable picture"):
        SparseWMPolicy(configured(goal=str(tmp_path / "no.png")), tiny_agent())


def test_several_cameras_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = tiny_agent(("front", "wrist"), picture=(28, 56))
    shown: list[Any] = []
    monkeypatch.setattr(agent, "act", lambda seen, active=None: shown.append(seen) or [np.zeros((1, 2))])
    monkeypatch.setattr(agent, "reset", shown.append)
    front, wrist = torch.zeros(1, 3, 28, 28), torch.ones(1, 3, 56, 56)
    batch = {
        "observation.images.wrist": wrist,
        "observation.images.front": front,
        "observation.images.goal": torch.zeros(1, 3, 28, 56),
        "observation.state": torch.zeros(1, 2),
    }
    SparseWMPolicy(configured(), agent).select_action(batch)
    goal, seen = shown
    assert goal["pixels"].shape == (1, 28, 56, 3) and "proprio" not in goal
    assert seen["pixels"].shape == (1, 28, 56, 3)
    assert not seen["pixels"][:, :, :28].any() and (seen["pixels"][:, :, 28:] == 255).all()


@pytest.mark.filterwarnings("ignore:the goal is a picture alone")
@pytest.mark.parametrize(
    ("remove", "reason"),
    [
        ("observation.images.goal", "no goal: give a picture file as `goal`, or observe it"),
        ("observation.image", "say with `image_keys`"),
        ("observation.state", "holds 'proprio'"),
    ],
)
def test_what_is_missing_is_said(remove: str, reason: str) -> None:
    batch = seen() | {"observation.images.goal": torch.zeros(1, 3, 56, 56)}
    del batch[remove]
    with pytest.raises(UserError, match=reason):
        SparseWMPolicy(configured(), tiny_agent()).select_action(batch)


def test_lerobot_finds_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installed distribution, which is what LeRobot looks for."""
    source = Path(__file__).parents[2] / "integrations" / "lerobot_policy_sparsewm"
    (name,) = re.findall(r'^name = "(\w+)"', (source / "pyproject.toml").read_text(), re.MULTILINE)
    information = tmp_path / f"{name}-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (tmp_path / name).symlink_to(source / name)
    monkeypatch.syspath_prepend(tmp_path)
    register_third_party_plugins()
    assert name in sys.modules
    assert PreTrainedConfig.get_choice_class("sparsewm") is SparseWMConfig
    del sys.modules[name]


@dataclass
class WallRobotConfig(RobotConfig):
    calibration_dir: Path | None = field(default=None)


class WallRobot(Robot):
    """Our wall environment behind LeRobot's interface of a robot."""

    config_class, name = WallRobotConfig, "wall_robot"

    def __init__(self, config: WallRobotConfig) -> None:
        super().__init__(config)
        self.env = envs.make("wall", resolution=56)
        self.seen, _ = self.env.reset(seed=0)

    observation_features = property(lambda self: {"x.pos": float, "y.pos": float, "front": (56, 56, 3)})
    action_features = property(lambda self: {"x.pos": float, "y.pos": float})
    is_connected = is_calibrated = property(lambda self: True)

    def connect(self, calibrate: bool = True) -> None: ...

    def disconnect(self) -> None: ...

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        x, y = self.seen["proprio"]
        return {"x.pos": x, "y.pos": y, "front": self.seen["pixels"]}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.seen, *_ = self.env.step(np.array([action["x.pos"], action["y.pos"]], np.float32))
        return action


@pytest.mark.slow
def test_lerobots_recording_loop_is_driven_by_the_agent(tmp_path: Path) -> None:
    record = pytest.importorskip("lerobot.scripts.lerobot_record")
    robot = WallRobot(WallRobotConfig(calibration_dir=tmp_path / "calibration"))
    features = hw_to_dataset_features(robot.action_features, "action")
    features |= hw_to_dataset_features(robot.observation_features, "observation", use_video=False)
    dataset = LeRobotDataset.create(
        "me/wall", fps=10, root=tmp_path / "data", features=features, use_videos=False
    )
    iio.imwrite(tmp_path / "goal.png", robot.env.goal_observation()["pixels"])
    goal = [float(number) for number in robot.env.goal_observation()["proprio"]]
    config = configured(goal=str(tmp_path / "goal.png"), goal_proprio=goal)
    policy = SparseWMPolicy(config, tiny_agent()).eval()
    before, after = make_pre_post_processors(config)
    teleop, action, observation = make_default_processors()
    events = {"exit_early": False, "stop_recording": False, "rerecord_episode": False}
    record.record_loop(
        robot,
        events,
        10,
        teleop,
        action,
        observation,
        dataset,
        policy=policy,
        preprocessor=before,
        postprocessor=after,
        control_time_s=0.8,
        single_task="go to the goal",
    )
    dataset.save_episode()
    dataset.finalize()
    read = LeRobotDataset("me/wall", root=tmp_path / "data")
    actions = torch.stack([read[i]["action"] for i in range(len(read))])
    assert len(read) >= 4 and actions.shape[1] == 2
    assert torch.unique(actions, dim=0).shape[0] > 1 and actions.abs().max() <= 1


def test_a_chunk_counts_as_executed_and_no_more() -> None:
    """Episodes whose plans are of different lengths, then action by action."""
    agent = tiny_agent(execute=3)
    policy = SparseWMPolicy(configured(), agent)
    goal = {"observation.images.goal": torch.zeros(2, 3, 56, 56)}
    batch = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in seen().items()} | goal
    plan, lengths = agent.act, iter([(2, 6), (4, 4), (6, 6), (4, 4)])

    def act(seen: Any, active: Any = None) -> Any:
        chunks = plan(seen, active)
        for i, length in enumerate(next(lengths)):
            chunks[i] = chunks[i][:length]
            while len(agent._episodes[i].pending) > length:
                agent._episodes[i].pending.pop()
        return chunks

    agent.act = act  # type: ignore[method-assign, assignment]
    with pytest.warns(UserWarning, match="picture alone"):
        first = policy.predict_action_chunk(batch)
    assert first.shape == (2, 2, 2)
    second = policy.predict_action_chunk(batch)
    assert second.shape == (2, 4, 2) and [one.step for one in agent._episodes] == [2, 2]
    assert np.array_equal(agent._episodes[1].taken, first[1].numpy())
    policy.select_action(batch)
    assert [one.step for one in agent._episodes] == [6, 6]
    policy.select_action(batch)
    assert [one.step for one in agent._episodes] == [7, 7], "one of the six that are waiting"
    policy.predict_action_chunk(batch)
    assert [one.step for one in agent._episodes] == [8, 8]


def test_pictures_are_what_they_were_made_from() -> None:
    policy = SparseWMPolicy(configured(), tiny_agent())
    fractions = seen()
    whole = fractions | {"observation.image": (255 * fractions["observation.image"]).round().to(torch.uint8)}
    assert np.array_equal(policy._observed(fractions)["pixels"], policy._observed(whole)["pixels"])
    for wrong, said in (
        (255 * fractions["observation.image"], "got 0 to 255: divide by 255"),
        (2 * fractions["observation.image"] - 1, "do not standardise"),
        (fractions["observation.image"] * torch.nan, "got nan to nan"),
        (fractions["observation.image"].movedim(1, -1), r"have shape \(B, 3, H, W\)"),
    ):
        with pytest.raises(UserError, match=said):
            policy._observed(fractions | {"observation.image": wrong})


@pytest.mark.parametrize(
    "line",
    [
        "run: {encoder: dinov2_vits14}",
        "run: {checkpoint: pusht}",
        "encoder: dinov2_vits14",
        "env: pusht",
        "goal: {offset: 3}",
        "run: {device: cuda}",
        "run: {dtype: float32}",
    ],
)
def test_settings_that_nothing_reads_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(line)
    with pytest.raises(UserError, match=r"plan.yaml sets [a-z.]+, which LeRobot's loops do not read"):
        SparseWMPolicy(configured(plan=str(tmp_path / "plan.yaml")))


def test_the_seed_of_a_plan_is_read(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("run: {seed: 5, letterbox: true}")
    path = str(tmp_path / "plan.yaml")
    run = SparseWMPolicy(configured(plan=path)).agent.config.run
    assert (run.seed, run.letterbox, run.imagine) == (5, True, False)
    assert SparseWMPolicy(configured(plan=path, seed=4)).agent.config.run.seed == 4
    assert SparseWMPolicy(configured()).agent.config.run.seed == 0


def test_goals_known_of_some_episodes_are_refused() -> None:
    batch = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in seen().items()}
    goals = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan]])
    batch |= {"observation.images.goal": torch.zeros(2, 3, 56, 56), "observation.environment_state": goals}
    with pytest.raises(UserError, match="known of some episodes of the batch, not of others"):
        SparseWMPolicy(configured(), tiny_agent()).select_action(batch)
