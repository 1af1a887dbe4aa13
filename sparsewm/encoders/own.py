"""Encoders of your own: what they must have and give, and what tells their code apart."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsewm.encoders.base import PatchEncoder, PatchFeatures
from sparsewm.errors import UserError

_PAGE = "see docs/howto/encoder.md"


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number above 0."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def check_sizes(encoder: PatchEncoder, name: str) -> None:
    """Refuse an encoder whose `resolution`, `patch` or `dim` is missing or of the wrong kind.

    Raises:
        UserError: one of them is.
    """
    missing = [part for part in ("resolution", "patch", "dim") if not hasattr(encoder, part)]
    if missing:
        raise UserError(f"encoder '{name}' gave no PatchEncoder (it lacks {', '.join(missing)}): {_PAGE}")
    size = encoder.resolution
    if not (isinstance(size, tuple) and len(size) == 2 and all(map(is_whole, size))):
        raise UserError(
            f"the resolution of encoder '{name}' must be (height, width), two whole numbers of pixels, got "
            f"{size!r}: {_PAGE}"
        )
    for part in ("patch", "dim"):
        if not is_whole(getattr(encoder, part)):
            got = getattr(encoder, part)
            raise UserError(f"the {part} of encoder '{name}' must be a whole number, got {got!r}: {_PAGE}")
    if min(encoder.grid) < 1:
        raise UserError(f"a picture of {size[0]} x {size[1]} holds no patch of encoder '{name}': {_PAGE}")


def check_tokens(encoder: PatchEncoder) -> None:
    """Encode two blank pictures, and refuse an encoder that gives anything but what it promises.

    Raises:
        UserError: `encode` fails, or gives no tensors, or tensors of other shapes.
    """
    pictures = np.zeros((2, *encoder.resolution, 3), np.uint8)
    try:
        with torch.inference_mode():
            found = encoder.encode(pictures, attention=False)
    except Exception as error:  # whatever code of anybody's raises
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"encoder '{encoder.name}' encodes no blank picture ({reason}): {_PAGE}") from None
    if not isinstance(found, PatchFeatures):
        raise UserError(
            f"`encode` of encoder '{encoder.name}' must return PatchFeatures, got {type(found).__name__}: "
            f"{_PAGE}"
        )
    for part, shape, meaning in (
        ("patches", (2, encoder.tokens, encoder.dim), "B, rows * cols, dim"),
        ("cls", (2, encoder.dim), "B, dim"),
    ):
        value = getattr(found, part)
        fits = isinstance(value, Tensor) and value.is_floating_point()
        if not fits or tuple(value.shape) != shape:
            got = tuple(value.shape) if fits else f"{type(value).__name__} of no floating point numbers"
            raise UserError(
                f"`{part}` of two pictures by encoder '{encoder.name}' must have shape {shape} ({meaning}), "
                f"got {got}: correct `encode`, or the resolution, patch and dim it names"
            )


def code_hash(weights: str, encoder: PatchEncoder, factory: Callable[..., Any]) -> str:
    """SHA-256 (hex) of the hash of an encoder's weights and of the code that makes tokens with them.

    Code is the files of the encoder's class, of the encoders it derives from and of the function that makes
    it, without blank lines and lines that are comments. The text is hashed rather than the tokens of some
    picture: these differ in their last bits by machine and threads, and however they are rounded some lie
    where the bits decide. The text of what these files import is not in it.
    """
    made_by = [kind for kind in type(encoder).__mro__ if issubclass(kind, PatchEncoder)]
    digest = hashlib.sha256(weights.encode())
    files: set[str] = set()
    places: list[Any] = [*made_by, factory]
    for thing in places:
        if not str(getattr(thing, "__module__", "")).startswith("sparsewm."):
            try:
                files.add(inspect.getsourcefile(thing) or "")
            except TypeError:  # built in, or made by a call
                continue
    for lines in sorted(_code(Path(file)) for file in files):
        digest.update("\n".join(lines).encode())
    return digest.hexdigest()


def _code(file: Path) -> list[str]:
    """The lines of a file that are neither blank nor comments; none where it cannot be read."""
    if not file.is_file():  # a notebook's cell
        return []
    lines = [line.rstrip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [line for line in lines if line and not line.lstrip().startswith("#")]
