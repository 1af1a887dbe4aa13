"""The predictor a second time, as masked attention over all tokens of all frames: no cache, no groups."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.model.predictor import Predictor


def dense_step(
    predictor: Predictor, tokens: list[Tensor], proprio: list[Tensor], actions: Tensor, groups: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The frame after the last one, everything computed from scratch.

    Args:
        tokens: per frame (B, Z, D), the patches of all groups one after another.
        proprio: per frame (B, G, P), each group's own copy.
        actions: (B, frames, C) standardised. groups: patch indices, each (B, M_g).

    Returns:
        tokens (B, Z, D) and proprio (B, G, P).
    """
    sizes = [group.shape[1] for group in groups]
    owner = torch.repeat_interleave(
        torch.arange(len(groups)), torch.tensor(sizes)
    )  # group of each patch token
    places = predictor.embed_positions(predictor.positions)[torch.cat(groups, 1)]
    sequence, conditions, group_of, frame_of = [], [], [], []
    for frame, (patch_tokens, own) in enumerate(zip(tokens, proprio, strict=True)):
        asked = actions[:, None, frame].expand(-1, len(groups), -1)
        condition = predictor.embed_condition(torch.cat([asked, own], -1))  # (B, G, W)
        sequence += [predictor.embed_tokens(patch_tokens) + places, predictor.embed_proprio(own)]
        conditions += [condition[:, owner], condition]
        group_of += [owner, torch.arange(len(groups))]
        frame_of += [torch.full((len(owner) + len(groups),), frame)]
    x, condition = torch.cat(sequence, 1), torch.cat(conditions, 1)
    group, time = torch.cat(group_of), torch.cat(frame_of)
    age = time[:, None] - time[None]
    seen = (group[:, None] == group[None]) & (age >= 0) & (age < predictor.config.history)
    heads, size = predictor.config.heads, predictor.config.head_size
    for block in predictor.blocks:
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(condition).chunk(6, -1)
        y = F.layer_norm(x, x.shape[-1:]) * (1 + scale1) + shift1
        q, k, v = block.qkv(y).unflatten(-1, (3, heads, -1)).unbind(2)  # (B, tokens, heads, d)
        clock = block.age[age.clamp(0, predictor.config.history - 1), :, 0]  # (tokens, tokens, heads, d)
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) + torch.einsum("bqhd,qkhd->bhqk", q, clock)
        weights = (logits / size**0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
        x = x + (1 + gate1) * block.out(mixed)
        y = F.layer_norm(x, x.shape[-1:]) * (1 + scale2) + shift2
        x = x + (1 + gate2) * block.down(F.relu(block.up(y)))
    last = predictor.norm(x)[:, -len(owner) - len(groups) :]
    return (
        tokens[-1] + predictor.token_change(last[:, : len(owner)]),
        proprio[-1] + predictor.proprio_change(last[:, len(owner) :]),
    )
