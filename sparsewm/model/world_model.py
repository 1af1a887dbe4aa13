"""The world model: a frozen encoder's tokens, standardised, and a predictor that imagines their future."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from sparsewm.encoders.base import PatchEncoder
from sparsewm.errors import UserError
from sparsewm.kernels import Graphs
from sparsewm.model.decoder import Decoder, DecoderConfig
from sparsewm.model.distance import DistanceConfig, TemporalDistance
from sparsewm.model.predictor import FrameCache, Predictor, PredictorConfig
from sparsewm.model.rollout import Past, Rollout
from sparsewm.precision import no_integers

if TYPE_CHECKING:
    from sparsewm.model.problem import LatentProblem, Measure


@dataclass
class Latent:
    """One frame in the model's space.

    Attributes:
        tokens: (B, N, D) standardised patch tokens, float32.
        proprio: (B, P) standardised proprioception, float32.
        cls: (B, D) image token as the encoder gave it, or None.
        attention: (B, N) CLS-to-patch attention, or None.
    """

    tokens: Tensor
    proprio: Tensor
    cls: Tensor | None = None
    attention: Tensor | None = None

    def __getitem__(self, episodes: Any) -> Latent:
        pick = lambda x: None if x is None else x[episodes]  # noqa: E731
        return Latent(self.tokens[episodes], self.proprio[episodes], pick(self.cls), pick(self.attention))

    @staticmethod
    def cat(parts: Sequence[Latent]) -> Latent:
        """Frames one after the other, along the first axis."""
        cls = [part.cls for part in parts if part.cls is not None]
        attention = [part.attention for part in parts if part.attention is not None]
        return Latent(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.proprio for part in parts]),
            torch.cat(cls) if cls else None,
            torch.cat(attention) if attention else None,
        )


History = Sequence[tuple[Latent, Tensor]]
"""Past frames and the actions (B, C) taken at them, oldest first."""


class Standardizer(nn.Module):
    """Statistics of the training data, part of every checkpoint.

    Tokens lose their mean *per patch* (what a fixed camera always sees is no information) and pass through a
    linear map that gives what is left unit size (`sparsewm.data.token_statistics`), so that an error of one
    means the same in every environment and for every encoder.
    """

    token_mean: Tensor
    token_map: Tensor
    cost_map: Tensor
    proprio_mean: Tensor
    proprio_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(self, patches: int, token_dim: int, proprio_dim: int, action_dim: int) -> None:
        super().__init__()
        self.register_buffer("token_mean", torch.zeros(patches, token_dim))
        self.register_buffer("token_map", torch.eye(token_dim))
        self.register_buffer("cost_map", torch.eye(token_dim))
        for name, size in (("proprio", proprio_dim), ("action", action_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def fit(self, statistics: dict[str, Tensor | np.ndarray]) -> None:
        """Fill in `token_mean` (N, D), `token_map`, `cost_map` (D, D), `proprio_mean` ... from the data."""
        for name, value in statistics.items():
            buffer = getattr(self, name)
            value = torch.as_tensor(value, dtype=torch.float32)
            buffer.copy_(value.clamp_min(1e-4) if name.endswith("_std") else value)

    def tokens(self, patches: Tensor) -> Tensor:
        """Raw patch tokens (..., N, D) -> standardised float32."""
        return (patches.float() - self.token_mean) @ self.token_map

    def token_error(self, tokens: Tensor, goal: Tensor) -> Tensor:
        """What plans are scored by: squared error (...) of standardised tokens (..., M, D) to a goal's."""
        return ((tokens - goal) @ self.cost_map).square().mean((-1, -2))

    def proprio(self, proprio: Tensor) -> Tensor:
        """Raw proprioception (..., P) -> standardised float32."""
        return (proprio.float() - self.proprio_mean) / self.proprio_std

    def actions(self, actions: Tensor) -> Tensor:
        """Actions in the environment's units (..., frameskip * A) -> standardised float32."""
        repeats = actions.shape[-1] // self.action_mean.shape[0]
        return (actions.float() - self.action_mean.repeat(repeats)) / self.action_std.repeat(repeats)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        deviations = state_dict.pop(f"{prefix}token_std", None)
        if deviations is not None:  # a checkpoint from before there was a map
            state_dict[f"{prefix}token_map"] = torch.diag(1 / deviations)
            state_dict[f"{prefix}cost_map"] = torch.eye(len(deviations))
        super()._load_from_state_dict(state_dict, prefix, *args)


