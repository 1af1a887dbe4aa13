"""`sparsewm export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparsewm.cli.common import check_seed, progress_bar
from sparsewm.data import open_dataset
from sparsewm.settings import environment_settings, make_env


@dataclass
class Export:
    """Write recorded episodes in another format: as a LeRobotDataset, for policies to imitate.

    Every episode gives goal-reaching segments: the frame a segment ends at is shown as the goal.

    Example: sparsewm export --env wall --dataset data/wall-expert.h5 --output data/wall-lerobot
    """

    env: str
    """Environment: pusht, wall, pointmaze, pointmaze-large, rope, granular or blockpush."""
    output: Path
    """Folder of the new dataset; must not exist."""
    dataset: Path | None = None
    """Recorded HDF5 file; data/ENV.h5 when left out."""
    format: Literal["lerobot"] = "lerobot"
    """What to write."""
    segments: int = 1
    """Segments of every episode."""
    shortest: int = 25
    """Environment steps to the goal, at least; shorter episodes are one segment."""
    longest: int = 100
    """Environment steps to the goal, at most."""
    instruction: str | None = None
    """The task in words; the environment's own text when left out."""
    fps: int | None = None
    """Environment steps per second; the environment's own when left out."""
    seed: int = 0
    """Seed of the choice of segments."""

    def run(self) -> int:
        check_seed(self.seed)
        env = make_env(self.env)
        from sparsewm.data.lerobot import export_lerobot, segments  # loads LeRobot, which takes seconds

        dataset = open_dataset(self.dataset or Path("data") / f"{env.name}.h5", env.name)
        chosen = segments(dataset, self.segments, self.shortest, self.longest, self.seed)
        instruction = (
            environment_settings(env.name).instruction if self.instruction is None else self.instruction
        )
        fps = int(env.metadata["render_fps"]) if self.fps is None else self.fps
        with progress_bar(f"exporting {env.name}") as progress:
            export_lerobot(dataset, chosen, self.output, env.proprio_names, instruction, fps, progress)
        frames = sum(segment.last - segment.first + 1 for segment in chosen)
        print(f"{len(chosen)} episodes, {frames} frames in {self.output}, read back and compared")
        return 0
