"""SmolVLA on few places of a picture: differentiable grid sampling (GridS, arXiv 2605.11817).

K continuous coordinates are predicted from the pooled feature map of the vision encoder. The map is sampled
there bilinearly, an encoding of the coordinates is added, and the transformer sees these tokens alone. All is
trained end to end with the policy's loss.

Tokens of pictures have no order, so all share the first position of the sequence, and how many there are
moves nothing behind them: a policy that learned with few tokens reads any number.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsewm.errors import UserError
from sparsewm.proposals.configuration_grids import SmolVLAGridsConfig
from sparsewm.proposals.version import lerobot_imports

with lerobot_imports():
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

POOLED = 4  # side of the feature map that coordinates are predicted from
BANDS = 4  # frequencies of the coordinate encoding


class GridSampler(nn.Module):
    """Keeps K tokens of a square feature map, and tells each its place.

    Args:
        width: of a token. tokens: K. choice: as in `SmolVLAGridsConfig`.
    """

    def __init__(self, width: int, tokens: int, choice: str = "grids") -> None:
        super().__init__()
        self.tokens, self.choice = tokens, choice
        if choice == "grids":
            self.places = nn.Sequential(
                nn.Linear(width * POOLED**2, width), nn.GELU(), nn.Linear(width, 2 * tokens)
            )
            last = self.places[-1]
            assert isinstance(last, nn.Linear)
            nn.init.normal_(last.weight, std=0.01)
            last.bias.data = torch.atanh(spread(tokens)).flatten()  # at first evenly over the picture
        self.code = nn.Linear(4 * BANDS, width)

    def forward(self, features: Tensor) -> Tensor:
        """Tokens (B, N, D) of a square map, in rows -> (B, K, D)."""
        side = math.isqrt(features.shape[1])
        if side**2 != features.shape[1]:
            raise ValueError(f"the feature map must be square, not of {features.shape[1]} tokens")
        places = self.coordinates(features, side)  # (B, K, 2) as x, y in [-1, 1]
        angles = places[..., None] * math.pi * 2.0 ** torch.arange(BANDS, device=places.device)
        waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(2)  # (B, K, 4 * BANDS)
        return self.sample(features, places) + self.code(waves.to(features.dtype))

    def sample(self, features: Tensor, places: Tensor) -> Tensor:
        """Tokens (B, K, D) at places (B, K, 2) of a square map (B, N, D), in between bilinearly."""
        side = math.isqrt(features.shape[1])
        feature_map = features.transpose(1, 2).unflatten(2, (side, side))
        return functional.grid_sample(
            feature_map, places[:, :, None].to(features.dtype), "bilinear", "border", align_corners=False
        )[..., 0].transpose(1, 2)

    def coordinates(self, features: Tensor, side: int) -> Tensor:
        """Where to sample (B, K, 2), x and y in [-1, 1]."""
        batch = len(features)
        if self.choice == "grids":
            feature_map = features.transpose(1, 2).unflatten(2, (side, side))
            pooled = functional.adaptive_avg_pool2d(feature_map, POOLED).flatten(1)
            return torch.tanh(self.places(pooled)).unflatten(1, (self.tokens, 2))
        scores = torch.rand(features.shape[:2], device=features.device)
        index = scores.topk(min(self.tokens, side**2), 1).indices
        middles = torch.stack([index % side, index // side], -1)
        return ((2 * middles + 1) / side - 1).view(batch, -1, 2)


class SmolVLAGridsPolicy(SmolVLAPolicy):
    """LeRobot's SmolVLA with a `GridSampler` between its vision encoder and its transformer.

    It is to be shown all of its cameras.
    """

    config_class = SmolVLAGridsConfig
    name = "smolvla_grids"

    def __init__(self, config: SmolVLAGridsConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        vlm = self.model.vlm_with_expert
        vision = vlm.config.vision_config
        tokens = (vision.image_size // vision.patch_size // vlm.config.scale_factor) ** 2
        if config.image_tokens > tokens:
            raise UserError(
                f"image_tokens {config.image_tokens} is more than the {tokens} of a picture: lower it"
            )
        self.grids = GridSampler(vlm.config.text_config.hidden_size, config.image_tokens, config.choice)
        forward = vlm.forward
        vlm.embed_image = lambda image: self.grids(self.dense(image))
        self.shift = shift = len(config.image_features) * config.image_tokens - 1

        def in_one_place(*, position_ids: Tensor, **inputs: Any) -> Any:
            return forward(position_ids=(position_ids - shift).clamp(min=0), **inputs)

        vlm.forward = in_one_place

    def dense(self, image: Tensor) -> Tensor:
        """All tokens (B, N, D) of pictures (B, 3, R, R) as `prepare_images` has them."""
        vlm = self.model.vlm_with_expert
        tokens: Tensor = type(vlm).embed_image(vlm, image)
        return tokens


def spread(tokens: int) -> Tensor:
    """Coordinates (K, 2) evenly over (-1, 1)^2, in rows of nearly equal length."""
    rows = max(1, round(math.sqrt(tokens)))
    places = []
    for row in range(rows):
        length = tokens * (row + 1) // rows - tokens * row // rows
        y = (2 * row + 1) / rows - 1
        places += [((2 * column + 1) / length - 1, y) for column in range(length)]
    return torch.tensor(places).clamp(-0.99, 0.99)