class WorldModel(nn.Module):
    """Predictor, statistics and the frozen encoder they were trained on.

    Args:
        encoder: frozen; not part of the state dict, checkpoints record its name and hash.
        config: sizes of the predictor.
        environment: name of the environment, e.g. ``"pusht"``.
        frameskip: environment steps per model step.
        metadata: free information kept in checkpoints (dataset hash, training steps, ...).
        distance, decoder: sizes of the learned temporal distance and of the decoder; None: it has none.
    """

    def __init__(
        self,
        encoder: PatchEncoder,
        config: PredictorConfig,
        environment: str,
        frameskip: int,
        metadata: dict[str, Any] | None = None,
        distance: DistanceConfig | None = None,
        decoder: DecoderConfig | None = None,
    ) -> None:
        super().__init__()
        rows, cols = config.grid
        self.predictor = Predictor(config)
        self.distance: TemporalDistance | None = None
        if distance is not None:
            self.distance = TemporalDistance(config.token_dim, config.grid, config.proprio_dim, distance)
        self.decoder: Decoder | None = None
        if decoder is not None:
            self.decoder = Decoder(config.token_dim, config.grid, decoder)
        self.standardizer = Standardizer(
            rows * cols, config.token_dim, config.proprio_dim, config.action_dim // frameskip
        )
        self.config, self.environment, self.frameskip = config, environment, frameskip
        self.metadata = dict(metadata or {})
        self.graphs = Graphs()  # of what planners compute with this model on a GPU
        self._packed: Rollout | None = None
        self._packed_of: list[tuple[int, int]] = []  # where its weights lay, and how often they had changed
        self._integers = False
        object.__setattr__(self, "encoder", encoder)  # kept out of parameters and state dict

    encoder: PatchEncoder

    @property
    def precision(self) -> torch.dtype:
        """What plans are imagined in: torch.int8, or the predictor's own."""
        return torch.int8 if self._integers else self.predictor.embed_tokens.weight.dtype

    @property
    def action_dim(self) -> int:
        """Action features of a model step: frameskip x environment action size."""
        return self.config.action_dim

    @property
    def history(self) -> int:
        """Frames of the attention window."""
        return self.config.history

    @property
    def patches(self) -> int:
        """Number N of patches of a frame."""
        rows, cols = self.config.grid
        return rows * cols

    @property
    def device(self) -> torch.device:
        return self.standardizer.token_mean.device

    def place(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> WorldModel:
        """Move to a device; the networks compute in `dtype`, statistics stay float32. Returns self.

        With torch.int8 they compute in bfloat16, and the layers of a planner's rollout multiply 8-bit
        integers.

        Raises:
            UserError: this machine has nothing compiled for integers.
        """
        if dtype == torch.int8:
            reason = no_integers(torch.device(device))
            if reason is not None:
                raise UserError(f"this machine does not plan in int8 ({reason}): give --dtype auto")
        self._integers = dtype == torch.int8
        dtype = torch.bfloat16 if self._integers else dtype
        self.predictor.to(device=device, dtype=dtype)
        for head in (self.distance, self.decoder):
            if head is not None:
                head.to(device=device, dtype=dtype)
        self.standardizer.to(device=device)
        self.encoder.to(device)
        self.graphs, self._packed = Graphs(), None  # graphs are bound to the places of weights
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies pack their own weights."""
        return self.__dict__ | {"_packed": None}

    def packed(self) -> Rollout | None:
        """The predictor's present weights, packed for planning; None where that gains nothing.

        They are packed anew when they have changed; on a GPU once, for graphs are bound to their places:
        after a change call `place`.
        """
        if self.device.type == "cpu":
            parts = list(self.predictor.parameters())
            untold = any(part.is_inference() for part in parts)  # of these nobody knows when they change
            state = [] if untold else [(part.data_ptr(), part._version) for part in parts]
            if untold or self._packed is None or state != self._packed_of:
                self._packed, self._packed_of = Rollout(self.predictor, self.precision), state
            return self._packed
        if self._packed is None and self.device.type == "cuda":
            self._packed = Rollout(self.predictor)
        return self._packed if self._packed is not None and self._packed.compiled is not None else None

    @torch.no_grad()
    def take_over(self, other: WorldModel, ours: Tensor, theirs: Tensor) -> None:
        """Go on from the predictor of a model on another encoder, with this model's statistics.

        What reads and writes tokens passes through linear fits between both encoders' tokens of one place.

        Args:
            other: of the same environment and sizes, but for the encoder.
            ours, theirs: standardised tokens of the same frames, (K, N, D) and (K, N, D').

        Raises:
            ValueError: sizes differ.
        """
        sizes = [
            replace(model.config, token_dim=1, history=1).__dict__ | {"skip": model.frameskip}
            for model in (self, other)
        ]
        if sizes[0] != sizes[1]:
            raise ValueError(f"a predictor of sizes {sizes[1]} does not fit {sizes[0]}")
        here, there = ours.flatten(0, 1).double(), theirs.flatten(0, 1).double()
        state = {name: value.double() for name, value in other.predictor.state_dict().items()}
        state["embed_tokens.weight"] = state["embed_tokens.weight"] @ linear_fit(here, there).T
        for name in ("token_change.weight", "token_change.bias"):
            state[name] = linear_fit(there, here).T @ state[name]
        self.predictor.load_state_dict(state)

    @torch.no_grad()  # not inference mode: gradient descent plans from what comes out
    def encode(
        self, pixels: Tensor | np.ndarray, proprio: Tensor | np.ndarray, attention: bool = False
    ) -> Latent:
        """Observe: uint8 frames (B, H, W, 3) and raw proprioception (B, P) -> `Latent`.

        Raises:
            ValueError: when shapes do not fit the model.
        """
        proprio = torch.as_tensor(np.asarray(proprio), dtype=torch.float32, device=self.device)
        if proprio.ndim != 2 or proprio.shape[1] != self.config.proprio_dim:
            raise ValueError(
                f"proprio must have shape (B, {self.config.proprio_dim}), got {tuple(proprio.shape)}: "
                f"this model was trained for {self.environment}"
            )
        features = self.encoder.encode(pixels, attention=attention)
        return Latent(
            self.standardizer.tokens(features.patches),
            self.standardizer.proprio(proprio),
            features.cls.float(),
            features.attention,
        )

    def predict(
        self,
        tokens: Tensor,
        proprio: Tensor,
        action: Tensor,
        patches: Tensor,
        past: Sequence[FrameCache] = (),
    ) -> tuple[Tensor, Tensor, FrameCache]:
        """One model step for one sequence per episode.

        Args:
            tokens: (B, M, D) standardised tokens of `patches` (B, M). proprio: (B, P) standardised.
            action: (B, C) in the environment's units. past: caches of earlier frames.
        """
        next_tokens, next_proprio, cache = self.predictor(
            tokens[:, None],
            proprio[:, None],
            self.standardizer.actions(action)[:, None],
            self.predictor.positions_of(patches),
            list(past),
        )
        return next_tokens[:, 0], next_proprio[:, 0], cache

    def rollout(
        self,
        tokens: Tensor,
        proprio: Tensor,
        actions: Tensor,
        patches: Tensor,
        past: Sequence[FrameCache] = (),
    ) -> tuple[Tensor, Tensor]:
        """Imagine the ends of many action sequences.

        Args:
            tokens: (B, M, D) present frame, kept patches only. proprio: (B, P).
            actions: (B, S, H, C) in the environment's units. patches: (B, M) indices of the kept patches.
            past: caches of frames before the present one, shared by all candidates: (B, heads, L, d).

        Returns:
            tokens (B, S, H, M, D) and proprio (B, S, H, P) of the imagined frames.
        """
        all_tokens, all_proprio = [], []
        for next_tokens, next_proprio in self.imagine(tokens, proprio, actions, patches, past):
            all_tokens.append(next_tokens)
            all_proprio.append(next_proprio)
        return torch.stack(all_tokens, 2), torch.stack(all_proprio, 2)

    def imagine(
        self,
        tokens: Tensor,
        proprio: Tensor,
        actions: Tensor,
        patches: Tensor,
        past: Sequence[FrameCache] = (),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Generator behind `rollout`: yields (tokens (B, S, M, D), proprio (B, S, P)) frame by frame."""
        positions = self.predictor.positions_of(patches)
        normalised = self.standardizer.actions(actions)
        frames = list(past)
        now_tokens, now_proprio = tokens[:, None], proprio[:, None]
        for step in range(actions.shape[2]):
            now_tokens, now_proprio, cache = self.predictor(
                now_tokens, now_proprio, normalised[:, :, step], positions, frames
            )
            yield now_tokens, now_proprio
            frames = [*frames, cache][-self.history + 1 :] if self.history > 1 else []

    @overload
    def remember(self, history: History, patches: Tensor, by: None = None) -> list[FrameCache]: ...

    @overload
    def remember(self, history: History, patches: Tensor, by: Rollout) -> Past: ...

    def remember(self, history: History, patches: Tensor, by: Rollout | None = None) -> Past:
        """Keys and values of real past frames, for a subset of patches.

        Args:
            history: (frame, action (B, C) taken at it), oldest first; the last `history - 1` are used.
            patches: (B, M) kept patches.
            by: the packed rollout that is to go on from them; None: the predictor.

        Returns:
            caches shared by all candidates; the predictor's are (B, heads, L, d) per layer.
        """
        recent = history[max(0, len(history) - self.history + 1) :]
        if not recent:
            return []
        tokens = torch.stack([gather_patches(frame.tokens, patches) for frame, _ in recent], 1)
        proprio = torch.stack([frame.proprio for frame, _ in recent], 1)
        actions = torch.stack([self.standardizer.actions(action) for _, action in recent], 1)
        return (self.predictor if by is None else by).remember(tokens, proprio, actions, patches)

    def planning_problem(
        self,
        observation: Mapping[str, np.ndarray],
        goal: Mapping[str, np.ndarray],
        *,
        drop: float = 0.0,
        alpha: float = 1.0,
        cost: Measure = "mse",
        horizon: int = 5,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        seed: int = 0,
    ) -> LatentProblem:
        """The problem of reaching `goal` from `observation`, for any planner of `planners`.

        Args:
            observation, goal: ``{"pixels", "proprio"}`` of one episode, or stacked along a first axis for B.
            drop: fraction of the patches dropped, redrawn at every planner iteration.
            alpha: weight of the proprioception error. cost: "mse" or "temporal", see `LatentProblem`.
            horizon: model steps imagined.
            low, high: bounds of an environment action; -1 and 1 when left out. seed: of the drop masks.
        """
        from sparsewm.model.problem import LatentProblem

        frames = []
        for frame in (observation, goal):
            pixels, proprio = np.asarray(frame["pixels"]), np.asarray(frame["proprio"])
            single = pixels.ndim == 3
            frames.append(
                self.encode(pixels[None] if single else pixels, proprio[None] if single else proprio)
            )
        size = self.action_dim // self.frameskip
        return LatentProblem(
            self,
            frames[0],
            frames[1],
            torch.as_tensor(low if low is not None else [-1.0] * size),
            torch.as_tensor(high if high is not None else [1.0] * size),
            horizon=horizon,
            drop=drop,
            alpha=alpha,
            measure=cost,
            generator=torch.Generator().manual_seed(seed),
        )

    def loss(self, batch: dict[str, Tensor], real: int, groups: Sequence[Tensor]) -> dict[str, Tensor]:
        """Rollout loss with randomly grouped attention.

        Each group of patches is a sequence of its own: attention never crosses groups, which equals a
        block mask over all tokens and costs less than dense training. The first `real` frames
        are fed as recorded, later ones are the model's own predictions.

        Args:
            batch: `tokens` (B, T, N, D) standardised, `proprio` (B, T, P) standardised, `action`
                (B, T-1, C) in the environment's units.
            real: number of recorded frames, at least 1.
            groups: disjoint patch subsets, each (B, M_g), the same in all frames.

        Returns:
            `tokens`, `proprio`: mean squared errors over all predicted frames; `loss`: their sum.
        """
        actions = self.standardizer.actions(batch["action"])
        frames = batch["action"].shape[1]
        token_error = batch["proprio"].new_zeros(())
        proprio_error = batch["proprio"].new_zeros(())
        total = sum(group.shape[1] for group in groups)
        for group in groups:
            positions = self.predictor.positions_of(group)
            truth = gather_patches(batch["tokens"], group)  # (B, T, M, D)
            past: list[FrameCache] = []
            tokens, proprio = truth[:, None, 0], batch["proprio"][:, None, 0]
            share = group.shape[1] / total
            for t in range(frames):
                if 0 < t < real:
                    tokens, proprio = truth[:, None, t], batch["proprio"][:, None, t]
                tokens, proprio, cache = self.predictor(tokens, proprio, actions[:, None, t], positions, past)
                past = [*past, cache]
                token_error = token_error + share * (tokens[:, 0] - truth[:, t + 1]).square().mean() / frames
                proprio_error = (
                    proprio_error
                    + share * (proprio[:, 0] - batch["proprio"][:, t + 1]).square().mean() / frames
                )
        return {"loss": token_error + proprio_error, "tokens": token_error, "proprio": proprio_error}


def linear_fit(x: Tensor, y: Tensor, ridge: float = 1e-4) -> Tensor:
    """Matrix (D, E) that best turns rows of x (K, D) into rows of y (K, E), at a small price on its size."""
    penalty = ridge * x.square().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(x.T @ x / len(x) + penalty, x.T @ y / len(x))


def gather_patches(tokens: Tensor, patches: Tensor) -> Tensor:
    """Tokens (B, ..., N, D) at patch indices (B, M) -> (B, ..., M, D)."""
    index = patches.view(patches.shape[0], *([1] * (tokens.ndim - 3)), patches.shape[1], 1)
    return tokens.gather(-2, index.expand(*tokens.shape[:-2], -1, tokens.shape[-1]))


def random_patches(episodes: int, patches: int, kept: int, generator: torch.Generator) -> Tensor:
    """A uniformly random subset of `kept` of `patches` indices for each episode, (B, kept), sorted."""
    noise = torch.rand(episodes, patches, generator=generator, device=generator.device)
    return noise.argsort(1)[:, :kept].sort(1).values


def random_groups(
    episodes: int, patches: int, groups: int, smallest: int, generator: torch.Generator
) -> list[Tensor]:
    """Split the patches of every episode at random into groups of random sizes (sizes shared by the batch).

    Returns:
        `groups` index tensors (B, M_g), disjoint, together all patches; each M_g >= `smallest`.
    """
    if groups == 1:
        return [torch.arange(patches).expand(episodes, -1)]
    order = torch.rand(episodes, patches, generator=generator).argsort(1)
    free = patches - groups * smallest
    if free < 0:
        raise ValueError(f"{groups} groups of at least {smallest} patches do not fit into {patches} patches")
    cuts = torch.randint(free + 1, (groups - 1,), generator=generator).sort().values.tolist()
    sizes = [b - a + smallest for a, b in zip([0, *cuts], [*cuts, free], strict=True)]
    return list(order.split(sizes, 1))
