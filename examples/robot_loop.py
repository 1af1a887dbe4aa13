"""Camera in, actions out, at a fixed rate: a robot driven by an agent, with a report of how it kept up.

    python examples/robot_loop.py --checkpoint pusht --seconds 20

The robot here is a simulated one, whose camera has jitter and loses frames. Yours takes its place with
`start()`, `goal()`, `frame()` (the newest observation, without waiting) and `send(action)`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from sparsewm import Agent, envs
from sparsewm.files import write_json


class Frame(NamedTuple):
    """A picture's number, when it came (s), and the observation."""

    number: int
    time: float
    observation: dict[str, np.ndarray]


@dataclass
class Settings:
    """Drive a simulated robot towards its goal and report how the loop kept its rate."""

    checkpoint: str = "pusht"
    """World model: a shipped one, a folder, or user/name on the hub."""
    seconds: float = 20.0
    """How long."""
    fps: float = 10.0
    """Actions, and pictures, a second: those of the world model's data."""
    deadline_ms: float = 80.0
    """Milliseconds from a picture to the first action of a plan."""
    drop: float = 0.5
    """Fraction of tokens dropped."""
    jitter_ms: float = 15.0
    """Largest delay of a picture."""
    lost: float = 0.05
    """Fraction of pictures that never arrive."""
    seed: int = 0
    """Of task, camera and search."""
    output: Path = Path("runs/robot.json")
    """The report."""


class SimulatedRobot:
    """An environment that goes on by itself, `fps` times a second, with the action it was last sent."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.env, self.settings = envs.make(name), settings
        self.random = np.random.default_rng(settings.seed)
        observation, self.info = self.env.reset(seed=settings.seed)
        self.newest, self.running = Frame(0, time.perf_counter(), observation), True
        self.send(np.zeros(self.env.action_space.shape, np.float32))
        self.thread = threading.Thread(target=self._live, daemon=True)

    def start(self) -> None:
        self.thread.start()
        while self.newest.number == 0:
            time.sleep(0.001)

    def goal(self) -> dict[str, Any]:
        return self.env.goal_observation()

    def frame(self) -> Frame:
        return self.newest

    def send(self, action: np.ndarray) -> None:
        self.action = action

    def _live(self) -> None:
        number, due = 0, time.perf_counter()
        while self.running:
            due += 1 / self.settings.fps
            delay = self.random.uniform(0, self.settings.jitter_ms / 1000)
            time.sleep(max(0.0, due + delay - time.perf_counter()))
            observation, *_, self.info = self.env.step(self.action)
            number += 1
            if self.random.random() >= self.settings.lost:
                self.newest = Frame(number, time.perf_counter(), observation)


def drive(agent: Agent, robot: Any, settings: Settings) -> dict[str, Any]:
    """The loop; how it went."""
    agent.reset(robot.goal())
    agent.act(robot.frame().observation)  # the first plan finds out how fast this machine is
    agent.reset(robot.goal())
    robot.start()
    actions: deque[np.ndarray] = deque()
    plans, latencies, late, numbers, reached = [], [], [], [], False
    period, due = 1 / settings.fps, (begun := time.perf_counter())
    for tick in range(round(settings.seconds * settings.fps)):
        time.sleep(max(0.0, due - time.perf_counter()))
        late.append(time.perf_counter() - due)
        due = max(due, time.perf_counter() - 0.1 * period) + period  # what is missed is not made up for
        frame = robot.frame()  # where no new one came, the last one stands in for it
        numbers.append(frame.number)
        if tick:
            agent.observe(frame.observation)  # after the action of the last tick
        if not actions:
            started = time.perf_counter()
            actions.extend(agent.act(frame.observation))
            plans.append(time.perf_counter() - started)
        robot.send(actions.popleft())
        latencies.append(time.perf_counter() - frame.time)
        reached = reached or robot.info["is_success"]
    ticks, new = len(late), np.diff(numbers)
    rate = ticks / max(ticks * period, time.perf_counter() - begun)
    return {
        "rate_hz": {"wanted": settings.fps, "kept": round(rate, 2)},
        "ticks": {"all": ticks, "late": sum(x > 0.1 * period for x in late), "late_ms": quantiles(late)},
        "frames": {"dropped": int((new - 1).clip(0).sum()), "stale_ticks": int((new == 0).sum())},
        "picture_to_action_ms": quantiles(latencies),
        "plan_ms": quantiles(plans),
        "plans": {"all": len(plans), "late": sum(1000 * x > settings.deadline_ms for x in plans)},
        "success": bool(reached),
    }


def quantiles(seconds: Any) -> dict[str, float]:
    """Median, 95% and largest, in milliseconds."""
    median, late, largest = (1000 * np.quantile(seconds, (0.5, 0.95, 1.0))).round(1).tolist()
    return {"median": median, "q95": late, "max": largest}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    settings = tyro.cli(Settings, args=arguments)
    plan = {"drop": settings.drop, "deadline_ms": settings.deadline_ms, "seed": settings.seed}
    agent = Agent.from_pretrained(settings.checkpoint, execute=1, imagine=False, **plan)
    robot = SimulatedRobot(agent.model.environment, settings)
    report = drive(agent, robot, settings)
    robot.running = False
    write_json(settings.output, report)
    print(*(f"{part}: {value}" for part, value in report.items()), sep="\n")
    return report


if __name__ == "__main__":
    main()
