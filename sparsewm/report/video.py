"""Videos of episodes: the real scene, the goal, and the patches kept at this moment."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import cv2
import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np

from sparsewm.agent import Decision
from sparsewm.errors import UserError
from sparsewm.evaluation.episodes import Episode, small
from sparsewm.files import atomic_path

SIDE = 256  # pixels of a panel
LABEL = 22  # pixels of the line above a panel


def panel(picture: np.ndarray, label: str) -> np.ndarray:
    """A picture (H, W, 3) with a line of text above it, uint8 (SIDE + LABEL, SIDE, 3)."""
    scale = SIDE / max(picture.shape[:2])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    method = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    side = np.zeros((SIDE, SIDE, 3), np.uint8)
    side[:height, :width] = cv2.resize(picture, (width, height), interpolation=method)
    head = np.full((LABEL, SIDE, 3), 32, np.uint8)
    cv2.putText(head, label, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([head, side])


def dim_dropped(picture: np.ndarray, kept: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The picture with every patch that is not in `kept` (indices) darkened."""
    seen = np.zeros(grid[0] * grid[1], np.float32)
    seen[kept] = 1
    mask = cv2.resize(seen.reshape(grid), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return np.rint(picture * (0.18 + 0.82 * mask[..., None])).astype(np.uint8)


def episode_frames(episode: Episode, grid: tuple[int, int] | None, frameskip: int) -> list[np.ndarray]:
    """One frame per environment step: real scene | goal | kept patches, and what the plan imagined for it."""
    goal = panel(small(episode.goal["pixels"]), "goal")
    imagining = any(decision.imagined is not None for decision in episode.decisions)
    frames = []
    for step, picture in enumerate(episode.frames):
        earlier = [decision for decision in episode.decisions if decision.step <= step]
        last = earlier[-1] if earlier else None
        state = "reached" if step == episode.success_step else f"step {step}"
        panels = [panel(picture, f"real, {state}"), goal]
        if grid is not None:
            total = grid[0] * grid[1]
            kept = np.arange(total) if last is None or last.kept is None else last.kept
            panels.append(panel(dim_dropped(picture, kept, grid), f"kept {len(kept)} of {total} tokens"))
        if imagining:
            panels.append(imagined_panel(last, step, frameskip))
        frames.append(np.concatenate(panels, 1))
    return frames


def imagined_panel(decision: Decision | None, step: int, frameskip: int) -> np.ndarray:
    """What a plan imagined for an environment step: its next model frame."""
    if decision is None or decision.imagined is None:
        return panel(np.full((SIDE, SIDE, 3), 255, np.uint8), "nothing imagined")
    ahead = -(-(step - decision.step) // frameskip)  # model steps, rounded up
    frame = min(max(ahead, 1), len(decision.imagined))
    return panel(decision.imagined[frame - 1], f"imagined, step {decision.step + frame * frameskip}")


def write_video(path: str | Path, frames: list[np.ndarray], fps: int = 10, hold: int = 8) -> None:
    """Write frames as MP4 (H.264) or GIF by the suffix; the last one is held for `hold` frames.

    Raises:
        UserError: the file cannot be written, e.g. for lack of space.
    """
    frames = [*frames, *[frames[-1]] * hold]
    even = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".gif":
            imageio.mimwrite(temporary, even, format="GIF", duration=1000 / fps, loop=0)  # type: ignore[arg-type]
        else:
            with suppress(OSError):  # ffmpeg has ended, and says no more than that
                imageio.mimwrite(
                    temporary, even, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2
                )  # type: ignore[arg-type]
            if not _holds(temporary, len(even)):
                raise UserError(
                    f"the video {path} could not be written: free some disk space, choose another `output`, "
                    "or leave videos out"
                )


def _holds(path: Path, frames: int) -> bool:
    """Whether a video has all its frames; ffmpeg ends in silence where the disk is full."""
    try:
        return imageio_ffmpeg.count_frames_and_secs(str(path))[0] == frames
    except RuntimeError:
        return False
