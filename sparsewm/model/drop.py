"""How many of the patches stay."""

from __future__ import annotations

from sparsewm.errors import UserError


def kept_patches(patches: int, drop: float) -> int:
    """How many of `patches` stay when a fraction `drop` is dropped, at least one.

    Raises:
        UserError: `drop` outside [0, 1).
    """
    if not 0 <= drop < 1:
        raise UserError(f"`drop` must be at least 0 and below 1, got {drop:g}: 0.5 drops half of the tokens")
    return max(1, round((1 - drop) * patches))
