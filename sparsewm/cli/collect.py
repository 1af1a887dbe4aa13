"""`sparsewm collect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparsewm.cli.common import check_seed, command_line, output_folder, progress_bar
from sparsewm.data import collect, open_dataset
from sparsewm.evaluation.oracle import demonstration_steps, demonstrator
from sparsewm.files import write_json
from sparsewm.report.plots import plot_dataset
from sparsewm.settings import at_least, environment_settings, make_env


@dataclass
class Collect:
    """Record scripted data into one HDF5 file; an interrupted recording continues.

    Example: sparsewm collect --env wall --episodes 200 --workers 2
    """

    env: str
    """Environment: pusht, wall, pointmaze, pointmaze-large, rope, granular or blockpush."""
    policy: Literal["exploration", "expert"] = "exploration"
    """exploration, for world models; or expert: short ways to goals, for policies to imitate, scripted (wall,
    pointmaze, pointmaze-large, pusht, blockpush) or planned on the true simulator (seconds an episode)."""
    episodes: int = 0
    """Episodes to record; 0 takes the environment's usual number."""
    steps: int = 0
    """Environment steps of an episode; 0 takes the usual number."""
    held: float | None = None
    """Share of steps with random actions held for a model step, as planners try them; None: the usual."""
    workers: int = 2
    """Parallel processes; the file is the same for any number."""
    resolution: int = 112
    """Side of the pictures in pixels."""
    seed: int = 0
    """Seed of the recording."""
    output: Path = Path("data")
    """Folder for E.h5, E.json and E.png."""

    def run(self) -> int:
        at_least(0, episodes=self.episodes, steps=self.steps)
        at_least(1, workers=self.workers)
        check_seed(self.seed)
        env = make_env(self.env, resolution=self.resolution)
        usual = environment_settings(env.name)
        expert = self.policy == "expert"
        held = (0.0 if expert else usual.held) if self.held is None else self.held
        folder = output_folder(self.output)
        path = folder / (f"{env.name}-expert.h5" if expert else f"{env.name}.h5")
        with progress_bar(f"recording {env.name}") as progress:
            collect(
                env.name,
                self.episodes or usual.episodes,
                path,
                self.workers,
                self.seed,
                self.steps or (demonstration_steps(env) if expert else usual.steps),
                self.resolution,
                progress,
                held,
                demonstrator(env) if expert else None,
            )
        dataset = open_dataset(path, env.name)
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
