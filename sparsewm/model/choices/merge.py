"""Tokens that are alike become one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsewm.model.choices.base import Scene, TokenChoice
from sparsewm.model.latent import blend, patch_places, random_patches


class Merge(TokenChoice):
    """Merges tokens until as many are left as are kept: bipartite matching as in ToMe (Bolya et al. 2023).

    Two tokens are alike when they are near each other in the present frame, in the goal and in the picture.
    A round splits the tokens at random into halves and merges the most alike pairs across, each into its
    mean, at the mean of its patches' places. Earlier frames and the goal are merged in the same way.
    """

    def first(self, kept: int, generator: torch.Generator) -> Tensor:
        """Patches (K,) that take part."""
        return torch.arange(self.model.patches)

    def choose(self, scene: Scene, kept: int, generators: Sequence[torch.Generator]) -> Tensor:
        places = patch_places(*self.model.config.grid)
        size = scene.start.tokens.shape[-1]
        frames = torch.cat([scene.start.tokens, scene.goal.tokens], -1).float() * size**-0.5
        merged = []
        for tokens, each in zip(frames.cpu(), generators, strict=True):
            features = torch.cat([tokens, places], -1)
            members = torch.eye(self.model.patches)[self.first(kept, each)]
            while len(members) > kept:
                members = _once(members, features, len(members) - kept, each)
            members = members / members.sum(-1, keepdim=True)
            merged.append(blend(members, members @ places))
        return torch.stack(merged).to(scene.start.tokens.device)


class DropMerge(Merge):
    """Drops patches at random first, then merges: each leaves the same share of the tokens."""

    def first(self, kept: int, generator: torch.Generator) -> Tensor:
        count = round((kept * self.model.patches) ** 0.5)
        return random_patches(1, self.model.patches, max(kept, count), generator)[0].cpu()


def _once(members: Tensor, features: Tensor, surplus: int, generator: torch.Generator) -> Tensor:
    """One round: members (K, N), 1 where a patch is part of a token, with at most `surplus` rows less."""
    here = members @ features / members.sum(-1, keepdim=True)
    order = torch.rand(len(members), generator=generator, device=generator.device).argsort().cpu()
    left, right = order.split([len(order) // 2, len(order) - len(order) // 2])
    nearest, partner = torch.cdist(here[left], here[right]).min(-1)
    gone = nearest.argsort()[: min(surplus, len(left))]
    merged = members.index_add(0, right[partner[gone]], members[left[gone]])
    stays = torch.ones(len(members), dtype=torch.bool).index_fill(0, left[gone], False)
    return merged[stays]
