"""The example of a robot's loop runs as it stands there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "robot_loop.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    found = importlib.util.spec_from_file_location("robot_loop", EXAMPLE)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "robot_loop", module)  # where dataclasses look their types up
    found.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_simulated_robot_is_driven_for_three_seconds(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[float]] = []
    send = example.SimulatedRobot.send
    monkeypatch.setattr(
        example.SimulatedRobot,
        "send",
        lambda self, action: sent.append(action.tolist()) or send(self, action),
    )
    search = ["--checkpoint", "wall", "--deadline-ms", "60", "--drop", "0.9"]
    run = ["--seconds", "3", "--lost", "0.4", "--output", str(tmp_path / "robot.json")]
    report = example.main([*search, *run])
    assert json.loads((tmp_path / "robot.json").read_text()) == report
    assert report["ticks"]["all"] == 30 and len(sent) == 31  # zeros first
    assert 0 < report["rate_hz"]["kept"] <= 10
    assert report["plans"]["all"] == 6  # of five environment steps each
    assert report["frames"]["dropped"] > 0 and report["frames"]["stale_ticks"] > 0
    assert report["picture_to_action_ms"]["median"] <= report["picture_to_action_ms"]["max"]
    assert len({tuple(action) for action in sent}) > 5


def test_a_loop_without_losses_drops_nothing(example: ModuleType) -> None:
    """A plan is executed action by action, and every picture between two plans is reported."""
    frames = iter(range(1, 100))
    observation = {"pixels": None}

    class Robot:
        info = {"is_success": True}  # noqa: RUF012
        sent = 0

        goal = start = lambda self: None

        def frame(self) -> object:
            return example.Frame(next(frames), example.time.perf_counter(), observation)

        def send(self, action: float) -> None:
            Robot.sent += 1

    class Agent:
        calls: list[str] = []  # noqa: RUF012

        def reset(self, goal: object) -> None:
            Agent.calls.append("reset")

        def act(self, observation: object) -> list[float]:
            Agent.calls.append("act")
            return [0.1, 0.2]

        def observe(self, observation: object) -> None:
            Agent.calls.append("observe")

    report = example.drive(Agent(), Robot(), example.Settings(seconds=0.06, fps=100))
    assert report["frames"] == {"dropped": 0, "stale_ticks": 0} and report["success"]
    assert Robot.sent == 6 and Agent.calls[:2] == ["reset", "act"]
    assert Agent.calls[2:] == ["reset", "act", *(["observe"] * 2 + ["act"]) * 2, "observe"]
