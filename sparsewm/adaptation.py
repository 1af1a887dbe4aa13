"""Test-time adaptation: pictures of a scene that looks otherwise, as the training data would show it.

The camera of the data stands still, so its mean picture shows where floor, walls and borders are and of which
colour. A picture of the same scene in another light, on another floor or from a camera that slipped is put
back into place, and its background gets the colours of the mean picture. Nothing is trained, and each picture
is adapted by itself: goal and scene may look different.
"""

from __future__ import annotations

import cv2
import numpy as np

from sparsewm.errors import UserError
from sparsewm.model.world_model import WorldModel

RADIUS = 40.0
"""Colours nearer than this (of 255, Euclidean) are one colour of the background."""

LEAST = 0.02
"""Share of the pixels that a colour of the background has at least."""

PURE = 0.03
"""Share of a colour's pixels beyond the one that counts as untouched by what moves."""

SLACK = 5.0
"""Colours that differ by less are left as they are."""

SURE = 0.5
"""Pixels of the mean picture by which a camera has slipped at least where a picture is moved back."""

REACH = 5
"""Pixels of the mean picture by which a camera may have slipped, in each direction."""

_BIN = 12
_FINE = 3  # of the mean picture, where what moves has left traces
_NEAR = 12.0  # of a line between two colours
_FEW = 4  # pixels of an object's colour
_OBJECTS = 5  # colours of objects at most


class SceneAdaptation:
    """Pictures as a model's training data would show them.

    Args:
        mean: the mean picture of the training data, float (H, W, 3), 0 to 255.
    """

    def __init__(self, mean: np.ndarray) -> None:
        self.mean = mean.astype(np.float32)
        self.edges = _edges(self.mean)
        self.palette, self.places = _background(self.mean)

    @classmethod
    def of(cls, model: WorldModel) -> SceneAdaptation:
        """To the mean picture of a world model's data.

        Raises:
            UserError: it keeps none.
        """
        if model.decoder is None:
            raise UserError(
                "`adapt` needs the mean picture of the training data, which this world model lacks, as "
                "it has no decoder: leave it out, or train with one"
            )
        mean = 255 * model.decoder.mean.float().cpu().permute(1, 2, 0).numpy()
        height, width = (mean.shape[0], mean.shape[1]) if model.interface is None else model.interface.picture
        scale = max(mean.shape) / max(height, width)
        return cls(cv2.resize(mean, (round(width * scale), round(height * scale))))

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """The picture uint8 (H, W, 3), adapted; of any size of the mean picture's aspect ratio."""
        right, down = _shift(self.edges, _edges(self._small(picture)))
        if right == down == 0:
            return self.recoloured(picture)
        size = picture.shape[1::-1]
        scale = size[0] / self.mean.shape[1]
        matrix = np.array([[1, 0, -right * scale], [0, 1, -down * scale]])
        placed = cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        placed = self.recoloured(placed)
        seen = cv2.warpAffine(np.ones(picture.shape[:2], np.float32), matrix, size)[..., None]
        unseen = cv2.resize(self.mean, size, interpolation=cv2.INTER_LINEAR)
        return np.rint(unseen + seen * (placed - unseen)).astype(np.uint8)

    def recoloured(self, picture: np.ndarray) -> np.ndarray:
        """The picture with the background's colours of the mean picture, and objects in its light."""
        small = self._small(picture).reshape(-1, 3)
        found = np.stack([_mode(small[place])[0] for place in self.places])
        if np.abs(found - self.palette).max() < SLACK:
            return picture
        gain = _gain(self.palette, found)
        colours, targets = _with_objects(small, found, self.palette, gain)
        mixed = _remixed(picture.reshape(-1, 3).astype(np.float32), colours, targets)
        return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8).reshape(picture.shape)

    def _small(self, picture: np.ndarray) -> np.ndarray:
        """The picture float32 at the mean picture's size."""
        size = self.mean.shape[1::-1]
        if picture.shape[1::-1] != size:
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return picture.astype(np.float32)


def _edges(picture: np.ndarray) -> np.ndarray:
    """Strength of edges (H, W), saturating, of whatever colours."""
    soft = cv2.GaussianBlur(picture, (0, 0), 0.8)
    across, down = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    size = np.sqrt((across**2 + down**2).sum(-1))
    strength: np.ndarray = size / (size + 40)
    return strength


