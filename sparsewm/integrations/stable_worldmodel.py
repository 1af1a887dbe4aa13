"""stable-worldmodel: its solvers and its evaluation on our world models, our planners on its models.

Its protocols are met by their methods, so that nothing here imports that package. There, `info` holds what
was observed by name, each value with a batch and a time axis (B, T, ...), which solvers repeat for their
candidates (B, S, T, ...). A model says by ``get_cost(info, actions)`` what candidates (B, S, H, C) cost,
(B, S); C is an action for every environment step of a model step, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from sparsewm.config import PlanConfig
from sparsewm.model.choices import CHOICES, compared_by
from sparsewm.model.latent import Latent
from sparsewm.model.objectives import objective_of
from sparsewm.model.problem import LatentProblem
from sparsewm.model.world_model import WorldModel
from sparsewm.planners import Planner
from sparsewm.planners.seeding import generator


class Costable(Protocol):
    """What stable-worldmodel plans in."""

    def get_cost(self, info_dict: dict[str, Any], action_candidates: Tensor) -> Tensor:
        """Costs (B, S) of candidates (B, S, H, C)."""
        ...


class Transformable(Protocol):
    """A scaler of stable-worldmodel: to its units and back."""

    def transform(self, x: np.ndarray) -> np.ndarray: ...

    def inverse_transform(self, x: np.ndarray) -> np.ndarray: ...


class ActionScaler:
    """Actions of the environment to deviations from their mean in the training data, and back."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean.cpu().numpy(), std.cpu().numpy()

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Raw actions (..., A) in deviations."""
        return (x - self.mean) / self.std

    def inverse_transform(self, x: np.ndarray) -> np.ndarray:
        """Deviations (..., A) as raw actions."""
        return x * self.std + self.mean


class CostModel:
    """A world model of ours that stable-worldmodel's solvers plan in.

    >>> cost = CostModel(sparsewm.load_pretrained("wall"))
    >>> config = swm.PlanConfig(horizon=5, receding_horizon=5, action_block=cost.model.frameskip)
    >>> policy = swm.policy.WorldModelPolicy(CEMSolver(cost), config, process=cost.process)

    `info` must hold `pixels` and `goal` as uint8 pictures, and raw `proprio`; without `goal_proprio` the
    proprioception is left out of the cost. The last frame of the time axis is the present; no earlier ones
    are used. A new subset of tokens is drawn for every call, as `tokens.resample` says.

    Args:
        model: the world model.
        config: cost, tokens and seed; the environment's own settings when left out. The solver has its own
            search.
        low, high: bounds (A,) that candidates are cut to, raw units; those of the model's data when left
            out, where it knows them.
        standardized: candidates come in deviations of the training data's actions, which solvers that start
            from unit noise need; `process` then turns plans into raw actions. Otherwise they come in raw
            units, and there is nothing to process.
    """

    def __init__(
        self,
        model: WorldModel,
        config: PlanConfig | None = None,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        standardized: bool = True,
    ) -> None:
        self.model, self.standardized = model, standardized
        self.config = (PlanConfig.of(model.environment) if config is None else config).checked()
        interface = model.interface
        self.blind = interface is not None and interface.proprio_dim == 0  # its data had no proprioception
        known = (None, None) if interface is None else (interface.action_low, interface.action_high)
        self.low, self.high = (
            None if bound is None else torch.as_tensor(bound, dtype=torch.float32, device=model.device)
            for bound in (known[0] if low is None else low, known[1] if high is None else high)
        )
        tokens = self.config.tokens
        self.choice = CHOICES.get(tokens.choose)(model, tokens.temperature)
        self.comparison = compared_by(model, tokens.cost, tokens.temperature)
        self._attends = self.choice.attention or (self.comparison is not None and self.comparison.attention)
        self._asked: list[Tensor | int | None] = []
        self._problem: LatentProblem | None = None
        self._calls = 0
        self._masks: list[torch.Generator] = []

    @property
    def process(self) -> dict[str, Transformable]:
        """Scalers for `WorldModelPolicy`, so that its actions leave in raw units."""
        if not self.standardized:
            return {}
        standardizer = self.model.standardizer
        return {"action": ActionScaler(standardizer.action_mean, standardizer.action_std)}

    def get_cost(self, info_dict: dict[str, Any], action_candidates: Tensor) -> Tensor:
        """Costs (B, S) float32 of candidates (B, S, H, frameskip * A); `info_dict` stays as it is.

        Raises:
            ValueError: `info_dict` lacks something, pictures are not uint8, or candidates have another size.
        """
        actions = action_candidates
        size, frameskip = self.model.action_dim, self.model.frameskip
        if actions.ndim != 4 or actions.shape[-1] != size:
            raise ValueError(
                f"candidates must have shape (B, S, H, {size}), got {tuple(actions.shape)}: plan with "
                f"action_block={frameskip}, the world model's frameskip"
            )
        actions = actions.to(self.model.device, torch.float32)
        if self.standardized:
            standardizer = self.model.standardizer
            actions = actions * standardizer.action_std.repeat(frameskip)
            actions = actions + standardizer.action_mean.repeat(frameskip)
        if self.low is not None and self.high is not None:
            actions = actions.clamp(self.low.repeat(frameskip), self.high.repeat(frameskip))
        problem = self._problem_of(info_dict, actions.shape[2])
        self._calls += 1
        problem.resample(self._calls)
        return problem.cost(actions)

    criterion = get_cost

    def _problem_of(self, info: Mapping[str, Any], horizon: int) -> LatentProblem:
        """The planning problem of what is seen; kept for as long as that stays the same."""
        seen = [
            _pictures(info, "pixels"),
            _pictures(info, "goal"),
            None if self.blind else _present(info, "proprio"),
            None if self.blind or "goal_proprio" not in info else _present(info, "goal_proprio"),
        ]
        asked: list[Tensor | int | None] = [*seen, horizon]
        if self._problem is None or not _same(self._asked, asked):
            pixels, goal, proprio, goal_proprio = seen
            assert pixels is not None and goal is not None
            blank = torch.zeros(len(pixels), self.model.config.proprio_dim)
            weight = 0.0 if goal_proprio is None else self.config.cost.proprio_weight
            start = self._encode(pixels, blank if proprio is None else proprio)
            end = self._encode(goal, blank if goal_proprio is None else goal_proprio)
            self._problem = self._new(start, end, weight, horizon)
            self._asked = asked
        return self._problem

    def _encode(self, pixels: Tensor, proprio: Tensor) -> Latent:
        with torch.inference_mode(False), torch.no_grad():  # gradient descent differentiates through it
            return self.model.encode(pixels, proprio, attention=self._attends)

    def _new(self, start: Latent, goal: Latent, weight: float, horizon: int) -> LatentProblem:
        model, config = self.model, self.config
        batch, size = len(start.tokens), model.action_dim // model.frameskip
        while len(self._masks) < batch:
            self._masks.append(generator([config.run.seed, len(self._masks)], "tokens"))
        bounds = (
            torch.ones(size) if self.low is None or self.high is None else torch.stack([self.low, self.high])
        )
        low, high = (-bounds, bounds) if bounds.ndim == 1 else bounds
        return LatentProblem(
            model,
            start,
            goal,
            low,
            high,
            objective=objective_of(
                model, config.cost.objective, weight, tokens=config.tokens.selection != "none"
            ),
            horizon=horizon,
            drop=config.tokens.drop,
            frame=config.cost.frame,
            action_repeat=False,
            init_std=config.search.init_std,
            generators=self._masks[:batch],
            choice=self.choice,
            comparison=self.comparison,
            cost_drop=config.tokens.cost_drop,
            redraw=config.tokens.resample == "iteration",
        )


class CostableProblem:
    """Any model of stable-worldmodel as a problem for the planners of `sparsewm.planners`.

    Args:
        costable: the model.
        info: what is observed, values (B, T, ...), as its policies prepare it.
        horizon: H, model steps.
        low, high: bounds (C,) of an action, in the units that the model takes.
        mean, std: of the first candidates (H, C); the middle and a quarter of the range when left out.
        device: where the model computes.
        batch_size: episodes the model is asked about at once; some of its models mix up several.
    """

    def __init__(
        self,
        costable: Costable,
        info: Mapping[str, Any],
        horizon: int,
        low: Tensor,
        high: Tensor,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 1,
    ) -> None:
        self.costable, self.horizon, self.device = costable, horizon, torch.device(device)
        self.batch, self.action_dim = len(next(iter(info.values()))), low.shape[0]
        self.low, self.high = low.to(self.device), high.to(self.device)
        self.mean, self.std = mean, std
        self._info, self.batch_size = dict(info), batch_size
        self._asked: dict[tuple[int, int], dict[str, Any]] = {}  # models keep what they have encoded in there

    def cost(self, actions: Tensor) -> Tensor:
        """Costs (B, S) of candidates (B, S, H, C)."""
        parts = actions.split(self.batch_size)
        return torch.cat(
            [self.costable.get_cost(self._info_of(i, part), part) for i, part in enumerate(parts)]
        )

    def _info_of(self, part: int, actions: Tensor) -> dict[str, Any]:
        """What is observed in a part of the episodes, repeated for their candidates."""
        samples, first = actions.shape[1], part * self.batch_size
        if (part, samples) not in self._asked:
            rows = slice(first, first + self.batch_size)
            self._asked[part, samples] = {
                name: self._repeat(value[rows], samples) for name, value in self._info.items()
            }
        return self._asked[part, samples]

    def resample(self, iteration: int) -> None:
        """Nothing is random here; a model may draw tokens by itself."""

    def _repeat(self, value: Any, samples: int) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind not in "USO":
            value = torch.from_numpy(value)
        if not isinstance(value, Tensor):
            return value
        value = value.to(self.device)
        return value[:, None].expand(len(value), samples, *value.shape[1:])


class PlannerSolver:
    """A planner of ours as a solver of stable-worldmodel, for its `WorldModelPolicy` and `World.evaluate`.

    Args:
        costable: a model of stable-worldmodel, or a `CostModel`.
        planner: any planner of `sparsewm.planners`.
        process: the scaler of actions that the policy has, where it has one: bounds are turned into its
            units, and candidates start from unit noise.
        device: where the model computes.
        batch_size: episodes the model is asked about at once, as in `CostableProblem`.
    """

    def __init__(
        self,
        costable: Costable,
        planner: Planner[Any],
        process: Transformable | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 1,
    ) -> None:
        self.costable, self.planner, self.process = costable, planner, process
        self.device, self.batch_size = device, batch_size

    def configure(self, *, action_space: gym.Space[Any], n_envs: int, config: Any) -> None:
        """Called by the policy: batched action space, number of environments, its plan's settings.

        Raises:
            ValueError: actions without finite bounds.
        """
        if not isinstance(action_space, spaces.Box) or not action_space.is_bounded():
            raise ValueError(f"planners need actions with finite bounds, not {action_space}")
        bounds = np.stack([action_space.low[0], action_space.high[0]]).astype(np.float64)
        if self.process is not None:
            bounds = np.sort(self.process.transform(bounds), axis=0)
        low, high = torch.as_tensor(bounds, dtype=torch.float32).repeat(1, config.action_block)
        self._low, self._high = low, high
        self._n_envs, self._config = n_envs, config

    @property
    def action_dim(self) -> int:
        """Numbers C of an action of a model step."""
        return len(self._low)

    @property
    def n_envs(self) -> int:
        """Number of environments."""
        return self._n_envs

    @property
    def horizon(self) -> int:
        """Model steps of a plan."""
        return int(self._config.horizon)

    def solve(self, info_dict: Mapping[str, Any], init_action: Tensor | None = None) -> dict[str, Any]:
        """Plan: `actions` (B, H, C) on the CPU and `costs`, a list.

        Args:
            info_dict: what is observed, values (B, T, ...).
            init_action: rest of the last plan (B, t, C), to go on from.
        """
        unit = torch.ones(self.horizon, self.action_dim, device=self.device)
        mean, std = (None, None) if self.process is None else (0 * unit, unit)
        bounds, place = (self._low, self._high), (self.device, self.batch_size)
        problem = CostableProblem(self.costable, info_dict, self.horizon, *bounds, mean, std, *place)
        warm = None
        if init_action is not None:
            middle = ((problem.low + problem.high) / 2 if mean is None else mean[0]).cpu()
            warm = middle.repeat(problem.batch, self.horizon, 1)
            warm[:, : init_action.shape[1]] = init_action.cpu()
            warm = warm.to(problem.device)
        plan = self.planner.plan(problem, warm)
        return {"actions": plan.actions.detach().cpu(), "costs": plan.cost.tolist()}

    __call__ = solve


class GoalInInfo(gym.Wrapper[Any, Any, Any, Any]):
    """An environment of ours as stable-worldmodel's `World` wants it: give it as one of `pre_wrappers`.

    The goal's picture and proprioception are in `info`, the present picture is rendered, and an episode
    terminates at success.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        parts = dict(env.observation_space.items())  # type: ignore[attr-defined]  # a Dict, as `GoalEnv` says
        self.observation_space = spaces.Dict({"proprio": parts["proprio"]})

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        self._goal = self.env.unwrapped.goal_observation()  # type: ignore[attr-defined]
        return self._shown(observation, info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation, info = self._shown(observation, info)
        return observation, reward, bool(terminated or info["is_success"]), truncated, info

    def _shown(self, observation: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        told = {"goal": self._goal["pixels"], "is_success": bool(info["is_success"])}
        if self._goal.get("proprio") is not None:
            told["goal_proprio"] = self._goal["proprio"]
        return {"proprio": observation["proprio"]}, told


def _present(info: Mapping[str, Any], name: str) -> Tensor:
    """A copy of the present value (B, ...) of one observation (B, S, T, ...)."""
    if name not in info:
        raise ValueError(f"info must hold '{name}', it holds {', '.join(sorted(map(str, info)))}")
    with torch.inference_mode(False):  # it is kept, and gradients may pass through what is made of it
        return torch.as_tensor(info[name])[:, 0, -1].clone()


def _pictures(info: Mapping[str, Any], name: str) -> Tensor:
    """Present pictures uint8 (B, H, W, 3), on the CPU."""
    pictures = _present(info, name)
    if pictures.dtype != torch.uint8:
        raise ValueError(
            f"'{name}' must be uint8 pictures, got {pictures.dtype}: the world model's encoder has its own "
            "normalisation, leave the policy's `transform` out"
        )
    if pictures.shape[-1] != 3:
        pictures = pictures.movedim(1, -1)
    if pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ValueError(f"'{name}' must be pictures of three colours, got {tuple(pictures.shape)}")
    return pictures.cpu()


def _same(before: list[Any], now: list[Any]) -> bool:
    return all(
        torch.equal(a, b)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
        else (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
        for a, b in zip(before, now, strict=True)
    )
