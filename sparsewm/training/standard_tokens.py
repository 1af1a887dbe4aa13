"""Tokens in a world model's own units, kept in memory: where few features are kept, little of it.

A batch of raw tokens of a large encoder is many times what is left of it; reading and mapping it anew at
every step takes about as long as the step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsewm.data import Dataset, Tokens
from sparsewm.memory import free_memory
from sparsewm.model.world_model import WorldModel
from sparsewm.training.report import Progress, quiet

SHARE = 0.25
"""Of the free memory that they may take."""

_PART = 128


class StandardTokens(Tokens):
    """Standardised tokens of some rows.

    Args:
        tokens: raw ones. model: whose units they are brought to. rows: (R,) that are kept, and no others.
        progress: makes a bar of a label.
    """

    ahead = True
    standard = True

    def __init__(
        self, tokens: Tokens, model: WorldModel, rows: np.ndarray, progress: Progress = quiet
    ) -> None:
        self.kind = tokens.kind
        self.shape = (tokens.shape[0], tokens.shape[1], model.config.token_dim)
        self._places = np.full(tokens.shape[0], -1)
        self._places[rows] = np.arange(len(rows))
        self._values = torch.empty(len(rows), *self.shape[1:])
        with progress("standardising") as bar, torch.inference_mode():
            for start in range(0, len(rows), _PART):
                part = tokens.rows(rows[start : start + _PART]).to(model.device)
                self._values[start : start + len(part)] = model.standardizer.tokens(part).cpu()
                bar(start + len(part), len(rows))

    def rows(self, rows: np.ndarray) -> Tensor:
        """Tokens of rows (any shape): (*rows.shape, N, K) float32."""
        places = self._places[rows]
        if (places < 0).any():
            raise KeyError("these rows were not asked for")
        return self._values[torch.from_numpy(places)]


def standard_tokens(
    tokens: Tokens, model: WorldModel, dataset: Dataset, progress: Progress = quiet
) -> Tokens:
    """The tokens of a dataset in a model's units, where its space makes them small; else as they are."""
    rows = dataset.rows_of(np.arange(dataset.episodes))
    size = 4 * len(rows) * tokens.shape[1] * model.config.token_dim
    smaller = model.space is not None and model.config.token_dim < tokens.shape[2]
    if not smaller or tokens.kind == "none" or size > SHARE * free_memory():
        return tokens
    return StandardTokens(tokens, model, rows, progress)
