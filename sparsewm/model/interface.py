"""What a world model is shown and what it is asked to do: sizes, names, bounds and rates of its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsewm.errors import UserError


@dataclass(frozen=True)
class Interface:
    """Pictures, proprioception and actions as a world model knows them from its data.

    Attributes:
        name: of the environment or dataset.
        picture: (height, width) of the recorded pictures, in pixels.
        action_low, action_high: bounds of an environment action (A,), raw units.
        action_names, proprio_names: of their numbers.
        frameskip: environment steps per model step.
        fps: environment steps per second, None where nobody says.
        cameras: those whose pictures stand side by side; empty where there is one.
    """

    name: str
    picture: tuple[int, int]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_names: tuple[str, ...]
    proprio_names: tuple[str, ...]
    frameskip: int
    fps: float | None = None
    cameras: tuple[str, ...] = ()

    @property
    def action_dim(self) -> int:
        """Size A of an environment action."""
        return len(self.action_low)

    @property
    def proprio_dim(self) -> int:
        """Size P of proprioception."""
        return len(self.proprio_names)

    def to_dict(self) -> dict[str, Any]:
        """As checkpoints keep it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Interface:
        """As it was kept.

        Raises:
            UserError: something is missing, of another kind or impossible, or there is something else.
        """
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
            made = cls(**values)
            made._check()
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the checkpoint's interface is damaged ({error}): train anew") from None
        return made

    def _check(self) -> None:
        """Raise ValueError or TypeError where these cannot be anybody's."""
        height, width = self.picture
        if not all(type(size) is int and size >= 1 for size in (height, width, self.frameskip)):
            raise ValueError("picture and frameskip must be positive integers")
        texts = (self.name, *self.action_names, *self.proprio_names, *self.cameras)
        lists = (self.action_low, self.action_high, self.action_names, self.proprio_names, self.cameras)
        if not all(isinstance(one, str) for one in texts) or not all(isinstance(one, tuple) for one in lists):
            raise ValueError("names must be lists of texts")
        if self.fps is not None and not (type(self.fps) in (int, float) and 0 < self.fps < math.inf):
            raise ValueError(f"fps must be a positive number, not {self.fps!r}")
        bounds = list(zip(self.action_low, self.action_high, strict=True))
        if not bounds or not all(-math.inf < low <= high < math.inf for low, high in bounds):
            raise ValueError("action_low must be finite and not above action_high")
        if len(self.action_names) != len(bounds):
            raise ValueError(f"{len(bounds)} action bounds have {len(self.action_names)} names")
