"""Tells from a frame's tokens the state that it shows, in the environment's own units.

Learned from recorded states. Planning needs no state; a policy that is told how things lie to one another
learns what to do there much sooner than from the tokens themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.bodies import is_angle

NUMBERS = 2048
"""That all patches of a frame tell together, at least 8 each."""


class StateReader(nn.Module):
    """Reads V numbers from all patches of a frame, in float32 whatever the precision of its weights.

    Args:
        token_dim: D, of standardised tokens. patches: N.
        names: of the numbers; some are angles (`sparsewm.bodies`).
        symmetry: how many angles of a body look the same (`SimulatedGoalEnv.angle_symmetry`).
        hidden: features of its layers.
        given: tokens are as an encoder gives them; it standardises them itself.
    """

    mean: Tensor
    std: Tensor
    turns: Tensor
    token_mean: Tensor
    token_std: Tensor

    def __init__(
        self,
        token_dim: int,
        patches: int,
        names: Sequence[str],
        symmetry: int = 1,
        hidden: int = 512,
        given: bool = False,
    ) -> None:
        super().__init__()
        self.names, self.symmetry = tuple(names), symmetry
        width = max(8, NUMBERS // patches)
        self.token_in = nn.Linear(token_dim, width)
        self.place = nn.Parameter(torch.zeros(patches, width))
        self.frame_in = nn.Linear(patches * width, hidden)
        self.frame_up = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 2 * len(self.names))
        self.register_buffer("mean", torch.zeros(len(self.names)))
        self.register_buffer("std", torch.ones(len(self.names)))
        self.given = given
        if given:
            self.register_buffer("token_mean", torch.zeros(token_dim))
            self.register_buffer("token_std", torch.ones(token_dim))
        turns = torch.tensor([is_angle(name) for name in self.names])
        self.register_buffer("turns", turns, persistent=False)

    def fit(self, states: Tensor) -> None:
        """Take the scale of places from states (N, V), rounded so that any precision keeps it."""
        self.mean.copy_(states.double().mean(0).bfloat16())
        self.std.copy_(states.double().std(0).clamp_min(1e-6).bfloat16())

    def fit_tokens(self, tokens: Tensor) -> None:
        """Take the scale of tokens (N, M, D) that an encoder gave, rounded likewise."""
        flat = tokens.flatten(0, -2).double()
        self.token_mean.copy_(flat.mean(0).bfloat16())
        self.token_std.copy_(flat.std(0).clamp_min(1e-6).bfloat16())

    def scaled(self, tokens: Tensor) -> Tensor:
        """What `forward` takes, float32: tokens that are standardised, or that the encoder gave."""
        if not self.given:
            return tokens.float()
        return (tokens.float() - self.token_mean.float()) / self.token_std.float()

    def targets(self, states: Tensor) -> Tensor:
        """What `forward` should tell of states (..., V): (..., V, 2), float32; places in deviations beside 0,
        cosine and sine of angles."""
        states = states.double()
        place = torch.stack([(states - self.mean) / self.std, torch.zeros_like(states)], -1)
        angle = self.symmetry * states
        return torch.where(self.turns[:, None], torch.stack([angle.cos(), angle.sin()], -1), place).float()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) as `scaled` has them -> (B, V, 2), as `targets` has it."""
        x = F.gelu(_exact(self.token_in, tokens.float()) + self.place.float())
        x = _exact(self.frame_in, x.flatten(1))
        x = F.gelu(F.layer_norm(x, x.shape[-1:]))
        x = F.gelu(_exact(self.frame_up, x))
        return _exact(self.out, x).unflatten(-1, (-1, 2))

    def state(self, told: Tensor) -> Tensor:
        """What was told (..., V, 2), in the state's units (..., V), float32; of angles that look the same the
        one nearest to 0."""
        angle = torch.atan2(told[..., 1], told[..., 0]) / self.symmetry
        return torch.where(self.turns, angle, told[..., 0] * self.std.float() + self.mean.float())


def _exact(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.float(), layer.bias.float())
