"""Another look of an environment than in its data, by degree: what a frozen world model has to cope with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from sparsewm.envs.appearance import Colour, draw_disc, mean_colour, random_colour
from sparsewm.errors import UserError, suggest

KINDS = ("background", "object", "size", "light", "shift", "distractor", "blur")
"""What can be changed; the last four in any picture, the first three where an environment has such parts."""

OF_SCENE = ("background", "object", "size")
"""Those that the environment draws; the others are filters of its pictures."""

GREY: Colour = (128, 128, 128)
"""What lies behind a distractor where no background is known."""

SIDE = 112
"""Side of the picture, in whose pixels shifts and blur are given."""

_APART = 120  # of 765, by which colours differ at least
_ATTEMPTS = 50

RANDOM = (("background", 0.5), ("object", 0.5), ("light", 0.3), ("shift", 2.0), ("distractor", 0.15))
"""Looks of varied recordings: each up to its degree, lights and shifts to either side."""


class Scenery(NamedTuple):
    """Names of what an environment draws, by the kind of look that changes it."""

    background: tuple[str, ...] = ()
    object: tuple[str, ...] = ()
    size: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """One change of the look.

    Attributes:
        kind: of `KINDS`.
        degree: of background and object the share, 0 to 1, of a colour drawn for each episode that is mixed
            in; of size and light by what share more (or less, below 0, above -1); of shift the pixels to the
            right and down, and of blur the deviation, in a picture of 112; of distractor the diameter of a
            disc, drawn on top of everything in a place and a colour of the episode, as a share of the side.

    Raises:
        UserError: no such kind, or an impossible degree.
    """

    kind: str
    degree: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = suggest(self.kind, KINDS)
            raise UserError(f"there is no look '{self.kind}'.{near} Known: {', '.join(KINDS)}")
        low, high = _RANGES[self.kind]
        if not low <= self.degree <= high:
            raise UserError(f"a {self.kind} has a degree from {low:g} to {high:g}, not {self.degree:g}")

    @classmethod
    def parse(cls, text: str) -> tuple[Look, ...]:
        """Looks from text: `light:0.1`, several as `light:0.1,blur:1`; none from an empty one.

        Raises:
            UserError: it says none, or two of a kind.
        """
        looks = []
        for word in filter(None, text.replace(" ", "").split(",")):
            kind, _, degree = word.partition(":")
            try:
                looks.append(cls(kind, float(degree)))
            except ValueError:
                raise UserError(
                    f"a look is KIND:DEGREE, as in light:0.1, not '{word}'; kinds: {', '.join(KINDS)}"
                ) from None
        if len({look.kind for look in looks}) < len(looks):
            raise UserError(f"'{text}' changes the same twice: give each kind of look once")
        return tuple(looks)

    def __str__(self) -> str:
        return f"{self.kind}:{self.degree:g}"

    def colour(self, own: np.ndarray, rng: np.random.Generator, beside: Sequence[Colour] = ()) -> np.ndarray:
        """A colour or texture uint8 (..., 3) with another one mixed in, told apart from those beside it."""
        for _ in range(_ATTEMPTS):
            other = np.array(random_colour(rng, mean_colour(own)))
            mixed = np.rint(own + self.degree * (other - own)).astype(np.uint8)
            if all(np.abs(np.subtract(mean_colour(mixed), one)).sum() >= _APART for one in beside):
                break
        return mixed

    def shoot(self, picture: np.ndarray, rng: np.random.Generator, behind: Colour = GREY) -> np.ndarray:
        """The picture uint8 (R, R, 3) after this change, if it is one of pictures.

        Args:
            rng: draws the same for every picture of an episode. behind: a colour of the episode, from which
                that of a distractor differs.
        """
        scale = picture.shape[0] / SIDE
        if self.kind == "light":
            return np.rint(np.clip(picture * (1 + self.degree), 0, 255)).astype(np.uint8)
        if self.kind == "shift":
            matrix = np.array([[1, 0, self.degree * scale], [0, 1, self.degree * scale]])
            size = picture.shape[1::-1]
            return cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        if self.kind == "blur" and self.degree:
            return cv2.GaussianBlur(picture, (0, 0), self.degree * scale, borderType=cv2.BORDER_REPLICATE)
        if self.kind == "distractor" and self.degree:
            picture, side = picture.copy(), picture.shape[0]
            place = rng.uniform(0.15, 0.85, 2) * side
            colour = random_colour(rng, behind)
            draw_disc(picture, place, self.degree * side / 2, colour)
        return picture


_RANGES = {
    "background": (0, 1),
    "object": (0, 1),
    "size": (-0.9, 3),
    "light": (-0.95, 3),
    "shift": (-56, 56),
    "distractor": (0, 1),
    "blur": (0, 20),
}


def random_looks(rng: np.random.Generator, kinds: tuple[str, ...]) -> tuple[Look, ...]:
    """Looks of an episode of a varied recording, of those kinds that an environment has."""
    looks = []
    for kind, most in RANDOM:
        degree = rng.uniform(-most, most) if kind in ("light", "shift") else rng.uniform(0, most)
        if kind in kinds:
            looks.append(Look(kind, float(degree)))
    return tuple(looks)
