"""The planner's rollout: what `Predictor` computes, arranged for speed, without gradients.

Against calling the predictor frame by frame:

* Weights are packed once for the matrix unit, and bias and ReLU are applied while a product's result is still
  in the cache. A plain linear layer first fills its result with the bias, then adds the product, then ReLU
  reads and writes it once more; for the widest layer that is more than half of its time.
* On a GPU what is not a linear layer is compiled (`sparsewm.kernels`): attention, whose scores never leave
  the cache and whose keys and values are read where they were written; and residual, layer norm and
  modulation in one pass.
* With AVX512-BF16, and on a matrix unit (AMX), all layers of a frame are one compiled call, a few candidates
  at a time, whose activations stay in the cache. With AVX512-VNNI linear layers multiply 8-bit integers, at
  twice the rate, and candidates keep their order.
* Elsewhere keys and values of imagined frames lie side by side in one buffer per layer, each frame in the
  place of the one that leaves the window: one product for all scores, one for all values, nothing to join.
* All layers' modulations come from one product per frame; the "1 +" of scales and gates and the 1/sqrt(d) of
  queries are in the weights.

Recorded frames stay shared by all candidates of an episode: they are multiplied once and never copied.

Shapes: B episodes, S candidates, M kept patches, L = M + 1, W width, H heads of size d, together as wide as
the network or not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsewm.kernels import (
    CompiledLayers,
    Frame,
    GpuKernels,
    LayersFrame,
    PackedLinear,
    gpu_kernels,
    layout_of,
)
from sparsewm.model.predictor import ConditionedBlock, FrameCache, Predictor

Past = Sequence[FrameCache] | Sequence[LayersFrame]
"""Recorded frames, oldest first, as a rollout keeps them."""


class PackedBlock:
    """One `ConditionedBlock`; its modulation is computed outside."""

    def __init__(self, block: ConditionedBlock) -> None:
        self.heads = block.heads
        inner = block.heads * block.head_size
        scale = torch.ones(3 * inner, dtype=torch.float64, device=block.qkv.weight.device)
        scale[:inner] = block.head_size**-0.5
        self.qkv = PackedLinear(_scaled(block.qkv.weight, scale), _scaled(block.qkv.bias, scale))
        self.out = PackedLinear(block.out.weight, block.out.bias)
        self.up = PackedLinear(block.up.weight, block.up.bias, "relu")
        self.down = PackedLinear(block.down.weight, block.down.bias)
        # A frame's keys start at age 0 and grow older by a difference a step. What all keys have in common
        # does not change attention, so age 0 is left out.
        age = block.age.detach().double()
        self.growth = (age[1:] - age[:-1]).to(block.age.dtype)  # (history - 1, H, 1, d)
        self.shared_age = (age - age[:1]).to(block.age.dtype)


class Window(ABC):
    """Keys and values of the imagined frames that attention still sees, per layer.

    Args:
        layers, history: of the predictor.
    """

    def __init__(self, layers: int, history: int) -> None:
        self.layers, self.history = layers, history
        self.frames = 0  # imagined ones in the window, the present one included

    def advance(self) -> None:
        """Begin the next frame; it takes the place of the one that leaves the window."""
        self.frames = min(self.frames + 1, self.history)

    @abstractmethod
    def attend(self, layer: int, block: PackedBlock, qkv: Tensor, shared: Sequence[FrameCache]) -> Tensor:
        """Queries, keys and values (B, S, L, 3, H, d) of the present frame -> what it reads (B, S, L, H * d).

        Args:
            shared: recorded frames before the imagined ones, oldest first, shared by all candidates.
        """


class FusedWindow(Window):
    """Frames stay where the linear layer wrote them; a compiled kernel reads them all in one pass.

    Args:
        compiled: `sparsewm.kernels.gpu_kernels()`.
    """

    def __init__(self, layers: int, history: int, compiled: GpuKernels) -> None:
        super().__init__(layers, history)
        self.compiled = compiled
        self.past: list[deque[Tensor]] = [deque(maxlen=history) for _ in range(layers)]  # the newest first

    def attend(self, layer: int, block: PackedBlock, qkv: Tensor, shared: Sequence[FrameCache]) -> Tensor:
        past = self.past[layer]
        past.appendleft(qkv)
        ages = block.shared_age
        seen = [Frame(x[:, :, :, 1], x[:, :, :, 2], ages[age] if age else None) for age, x in enumerate(past)]
        candidates = qkv.shape[1]
        for i, cache in enumerate(reversed(shared)):
            keys, values = (
                x[layer].transpose(1, 2)[:, None].expand(-1, candidates, -1, -1, -1)
                for x in (cache.keys, cache.values)
            )
            seen.append(Frame(keys, values, ages[len(past) + i]))
        return self.compiled.attend(qkv[:, :, :, 0], seen)


class BufferWindow(Window):
    """Frames lie in one buffer per layer, side by side, for torch's products.

    Buffers are as long as the window is by now, for products of a part of a longer one copy it first.

    Args:
        shape: (B, H, S, L, d) of one frame's keys. like: sets the dtype.
    """

    def __init__(self, layers: int, history: int, shape: Sequence[int], like: Tensor) -> None:
        super().__init__(layers, history)
        self.shape, self.like, self.slot = tuple(shape), like, -1
        self.keys: list[Tensor] = [self._buffer(0)] * layers
        self.values: list[Tensor] = [self._buffer(0)] * layers

    def _buffer(self, frames: int) -> Tensor:
        b, h, s, length, d = self.shape
        return self.like.new_empty(b, h, s, frames * length, d)

    def _place(self, slot: int) -> slice:
        length = self.shape[3]
        return slice(slot * length, (slot + 1) * length)

    def advance(self) -> None:
        super().advance()
        self.slot = (self.slot + 1) % self.history

    def attend(self, layer: int, block: PackedBlock, qkv: Tensor, shared: Sequence[FrameCache]) -> Tensor:
        b, heads, s, length, _ = self.shape
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5)
        q = q.contiguous()  # (B, H, S, L, d)
        keys, values = self._add(layer, k, v, block.growth)
        scores = [torch.matmul(q, keys.transpose(-1, -2))]
        across = q.view(b, heads, s * length, -1)
        for i, frame in enumerate(shared):
            k = frame.keys[layer] + block.shared_age[self.frames + len(shared) - 1 - i]
            part = across @ k.transpose(-1, -2)
            scores.append(part.view(b, heads, s, length, -1))
        weights = torch.softmax(scores[0] if len(scores) == 1 else torch.cat(scores, -1), -1)
        if shared:
            own, *others = weights.split([part.shape[-1] for part in scores], -1)
            mixed = torch.matmul(own, values)
            for part, frame in zip(others, shared, strict=True):
                flat = part.reshape(b, heads, s * length, -1)
                mixed += (flat @ frame.values[layer]).view_as(mixed)
        else:
            mixed = torch.matmul(weights, values)
        return mixed.permute(0, 2, 3, 1, 4).reshape(b, s, length, -1)

    def _add(self, layer: int, k: Tensor, v: Tensor, growth: Tensor) -> tuple[Tensor, Tensor]:
        """Store this frame's keys and values, let older keys age; all of the window (B, H, S, F * L, d)."""
        keys, values = old_keys, old_values = self.keys[layer], self.values[layer]
        grown = self.frames * self.shape[3] > keys.shape[3]
        if grown:
            keys, values = self._buffer(self.frames), self._buffer(self.frames)
            values[:, :, :, : old_values.shape[3]] = old_values
            self.keys[layer], self.values[layer] = keys, values
        for age in range(1, self.frames):
            place = self._place((self.slot - age) % self.history)
            older = growth[age - 1][:, None]
            torch.add(old_keys[:, :, :, place], older, out=keys[:, :, :, place])
        here = self._place(self.slot)
        keys[:, :, :, here] = k
        values[:, :, :, here] = v
        return keys, values


