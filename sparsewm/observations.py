"""What an agent is shown: checked pictures and proprioception, and those of an episode it still needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.errors import UserError
from sparsewm.model.interface import Interface
from sparsewm.model.latent import Latent

Observation = Mapping[str, Any]
"""`pixels` uint8 (H, W, 3) and `proprio` (P,), numpy or torch, on any device; of a batch (B, ...)."""

ASPECT_TOLERANCE = 0.02
"""How much the aspect ratio of a picture may differ from the training data's."""


@dataclass
class Seen:
    """One checked observation: pixels uint8 (H, W, 3) and proprio float32 (P,) or None, on the CPU."""

    pixels: np.ndarray
    proprio: np.ndarray | None


def unbatched(observation: Observation | Any) -> tuple[list[dict[str, Any]], bool]:
    """The observations of a batch one by one, and whether it was a single one.

    A picture alone, (H, W, 3) or (B, H, W, 3), is an observation without proprioception.

    Raises:
        UserError: no picture of that shape, or parts of different batches.
    """
    parts = observation if isinstance(observation, Mapping) else {"pixels": observation}
    if parts.get("pixels") is None:
        raise UserError(f"an observation holds 'pixels', this one {', '.join(map(repr, parts)) or 'nothing'}")
    parts = {name: parts[name] for name in ("pixels", "proprio") if parts.get(name) is not None}
    arrays = {name: _array(value, name) for name, value in parts.items()}
    pixels = arrays["pixels"]
    if pixels.ndim not in (3, 4) or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise UserError(
            f"'pixels' must be uint8 (H, W, 3), of a batch (B, H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    if pixels.dtype != np.uint8:
        raise UserError(f"'pixels' must be uint8 from 0 to 255, got {pixels.dtype}")
    if pixels.ndim == 3:
        return [arrays], True
    if "proprio" in arrays and arrays["proprio"].shape[:1] != pixels.shape[:1]:
        rows = "".join(str(size) for size in arrays["proprio"].shape[:1]) or "no"
        raise UserError(f"{len(pixels)} pictures came with {rows} rows of proprioception")
    return [{name: value[i] for name, value in arrays.items()} for i in range(len(pixels))], False


def _array(value: Any, name: str) -> np.ndarray:
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            return np.asarray(value.float() if value.is_floating_point() else value)
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"'{name}' of an observation is no array ({error})") from None


def checked(observation: Mapping[str, np.ndarray], proprio_dim: int, letterbox: float | None) -> Seen:
    """An observation as a world model takes it.

    Args:
        observation: a single one, from `unbatched`.
        proprio_dim: P; 0 where the model's data had none.
        letterbox: height / width to pad the picture to; None: as it is.

    Raises:
        UserError: proprioception of another size, or not finite.
    """
    pixels = np.array(observation["pixels"], order="C")  # a copy: views may be read-only or change later
    if letterbox is not None:
        pixels = letterboxed(pixels, letterbox)
    if proprio_dim == 0:
        return Seen(pixels, np.zeros(1, np.float32))
    proprio = observation.get("proprio")
    if proprio is None:
        return Seen(pixels, None)
    return Seen(pixels, _numbers(proprio, proprio_dim, "'proprio'"))


@dataclass
class Eyes:
    """How observations are taken by a world model.

    Args:
        interface: of the model. letterbox: pad pictures of another aspect ratio.
        adapt: a picture (H, W, 3) as the model's data would show it; None: as it is.
    """

    interface: Interface
    letterbox: bool = False
    adapt: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, observation: Mapping[str, np.ndarray]) -> Seen:
        """A single observation from `unbatched`.

        Raises:
            UserError: it has another aspect ratio, or other proprioception.
        """
        aspect, picture = None, self.interface.picture
        if not same_aspect(observation["pixels"], picture):
            if not self.letterbox:
                height, width = observation["pixels"].shape[:2]
                raise UserError(
                    f"pictures of {height} x {width} (height x width) have another aspect ratio than the "
                    f"{picture[0]} x {picture[1]} this model was trained on: crop them, or pad them by "
                    "`letterbox`"
                )
            aspect = picture[0] / picture[1]
        seen = checked(observation, self.interface.proprio_dim, aspect)
        return seen if self.adapt is None else Seen(self.adapt(seen.pixels), seen.proprio)


def checked_action(action: Any, action_dim: int) -> np.ndarray:
    """An executed action (A,) in float32.

    Raises:
        UserError: of another size, or not finite.
    """
    return _numbers(action, action_dim, "`action`")


