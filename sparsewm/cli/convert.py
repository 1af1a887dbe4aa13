"""`sparsewm convert`."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tyro.conf import Positional

from sparsewm import envs
from sparsewm.cli.common import progress_bar
from sparsewm.cli.inspect import reading
from sparsewm.config import PlanConfig
from sparsewm.data import Dataset, open_dataset
from sparsewm.data.convert import Resize, chosen_episodes, resizer, write_hdf5
from sparsewm.envs.registry import packages_of
from sparsewm.errors import UserError
from sparsewm.settings import instructions, make_env
from sparsewm.trees import at_least


@dataclass
class Convert:
    """Write a dataset of any known format as HDF5 (ours and stable-worldmodel's) or as a LeRobotDataset.

    With --segments every episode gives goal-reaching segments, for policies to imitate: the frame a segment
    ends at is shown as the goal.

    Example: sparsewm convert data/wall.h5 data/wall-lerobot
    """

    source: Positional[str]
    """Path of a dataset of any known format, or format:name, e.g. lerobot:user/name."""
    target: Positional[Path]
    """What to write; must not exist."""
    format: Literal["hdf5", "lerobot"] | None = None
    """hdf5 or lerobot; hdf5 where the target ends in .h5 or .hdf5, else lerobot, when left out."""
    source_format: str | None = None
    """Format of the source, or module:class of your own reader; found out when left out."""
    cameras: tuple[str, ...] = ()
    """Cameras to keep, each by itself; needed where there are several."""
    episodes: tuple[int, ...] = ()
    """Numbers of the episodes to keep; all when left out."""
    resolution: tuple[int, ...] = ()
    """Size of the pictures: height and width, or the shorter side; their own when left out."""
    fps: float | None = None
    """Rows a second; what the source says when left out."""
    instruction: str | None = None
    """The task in words (lerobot). Left out: what one of this package's environments, or the task of a
    benchmark, says; else "reach the goal"."""
    segments: int = 0
    """Goal-reaching segments of every episode (lerobot); 0: whole episodes."""
    shortest: int = 25
    """Rows from the start of a segment to its goal, at least; shorter episodes are one segment."""
    longest: int = 100
    """Rows from the start of a segment to its goal, at most."""
    seed: int = 0
    """Seed of the choice of segments."""

    def run(self) -> int:
        at_least(0, segments=self.segments, seed=self.seed)
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"`fps` must be a number above 0, got {self.fps:g}")
        size = resizer(self.resolution)
        hdf5 = self.format == "hdf5" or (self.format is None and self.target.suffix in (".h5", ".hdf5"))
        if hdf5 and self.segments:
            raise UserError("`segments` are written as a LeRobotDataset: give `format` lerobot")
        if self.segments and (self.episodes or self.resolution or len(self.cameras) > 1):
            raise UserError("`segments` are cut from all episodes as they are, seen by one camera")
        with ExitStack() as opened:

            def view(*cameras: str) -> Dataset:
                with reading() as progress:
                    dataset = open_dataset(
                        self.source, cameras=cameras, format=self.source_format, progress=progress
                    )
                return opened.enter_context(closing(dataset))

            if self.cameras:
                views = {name: view(name) for name in self.cameras}
            else:
                views = {(one := view()).cameras[0]: one}
            dataset = next(iter(views.values()))
            episodes = chosen_episodes(dataset, self.episodes)
            if hdf5:
                with progress_bar("converting") as progress:
                    fps = {} if self.fps is None else {"fps": self.fps}
                    write_hdf5(views, self.target, episodes, size, progress, **fps)
                rows = int(dataset.lengths[episodes].sum())
                print(f"{len(episodes)} episodes, {rows} rows in {self.target}")
                return 0
            self._lerobot(dataset, views, episodes, size)
        return 0

    def _lerobot(
        self, dataset: Dataset, views: dict[str, Dataset], episodes: np.ndarray, size: Resize
    ) -> None:
        from sparsewm.data.lerobot import export_lerobot, segments, write_lerobot  # loads LeRobot: seconds

        ours = str(dataset.attributes.get("environment"))
        known = ours in envs.names() or bool(packages_of(ours))  # no code that a file names is run
        said = self.instruction
        if said is None and ours in envs.names():
            said = PlanConfig.of(ours).proposals.instruction
        rate, texts = self.fps or dataset.fps, ["reach the goal" if said is None else said] * dataset.episodes
        if known and (said is None or not rate):
            try:
                with closing(make_env(ours)) as env:
                    rate = rate or env.metadata["render_fps"]
                    if said is None and isinstance(env, envs.SimulatedGoalEnv):
                        texts = [text or "reach the goal" for text in instructions(env, dataset)]
            except UserError as error:
                also = "" if rate else " and `fps`"
                raise UserError(f"{error}; or give an `instruction`{also}") from None
        if not rate:
            raise UserError(f"{dataset.path} does not say how many rows a second has: give `fps`")
        fps = max(1, round(rate))
        if fps != rate:
            print(f"warning: LeRobot counts whole rows a second: {rate:g} becomes {fps}", file=sys.stderr)
        with progress_bar("converting") as progress:
            if not self.segments:
                write_lerobot(views, self.target, episodes, texts, fps, size, progress)
                count, rows = len(episodes), int(dataset.lengths[episodes].sum())
            else:
                chosen = segments(dataset, self.segments, self.shortest, self.longest, self.seed)
                names = dataset.proprio_names
                export_lerobot(dataset, chosen, self.target, names, texts, fps, progress)
                count, rows = len(chosen), sum(part.last - part.first + 1 for part in chosen)
        print(f"{count} episodes, {rows} frames in {self.target}, read back and compared")
