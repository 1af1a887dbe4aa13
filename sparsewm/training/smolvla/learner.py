"""The policy as it learns: LeRobot's SmolVLA, whose frozen vision is asked once for every picture."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsewm.data.cameras import CAMERA, GOAL, ROWS
from sparsewm.proposals.configuration_grids import SmolVLAGridsConfig
from sparsewm.proposals.modeling_grids import SmolVLAGridsPolicy
from sparsewm.proposals.version import lerobot_imports

with lerobot_imports():
    from lerobot.utils.constants import ACTION
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

FROM_NOISE = 0.5  # share of samples at pure noise, from which a chunk follows by what is seen alone
READ = 256  # pictures encoded at once


class Learner(SmolVLAGridsPolicy):
    """What is saved of it is a `SmolVLAGridsPolicy`.

    At low noise a noisy chunk contains most of the answer, and goals are hardly looked at; so half of the
    samples are at pure noise.

    Args:
        config: of the policy. bfloat16: learn in it, by autocast.

    Attributes:
        encoded: all tokens of all pictures, float16 (N, tokens, D), once they are remembered; None before.
    """

    def __init__(self, config: SmolVLAGridsConfig, bfloat16: bool = False, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.bfloat16 = bfloat16
        self.encoded: Tensor | None = None
        vlm = self.model.vlm_with_expert
        vision = vlm.get_vlm_model().vision_model
        embeddings = WholePictures(vlm.config.vision_config)
        embeddings.load_state_dict(vision.embeddings.state_dict())
        vision.embeddings = embeddings
        vlm.set_requires_grad()
        if config.device == "cpu":  # where fused attention is half as fast, backward above all
            vision.set_attn_implementation("eager")

    def forward(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> Any:
        """LeRobot's loss, and what it tells of it."""
        action = batch[ACTION]
        if time is None:
            times = self.model.sample_time(len(action), action.device)
            time = torch.where(torch.rand(len(action), device=action.device) < FROM_NOISE, 1.0, times)
        with torch.autocast(action.device.type, torch.bfloat16, enabled=self.bfloat16):
            return super().forward(batch, noise, time, reduction)

    @torch.no_grad()
    def remember(self, pixels: Any, progress: Callable[..., None] | None = None) -> None:
        """Encode all pictures now, with vision that learns no more.

        From then on a batch holds row numbers (B, 2), `ROWS`, instead of pictures.

        Args:
            pixels: uint8 (N, R, R, 3), in memory or a dataset's on disk, read in order.
            progress: called with the pictures encoded and all of them.
        """
        device, encoded = next(self.parameters()).device, torch.empty(0)
        for first in range(0, len(pixels), READ):
            part = torch.as_tensor(pixels[first : first + READ]).to(device)
            (picture,), _ = self.prepare_images({CAMERA: part.permute(0, 3, 1, 2).float() / 255})
            tokens = self.dense(picture).half()
            if not first:
                encoded = tokens.new_empty(len(pixels), *tokens.shape[1:])
            encoded[first : first + READ] = tokens
            if progress is not None:
                progress(min(first + READ, len(pixels)), len(pixels))
        self.encoded = encoded

    def prepare_images(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Pictures as LeRobot prepares them, or the tokens of those that are remembered, with masks (B,)."""
        encoded = self.encoded
        if encoded is None:
            return super().prepare_images(batch)  # type: ignore[no-any-return]
        images = [encoded[batch[ROWS][:, int(camera == GOAL)]] for camera in self.config.image_features]
        return images, [torch.ones(len(image), dtype=torch.bool, device=image.device) for image in images]

    def dense(self, image: Tensor) -> Tensor:
        """All tokens (B, N, D) of pictures (B, 3, R, R), or those that are given."""
        return super().dense(image) if self.encoded is None else image.float()


class WholePictures(SmolVLMVisionEmbeddings):
    """SmolVLM's embeddings of patches, where every picture is whole and of one shape.

    SmolVLM reads pictures of any shape, and finds the places of the patches of one after the other, from
    masks: hundreds of small operations for each, and on a GPU as many waits. Here they are found once.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._places: dict[tuple[int, int], Tensor] = {}

    def forward(self, pixel_values: Tensor, patch_attention_mask: Tensor) -> Tensor:
        """Embeddings (B, N, D) of pictures (B, 3, H, W)."""
        rows, columns = patch_attention_mask.shape[1:]
        if (rows, columns) not in self._places:
            found = self._find(rows, columns)
            self._places[rows, columns] = found.to(pixel_values.device)
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        known: Tensor = patches + self.position_embedding(self._places[rows, columns])
        return known

    def _find(self, rows: int, columns: int) -> Tensor:
        """Numbers of the places (1, N), by SmolVLM's own rule."""
        side = self.patch_size
        blank = SimpleNamespace(
            patch_size=side,
            num_patches_per_side=self.num_patches_per_side,
            patch_embedding=lambda x: torch.zeros(1, 1, rows, columns, dtype=torch.long),
            position_embedding=lambda places: places[..., None],
        )
        whole = torch.ones(1, rows, columns, dtype=torch.bool)
        picture = torch.zeros(1, 3, rows * side, columns * side)
        found: Tensor = SmolVLMVisionEmbeddings.forward(blank, picture, whole)[..., 0]
        return found
