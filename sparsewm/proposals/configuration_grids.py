"""Configuration of a SmolVLA that reads few places of a picture (`sparsewm.proposals.modeling_grids`)."""

from __future__ import annotations

from dataclasses import dataclass

from sparsewm.proposals.version import lerobot_imports

with lerobot_imports():
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

CHOICES = ("grids", "random")


@PreTrainedConfig.register_subclass("smolvla_grids")
@dataclass
class SmolVLAGridsConfig(SmolVLAConfig):
    """A SmolVLA whose transformer sees `image_tokens` tokens of each picture.

    Attributes:
        image_tokens: K, tokens kept of each picture.
        choice: "grids", places predicted from the pooled feature map, or "random" patches, with which
            training begins.
    """

    image_tokens: int = 16
    choice: str = "grids"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_tokens < 1 or self.choice not in CHOICES:
            raise ValueError(
                f"image_tokens must be at least 1 and choice one of {', '.join(CHOICES)}, not "
                f"{self.image_tokens} and {self.choice!r}"
            )
