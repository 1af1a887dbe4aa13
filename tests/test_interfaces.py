"""What a model is shown and asked to do, where its checkpoint says it and where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsewm.agent import Agent
from sparsewm.config import PlanConfig
from sparsewm.envs import ENVIRONMENTS, make
from sparsewm.errors import UserError
from sparsewm.interfaces import interface_of, interface_of_env
from sparsewm.model import load, save
from tests.model.tiny import tiny_encoder, tiny_model


def test_a_checkpoint_that_records_no_interface_has_its_environments(tmp_path: Path) -> None:
    model = tiny_model(frameskip=5)
    del model.metadata["interface"]
    old = load(save(model, tmp_path / "old"), encoder=tiny_encoder())
    assert old.interface is None
    assert interface_of(old) == interface_of_env(make("wall"))
    agent = Agent(old, PlanConfig.of("wall").updated(objective="mse", candidates=4, iterations=1))
    env = make("wall")
    observation, _ = env.reset(seed=0)
    agent.reset(env.goal_observation())
    assert agent.act(observation).shape[1] == 2


def test_a_checkpoint_chooses_no_code() -> None:
    model = tiny_model(environment="sparsewm.envs.wall:WallEnv")
    del model.metadata["interface"]
    assert model.environment not in ENVIRONMENTS
    with pytest.raises(UserError, match="does not say what its actions are"):
        interface_of(model)


def test_another_frameskip_than_the_environments_is_the_models() -> None:
    model = tiny_model(frameskip=2)
    del model.metadata["interface"]
    assert interface_of(model).frameskip == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("x", "interface is damaged"),
        ([1], "interface is damaged"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
        ({"picture": None}, "interface is damaged"),
        ({"picture": [0, 0]}, "picture and frameskip must be positive"),
        ({"action_low": ["a", "b"]}, "interface is damaged"),
        ({"action_low": [-1, -1, -1]}, "interface is damaged"),
        ({"action_low": [2, 2]}, "action_low must be finite and not above action_high"),
        ({"action_low": [float("nan"), -1]}, "action_low must be finite and not above action_high"),
        ({"frameskip": "2"}, "interface is damaged"),
        ({"frameskip": 3}, "does not fit its predictor"),
        ({"frameskip": True}, "must be positive integers"),
        ({"fps": "often"}, "fps must be a positive number, not 'often'"),
        ({"fps": float("nan")}, "fps must be a positive number, not nan"),
        ({"proprio_names": [1, 2]}, "names must be lists of texts"),
        ({"cameras": "front"}, "names must be lists of texts"),
    ],
)
def test_a_damaged_interface_is_one_sentence(change: Any, message: str) -> None:
    model = tiny_model()
    found = model.metadata["interface"]
    model.metadata["interface"] = found | change if isinstance(change, dict) else change
    with pytest.raises(UserError, match=message):
        interface_of(model)


@pytest.mark.parametrize("change", [{"frameskip": 0}, {"environment": 5}, {"frameskip": "two"}])
def test_a_checkpoint_of_nothing_is_damaged(change: dict[str, Any], tmp_path: Path) -> None:
    place = save(tiny_model(), tmp_path / "checkpoint", change)
    with pytest.raises(UserError, match="is damaged"):
        load(place, encoder=tiny_encoder())