class Layers(ABC):
    """A predictor's layers, for the frames of one rollout."""

    @abstractmethod
    def advance(self, x: Tensor, modulation: Tensor) -> Tensor:
        """The next frame.

        Args:
            x: embedded tokens (B, S, L, W); S may be 1 while the modulation has more candidates.
            modulation: (B, S, layers * 6 * W): shift, scale and gate, twice, of every layer.

        Returns:
            normalised tokens (B, S, L, W).
        """


class BlockLayers(Layers):
    """One operation after the other; see `Layers`.

    Args:
        rollout: has the blocks.
        past: recorded frames before the imagined ones, oldest first, shared by all candidates.
    """

    def __init__(self, rollout: Rollout, past: Sequence[FrameCache]) -> None:
        self.rollout, self.past, self.history = rollout, list(past), rollout.config.history
        self.window: Window | None = None

    def _window(self, shape: Sequence[int], like: Tensor) -> Window:
        if self.rollout.compiled is not None:
            return FusedWindow(len(self.rollout.blocks), self.history, self.rollout.compiled)
        return BufferWindow(len(self.rollout.blocks), self.history, shape, like)

    def advance(self, x: Tensor, modulation: Tensor) -> Tensor:
        (b, s), length, config = modulation.shape[:2], x.shape[2], self.rollout.config
        if self.window is None:
            self.window = self._window((b, config.heads, s, length, config.head_size), x)
        window, modulated, norm = self.window, self.rollout.modulated, self.rollout.predictor.norm
        parts = modulation[:, :, None].chunk(6 * len(self.rollout.blocks), -1)
        window.advance()
        shared = self.past[max(0, len(self.past) - (self.history - window.frames)) :]
        x, y = modulated(x, None, None, *parts[:2])
        for layer, block in enumerate(self.rollout.blocks):
            gate1, shift2, scale2, gate2 = parts[6 * layer + 2 : 6 * layer + 6]
            qkv = block.qkv(y).view(b, s, length, 3, config.heads, -1)
            mixed = block.out(window.attend(layer, block, qkv, shared))
            x, y = modulated(x, mixed, gate1, shift2, scale2)
            following = parts[6 * layer + 6 : 6 * layer + 8] or (norm.bias, norm.weight)
            x, y = modulated(x, block.down(block.up(y)), gate2, *following)
        return y


