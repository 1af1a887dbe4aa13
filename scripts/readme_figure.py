"""Draw the animation of README: one closed-loop episode of PushT with half of the tokens.

Example:

    python -m scripts.readme_figure --seed 3 --output docs/images/pusht.gif
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio.v2 as imageio

from scripts.common import launch
from sparsewm.report.video import write_video


@dataclass
class Arguments:
    """One episode as a GIF."""

    env: str = "pusht"
    """Environment."""
    seed: int = 0
    """Seed of the episode."""
    drop: float = 0.5
    """Fraction of the tokens dropped."""
    output: Path = Path("docs/images/pusht.gif")
    """GIF to write."""


def main(arguments: Arguments) -> None:
    folder = Path("runs/figure")
    words = ["plan", "--env", arguments.env, "--drop", f"{arguments.drop:g}", "--seed", str(arguments.seed)]
    subprocess.run(["sparsewm", *words, "--output", str(folder)], check=True)
    frames = [frame[::2, ::2] for frame in imageio.mimread(folder / "episode-000.mp4", memtest=False)]
    write_video(arguments.output, frames, hold=0)


if __name__ == "__main__":
    launch(main, Arguments)
