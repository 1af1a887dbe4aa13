"""Videos of episodes: the real scene, the goal, and the patches kept at this moment."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import cv2
import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from sparsewm.agent import Decision
from sparsewm.errors import UserError
from sparsewm.evaluation.episodes import Episode, small
from sparsewm.files import atomic_path

SIDE = 256  # pixels of a panel
LABEL = 22  # pixels of the line above a panel


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """The font of the plots."""
    return ImageFont.truetype(findfont("DejaVu Sans"), 12)


def panel(picture: np.ndarray, label: str, side: int = SIDE) -> np.ndarray:
    """A picture (H, W, 3) with a line of text above it, uint8 (side + LABEL, side, 3)."""
    scale = side / max(picture.shape[:2])
    height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
    method = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    below = np.zeros((side, side, 3), np.uint8)
    below[:height, :width] = cv2.resize(picture, (width, height), interpolation=method)
    head = Image.new("RGB", (side, LABEL), (32, 32, 32))  # readable on a light page and on a dark one
    ImageDraw.Draw(head).text((6, 4), label, fill=(235, 235, 235), font=_font())
    return np.concatenate([np.asarray(head), below])


def dim_dropped(picture: np.ndarray, kept: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The picture with every patch that is not in `kept` (indices) darkened."""
    seen = np.zeros(grid[0] * grid[1], np.float32)
    seen[kept] = 1
    mask = cv2.resize(seen.reshape(grid), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return np.rint(picture * (0.18 + 0.82 * mask[..., None])).astype(np.uint8)


def episode_frames(
    episode: Episode, grid: tuple[int, int] | None, frameskip: int, side: int = SIDE
) -> list[np.ndarray]:
    """One frame per environment step: real scene | goal | kept patches, and what the plan imagined for it."""
    goal = panel(small(episode.goal["pixels"]), "goal", side)
    imagining = any(decision.imagined is not None for decision in episode.decisions)
    frames = []
    for step, picture in enumerate(episode.frames):
        earlier = [decision for decision in episode.decisions if decision.step <= step]
        last = earlier[-1] if earlier else None
        state = "reached" if step == episode.success_step else f"step {step}"
        panels = [panel(picture, f"real, {state}", side), goal]
        if grid is not None:
            total = grid[0] * grid[1]
            kept = np.arange(total) if last is None or last.kept is None else last.kept
            label = f"kept, {len(kept)} of {total} tokens"
            panels.append(panel(dim_dropped(picture, kept, grid), label, side))
        if imagining:
            panels.append(imagined_panel(last, step, frameskip, side))
        frames.append(np.concatenate(panels, 1))
    return frames


def imagined_panel(decision: Decision | None, step: int, frameskip: int, side: int = SIDE) -> np.ndarray:
    """What a plan imagined for an environment step: its next model frame."""
    if decision is None or decision.imagined is None:
        return panel(np.full((side, side, 3), 255, np.uint8), "nothing imagined", side)
    ahead = -(-(step - decision.step) // frameskip)  # model steps, rounded up
    frame = min(max(ahead, 1), len(decision.imagined))
    return panel(decision.imagined[frame - 1], f"imagined, step {decision.step + frame * frameskip}", side)


def write_video(path: str | Path, frames: list[np.ndarray], fps: int = 10, hold: int = 8) -> None:
    """Write frames as MP4 (H.264) or WebP by the suffix; the last one is held for `hold` frames.

    Raises:
        UserError: the file cannot be written, e.g. for lack of space.
    """
    frames = [*frames, *[frames[-1]] * hold]
    even = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".webp":
            first, *others = map(Image.fromarray, even)
            how = {"save_all": True, "append_images": others, "duration": 1000 // fps, "loop": 0}
            first.save(temporary, "WEBP", quality=50, method=6, **how)
        else:
            with suppress(OSError):  # ffmpeg has ended, and says no more than that
                how = {"fps": fps, "codec": "libx264", "macro_block_size": 2}
                imageio.mimwrite(temporary, even, format="FFMPEG", **how)  # type: ignore[arg-type]
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
