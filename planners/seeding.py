"""Random streams: one generator for each seed and purpose, so that no two things share their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def generator(seed: int | Sequence[int], stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of a seed and a purpose.

    Generators of one integer draw the same numbers, whatever they are for; these do not. Their seed is the
    first eight bytes of SHA-256 of the stream's name and the numbers in decimal, joined by colons.

    Args:
        seed: what tells apart, e.g. the seed of an episode; or several numbers.
        stream: what is drawn, e.g. "candidates" or "tokens".
        device: where it is drawn.
    """
    numbers = [seed] if isinstance(seed, int) else list(seed)
    text = ":".join([stream, *(str(int(number)) for number in numbers)])
    mixed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return torch.Generator(device).manual_seed(mixed >> 1)  # torch takes 63 bits


def unit_noise(generators: Sequence[torch.Generator], batch: int, *shape: int) -> torch.Tensor:
    """Unit Gaussian noise (batch, *shape): each row's from its own generator, or all from one."""
    rows = batch // len(generators)
    drawn = [torch.randn(rows, *shape, generator=one, device=one.device) for one in generators]
    return drawn[0] if len(drawn) == 1 else torch.cat(drawn)
