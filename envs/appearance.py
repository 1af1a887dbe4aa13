"""Anti-aliased drawing, and random looks (colours, textures, shapes, camera) for encoder pretraining."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

TEXTURE_SIZE = 128
_SHIFT = 4  # cv2 drawing coordinates in 1/16 pixel

Colour = tuple[int, int, int]


def draw_polygon(picture: np.ndarray, points: np.ndarray, colour: Colour) -> None:
    """Fill a simple polygon with vertices (V, 2) in pixels; (0, 0) is the corner of the corner pixel."""
    fixed = np.rint((points - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(picture, [fixed], colour, cv2.LINE_AA, _SHIFT)


def draw_disc(picture: np.ndarray, centre: np.ndarray, radius: float, colour: Colour) -> None:
    """Fill a disc; its edge is one pixel of exact linear coverage, so any motion changes the picture."""
    height, width = picture.shape[:2]
    x, y = float(centre[0]), float(centre[1])
    left, right = max(int(x - radius - 1), 0), min(int(x + radius + 2), width)
    top, bottom = max(int(y - radius - 1), 0), min(int(y + radius + 2), height)
    if left >= right or top >= bottom:
        return
    columns = np.arange(left, right, dtype=np.float32) + (0.5 - x)
    rows = np.arange(top, bottom, dtype=np.float32) + (0.5 - y)
    away = np.sqrt(rows[:, None] ** 2 + columns**2)
    cover = np.clip(radius + 0.5 - away, 0.0, 1.0)[..., None]
    patch = picture[top:bottom, left:right]
    patch[:] = np.rint(patch + cover * (np.array(colour, np.float32) - patch)).astype(np.uint8)


def random_colour(rng: np.random.Generator, away_from: Colour | None = None) -> Colour:
    """A random colour, clearly different from `away_from` where one is given."""
    colour = rng.integers(0, 256, 3)
    while away_from is not None and np.abs(colour - np.array(away_from)).sum() < 180:
        colour = rng.integers(0, 256, 3)
    return int(colour[0]), int(colour[1]), int(colour[2])


def plain(colour: Colour) -> np.ndarray:
    """A texture of one colour, uint8 (1, 1, 3)."""
    return np.array(colour, np.uint8).reshape(1, 1, 3)


def fit(texture: np.ndarray, resolution: int) -> np.ndarray:
    """A texture at another size, uint8 (resolution, resolution, 3)."""
    return cv2.resize(texture, (resolution, resolution), interpolation=cv2.INTER_LINEAR)


def random_texture(rng: np.random.Generator) -> np.ndarray:
    """A random picture uint8 (128, 128, 3): plain, gradient, stripes, checkers, smooth noise or grain."""
    first, second = (np.array(random_colour(rng), np.float32) for _ in range(2))
    second = first + rng.uniform(0.15, 1.0) * (second - first)
    y, x = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE].astype(np.float32) / TEXTURE_SIZE - 0.5
    angle = rng.uniform(0, np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    kind = rng.integers(6)
    if kind == 0:
        mix = np.zeros_like(x)
    elif kind == 1:
        mix = along + 0.5
    elif kind == 2:
        mix = 0.5 + 0.5 * np.clip(4 * np.sin(2 * np.pi * rng.uniform(2, 16) * along), -1, 1)
    elif kind == 3:
        cells = rng.uniform(2, 12)
        mix = 0.5 + 0.5 * np.clip(8 * np.sin(np.pi * cells * along) * np.sin(np.pi * cells * across), -1, 1)
    elif kind == 4:
        side = int(rng.integers(3, 24))
        mix = cv2.resize(rng.random((side, side), np.float32), x.shape, interpolation=cv2.INTER_CUBIC)
    else:
        mix = 0.5 * rng.random(x.shape, np.float32)
    picture = first + np.clip(mix, 0, 1)[..., None] * (second - first)
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


def mean_colour(texture: np.ndarray) -> Colour:
    """Average colour of a picture (H, W, 3)."""
    red, green, blue = texture.reshape(-1, 3).mean(0)
    return int(red), int(green), int(blue)


def random_outline(rng: np.random.Generator) -> np.ndarray | None:
    """A random agent shape: None for a disc, or a polygon (V, 2) of about unit radius."""
    kind = rng.integers(5)
    if kind <= 1:
        return None
    corners = int(rng.integers(3, 7)) if kind <= 3 else 10
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    reach = np.where(np.arange(corners) % 2, 0.55, 1.2) if kind == 4 else np.full(corners, 1.15)
    return reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def draw_agent(
    picture: np.ndarray, centre: np.ndarray, radius: float, colour: Colour, outline: np.ndarray | None
) -> None:
    """Draw an agent with the outline from `random_outline`."""
    if outline is None:
        draw_disc(picture, centre, radius, colour)
    else:
        draw_polygon(picture, centre + radius * outline, colour)


@dataclass(frozen=True)
class Camera:
    """A camera over the picture: in-plane rotation, zoom, shift, and the tone of each colour channel.

    Attributes:
        angle: rotation in radians.
        zoom: scale, above 1 is nearer.
        shift: (2,) fractions of the picture's side.
        border: colour of what lies outside the picture.
        tone: lookup table uint8 (1, 256, 3).
    """

    angle: float
    zoom: float
    shift: tuple[float, float]
    border: Colour
    tone: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator) -> Camera:
        """Rotation up to 180 degrees either way, zoom 0.75 to 1.3, shift up to 12%, mild gain and gamma."""
        levels = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.7, 1.4) * rng.uniform(0.8, 1.1, 3)
        tone = np.rint(255 * np.clip(levels + rng.uniform(-0.08, 0.08), 0, 1)).astype(np.uint8)[None]
        zoom = float(np.exp(rng.uniform(np.log(0.75), np.log(1.3))))
        shift = rng.uniform(-0.12, 0.12, 2)
        angle = float(rng.uniform(-np.pi, np.pi))
        return cls(angle, zoom, (float(shift[0]), float(shift[1])), random_colour(rng), tone)

    @classmethod
    def still(cls) -> Camera:
        """The camera that changes nothing."""
        tone = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
        return cls(0.0, 1.0, (0.0, 0.0), (0, 0, 0), tone)

    def shoot(self, picture: np.ndarray) -> np.ndarray:
        """The picture uint8 (R, R, 3) as this camera sees it."""
        side = picture.shape[0]
        cos, sin = self.zoom * np.cos(self.angle), self.zoom * np.sin(self.angle)
        linear = np.array([[cos, -sin], [sin, cos]])
        middle = np.full(2, (side - 1) / 2)
        offset = middle + side * np.array(self.shift) - linear @ middle
        matrix = np.column_stack([linear, offset])
        flags = cv2.INTER_LINEAR
        warped = cv2.warpAffine(picture, matrix, (side, side), flags=flags, borderValue=self.border)
        return cv2.LUT(warped, self.tone)
