"""What a SmolVLA computes behind its vision encoder, for many chunks of one observation: the same, once.

LeRobot denoises a chunk as a row of a batch, with a copy of what was read from pictures and text for each.
Chunks of one observation differ by their noise alone, so here they share the keys and values of pictures and
text; those that the expert projects of them are computed once per decision, not once per chunk and step; and
the expert's linear layers are in bfloat16 where the processor is fast in it (residuals, norms and softmax
stay float32). Of the language model's last layer nothing but keys and values is ever read.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsewm.proposals.version import lerobot_imports

with lerobot_imports():
    from lerobot.policies.smolvla.modeling_smolvla import create_sinusoidal_pos_embedding

Cache = list[tuple[Tensor, Tensor]]
"""Keys, divided by the root of head_dim, and values (B, P, heads * head_dim) of every layer."""


def shares_prefix(policy: Any) -> bool:
    """Whether a SmolVLA's expert has a layer for each of the language model's, as all known ones have."""
    vlm = policy.model.vlm_with_expert
    return bool(vlm.num_expert_layers == vlm.num_vlm_layers and "cross" in vlm.attention_mode)


class Expert:
    """Reads pictures, text and state, and denoises chunks.

    Args:
        policy: a SmolVLA of LeRobot's that `shares_prefix`. dtype: of linear layers, float32 or bfloat16.
    """

    def __init__(self, policy: Any, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.config, self.dtype = policy.model, policy.config, dtype
        vlm = self.model.vlm_with_expert
        self.heads, self.groups = vlm.num_attention_heads, vlm.num_attention_heads // vlm.num_key_value_heads
        self.head_dim: int = vlm.vlm.config.text_config.head_dim
        self.turning = self.heads + vlm.num_key_value_heads  # heads of queries and keys
        self.shift: int = getattr(policy, "shift", 0)
        every = vlm.self_attn_every_n_layers
        self.reads_itself = [every > 0 and i % every == 0 for i in range(vlm.num_vlm_layers)]
        self.layers = [
            self._pack(layer, own, dtype)
            for layer, own in zip(vlm.lm_expert.layers, self.reads_itself, strict=True)
        ]
        text = vlm.get_vlm_model().text_model
        self.readers = [
            self._pack(layer, True, layer.self_attn.q_proj.weight.dtype)
            for layer in text.layers[: vlm.num_vlm_layers]
        ]
        last, out, mixing = vlm.lm_expert.norm, self.model.action_out_proj, self.model.action_time_mlp_out
        self.eps, self.to_actions = last.variance_epsilon, (out.weight * last.weight).float()
        self.to_actions_bias = out.bias.float()
        self.mixed, self.mixed_bias = mixing.weight.to(dtype), mixing.bias.to(dtype)
        # the first two layers see actions and time, with nothing but an addition between them
        first, second = self.model.action_in_proj, self.model.action_time_mlp_in
        width = first.out_features
        self.of_actions = (second.weight[:, :width] @ first.weight).float()
        self.of_time = second.weight[:, width:].float()
        self.bias = (second.bias + second.weight[:, :width] @ first.bias).float()

    def _pack(self, layer: Any, own: bool, dtype: torch.dtype) -> dict[str, Tensor]:
        """A layer's weights, those that read the same thing joined, with the norm's before them in them.

        What turns with its place is read twice, the second time with the halves of every head exchanged.
        """
        attention, mlp = layer.self_attn, layer.mlp
        turned, as_is = [attention.q_proj.weight], []
        if own:
            turned.append(attention.k_proj.weight * self.head_dim**-0.5)
            as_is.append(attention.v_proj.weight)
        heads = torch.cat(turned).unflatten(0, (-1, 2, self.head_dim // 2))
        read = [*turned, *as_is, heads.flip(1).flatten(0, 2)]
        before, between = layer.input_layernorm.weight.float(), layer.post_attention_layernorm.weight.float()
        packed = {
            "read": torch.cat(read) * before,
            "out": attention.o_proj.weight,
            "up": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * between,
            "down": mlp.down_proj.weight,
        }
        return {name: weight.to(dtype) for name, weight in packed.items()}

    def read(self, prefix: Tensor, seen: Tensor, padding: Tensor) -> Cache:
        """What the expert reads of pictures, text and state.

        Args:
            prefix: (B, P, width). seen: (B, P, P), what sees what. padding: (B, P), False where nothing is.
        """
        batch, length, width = prefix.shape
        places = (padding.cumsum(1) - 1 - self.shift).clamp(min=0)
        straight, across = self._turns(places, self.turning, torch.float32)
        turns = straight[:, 0], across[:, 0]
        hidden = torch.zeros(seen.shape, device=seen.device)
        hidden = hidden.masked_fill(~seen, torch.finfo(hidden.dtype).min)[:, None]
        x, cache = prefix.reshape(-1, width).float(), []
        for layer in self.readers:
            read = functional.linear(self._rms(x, layer["read"].dtype), layer["read"]).float()
            read = read.view(batch, length, -1)
            parts = self._turned(read, turns)
            cache.append(parts[1:])
            if len(cache) == len(self.readers):
                break
            query, keys, values = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in parts)
            if self.groups > 1:
                keys, values = (part.repeat_interleave(self.groups, 1) for part in (keys, values))
            known = functional.scaled_dot_product_attention(query, keys, values, hidden, scale=1.0)
            known = known.transpose(1, 2).reshape(batch * length, -1)
            x = x + functional.linear(known.to(layer["out"].dtype), layer["out"])
            gate, up = functional.linear(self._rms(x, layer["up"].dtype), layer["up"]).chunk(2, -1)
            x = x + functional.linear(functional.silu(gate) * up, layer["down"])
        return cache

    def denoise(self, cache: Cache, padding: Tensor, noise: Tensor) -> Tensor:
        """Noise (B, S, chunk, action) -> chunks of the same shape.

        Args:
            cache: as `read` has it, of B observations. padding: (B, P), False where nothing is.
        """
        batch, samples, length, _ = noise.shape
        device = noise.device
        places = torch.arange(length, device=device)
        ahead = (padding.sum(1, keepdim=True) + places - self.shift).clamp(min=0)  # (B, chunk)
        turns = {
            True: self._turns(ahead, self.turning, self.dtype),
            False: self._turns(places[None], self.heads, self.dtype),
        }
        hidden = None
        if not bool(padding.all()):
            hidden = torch.zeros(padding.shape, device=device).masked_fill(~padding, -math.inf)
            hidden = hidden[:, None, None, None]
        later = torch.full((length, length), -math.inf, device=device).triu(1)
        past = [self._past(*read, i) for i, read in enumerate(cache)]
        steps, actions = self.config.num_steps, noise
        for step in range(steps):
            x = self._begin(actions.flatten(0, 2), 1 - step / steps)
            for layer, own, (keys, values) in zip(self.layers, self.reads_itself, past, strict=True):
                read = functional.linear(self._rms(x, self.dtype), layer["read"]).view(
                    batch, samples, length, -1
                )
                seen = self._attend(read, keys, values, turns[own], hidden, later if own else None)
                x += functional.linear(seen, layer["out"])
                gate, up = functional.linear(self._rms(x, self.dtype), layer["up"]).chunk(2, -1)
                x += functional.linear(functional.silu(gate) * up, layer["down"])
            velocity = functional.linear(
                self._rms(x, self.dtype).float(), self.to_actions, self.to_actions_bias
            )
            actions = actions - velocity.view(noise.shape) / steps
        return actions

    def _begin(self, actions: Tensor, time: float) -> Tensor:
        """Actions (B * S * chunk, action) at a time, as the layers take them, in float32."""
        limits = self.config.min_period, self.config.max_period
        times = torch.tensor([time], device=actions.device)
        code = create_sinusoidal_pos_embedding(times, self.of_time.shape[1], *limits, device=actions.device)
        known = self.bias + self.of_time @ code[0].float()
        x = functional.silu(torch.addmm(known, actions, self.of_actions.T))
        return functional.linear(x.to(self.dtype), self.mixed, self.mixed_bias).float()

    def _rms(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a mean square of 1; what a norm multiplies them by is in the weights behind it."""
        return functional.rms_norm(x, x.shape[-1:], None, self.eps).to(dtype)

    def _turns(self, places: Tensor, heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What heads and exchanged heads are multiplied by at places (B, chunk): (B, 1, chunk, ...)."""
        half = self.head_dim // 2
        exponents = 2 / self.head_dim * torch.arange(half, dtype=torch.float32, device=places.device)
        angles = (places[..., None] / 10_000**exponents)[:, None]
        cosine, sine = angles.cos(), angles.sin()
        pairs = (cosine, cosine), (-sine, sine)
        straight, across = (torch.cat(pair, -1).repeat(1, 1, 1, heads).to(dtype) for pair in pairs)
        return straight, across

    def _past(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keys (B, heads, head_dim, P) and values (B, heads, P, head_dim) a layer reads of the prefix."""
        if not self.reads_itself[layer]:
            attention = self.model.vlm_with_expert.lm_expert.layers[layer].self_attn
            keys, values = (
                project(part.to(project.weight.dtype))
                for project, part in ((attention.k_proj, keys), (attention.v_proj, values))
            )
        keys, values = (
            part.unflatten(2, (-1, self.head_dim)).repeat_interleave(self.groups, 2).transpose(1, 2)
            for part in (keys, values)
        )
        return keys.mT.to(self.dtype), values.to(self.dtype)

    def _attend(
        self,
        read: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        turns: tuple[Tensor, Tensor],
        hidden: Tensor | None,
        later: Tensor | None,
    ) -> Tensor:
        """What queries of chunks (B, S, chunk, ...) see, flat; with keys and values also of the chunk."""
        batch, samples, length, _ = read.shape
        query, keys, values = (self._by_head(part) for part in self._turned(read, turns))
        scores = (query.flatten(2, 3) @ past_keys).unflatten(2, (samples, length)).float()
        if hidden is not None:
            scores += hidden
        prefix = scores.shape[-1]
        if later is not None:
            if self.groups > 1:
                keys, values = (part.repeat_interleave(self.groups, 1) for part in (keys, values))
            scores = torch.cat([scores, (query @ keys.mT).float() + later], -1)
        weights = scores.softmax(-1).to(self.dtype)
        seen = (weights[..., :prefix].flatten(2, 3) @ past_values).unflatten(2, (samples, length))
        if later is not None:
            seen = seen + weights[..., prefix:] @ values
        return seen.permute(0, 2, 3, 1, 4).reshape(batch * samples * length, -1)

    def _turned(self, read: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys at their places, and values, (..., heads * head_dim) each; where a layer reads the
        prefix alone, no keys and values."""
        straight, across = turns
        size, queries = straight.shape[-1], self.heads * self.head_dim
        turned = torch.addcmul(read[..., :size] * straight, read[..., -size:], across)
        return turned[..., :queries], turned[..., queries:], read[..., size:-size]

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, S, chunk, heads * head_dim) -> (B, heads, S, chunk, head_dim)."""
        return x.unflatten(3, (-1, self.head_dim)).permute(0, 3, 1, 2, 4)