def _shift(reference: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """By how many pixels (right, down) the edges lie away from the reference's; 0 where that is not sure.

    The best whole pixels first, then the enhanced correlation coefficient (Evangelidis and Psarakis, 2008).
    """
    reach = REACH
    wide = cv2.copyMakeBorder(edges, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    scores = cv2.matchTemplate(wide, reference, cv2.TM_CCOEFF_NORMED)  # (2 reach + 1, 2 reach + 1)
    y, x = np.unravel_index(scores.argmax(), scores.shape)
    start = np.array([[1, 0, x - reach], [0, 1, y - reach]], np.float32)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-4)
    try:
        _, found = cv2.findTransformECC(reference, edges, start, cv2.MOTION_TRANSLATION, criteria, None, 3)
    except cv2.error:  # it did not converge: there is little to see
        return 0.0, 0.0
    right, down = found[:, 2]
    near = max(abs(right - start[0, 2]), abs(down - start[1, 2])) < 1.5
    return (float(right), float(down)) if near and max(abs(right), abs(down)) >= SURE else (0.0, 0.0)


def _mode(colours: np.ndarray, width: float = _BIN) -> tuple[np.ndarray, int]:
    """The most frequent colour (3,) of colours (K, 3), averaged, and how many there are of it."""
    bins = np.floor(colours / width).astype(np.int64)
    keys = (bins * (1, 512, 512**2)).sum(1)
    found, counts = np.unique(keys, return_counts=True)
    middle = colours[keys == found[counts.argmax()]].mean(0)
    near = np.abs(colours - middle).max(1) < width
    mean: np.ndarray = colours[near].mean(0)
    return mean, int(near.sum())


def _background(mean: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Colours (K, 3) of the mean picture, the most frequent ones first, and the pixels of each."""
    flat = mean.reshape(-1, 3)
    left = np.arange(len(flat))
    palette, places = [], []
    while len(left) > LEAST * len(flat):
        colour, _ = _mode(flat[left], _FINE)
        near = np.linalg.norm(flat[left] - colour, axis=1) < RADIUS
        if near.sum() > LEAST * len(flat):
            palette.append(_untouched(flat[left[near]], colour))
            places.append(left[near])
        left = left[~near]
    pure = [i for i in range(len(palette)) if not _mixed(i, palette)]
    return np.stack([palette[i] for i in pure]), [places[i] for i in pure]


def _untouched(colours: np.ndarray, mode: np.ndarray) -> np.ndarray:
    """What one colour (3,) of the mean picture is where nothing ever moves over it.

    What moves draws the mean towards itself, more in some places than in others: colours (K, 3) lie along a
    line, and at the end away from its long tail is the background alone.
    """
    away = colours - mode
    _, axes = np.linalg.eigh((away.T @ away / len(away)).astype(np.float64))
    along = away @ axes[:, -1]
    ends = np.quantile(along, [PURE, 1 - PURE])
    end: np.ndarray = mode + ends[np.abs(ends).argmin()] * axes[:, -1]
    return end


def _mixed(i: int, palette: list[np.ndarray]) -> bool:
    """Whether a colour is what two others give where they meet, or what moves leaves on one of them."""
    others = np.stack([colour for j, colour in enumerate(palette) if j != i] or [palette[i]])
    _, shares, away = _segments(palette[i][None], others)
    return len(palette) > 2 and bool(away[0] < _NEAR and 0.05 < shares[0] < 0.95)


def _gain(palette: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Gain (3,) of a light under which the palette (K, 3) looks as found; 1 where no light explains it."""
    best: np.ndarray = np.ones(3)
    least = np.inf
    for one, other in zip(palette, found, strict=True):
        gain = np.where(one > 10, np.clip(other / np.maximum(one, 1), 0.05, 4), 1)
        error = np.abs(np.clip(palette * gain, 0, 255) - found).max(1)
        misfit = float(np.median(error)) if len(palette) > 2 else float(error.max())
        if misfit < least:
            best, least = gain, misfit
    return best if least < 2 * SLACK else np.ones(3)


def _with_objects(
    pixels: np.ndarray, found: np.ndarray, palette: np.ndarray, gain: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All colours (K, 3) that pixels are mixed of, background first, and what each is to become."""
    colours, targets = list(found), list(palette)
    left = pixels
    for _ in range(_OBJECTS):
        _, _, away = _segments(left, np.stack(colours))
        left = left[away > 25]
        if len(left) < _FEW:
            break
        colour, count = _mode(left)
        if count < _FEW:
            break
        colours.append(colour)
        targets.append(np.clip(colour / gain, 0, 255))
    return np.stack(colours), np.stack(targets)


def _segments(pixels: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which two colours (P, 2) pixels (P, 3) are nearest to a mixture of, the second's share, how near."""
    count = len(colours)
    nearest = np.full(len(pixels), np.inf, np.float32)
    pairs, shares = np.zeros((len(pixels), 2), np.int64), np.zeros(len(pixels), np.float32)
    for i in range(count):
        for j in range(i if count == 1 else i + 1, count):
            way = (colours[j] - colours[i]).astype(np.float32)
            from_first = pixels - colours[i].astype(np.float32)
            share = np.clip(from_first @ way / max(float(way @ way), 1e-6), 0, 1)
            away = np.linalg.norm(from_first - share[:, None] * way, axis=1)
            better = away < nearest
            nearest[better], shares[better], pairs[better] = away[better], share[better], (i, j)
    return pairs, shares, nearest


def _remixed(pixels: np.ndarray, colours: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Pixels (P, 3), each with the change of the two colours it is mixed of."""
    keys = (pixels.astype(np.int64) * (1, 256, 65536)).sum(1)
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    some = pixels[first]
    pairs, shares, _ = _segments(some, colours)
    change, share = (targets - colours).astype(np.float32), shares[:, None]
    some = some + (1 - share) * change[pairs[:, 0]] + share * change[pairs[:, 1]]
    remixed: np.ndarray = some[which]
    return remixed
