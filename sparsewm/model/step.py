"""The loss of a rollout and its gradient, forward and backward written out, for a CPU in bfloat16.

It is what `WorldModel.loss` differentiates through torch, without a tape: between products everything is one
pass of a compiled function, recorded frames go through a layer together, weights are packed once a step, and
their gradients add up in float32. Windows are computed some at a time, which bounds what is kept on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsewm.kernels.products import Arena
from sparsewm.kernels.training import TrainingKernels, training_kernels
from sparsewm.model.predictor import Predictor
from sparsewm.model.step_rollout import Losses, StepRollout
from sparsewm.model.step_weights import Gradients, Weights

ROOM = 256 * 2**20
"""Bytes that are kept for the way back, about; more windows wait for their turn."""


class Step:
    """Losses of a predictor's rollouts and their gradients.

    Args:
        kernels: the compiled functions.
        room: bytes to keep for the way back, about.
    """

    def __init__(self, kernels: TrainingKernels, room: int = ROOM) -> None:
        self.kernels, self.room = kernels, room
        self.arena = Arena()

    @classmethod
    def of(cls, predictor: Predictor) -> Step | None:
        """By the products that this processor is fast in; None where torch computes a predictor."""
        if not cls.fits(predictor):
            return None
        kernels = training_kernels()
        return None if isinstance(kernels, str) else cls(kernels)

    @staticmethod
    def fits(predictor: Predictor) -> bool:
        """Whether a predictor of these sizes and this precision can be computed."""
        config, weight = predictor.config, predictor.embed_tokens.weight
        inner = config.heads * config.head_size
        here = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and config.width <= 4096
        return here and config.width % 32 == 0 and config.mlp % 2 == inner % 2 == config.token_dim % 2 == 0

    def losses(
        self,
        predictor: Predictor,
        truth: Tensor,
        proprio: Tensor,
        actions: Tensor,
        real: int,
        groups: Sequence[Tensor],
        gradients: Gradients | None,
    ) -> Losses:
        """Mean squared errors of tokens and of proprioception.

        Args:
            truth: (B, T, N, D) standardised tokens. proprio: (B, T, P). actions: (B, F, C) standardised.
            real: recorded frames. groups: disjoint patch subsets, each (B, M_g).
            gradients: of the sum of both, added to; None: they are not asked for.
        """
        weights = Weights(self.kernels, self.arena, predictor, gradients)
        total = sum(group.shape[1] for group in groups)
        token_error, proprio_error = truth.new_zeros(()), truth.new_zeros(())
        frames = actions.shape[1]
        for group in groups:
            length = group.shape[1] + 1
            share = group.shape[1] / total
            count = max(1, min(len(group), self.room // weights.bytes_of(frames, length)))
            count = -(-len(group) // -(-len(group) // count))  # parts of one size
            for start in range(0, len(group), count):
                some = slice(start, start + count)
                self.arena.reset()
                rollout = StepRollout(
                    self.kernels,
                    self.arena,
                    weights,
                    truth[some],
                    proprio[some],
                    actions[some],
                    real,
                    group[some],
                    len(group),
                )
                errors = rollout.forward()
                if gradients is not None:
                    rollout.backward(share)
                token_error += share * errors[0]
                proprio_error += share * errors[1]
        if gradients is not None:
            weights.finish()
        return token_error, proprio_error


class _Loss(torch.autograd.Function):
    """Hands the gradients out that were computed with the loss."""

    @staticmethod
    def forward(ctx: Any, losses: Losses, gradients: Gradients, *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        ctx.shapes = [p.shape for p in parameters]
        return losses[0] + losses[1]

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> Any:
        gradients: Gradients = ctx.gradients
        factor = float(errors[0])
        flat = (gradients.flat if factor == 1 else gradients.flat * factor).bfloat16()
        parts = flat.split(gradients.sizes)
        return None, None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))


def rollout_loss(
    step: Step,
    predictor: Predictor,
    truth: Tensor,
    proprio: Tensor,
    actions: Tensor,
    real: int,
    groups: Sequence[Tensor],
) -> dict[str, Tensor]:
    """As `WorldModel.loss`, but that `loss` alone can be differentiated. Arguments as of `Step.losses`."""
    parameters = list(predictor.parameters())
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
    gradients = Gradients(predictor) if learns else None
    with torch.no_grad():
        tokens, proprio_error = step.losses(predictor, truth, proprio, actions, real, groups, gradients)
    if gradients is None:
        return {"loss": tokens + proprio_error, "tokens": tokens, "proprio": proprio_error}
    loss = _Loss.apply((tokens, proprio_error), gradients, *parameters)
    return {"loss": loss, "tokens": tokens, "proprio": proprio_error}
