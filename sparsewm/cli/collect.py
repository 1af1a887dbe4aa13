"""`sparsewm collect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparsewm import envs
from sparsewm.cli.common import command_line, output_folder, progress_bar
from sparsewm.config import environment_file
from sparsewm.data import collect, open_dataset
from sparsewm.envs import SimulatedGoalEnv
from sparsewm.errors import UserError
from sparsewm.evaluation.oracle import demonstration_steps, demonstrator
from sparsewm.files import slug, write_json
from sparsewm.report.plots import plot_dataset
from sparsewm.settings import environment_settings, make_env
from sparsewm.tasks import check_seed
from sparsewm.trees import at_least

EPISODES, STEPS = 200, 100  # of a recording in an environment that is not ours


@dataclass
class Collect:
    """Record scripted data into one HDF5 file; an interrupted recording continues.

    Example: sparsewm collect --env wall --episodes 200 --workers 2
    """

    env: str
    """Environment: pusht, wall, pointmaze, pointmaze-large, rope, granular, blockpush, a benchmark's
    (ogbench/cube-single, metaworld/reach-v3), a Gymnasium id, or module:Class of your own."""
    policy: Literal["exploration", "expert"] = "exploration"
    """exploration, for world models; or expert: short ways to goals, for policies to imitate, scripted (wall,
    pointmaze, pointmaze-large, pusht, blockpush, Meta-World) or planned on the true simulator (seconds an
    episode)."""
    episodes: int = 0
    """Episodes to record; 0 takes the environment's usual number."""
    steps: int = 0
    """Environment steps of an episode; 0 takes the usual number."""
    held: float | None = None
    """Share of steps with random actions held for a model step, as planners try them; None: the usual."""
    looks: bool = False
    """Draw another look for each episode: colours of background and objects, light, the camera's place, a
    distractor (docs/howto/looks.md)."""
    pictures: bool = True
    """Draw pictures. Without them states and actions are recorded, for policies that read the state
    (docs/howto/proposals.md), in a fraction of the time where drawing is slow."""
    workers: int = 2
    """Parallel processes; the file is the same for any number."""
    resolution: int | None = None
    """Side of the pictures in pixels, the shorter one; None: 112, or what an environment of your own has."""
    seed: int = 0
    """Seed of the recording."""
    output: Path = Path("data")
    """Folder for E.h5, E.json and E.png."""

    interrupted = "interrupted; finished parts are kept: the same command continues"

    def run(self) -> int:
        at_least(0, episodes=self.episodes, steps=self.steps)
        at_least(1, workers=self.workers)
        check_seed(self.seed)
        env = make_env(self.env, **({} if self.resolution is None else {"resolution": self.resolution}))
        if environment_file(env.name).is_file():
            usual = environment_settings(env.name)
            episodes, steps, held = usual.episodes, usual.steps, usual.held
        else:
            episodes, steps, held = EPISODES, min(STEPS, envs.max_episode_steps(env.name)), 0.0
        expert = None
        if self.policy == "expert":
            if not isinstance(env, SimulatedGoalEnv) or not environment_file(env.name).is_file():
                raise UserError(f"there is no expert for {env.name}: leave `policy` out")
            expert, held, steps = demonstrator(env), 0.0, demonstration_steps(env)
        kinds = {"expert": expert is not None, "looks": self.looks, "states": not self.pictures}
        name = "-".join([slug(env.name), *(kind for kind, is_so in kinds.items() if is_so)])
        if self.output.suffix == ".h5":
            raise UserError(f"`output` {self.output} is named like a file: give the folder for {name}.h5")
        path = output_folder(self.output) / f"{name}.h5"
        with progress_bar(f"recording {env.name}") as progress:
            collect(
                env.name,
                self.episodes or episodes,
                path,
                self.steps or steps,
                self.workers,
                self.seed,
                self.resolution,
                progress,
                held if self.held is None else self.held,
                expert,
                self.looks,
                self.pictures,
            )
        dataset = open_dataset(path, env.name, pictures=self.pictures)
        write_json(
            path.with_suffix(".json"),
            {
                "environment": env.name,
                "episodes": dataset.episodes,
                "rows": dataset.rows,
                "bytes": path.stat().st_size,
                "hash": dataset.hash,
                "seed": self.seed,
                "command": command_line(),
            },
        )
        plot_dataset(path.with_suffix(".png"), env, dataset)
        print(
            f"{dataset.episodes} episodes, {dataset.rows} frames, {path.stat().st_size / 1e6:.0f} MB in "
            f"{path}"
        )
        return 0
