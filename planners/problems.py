"""Problems with a known answer, to test planners without any world model."""

from __future__ import annotations

import torch
from torch import Tensor


class Quadratic:
    """Squared distance to a target action sequence: cost = sum over H and A of (action - target)^2.

    Args:
        target: the optimum of each episode (B, H, A).
        low, high: bounds of every action, low below high.
        mean, std: prior (H, A) of the first sampling distribution, or None.
    """

    def __init__(
        self,
        target: Tensor,
        low: float = -1.0,
        high: float = 1.0,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        self.target = target
        self.batch, self.horizon, self.action_dim = target.shape
        self.device = target.device
        self.low = torch.full((self.action_dim,), low, device=self.device)
        self.high = torch.full((self.action_dim,), high, device=self.device)
        self.mean, self.std = mean, std

    def cost(self, actions: Tensor) -> Tensor:
        """Cost (B, S) of actions (B, S, H, A)."""
        return (actions - self.target[:, None]).square().sum(dim=(2, 3))

    def resample(self, iteration: int) -> None:
        """Nothing is random here."""


class DoubleIntegrator:
    """A point mass pushed to rest at a goal, the textbook case of linear-quadratic control.

    Position p and velocity v follow an acceleration held for ``dt``; the cost of a plan is
    ``|p_H - goal|^2 + |v_H|^2 + effort * sum of |action|^2``. The exact optimum, bounds aside, is
    :meth:`optimum`.

    Args:
        position, velocity: where each episode starts (B, D).
        goal: where it should come to rest (B, D).
        horizon: number of actions H.
        dt: seconds per action.
        effort: weight of the control effort, above 0.
        limit: bound of every acceleration.
    """

    mean: Tensor | None = None
    std: Tensor | None = None

    def __init__(
        self,
        position: Tensor,
        velocity: Tensor,
        goal: Tensor,
        horizon: int = 8,
        dt: float = 0.5,
        effort: float = 0.05,
        limit: float = 2.0,
    ) -> None:
        self.position, self.velocity, self.goal = position, velocity, goal
        self.batch, self.action_dim = position.shape
        self.horizon, self.dt, self.effort = horizon, dt, effort
        self.device = position.device
        self.low = torch.full((self.action_dim,), -limit, device=self.device)
        self.high = torch.full((self.action_dim,), limit, device=self.device)

    def cost(self, actions: Tensor) -> Tensor:
        """Cost (B, S) of accelerations (B, S, H, D)."""
        p, v = self.position[:, None], self.velocity[:, None]  # (B, 1, D)
        for action in actions.unbind(dim=2):
            p = p + self.dt * v + self.dt**2 / 2 * action
            v = v + self.dt * action
        final = (p - self.goal[:, None]).square().sum(dim=2) + v.square().sum(dim=2)
        return final + self.effort * actions.square().sum(dim=(2, 3))

    def resample(self, iteration: int) -> None:
        """Nothing is random here."""

    def optimum(self) -> tuple[Tensor, Tensor]:
        """The best plan (B, H, D) and its cost (B,), by the finite-horizon Riccati recursion.

        The goal at rest is an equilibrium, so the recursion runs in the error (p - goal, v) of each axis.
        """
        value = torch.eye(2, dtype=torch.float64, device=self.device)
        a = torch.tensor([[1.0, self.dt], [0.0, 1.0]]).to(value)
        b = torch.tensor([[self.dt**2 / 2], [self.dt]]).to(value)
        gains = []
        for _ in range(self.horizon):
            gain = (b.T @ value @ a) / (self.effort + b.T @ value @ b)  # (1, 2)
            value = a.T @ value @ (a - b @ gain)
            gains.append(gain)
        error = torch.stack([self.position - self.goal, self.velocity], dim=-1).to(torch.float64)  # (B, D, 2)
        cost = torch.einsum("bdi,ij,bdj->b", error, value, error)
        actions = []
        for gain in reversed(gains):
            action = -(error @ gain.T)  # (B, D, 1)
            error = error @ a.T + action @ b.T
            actions.append(action[..., 0])
        return torch.stack(actions, dim=1).to(self.position), cost.to(self.position)
