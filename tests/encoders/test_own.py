"""Encoders of one's own that do not give what they promise, and whose code changes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparsewm
from sparsewm.data.encoding import encoded
from sparsewm.encoders import PatchEncoder, PatchFeatures, load_encoder
from sparsewm.errors import UserError
from tests.model.tiny import tiny_model

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


class Means(PatchEncoder):
    """The mean colour of every patch; no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.resolution, self.patch, self.dim = (32, 32), 16, 3

    def encode(self, pixels: Any, attention: bool = False) -> PatchFeatures:
        patches = self.preprocess(pixels).unfold(2, 16, 16).unfold(3, 16, 16).mean((-1, -2))
        patches = patches.flatten(2).transpose(1, 2)
        return PatchFeatures(patches, patches.mean(1), self.grid)


class WrongDim(Means):
    def __init__(self) -> None:
        super().__init__()
        self.dim = 6


class WrongGrid(Means):
    def __init__(self) -> None:
        super().__init__()
        self.patch = 8


class Transposed(Means):
    def encode(self, pixels: Any, attention: bool = False) -> PatchFeatures:
        found = super().encode(pixels)
        return PatchFeatures(found.patches.transpose(1, 2), found.cls, found.grid)


class WrongCls(Means):
    def encode(self, pixels: Any, attention: bool = False) -> PatchFeatures:
        found = super().encode(pixels)
        return PatchFeatures(found.patches, found.cls[:, :2], found.grid)


class Numpy(Means):
    def encode(self, pixels: Any, attention: bool = False) -> PatchFeatures:
        found = super().encode(pixels)
        return PatchFeatures(found.patches.numpy(), found.cls, found.grid)  # type: ignore[arg-type]


class NoFeatures(Means):
    def encode(self, pixels: Any, attention: bool = False) -> PatchFeatures:
        return super().encode(pixels).patches  # type: ignore[return-value]


class NoAttention(Means):
    def encode(self, pixels: Any) -> PatchFeatures:  # type: ignore[override]
        return super().encode(pixels)


class Number(Means):
    def __init__(self) -> None:
        super().__init__()
        self.resolution = 96  # type: ignore[assignment]


class List(Means):
    def __init__(self) -> None:
        super().__init__()
        self.resolution = [32, 32]  # type: ignore[assignment]


class Pair(Means):
    def __init__(self) -> None:
        super().__init__()
        self.patch = (16, 16)  # type: ignore[assignment]


class Huge(Means):
    def __init__(self) -> None:
        super().__init__()
        self.patch = 64


class BadResize(Means):
    def resize(self, resolution: tuple[int, int]) -> None:
        self.resolution = [*resolution]  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (WrongDim, r"`patches` .* must have shape \(2, 4, 6\) .*, got \(2, 4, 3\): correct `encode`"),
        (WrongGrid, r"`patches` .* must have shape \(2, 16, 3\) .*, got \(2, 4, 3\)"),
        (Transposed, r"`patches` .* must have shape \(2, 4, 3\) .*, got \(2, 3, 4\)"),
        (WrongCls, r"`cls` .* must have shape \(2, 3\) .*, got \(2, 2\)"),
        (Numpy, "`patches` .* got ndarray"),
        (NoFeatures, "must return PatchFeatures, got Tensor"),
        (NoAttention, "encodes no blank picture .*attention"),
        (Number, r"the resolution of .* must be \(height, width\), two whole numbers of pixels, got 96"),
        (List, r"resolution of .* got \[32, 32\]"),
        (Pair, r"patch of .* must be a whole number, got \(16, 16\)"),
        (Huge, "holds no patch"),
    ],
)
def test_what_an_encoder_of_ones_own_must_give(kind: type, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_encoder(f"{__name__}:{kind.__name__}")


def test_sizes_are_checked_after_resizing_too() -> None:
    with pytest.raises(UserError, match=r"resolution of .* got \[64, 64\]"):
        load_encoder(f"{__name__}:BadResize", resolution=64)


def test_tokens_of_another_shape_are_not_written() -> None:
    with pytest.raises(UserError, match=r"makes tokens of shape \(3, 3, 4\), .* say \(3, 4, 3\)"):
        encoded(Transposed(), PICTURES)


@pytest.mark.parametrize("resolution", [(112,), (112, 112, 3), 112.0, "112", 0, -5, True])
def test_resolutions_of_the_wrong_kind(resolution: Any) -> None:
    with pytest.raises(UserError, match="`resolution` must be a number of pixels or"):
        load_encoder("random", resolution=resolution)


def test_a_resolution_of_numpy() -> None:
    side: Any = np.int64(98)
    assert load_encoder("random", resolution=side).resolution == (98, 98)
    assert load_encoder("random", resolution=side, picture=(96, 128)).resolution == (84, 112)


# ------------------------------------------------------------------------------------------- its code

CODE = """
from tests.encoders.test_own import Means
from sparsewm.encoders import PatchFeatures

class Scaled(Means):
    def encode(self, pixels, attention=False):
        found = super().encode(pixels)
        return PatchFeatures(2 * found.patches, found.cls, found.grid)
"""


def written(folder: Path, code: str) -> str:
    """A module that was not imported yet, as in a process of its own."""
    (folder / "scaled.py").write_text(code)
    sys.modules.pop("scaled", None)
    importlib.invalidate_caches()
    return "scaled:Scaled"


def test_changed_code_is_another_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = load_encoder(written(tmp_path, CODE))
    folder = sparsewm.save(tiny_model(encoder=before), tmp_path / "checkpoint")  # type: ignore[arg-type]
    again = load_encoder(written(tmp_path, f"# a comment\n{CODE}\n\n# another"))
    assert (again.hash, again.key) == (before.hash, before.key)
    assert sparsewm.load(folder).encoder.hash == before.hash
    other = load_encoder(written(tmp_path, CODE.replace("2 *", "5 *")))
    assert other.hash != before.hash and other.key != before.key
    assert not torch.equal(other.encode(PICTURES).patches, before.encode(PICTURES).patches)
    with pytest.raises(UserError, match="the weights or the code of encoder 'scaled:Scaled' differ from"):
        sparsewm.load(folder)
