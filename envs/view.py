"""Pictures and numbers of any Gymnasium environment's observations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sparsewm.envs.base import Observation
from sparsewm.errors import UserError

_PICTURES = ("pixels", "image", "rgb")  # keys of observations, the first that is there is shown
_GOALS = ("achieved_goal", "desired_goal")  # no proprioception


class View:
    """Turns an environment's observations into `{"pixels", "proprio"}`; arguments as of `PixelGoals`.

    Attributes:
        pixels: key of the picture in the observation ("" for all of it), or "render".
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        name: str,
        resolution: int | None,
        pixels: str | None,
        proprio: Sequence[str] | Callable[[Any], np.ndarray] | None,
    ) -> None:
        if resolution is not None and (int(resolution) != resolution or not 16 <= resolution <= 2048):
            raise UserError(f"resolution must be a whole number from 16 to 2048 (px), not {resolution!r}")
        self._env, self._name, self._resolution = env, name, resolution
        self._leaves = dict(_leaves(env.observation_space))
        self.pixels = self._choose_picture(pixels)
        self._proprio = proprio if callable(proprio) else self._choose_numbers(proprio)

    def _choose_picture(self, asked: str | None) -> str:
        """Key of the picture in the observation ("" for all of it), or "render"."""
        pictures = [key for key, space in self._leaves.items() if _is_picture(space)]
        if asked is not None and asked != "render":
            if asked not in pictures:
                raise UserError(
                    f"{self._name} observes no picture '{asked}': choose {', '.join([*pictures, 'render'])}"
                )
            return asked
        if asked is None and pictures:
            known = [key for key in _PICTURES if key in pictures]
            if not known and len(pictures) > 1:
                raise UserError(
                    f"{self._name} observes several pictures: choose pixels= one of {', '.join(pictures)}"
                )
            return (known or pictures)[0]
        if self._env.render_mode != "rgb_array":
            raise UserError(
                f"{self._name} shows no picture: neither does it observe one, nor was it made with "
                'render_mode="rgb_array"'
            )
        return "render"

    def _choose_numbers(self, asked: Sequence[str] | None) -> tuple[str, ...]:
        numbers = [key for key, s in self._leaves.items() if s.is_np_flattenable and not _is_picture(s)]
        if asked is None:
            return tuple(key for key in numbers if key.split("/")[-1] not in _GOALS)
        if strange := [key for key in asked if key not in numbers]:
            raise UserError(
                f"{self._name} observes no numbers '{strange[0]}': choose of {', '.join(numbers)}"
            )
        return tuple(asked)

    def see(self, seen: Any) -> Observation:
        """Our observation of the environment's own."""
        if callable(self._proprio):
            proprio: np.ndarray = np.ravel(self._proprio(seen))
        else:
            flat = [np.asarray(spaces.flatten(self._leaves[key], _at(seen, key))) for key in self._proprio]
            proprio = np.concatenate(flat) if flat else np.zeros(1)
        picture = self._env.render() if self.pixels == "render" else _at(seen, self.pixels)
        return {"pixels": self.picture(picture), "proprio": np.asarray(proprio, np.float32)}

    def names(self, size: int) -> tuple[str, ...]:
        """Names of the `size` numbers of proprioception: their key, or "proprio", and a number."""
        if callable(self._proprio):
            return tuple(f"proprio{i}" for i in range(size))
        names = []
        for key in self._proprio:
            count = spaces.flatdim(self._leaves[key])
            names += [f"{key or 'proprio'}{i if count > 1 else ''}" for i in range(count)]
        return tuple(names) or ("nothing",)

    def picture(self, picture: Any) -> np.ndarray:
        """uint8 (H, W, 3) of any picture, scaled down."""
        picture = np.asarray(picture)
        if picture.ndim == 3 and picture.shape[0] in (1, 3) and picture.shape[2] not in (1, 3):
            picture = picture.transpose(1, 2, 0)
        if picture.ndim == 2 or picture.shape[-1] == 1:
            picture = np.repeat(picture.reshape(*picture.shape[:2], 1), 3, axis=2)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(
                f"a picture of {self._name} is {picture.dtype} {picture.shape}, but must be uint8 (H, W, 3)"
            )
        height, width = picture.shape[:2]
        shrink = (self._resolution or np.inf) / min(height, width)
        if shrink < 1:
            size = round(width * shrink), round(height * shrink)
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return np.array(picture)


def _leaves(space: spaces.Space[Any], path: str = "") -> Iterator[tuple[str, spaces.Space[Any]]]:
    """The parts of an observation that are no dicts, by their path "a/b"; "" where all of it is one."""
    if not isinstance(space, spaces.Dict):
        yield path, space
        return
    for key, part in space.items():
        yield from _leaves(part, f"{path}/{key}" if path else key)


def _at(seen: Any, path: str) -> Any:
    for key in path.split("/") if path else ():
        seen = seen[key]
    return seen


def _is_picture(space: spaces.Space[Any]) -> bool:
    """Whether it is uint8 (H, W), (H, W, 1 or 3) or (1 or 3, H, W)."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    shape = space.shape
    return len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3) or shape[2] in (1, 3)))
