"""The action expert of a SmolVLA for many chunks of one observation: the same numbers, computed once.

LeRobot denoises a chunk as a row of a batch, with a copy of what was read from pictures and text for each.
Chunks of one observation differ by their noise alone, so here they share the keys and values of pictures and
text; those that the expert projects of them are computed once per decision, not once per chunk and step; and
linear layers are in bfloat16 where the processor is fast in it (residuals, norms and softmax stay float32).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsewm.errors import needs_extra

with needs_extra("policies of LeRobot", "vla"):
    from lerobot.policies.smolvla.modeling_smolvla import create_sinusoidal_pos_embedding

Cache = dict[int, dict[str, Tensor]]
"""Keys and values (B, P, heads, head_dim) by layer, as LeRobot keeps them."""


def shares_prefix(policy: Any) -> bool:
    """Whether a SmolVLA's expert has a layer for each of the language model's, as all known ones have."""
    vlm = policy.model.vlm_with_expert
    return bool(vlm.num_expert_layers == vlm.num_vlm_layers and "cross" in vlm.attention_mode)


class Expert:
    """Denoises chunks.

    Args:
        policy: a SmolVLA of LeRobot's that `shares_prefix`. dtype: of linear layers, float32 or bfloat16.
    """

    def __init__(self, policy: Any, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.config, self.dtype = policy.model, policy.config, dtype
        vlm = self.model.vlm_with_expert
        self.heads, self.groups = vlm.num_attention_heads, vlm.num_attention_heads // vlm.num_key_value_heads
        self.head_dim: int = vlm.vlm.config.text_config.head_dim
        self.shift: int = getattr(policy, "shift", 0)
        every = vlm.self_attn_every_n_layers
        self.reads_itself = [every > 0 and i % every == 0 for i in range(vlm.num_vlm_layers)]
        self.layers = [
            self._pack(layer, own) for layer, own in zip(vlm.lm_expert.layers, self.reads_itself, strict=True)
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

    def _pack(self, layer: Any, own: bool) -> dict[str, Tensor]:
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
        before, between = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        packed = {
            "read": torch.cat(read) * before,
            "out": attention.o_proj.weight,
            "up": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * between,
            "down": mlp.down_proj.weight,
        }
        return {name: weight.to(self.dtype) for name, weight in packed.items()}

    def denoise(self, cache: Cache, padding: Tensor, noise: Tensor) -> Tensor:
        """Noise (B, S, chunk, action) -> chunks of the same shape.

        Args:
            cache: of pictures, text and state of B observations. padding: (B, P), False where nothing is.
        """
        batch, samples, length, _ = noise.shape
        device = noise.device
        places = torch.arange(length, device=device)
        ahead = (padding.sum(1, keepdim=True) + places - self.shift).clamp(min=0)  # (B, chunk)
        both = self.heads + self.heads // self.groups
        turns = {True: self._turns(ahead, both), False: self._turns(places[None], self.heads)}
        hidden = None
        if not bool(padding.all()):
            hidden = torch.zeros(padding.shape, device=device).masked_fill(~padding, -math.inf)
            hidden = hidden[:, None, None, None]
        later = torch.full((length, length), -math.inf, device=device).triu(1)
        past = [self._past(cache[i], i) for i in range(len(self.layers))]
        steps, actions = self.config.num_steps, noise
        for step in range(steps):
            x = self._begin(actions.flatten(0, 2), 1 - step / steps)
            for layer, own, (keys, values) in zip(self.layers, self.reads_itself, past, strict=True):
                read = functional.linear(self._rms(x), layer["read"]).view(batch, samples, length, -1)
                seen = self._attend(read, keys, values, turns[own], hidden, later if own else None)
                x += functional.linear(seen, layer["out"])
                gate, up = functional.linear(self._rms(x), layer["up"]).chunk(2, -1)
                x += functional.linear(functional.silu(gate) * up, layer["down"])
            velocity = functional.linear(self._rms(x).float(), self.to_actions, self.to_actions_bias)
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

    def _rms(self, x: Tensor) -> Tensor:
        """Rows of a mean square of 1; what a norm multiplies them by is in the weights behind it."""
        return functional.rms_norm(x, x.shape[-1:], None, self.eps).to(self.dtype)

    def _turns(self, places: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """What heads and exchanged heads are multiplied by at places (B, chunk): (B, 1, chunk, ...)."""
        half = self.head_dim // 2
        exponents = 2 / self.head_dim * torch.arange(half, dtype=torch.float32, device=places.device)
        angles = (places[..., None] / 10_000**exponents)[:, None]
        cosine, sine = angles.cos(), angles.sin()
        pairs = (cosine, cosine), (-sine, sine)
        straight, across = (torch.cat(pair, -1).repeat(1, 1, 1, heads).to(self.dtype) for pair in pairs)
        return straight, across

    def _past(self, entry: dict[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
        """Keys (B, heads, head_dim, P) and values (B, heads, P, head_dim) a layer reads of the prefix."""
        keys, values = entry["key_states"], entry["value_states"]
        if not self.reads_itself[layer]:
            attention = self.model.vlm_with_expert.lm_expert.layers[layer].self_attn
            pairs = ((attention.k_proj, keys), (attention.v_proj, values))
            keys, values = (
                project(part.flatten(2).to(project.weight.dtype)).unflatten(2, (-1, self.head_dim))
                for project, part in pairs
            )
        keys, values = (part.repeat_interleave(self.groups, 2).transpose(1, 2) for part in (keys, values))
        return (self.head_dim**-0.5 * keys).mT.to(self.dtype), values.to(self.dtype)

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
        straight, across = turns
        size, queries = straight.shape[-1], self.heads * self.head_dim
        turned = torch.addcmul(read[..., :size] * straight, read[..., -size:], across)
        query = self._by_head(turned[..., :queries])
        scores = (query.flatten(2, 3) @ past_keys).unflatten(2, (samples, length)).float()
        if hidden is not None:
            scores += hidden
        prefix = scores.shape[-1]
        if later is not None:
            keys, values = self._by_head(turned[..., queries:]), self._by_head(read[..., size:-size])
            if self.groups > 1:
                keys, values = (part.repeat_interleave(self.groups, 1) for part in (keys, values))
            scores = torch.cat([scores, (query @ keys.mT).float() + later], -1)
        weights = scores.softmax(-1).to(self.dtype)
        seen = (weights[..., :prefix].flatten(2, 3) @ past_values).unflatten(2, (samples, length))
        if later is not None:
            seen = seen + weights[..., prefix:] @ values
        return seen.permute(0, 2, 3, 1, 4).reshape(batch * samples * length, -1)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, S, chunk, heads * head_dim) -> (B, heads, S, chunk, head_dim)."""
        return x.unflatten(3, (-1, self.head_dim)).permute(0, 3, 1, 2, 4)
