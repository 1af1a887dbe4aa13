"""A rollout of some windows through the predictor and back, written out.

Shapes: B windows, T = F + 1 frames, L = M + 1 rows of a sequence (a group's tokens, then proprioception),
W width, D token features. Rows of all frames lie one after another: (F * B * L, ...).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.kernels.products import SLACK, Arena
from sparsewm.kernels.training import Modulation, Shape, TrainingKernels
from sparsewm.model.latent import gather_patches
from sparsewm.model.step_weights import Weights

Losses = tuple[Tensor, Tensor]


class StepRollout:
    """Some windows of one group."""

    def __init__(
        self,
        kernels: TrainingKernels,
        arena: Arena,
        weights: Weights,
        truth: Tensor,
        proprio: Tensor,
        actions: Tensor,
        real: int,
        group: Tensor,
        batch: int,
    ) -> None:
        self.kernels, self.weights, self.batch = kernels, weights, batch
        self.take = take = arena.take
        w, self.group = weights, group
        b, f, self.length = len(group), actions.shape[1], group.shape[1] + 1
        self.windows, self.frames, self.real = b, f, min(real, f)
        real = self.real
        self.rows = rows = b * self.length  # of a frame
        every = rows * f
        self.truth = take(f + 1, b, self.length, w.dim, dtype=torch.float32)
        self.truth[:, :, -1] = 0
        self.truth[:, :, :-1] = gather_patches(truth, group).transpose(0, 1)
        self.proprio_truth = proprio.transpose(0, 1)
        self.actions = actions.transpose(0, 1)
        self.tokens = take(f, b, self.length, w.dim)
        self.tokens[:real] = self.truth[:real]
        self.proprio = self.proprio_truth[:f].clone()
        self.token_errors = take(f, b, self.length, w.dim, dtype=torch.float32)
        self.proprio_errors = torch.empty_like(self.proprio)
        depth, width = w.depth, w.width
        self.hats = take(depth, 2, every, width)
        self.factors = take(depth, 2, every, dtype=torch.float32)
        self.qkv = take(depth, every, 3 * w.inner)
        self.levels = take(depth, every, w.heads, dtype=torch.float32)
        self.mixed = take(depth, every, w.inner)
        self.added = take(depth, 2, every, width)
        self.hidden = take(depth, every, w.mlp)
        self.last_hat = take(every, width)
        self.last_factors = take(every, dtype=torch.float32)
        self.modulation = take(f * b, depth * 6 * width)
        self.condition_in = torch.empty(f, b, actions.shape[-1] + proprio.shape[-1], dtype=torch.bfloat16)
        self.condition = [take(f * b, width) for _ in range(4)]  # before and after each SiLU
        most = real * rows
        self.x = take(most, width, dtype=torch.float32)
        self.y, self.embedded, self.change = take(most, width), take(most, width), take(most, w.dim)
        self.next_tokens = take(1, b, self.length, w.dim, dtype=torch.float32)
        places = take(b, self.length, width, dtype=torch.float32)
        places[:, :-1] = w.positions[group]
        places[:, -1] = 0
        self.places = places
        self.ranges = [(0, real), *((t, t + 1) for t in range(real, f))]

    def _shape(self, begin: int, end: int) -> Shape:
        w = self.weights
        return Shape(self.windows, self.length, w.heads, w.d, self.frames, w.history, begin, end)

    def _part(self, rows: Tensor, layer: int, which: int) -> Tensor:
        start = (6 * layer + which) * self.weights.width
        return rows[:, start : start + self.weights.width]

    def forward(self) -> Losses:
        """Mean squared errors of tokens and proprioception, as shares of the whole batch."""
        tokens = torch.zeros((), dtype=torch.float64)
        for begin, end in self.ranges:
            tokens += self._advance(begin, end)
        count = self.frames * self.batch
        per_token = count * (self.length - 1) * self.weights.dim
        squares = self.proprio_errors.square().sum() / (count * self.proprio.shape[-1])
        return (tokens / per_token).float(), squares

    def _condition(self, begin: int, end: int) -> None:
        """Modulation of all layers in some frames."""
        w, state = self.weights, self.weights.state
        here = slice(begin * self.windows, end * self.windows)
        inputs = self.condition_in[begin:end]
        inputs.copy_(torch.cat([self.actions[begin:end], self.proprio[begin:end]], -1))
        first, after, second, condition = (part[here] for part in self.condition)
        torch.addmm(
            state["embed_condition.0.bias"],
            inputs.flatten(0, 1),
            state["embed_condition.0.weight"].T,
            out=first,
        )
        torch.ops.aten.silu.out(first, out=after)
        w.second.forward(after, second)
        torch.ops.aten.silu.out(second, out=condition)
        w.modulation.forward(condition, self.modulation[here])

    def _advance(self, begin: int, end: int) -> Tensor:
        """Some frames through all layers; the sum of squared errors of tokens."""
        w, state, kernels = self.weights, self.weights.state, self.kernels
        here, sequences = (
            slice(begin * self.rows, end * self.rows),
            slice(begin * self.windows, end * self.windows),
        )
        count = (end - begin) * self.rows
        self._condition(begin, end)
        modulation = self.modulation[sequences]
        x, y = self.x[:count], self.y[:count]
        frames = x.view(end - begin, self.windows, self.length, -1)
        frames.copy_(self.places)
        frames[:, :, -1] = F.linear(
            self.proprio[begin:end].bfloat16(), state["embed_proprio.weight"], state["embed_proprio.bias"]
        )
        added: Tensor = self.embedded[:count]
        w.embed.forward(self.tokens[begin:end].view(count, -1), added)
        gate: Tensor | None = None
        for layer, block in enumerate(w.blocks):
            parts = [self._part(modulation, layer, i) for i in range(6)]
            hats, factors = self.hats[layer], self.factors[layer]
            kernels.enter(
                x,
                added,
                Modulation(parts[0], parts[1], gate),
                self.length,
                1e-5,
                hats[0, here],
                factors[0, here],
                y,
            )
            block.qkv.forward(y, self.qkv[layer, here])
            kernels.attend(
                self.qkv[layer], block.ages, self._shape(begin, end), self.mixed[layer], self.levels[layer]
            )
            added = self.added[layer, 0, here]
            block.out.forward(self.mixed[layer, here], added)
            kernels.enter(
                x,
                added,
                Modulation(parts[3], parts[4], parts[2]),
                self.length,
                1e-5,
                hats[1, here],
                factors[1, here],
                y,
            )
            block.up.forward(y, self.hidden[layer, here], relu=True)
            added, gate = self.added[layer, 1, here], parts[5]
            block.down.forward(self.hidden[layer, here], added)
        kernels.enter(
            x,
            added,
            Modulation(w.norm.bias.detach(), w.norm.weight.detach(), gate, one=0.0),
            self.length,
            w.norm.eps,
            self.last_hat[here],
            self.last_factors[here],
            y,
        )
        change = self.change[:count]
        w.change.forward(y, change)
        return self._compare(begin, end, change, y)

    def _compare(self, begin: int, end: int, change: Tensor, y: Tensor) -> Tensor:
        """The next frames, and their errors."""
        state = self.weights.state
        errors, before = self.token_errors[begin:end], self.truth[begin:end]
        if begin >= self.real:
            before = self.next_tokens
        torch.add(before, change.view(errors.shape), out=errors)
        if end < self.frames:
            self.next_tokens.copy_(errors[-1:])
            self.tokens[end : end + 1] = self.next_tokens
            self.tokens[end, :, -1] = 0
        errors -= self.truth[begin + 1 : end + 1]
        errors[:, :, -1] = 0
        ends = y.view(end - begin, self.windows, self.length, -1)[:, :, -1]
        moved = F.linear(ends, state["proprio_change.weight"], state["proprio_change.bias"]).float()
        following = self.proprio[begin:end] + moved
        if end < self.frames:
            self.proprio[end] = following[-1]
        self.proprio_errors[begin:end] = following - self.proprio_truth[begin + 1 : end + 1]
        return torch.linalg.vector_norm(errors, dtype=torch.float64).square()

    def backward(self, share: float) -> None:
        """Add the gradients of `share` times both errors."""
        w = self.weights
        assert w.gradients is not None
        most = self.x.shape[0]
        self.d_hidden, self.d_qkv = self.take(most, w.mlp), self.take(most, 3 * w.inner)
        self.d_mixed = self.take(most, w.inner)
        width, depth = w.width, w.depth
        self.d_modulation = self.take(self.real * self.windows, depth * 6 * width, dtype=torch.float32)
        self.d_modulations = self.take(self.frames * self.windows, depth * 6 * width)
        self.d_norm = torch.empty(self.real * self.windows, 2 * width)
        self.pending = self.take(depth, w.history * self.rows, 2 * w.inner)
        self.d_ages = torch.zeros(depth, self.windows, w.history, w.heads, w.d)
        self.d_places = torch.zeros(self.windows, self.length, width)
        self.d_condition = [self.take(*part.shape) for part in self.condition[:2]]
        count = self.frames * self.batch
        self.token_factor = 2 * share / (count * (self.length - 1) * w.dim)
        self.proprio_factor = 2 * share / (count * self.proprio.shape[-1])
        self.d_next: tuple[Tensor, Tensor] | None = None
        for begin, end in reversed(self.ranges):
            self._return(begin, end)
        gradients = w.gradients
        for layer in range(depth):
            gradients[f"blocks.{layer}.age"][:, :, 0] += self.d_ages[layer].sum(0)
        w.d_positions.index_add_(0, self.group.flatten(), self.d_places[:, :-1].reshape(-1, width))
        w.modulation.learn(self.d_modulations, self.condition[3])
        w.second.learn(self.d_condition[1], self.condition[1])
        d_first = self.d_condition[0].float()
        gradients["embed_condition.0.weight"].addmm_(d_first.T, self.condition_in.flatten(0, 1).float())
        gradients["embed_condition.0.bias"].add_(d_first.sum(0))

    def _return(self, begin: int, end: int) -> None:
        """The way back through some frames."""
        w, state, kernels, gradients = self.weights, self.weights.state, self.kernels, self.weights.gradients
        assert gradients is not None
        here, sequences = (
            slice(begin * self.rows, end * self.rows),
            slice(begin * self.windows, end * self.windows),
        )
        count, frames = (end - begin) * self.rows, end - begin
        modulation, d_modulation = self.modulation[sequences], self.d_modulation[: frames * self.windows]
        d_tokens = self.token_errors[begin:end].mul_(self.token_factor)
        d_proprio = self.proprio_errors[begin:end] * self.proprio_factor
        if self.d_next is not None:
            d_tokens[-1] += self.d_next[0]
            d_proprio[-1] += self.d_next[1]
        d_change = self.change[:count]
        d_change.view(d_tokens.shape).copy_(d_tokens)
        dx, dy = self.x[:count], self.y[:count]
        w.change.back(d_change, dy)
        ends = dy.view(frames, self.windows, self.length, -1)[:, :, -1]
        d_moved = d_proprio.flatten(0, 1)
        ends += (d_moved @ state["proprio_change.weight"].float()).view(ends.shape)
        d_norm = self.d_norm[: frames * self.windows]
        last = w.depth - 1
        kernels.leave(
            dy,
            self.last_hat[here],
            self.last_factors[here],
            dx,
            True,
            self.added[last, 1, here],
            Modulation(
                w.norm.bias.detach(),
                w.norm.weight.detach(),
                self._part(modulation, last, 5),
                0.0,
                d_norm[:, : w.width],
                d_norm[:, w.width :],
                self._part(d_modulation, last, 5),
            ),
            self.length,
        )
        d_bias, d_weight = d_norm.sum(0).chunk(2)
        gradients["norm.bias"].add_(d_bias)
        gradients["norm.weight"].add_(d_weight)
        w.change.learn(d_change, dy)
        gradients["proprio_change.weight"].addmm_(d_moved.T, ends.flatten(0, 1).float())
        gradients["proprio_change.bias"].add_(d_moved.sum(0))
        d_hidden, d_qkv, d_mixed = self.d_hidden[:count], self.d_qkv[:count], self.d_mixed[:count]
        for layer in reversed(range(w.depth)):
            block = w.blocks[layer]
            parts = [self._part(modulation, layer, i) for i in range(6)]
            d_parts = [self._part(d_modulation, layer, i) for i in range(6)]
            hats, factors = self.hats[layer], self.factors[layer]
            hidden, error = self.hidden[layer, here], self.added[layer, 1, here]
            block.down.back(error, d_hidden, mask=hidden)
            block.down.learn(error, hidden)
            block.up.back(d_hidden, dy)
            kernels.leave(
                dy,
                hats[1, here],
                factors[1, here],
                dx,
                False,
                self.added[layer, 0, here],
                Modulation(parts[3], parts[4], parts[2], 1.0, d_parts[3], d_parts[4], d_parts[2]),
                self.length,
            )
            block.up.learn(d_hidden, dy)
            error = self.added[layer, 0, here]
            block.out.back(error, d_mixed)
            block.out.learn(error, self.mixed[layer, here])
            kernels.attend_back(
                self.qkv[layer],
                block.ages,
                self._shape(begin, end),
                self.levels[layer],
                d_mixed,
                d_qkv,
                self.pending[layer],
                self.d_ages[layer],
            )
            block.qkv.back(d_qkv, dy)
            below = layer - 1
            kernels.leave(
                dy,
                hats[0, here],
                factors[0, here],
                dx,
                False,
                self.added[below, 1, here] if layer else None,
                Modulation(
                    parts[0],
                    parts[1],
                    self._part(modulation, below, 5) if layer else None,
                    1.0,
                    d_parts[0],
                    d_parts[1],
                    self._part(d_modulation, below, 5) if layer else None,
                ),
                self.length,
            )
            block.qkv.learn(d_qkv, dy)
        every = dx.view(frames, self.windows, self.length, -1)
        for frame in every:
            self.d_places += frame
        d_ends = every[:, :, -1].flatten(0, 1)
        gradients["embed_proprio.weight"].addmm_(d_ends.T, self.proprio[begin:end].flatten(0, 1))
        gradients["embed_proprio.bias"].add_(d_ends.sum(0))
        d_embedded = dy
        d_embedded.copy_(dx)
        w.embed.learn(d_embedded, self.tokens[begin:end].view(count, -1))
        self.d_modulations[sequences] = d_modulation
        d_inputs = self._return_condition(sequences)
        if begin < self.real:
            return
        d_from = self.change[:count]
        w.embed.back(d_embedded, d_from)
        d_tokens[0] += d_from.view(d_tokens.shape[1:])
        d_tokens[0, :, -1] = 0
        d_proprio[0] += d_ends @ state["embed_proprio.weight"].float() + d_inputs[:, self.actions.shape[-1] :]
        self.d_next = d_tokens[0], d_proprio[0]

    def _return_condition(self, sequences: slice) -> Tensor:
        """The way back through what makes modulation; the gradient of actions and proprioception."""
        w = self.weights
        first, _, second, _ = (part[sequences] for part in self.condition)
        d_first, d_second = (part[sequences] for part in self.d_condition)
        error = torch.empty(len(first) + SLACK, w.width, dtype=first.dtype)[: len(first)]
        w.modulation.back(self.d_modulations[sequences], error)
        torch.ops.aten.silu_backward.grad_input(error, second, grad_input=d_second)
        w.second.back(d_second, error)
        torch.ops.aten.silu_backward.grad_input(error, first, grad_input=d_first)
        return d_first.float() @ w.state["embed_condition.0.weight"].float()
