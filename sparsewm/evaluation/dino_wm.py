"""The baseline of `sparsewm bench`: rolling out as DINO-WM and Sparse Imagination publish it.

For measuring only. It computes with the weights it is given, so that only the way differs: a window of
`history` frames computed anew at every imagined step, all its tokens in one masked attention whose score
matrix is materialised, the start image encoded once for every candidate. Published in float32; here also in
bfloat16. Up to `history` imagined frames it computes what `WorldModel.rollout` computes; beyond, a window
that starts afresh forgets what its first frame had seen.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsewm.model.latent import Latent, gather_patches
from sparsewm.model.predictor import ConditionedBlock, Predictor
from sparsewm.model.world_model import WorldModel


class WindowRollout:
    """Rollout by a sliding window.

    Args:
        model: its predictor is copied, on the same device.
        memory: bytes that the score matrices of one layer may take; candidates are split to fit.
        dtype: what the predictor computes in; frames and costs are float32.
    """

    def __init__(self, model: WorldModel, memory: float = 5e8, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.memory, self.dtype = model, memory, dtype
        self.predictor: Predictor = deepcopy(model.predictor).to(dtype)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, proprio: Tensor, candidates: int, batch: int = 32) -> Latent:
        """The start frame (1, R, R, 3), (1, P), encoded once per candidate."""
        parts = [
            self.model.encode(pixels.expand(n, -1, -1, -1), proprio.expand(n, -1))
            for n in [batch] * (candidates // batch) + [candidates % batch] * (candidates % batch > 0)
        ]
        return Latent(torch.cat([p.tokens for p in parts]), torch.cat([p.proprio for p in parts]))

    @torch.inference_mode()
    def rollout(
        self, tokens: Tensor, proprio: Tensor, actions: Tensor, patches: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Last imagined frame of S candidates.

        Args:
            tokens: (S, M, D) start frame, kept patches only, one copy per candidate. proprio: (S, P).
            actions: (S, H, C) in the environment's units. patches: (M,) indices of the kept patches.

        Returns:
            tokens (S, M, D) and proprio (S, P).
        """
        positions = self.predictor.positions_of(patches[None])[0]
        normalised = self.model.standardizer.actions(actions)
        frames, proprios = tokens[:, None], proprio[:, None]
        for step in range(actions.shape[1]):
            first = max(0, step + 1 - self.model.history)
            window = slice(first, step + 1)
            next_tokens, next_proprio = self._window(
                frames[:, window], proprios[:, window], normalised[:, window], positions
            )
            frames = torch.cat([frames, next_tokens[:, -1:]], 1)
            proprios = torch.cat([proprios, next_proprio[:, -1:]], 1)
        return frames[:, -1], proprios[:, -1]

    def cost(
        self, start: Latent, goal: Latent, actions: Tensor, patches: Tensor, alpha: float = 1.0
    ) -> Tensor:
        """Distance (S,) of the last imagined frames to a goal (one frame), as `LatentProblem` measures it."""
        index = patches[None]
        target = gather_patches(goal.tokens, index)
        config = self.model.config
        length = min(actions.shape[1], config.history) * (len(patches) + 1)
        scores = self.dtype.itemsize * config.heads * length**2
        chunk = max(1, int(self.memory / scores))
        costs = []
        for first in range(0, len(actions), chunk):
            part = slice(first, first + chunk)
            kept = gather_patches(start.tokens[part], index.expand(len(start.tokens[part]), -1))
            tokens, proprio = self.rollout(kept, start.proprio[part], actions[part], patches)
            error = self.model.standardizer.token_error(tokens, target)
            costs.append(error + alpha * (proprio - goal.proprio).square().mean(-1))
        return torch.cat(costs)

    def _window(
        self, tokens: Tensor, proprio: Tensor, action: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Frames (S, T, M, D), (S, T, P), actions (S, T, C) -> the frames that follow each of them."""
        net = self.predictor
        seen, own, action = tokens.to(self.dtype), proprio.to(self.dtype), action.to(self.dtype)
        condition = net.embed_condition(torch.cat([action, own], -1))[:, :, None]  # (S, T, 1, W)
        x = torch.cat([net.embed_tokens(seen) + positions, net.embed_proprio(own)[:, :, None]], 2)
        for block in net.blocks:
            assert isinstance(block, ConditionedBlock)
            x = self._block(block, x, condition)
        x = net.norm(x)
        return tokens + net.token_change(x[:, :, :-1]), proprio + net.proprio_change(x[:, :, -1])

    @staticmethod
    def _block(block: ConditionedBlock, x: Tensor, condition: Tensor) -> Tensor:
        """All frames of a window (S, T, L, W) at once, later ones masked."""
        s, t, length, w = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(condition).chunk(6, -1)
        y = shift1 + F.layer_norm(x, (w,)) * (1 + scale1)
        q, k, v = block.qkv(y).view(s, t * length, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
        q = q * q.shape[-1] ** -0.5
        frame = torch.arange(t, device=x.device)
        age = frame[:, None] - frame  # of the key's frame, seen from the query's
        bias = (q @ block.age[:, :, 0].permute(1, 2, 0)).view(s, block.heads, t, length, -1)
        bias = torch.stack([bias[:, :, i][..., age[i].clamp_min(0)] for i in range(t)], 2)
        bias = bias.masked_fill((age < 0)[:, None], -torch.inf).view(s, block.heads, t * length, t, 1)
        scores = (q @ k.transpose(-1, -2)).view(s, block.heads, t * length, t, length) + bias
        mixed = torch.softmax(scores.view(s, block.heads, t * length, t * length), -1) @ v
        x = x + block.out(mixed.transpose(1, 2).reshape(s, t, length, -1)) * (1 + gate1)
        y = shift2 + F.layer_norm(x, (w,)) * (1 + scale2)
        return x + block.down(F.relu(block.up(y))) * (1 + gate2)