def _numbers(value: Any, size: int, name: str) -> np.ndarray:
    try:
        found = np.array(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be numbers ({error})") from None
    if found.shape != (size,):
        raise UserError(f"{name} must have shape ({size},), got {found.shape}")
    if not np.isfinite(found).all():
        raise UserError(f"{name} must be finite, got {found.tolist()}")
    return found


def active_episodes(active: Sequence[int] | np.ndarray | None, episodes: int) -> np.ndarray:
    """Numbers of active episodes (n,), all of them where none are given.

    Raises:
        UserError: not different numbers from 0 to `episodes` - 1.
    """
    if active is None:
        return np.arange(episodes)
    found = np.asarray(active)
    if found.ndim != 1 or not found.size or found.dtype.kind not in "iu" or len(set(found)) < len(found):
        raise UserError(f"the numbers of episodes must be different whole numbers, got {active}")
    if found.min() < 0 or found.max() >= episodes:
        raise UserError(f"there are {episodes} episodes, numbered from 0: got {found.tolist()}")
    return found


def checked_seeds(seeds: Any, episodes: int) -> list[int]:
    """A seed for every episode.

    Raises:
        UserError: not as many whole numbers.
    """
    found = np.asarray(seeds)
    if found.shape != (episodes,) or found.dtype.kind not in "iu":
        raise UserError(f"`seeds` must be a whole number for each of {episodes} episodes, got {seeds}")
    return [int(seed) for seed in found]


def same_aspect(pixels: np.ndarray, picture: Sequence[int]) -> bool:
    """Whether a picture (H, W, 3) has the aspect ratio of pictures (height, width)."""
    ratio = (pixels.shape[0] / pixels.shape[1]) / (picture[0] / picture[1])
    return abs(ratio - 1) <= ASPECT_TOLERANCE


def letterboxed(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """A picture (H, W, 3) with black bars, so that height / width becomes `aspect`."""
    height, width = pixels.shape[:2]
    taller, wider = max(height, round(width * aspect)), max(width, round(height / aspect))
    if taller / height <= 1 + 1e-9 and wider / width <= 1 + 1e-9:
        return pixels
    canvas = np.zeros((taller, wider, 3), np.uint8)
    top, left = (taller - height) // 2, (wider - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas


@dataclass
class Memory:
    """What an agent remembers of one episode.

    Attributes:
        goal_seen: the goal as it was shown. goal: its frame, None where nothing is imagined.
        instruction: the task in words, for a policy that reads a sentence.
        depth: environment steps that are remembered.
        step: environment steps taken. pending: actions (n, A) handed out and not known to be taken.
        taken: the last actions, at most `depth`. seen, latents: what was shown, and what of it was encoded,
            by environment step.
        planned: step of the last plan, None before the first.
    """

    goal_seen: Seen
    depth: int
    goal: Latent | None = None
    instruction: str | None = None
    step: int = 0
    pending: deque[np.ndarray] = field(default_factory=deque)
    watched: bool = False  # whether `observe` has reported any of the pending actions
    taken: deque[np.ndarray] = field(default_factory=deque)
    seen: dict[int, Seen] = field(default_factory=dict)
    latents: dict[int, Latent] = field(default_factory=dict)
    planned: int | None = None

    def model_steps(self, frameskip: int) -> int:
        """Model steps executed since the last plan, to the nearest; 0 before the first."""
        passed = self.step - (self.step if self.planned is None else self.planned)
        return (2 * passed + frameskip) // (2 * frameskip)

    def take(self, action: np.ndarray) -> None:
        """An action (A,) was executed."""
        self.taken.append(np.asarray(action, np.float32))
        self.step += 1
        while len(self.taken) > self.depth:
            self.taken.popleft()

    def show(self, seen: Seen) -> None:
        """What is seen now."""
        self.seen[self.step] = seen
        self.latents.pop(self.step, None)
        oldest = self.step - self.depth
        self.seen = {step: shown for step, shown in self.seen.items() if step >= oldest}
        self.latents = {step: frame for step, frame in self.latents.items() if step >= oldest}

    def finish_pending(self) -> None:
        """Actions that nobody reported on were taken, unless some of them were reported."""
        if not self.watched:
            for action in self.pending:
                self.take(action)
        self.pending.clear()
        self.watched = False

    def frames_back(self, frameskip: int, most: int) -> int:
        """How many past model frames are remembered without a gap, at most `most`."""
        depth = 0
        while depth < most:
            ago = frameskip * (depth + 1)
            if self.step - ago not in self.seen or len(self.taken) < ago:
                break
            depth += 1
        return depth

    def last(self, frames: int) -> list[Seen]:
        """The last observations up to now, the first one repeated where there are fewer."""
        steps = sorted(step for step in self.seen if step > self.step - frames)
        shown = [self.seen[step] for step in steps]
        return [shown[0]] * (frames - len(shown)) + shown


def stacked(seen: Sequence[Seen], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pictures uint8 (B, H, W, 3) and proprioception float32 (B, P) of observations of one size."""
    pixels = torch.as_tensor(np.stack([one.pixels for one in seen]))
    proprio = np.stack([one.proprio for one in seen if one.proprio is not None])
    return pixels, torch.as_tensor(proprio, device=device)