class FrameLayers(Layers):
    """All layers of a frame in one compiled call; see `Layers`.

    Args:
        past: recorded frames, oldest first, shared by all candidates. history: of the predictor.
    """

    def __init__(self, compiled: CompiledLayers, past: Sequence[LayersFrame], history: int) -> None:
        self.compiled = compiled
        self.seen = deque([*past][::-1][: history - 1], maxlen=history - 1)  # the newest first

    def advance(self, x: Tensor, modulation: Tensor) -> Tensor:
        y, frame = self.compiled.advance(x, modulation, list(self.seen))
        self.seen.appendleft(frame)
        return y


class Rollout:
    """Imagines with a predictor's present weights; make a new one when they change.

    Args:
        predictor: on its device, in its computing precision.
        weights: of the layers' products, torch.int8, or None: the predictor's. Integers are used where the
            processor has compiled layers for them.
    """

    def __init__(self, predictor: Predictor, weights: torch.dtype | None = None) -> None:
        with torch.inference_mode():
            config = self.config = predictor.config
            self.dtype = predictor.embed_tokens.weight.dtype
            self.predictor = predictor
            blocks = [block for block in predictor.blocks if isinstance(block, ConditionedBlock)]
            device = predictor.embed_tokens.weight.device
            one = torch.tensor([0.0, 1, 1, 0, 1, 1], device=device)  # of shift, scale, gate, twice
            ones = one.repeat_interleave(config.width).repeat(config.depth)
            bias = torch.cat([block.modulation.bias for block in blocks])
            self.modulation = PackedLinear(
                torch.cat([block.modulation.weight for block in blocks]), (bias.float() + ones).to(self.dtype)
            )
            self.whole = self._whole(blocks, weights or self.dtype)
            self.blocks = [PackedBlock(block) for block in blocks] if self.whole is None else []
            self.compiled = self._kernels(device)
            self.modulated = modulate if self.compiled is None else self.compiled.modulate
            self.embed_tokens = self._packed(predictor.embed_tokens)
            self.token_change = self._packed(predictor.token_change)

    def _kernels(self, device: torch.device) -> GpuKernels | None:
        """What computes attention and norms on a GPU, where that is compiled."""
        if device.type != "cuda" or not GpuKernels.fit(self.config.width, self.config.head_size):
            return None
        found = gpu_kernels()
        return None if isinstance(found, str) else found

    def _whole(self, blocks: Sequence[ConditionedBlock], weights: torch.dtype) -> CompiledLayers | None:
        """All layers compiled, where they can be."""
        config = self.config
        if self.predictor.norm.weight.device.type != "cpu":
            return None
        sizes = config.width, config.heads, config.head_size, config.mlp, config.history
        for precision in dict.fromkeys((weights, self.dtype)):
            layout = layout_of(precision)
            if layout is not None and layout.fit(*sizes):
                return CompiledLayers.of_predictor(layout, blocks, self.predictor.norm)
        return None

    @staticmethod
    def _packed(layer: nn.Linear) -> PackedLinear:
        return PackedLinear(layer.weight, layer.bias)

    def imagine(
        self,
        tokens: Tensor,
        proprio: Tensor,
        actions: Tensor,
        patches: Tensor,
        past: Past = (),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `WorldModel.imagine`, of standardised actions (B, S, T, C), under inference mode.

        Args:
            past: of its own `remember`.
        """
        net = self.predictor
        positions = net.positions_of(patches)[:, None]
        layers: Layers
        if self.whole is None:
            layers = BlockLayers(self, all_of(FrameCache, past))
        else:
            layers = FrameLayers(self.whole, all_of(LayersFrame, past), self.config.history)
        now_tokens, now_proprio = tokens[:, None], proprio[:, None]
        for step in range(actions.shape[2]):
            y = layers.advance(*self._embedded(now_tokens, now_proprio, actions[:, :, step], positions))
            now_tokens = now_tokens + self.token_change(y)[:, :, :-1]
            now_proprio = now_proprio + net.proprio_change(y[:, :, -1])
            yield now_tokens, now_proprio

    def _embedded(
        self, tokens: Tensor, proprio: Tensor, actions: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `Layers.advance` takes, of frames (B, S or 1, M, D), (B, S or 1, P), actions (B, S, C)."""
        b, frames, patches = tokens.shape[:3]
        seen = proprio.expand(-1, actions.shape[1], -1)
        condition = torch.cat([actions, seen], -1).to(self.dtype)
        x = positions.new_empty(b, frames, patches + 1, self.config.width)
        torch.add(self.embed_tokens(tokens.to(self.dtype)), positions, out=x[:, :, :-1])
        x[:, :, -1] = self.predictor.embed_proprio(proprio.to(self.dtype))
        return x, self.modulation(self.predictor.embed_condition(condition))

    def remember(self, tokens: Tensor, proprio: Tensor, actions: Tensor, patches: Tensor) -> Past:
        """As `Predictor.remember`, in the form that `imagine` takes."""
        if self.whole is None and self.compiled is None:
            return self.predictor.remember(tokens, proprio, actions, patches)
        positions = self.predictor.positions_of(patches)[:, None]
        x, modulation = self._embedded(tokens, proprio, actions, positions)
        if self.whole is None:
            return self._remembered(x, modulation)
        layers = FrameLayers(self.whole, (), self.config.history)
        for frame in range(tokens.shape[1]):
            layers.advance(x[:, frame : frame + 1], modulation[:, frame : frame + 1])
        return list(layers.seen)[::-1]

    def _remembered(self, x: Tensor, modulation: Tensor) -> list[FrameCache]:
        """Caches of embedded frames (B, F, L, W): of a layer's work only attention is one by one."""
        (b, count), length = x.shape[:2], x.shape[2]
        parts = modulation[:, :, None].chunk(6 * len(self.blocks), -1)
        assert self.compiled is not None
        window = FusedWindow(len(self.blocks), self.config.history, self.compiled)
        caches = [FrameCache() for _ in range(count)]
        x, y = self.modulated(x, None, None, *parts[:2])
        for layer, block in enumerate(self.blocks):
            qkv = block.qkv(y).view(b, count, length, 3, self.config.heads, -1)
            for frame, cache in enumerate(caches):
                cache.keys.append(qkv[:, frame, :, 1].transpose(1, 2))
                cache.values.append(qkv[:, frame, :, 2].transpose(1, 2))
            if layer + 1 == len(self.blocks):
                break
            gate1, shift2, scale2, gate2, *following = parts[6 * layer + 2 : 6 * layer + 8]
            mixed = [window.attend(layer, block, frame, ()) for frame in qkv.split(1, 1)]
            x, y = self.modulated(x, block.out(torch.cat(mixed, 1)), gate1, shift2, scale2)
            x, y = self.modulated(x, block.down(block.up(y)), gate2, *following)
        return caches


Kind = TypeVar("Kind")


def all_of(kind: type[Kind], frames: Past) -> list[Kind]:
    """Frames, all of one kind."""
    found: list[Kind] = [frame for frame in frames if isinstance(frame, kind)]
    if len(found) < len(frames):
        raise TypeError("a rollout goes on from frames that it has remembered itself")
    return found


def modulate(
    x: Tensor, added: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """As `GpuKernels.modulate`, by torch's operations."""
    if added is not None:
        assert gate is not None
        x = torch.addcmul(x, added, gate)
    return x, torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)


def _scaled(parameter: Tensor, scale: Tensor) -> Tensor:
    """Rows of a weight or bias times a scale, rounded once."""
    scaled = parameter.detach().double() * (scale[:, None] if parameter.ndim == 2 else scale)
    return scaled.to(parameter.dtype)
