"""Stretches of recorded episodes: from a frame to one that came later, with the actions between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsewm.data import Dataset, Tokens
from sparsewm.errors import UserError
from sparsewm.model.world_model import WorldModel
from sparsewm.proposals.flow import PolicySizes
from sparsewm.training.validation import placed


@dataclass(frozen=True)
class Drawn:
    """Rows (B,) of the present and of the goal, and (B, F) of frames on the way, for imagination."""

    present: np.ndarray
    goal: np.ndarray
    future: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All of them."""
        return np.concatenate([self.present, self.goal, self.future.ravel()])


class Stretches:
    """Draws stretches inside the given episodes.

    Args:
        dataset: recorded episodes. episodes: which of them. frameskip: environment steps per model step.
        sizes: of the policy. longest: environment steps to a goal, at most; None: to the end of the episode.
        still: behind the goal actions are zero, or the nearest the bounds allow; otherwise unknown.
        future: frames on the way that the policy imagines, evenly over a chunk, its end among them.
        states: (rows, V) what is read of the recorded states, or None.

    Raises:
        UserError: no episode has two rows.
    """

    def __init__(
        self,
        dataset: Dataset,
        episodes: np.ndarray,
        frameskip: int,
        sizes: PolicySizes,
        longest: int | None = None,
        still: bool = True,
        future: int = 0,
        states: np.ndarray | None = None,
    ) -> None:
        self.dataset, self.sizes, self.still, self.states = dataset, sizes, still, states
        self.steps = np.arange(sizes.chunk * frameskip)
        self.ahead = np.array([round(sizes.chunk * (i + 1) / future) * frameskip for i in range(future)], int)
        rows = dataset.rows_of(episodes)
        last = np.repeat(dataset.offsets + dataset.lengths - 1, dataset.lengths)
        self.rows = rows[rows < last[rows]]
        if not len(self.rows):
            raise UserError(f"no episode of {dataset.path} has two rows: collect longer ones")
        self.farthest = last[self.rows] - self.rows
        if longest is not None:
            self.farthest = np.minimum(self.farthest, longest)
        self.idle = np.clip(0, dataset.action_low, dataset.action_high).astype(np.float32)

    def draw(self, rng: np.random.Generator, count: int) -> Drawn:
        """Random stretches, the goal any number of steps ahead: a pure function of the generator's state."""
        picked = rng.integers(len(self.rows), size=count)
        present = self.rows[picked]
        goal = present + rng.integers(1, self.farthest[picked] + 1)
        return Drawn(present, goal, np.minimum(present[:, None] + self.ahead, goal[:, None]))

    def batch(self, drawn: Drawn, tokens: Tokens | None, model: WorldModel) -> dict[str, Tensor]:
        """Stretches in the model's units, on its device; without `tokens` no frames of them.

        Returns:
            `present`, `goal` (B, N, D), and as the encoder gave them, `given_present`, `given_goal`, where
            the model keeps less; `future` (B, F, N, D): the goal where that comes first, `proprio`
            (B, P), `action` (B, H, C), and `weight` of these, 0 where they are unknown; `state` and `wanted`
            (B, V) where they are read.
        """
        data, chunk = self.dataset, self.sizes.chunk
        rows = drawn.present[:, None] + self.steps
        taken = rows < drawn.goal[:, None]
        action = np.where(taken[..., None], data.action[np.minimum(rows, drawn.goal[:, None])], self.idle)
        weight = np.broadcast_to((taken | self.still)[..., None], action.shape).astype(np.float32)
        standardizer, device = model.standardizer, model.device
        found = {
            "proprio": standardizer.proprio(placed(torch.from_numpy(data.proprio[drawn.present]), device)),
            "weight": placed(torch.from_numpy(weight), device).unflatten(1, (chunk, -1)).flatten(2),
        }
        if tokens is not None:
            for name, rows_of in (("present", drawn.present), ("goal", drawn.goal)):
                given = placed(tokens.rows(rows_of), device)
                found[name] = standardizer.tokens(given)
                if model.space is not None:
                    found[f"given_{name}"] = given
            if drawn.future.size:
                found["future"] = standardizer.tokens(placed(tokens.rows(drawn.future), device))
        if self.states is not None:
            for name, rows_of in (("state", drawn.present), ("wanted", drawn.goal)):
                told = self.states[rows_of].astype(np.float32)
                found[name] = placed(torch.from_numpy(told), device)
        steps = torch.from_numpy(action).unflatten(1, (chunk, -1)).flatten(2)
        return found | {"action": standardizer.actions(placed(steps, device))}
