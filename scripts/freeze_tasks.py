"""Freeze the tasks that settings are chosen on (validation) and that tables report (test).

    python -m scripts.freeze_tasks

writes configs/tasks/ENV-KIND.json, KIND being `random` for goals as the environment draws them, or the number
of steps they are ahead in a held-out trajectory; moments whose start counts as success already are passed
over, and their number is kept. A file holds both sets; a set holds the first of its consecutive seeds, starts
and goals as base64 of float32 (little-endian, one state after the other), and a SHA-256 over all of it, which
is checked on loading. Seeds are beyond those of drawn tasks and of recordings. What is in the files counts:
another MuJoCo may draw other last digits, so a file is kept unless `--again`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scripts.common import launch
from scripts.lab.states import make_simulator
from sparsewm.config import GoalConfig, config_folder
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.files import size_text, write_json
from sparsewm.tasks import FROZEN, Task, draw_tasks, frozen_set, tasks_file

RANDOM = GoalConfig("random")
KINDS: dict[str, tuple[GoalConfig, ...]] = {
    "wall": (RANDOM,),
    "pointmaze": (RANDOM,),
    "pointmaze-large": (RANDOM,),
    "rope": (RANDOM,),
    "granular": (RANDOM,),
    "pusht": (*(GoalConfig("trajectory", ahead) for ahead in (25, 50, 75)), RANDOM),
    "blockpush": (GoalConfig("trajectory", 50), RANDOM),
}
"""Goals of each environment of which tasks are frozen."""

OTHERS = {"metaworld/mt10": (RANDOM,)}
AHEAD = (GoalConfig("trajectory", 25),)
"""Those of others' environments: as `OTHERS` says, else as stable-worldmodel has them."""


@dataclass
class Arguments:
    """Write the frozen tasks."""

    environments: tuple[str, ...] = tuple(KINDS)
    """Environments; also benchmarks', whose packages are installed."""
    again: bool = False
    """Write files that are there again."""
    output: Path = config_folder() / "tasks"
    """Folder."""


def rounded(env: SimulatedGoalEnv, task: Task) -> Task:
    """The task as float32 keeps it.

    Raises:
        UserError: that is no state, or its start counts as success.
    """
    start, goal = (np.asarray(state, np.float32).astype(np.float64) for state in (task.start, task.goal))
    env.reset(options={"state": start, "goal": goal})
    if env.is_success(start, goal):
        raise UserError(f"task {task.seed} of {env.name} is solved at its start: draw others")
    return replace(task, start=start, goal=goal)


def main(arguments: Arguments) -> None:
    for name in arguments.environments:
        env = make_simulator(name)
        for goal in (KINDS | OTHERS).get(env.name, AHEAD):
            path = arguments.output / tasks_file(env.name, goal).name
            if path.exists() and not arguments.again:
                print(f"{path.name}: kept", flush=True)
                continue
            content = {}
            for part, (first, count) in FROZEN.items():
                tasks = draw_tasks(env, range(first, first + count), goal)
                content[part] = frozen_set(env.name, goal, [rounded(env, task) for task in tasks])
            write_json(path, content)
            print(f"{path.name}: {size_text(path.stat().st_size)}", flush=True)


if __name__ == "__main__":
    launch(main, Arguments)
