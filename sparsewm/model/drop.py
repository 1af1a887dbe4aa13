"""How many of the patches stay."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from sparsewm.errors import UserError


def kept_patches(patches: int, drop: float) -> int:
    """How many of `patches` stay when a fraction `drop` is dropped, at least one.

    Raises:
        UserError: `drop` outside [0, 1).
    """
    if not 0 <= drop < 1:
        raise UserError(f"--drop must be at least 0 and below 1, got {drop:g}: 0.5 drops half of the tokens")
    return max(1, round((1 - drop) * patches))


class AutoDrop:
    """A drop ratio that follows from what the present scene needs.

    In the first iteration of every plan some candidates are scored again on twice as many patches. Where the
    two orders agree too little, a quarter more patches are kept from then on, otherwise a tenth less: the
    ratio comes to rest where about every third check fails.

    Args:
        highest: the largest drop ratio that may be chosen, in [0, 1).
        drop: the ratio to start from, at most `highest`.
        agreement: rank correlation (Spearman) of the two orders that is enough, in (0, 1).
        candidates: scored again at every check, at least 2.

    Attributes:
        drop: the present ratio. checks: the correlations seen so far.

    Raises:
        UserError: `highest` outside [0, 1).
    """

    def __init__(
        self, highest: float = 0.8, drop: float = 0.5, agreement: float = 0.9, candidates: int = 16
    ) -> None:
        if not 0 <= highest < 1:
            raise UserError(f"--drop-highest must be at least 0 and below 1, got {highest:g}")
        self.highest, self.drop = highest, min(drop, highest)
        self.agreement, self.candidates = agreement, candidates
        self.checks: list[float] = []

    def observe(self, sparse: Tensor, fuller: Tensor) -> None:
        """Take the costs (B, K) of candidates on few and on more patches into account."""
        pairs = zip(sparse.cpu().numpy(), fuller.cpu().numpy(), strict=True)
        correlation = float(np.mean([spearman(*pair) for pair in pairs]))
        self.checks.append(correlation)
        kept = (1 - self.drop) * (1.25 if correlation < self.agreement else 0.9)
        self.drop = min(max(1 - kept, 0.0), self.highest)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two samples (K,) without ties."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value (K,), 0 for the smallest."""
    order = np.empty(len(values))
    order[values.argsort()] = np.arange(len(values))
    return order
