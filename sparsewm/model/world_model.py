"""The world model: a frozen encoder's tokens, standardised, and a predictor that imagines their future."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from sparsewm.encoders.base import PatchEncoder
from sparsewm.errors import UserError
from sparsewm.kernels import Graphs, flushed
from sparsewm.model.decoder import Decoder, DecoderConfig
from sparsewm.model.distance import DistanceConfig, TemporalDistance
from sparsewm.model.interface import Interface
from sparsewm.model.latent import History, Latent, Standardizer, TokenSpace, gather_patches, linear_fit
from sparsewm.model.predictor import FrameCache, Predictor, PredictorConfig
from sparsewm.model.rollout import Past, Rollout
from sparsewm.model.step import Step, rollout_loss
from sparsewm.precision import no_integers


class WorldModel(nn.Module):
    """Predictor, statistics and the frozen encoder they were trained on.

    Args:
        encoder: frozen; not part of the state dict, checkpoints record its name and hash.
        config: sizes of the predictor.
        environment: name of the environment, e.g. ``"pusht"``.
        frameskip: environment steps per model step.
        metadata: free information kept in checkpoints (dataset hash, training steps, ...).
        distance, decoder: sizes of the learned temporal distance and of the decoder; None: it has none.
        space: what is kept of the encoder's tokens; None: all of them, as they are.
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
        space: TokenSpace | None = None,
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
            rows * cols,
            config.token_dim if space is None else encoder.dim,
            config.proprio_dim,
            config.action_dim // frameskip,
            space,
            config.grid,
        )
        self.config, self.environment, self.frameskip = config, environment, frameskip
        self.space = space
        self.metadata = dict(metadata or {})
        self.folder: Path | None = None  # it was read from
        self.graphs = Graphs()  # of what planners compute with this model on a GPU
        self._packed: Rollout | None = None
        self._packed_of: list[tuple[int, int]] = []  # see `_weights`
        self._integers = False
        self._step: Step | None = None  # computes losses on a CPU in bfloat16
        object.__setattr__(self, "encoder", encoder)  # kept out of parameters and state dict

    encoder: PatchEncoder

    @property
    def precision(self) -> torch.dtype:
        """What plans are imagined in: torch.int8, or the predictor's own."""
        return torch.int8 if self._integers else self.predictor.embed_tokens.weight.dtype

    @property
    def interface(self) -> Interface | None:
        """What it is shown and asked to do; None where its checkpoint is older than that record."""
        content = self.metadata.get("interface")
        return None if content is None else Interface.from_dict(content)

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
                raise UserError(f"this machine does not plan in int8 ({reason}): give `dtype` auto")
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
        """Copies pack their own weights, and have their own memory."""
        return self.__dict__ | {"_packed": None, "_step": None}

    def packed(self) -> Rollout | None:
        """The predictor's present weights, packed for planning; None where that gains nothing.

        They are packed anew when they have changed; on a GPU the graphs that read the old ones go with them.
        """
        if self.device.type not in ("cpu", "cuda"):
            return None
        state = self._weights()
        if state is None or self._packed is None or state != self._packed_of:
            if self._packed is not None:
                self.graphs = Graphs()
            on_cpu = self.device.type == "cpu"
            self._packed = Rollout(self.predictor, self.precision) if on_cpu else Rollout(self.predictor)
            self._packed_of = state or []
        return self._packed if self.device.type == "cpu" or self._packed.compiled is not None else None

    def _weights(self) -> list[tuple[int, int]] | None:
        """Where weights lie and how often they have changed; None where some do not tell."""
        networks = [part for part in (self.predictor, self.distance) if part is not None]
        parts = [weight for network in networks for weight in network.parameters()]
        if any(part.is_inference() for part in parts):
            return None
        return [(part.data_ptr(), part._version) for part in parts]

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

    @flushed()
    @torch.no_grad()  # not inference mode: gradient descent plans from what comes out
    def encode(
        self, pixels: Tensor | np.ndarray, proprio: Tensor | np.ndarray, attention: bool = False
    ) -> Latent:
        """Observe: uint8 frames (B, H, W, 3) and raw proprioception (B, P) -> `Latent`.

        Raises:
            ValueError: when shapes do not fit the model.
        """
        if isinstance(proprio, np.ndarray):
            proprio = np.require(proprio, requirements=["C", "W"])  # as torch takes it
        proprio = torch.as_tensor(proprio, dtype=torch.float32, device=self.device)
        if proprio.ndim != 2 or proprio.shape[1] != self.config.proprio_dim:
            raise ValueError(
                f"proprio must have shape (B, {self.config.proprio_dim}), got {tuple(proprio.shape)}: "
                f"this model was trained for {self.environment}"
            )
        if len(pixels) != len(proprio):
            raise ValueError(f"{len(pixels)} pictures came with {len(proprio)} rows of proprioception")
        features = self.encoder.encode(pixels, attention=attention)
        return Latent(
            self.standardizer.tokens(features.patches),
            self.standardizer.proprio(proprio),
            features.cls.float(),
            features.attention,
            None if self.space is None else features.patches,
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

    @flushed()
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
            `tokens`, `proprio`: mean squared errors over all predicted frames; `loss`: their sum, which alone
            is sure to have a gradient.
        """
        actions = self.standardizer.actions(batch["action"])
        self._step = self._step or Step.of(self.predictor)
        if self._step is not None and self._step.fits(self.predictor):
            return rollout_loss(
                self._step, self.predictor, batch["tokens"], batch["proprio"], actions, real, groups
            )
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
