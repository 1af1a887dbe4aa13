"""Tiny policies of LeRobot's own classes, with random weights, saved with their own processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from sparsewm.proposals.configuration_grids import SmolVLAGridsConfig
from sparsewm.training.smolvla.backbone import BackboneSizes, write_backbone

CHUNK = 16
ACTION_MEAN, ACTION_STD = torch.tensor([0.3, -0.2]), torch.tensor([0.1, 0.2])
STATS = {
    "observation.state": {"mean": torch.full((2,), 30.0), "std": torch.full((2,), 15.0)},
    "action": {"mean": ACTION_MEAN, "std": ACTION_STD, "min": -torch.ones(2), "max": torch.ones(2)},
}
STATS["observation.state"] |= {"min": torch.zeros(2), "max": torch.full((2,), 64.0)}
for _camera in ("camera", "goal", "top", "wrist", "both"):
    STATS[f"observation.images.{_camera}"] = {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)}
POLICIES = ("smolvla", "act", "diffusion")


def tiny_policy(
    folder: Path, kind: str, cameras: tuple[str, ...] = ("camera", "goal"), **changes: Any
) -> Path:
    """Save a policy for Wall (2-d state and action) into a folder."""
    side = 64 if kind == "diffusion" else 32  # its keypoints need a map of more than one place
    shared: dict[str, Any] = {
        "device": "cpu",
        "push_to_hub": False,
        "input_features": {
            **{
                f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, side, side))
                for camera in cameras
            },
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
    }
    folder.mkdir(parents=True, exist_ok=True)
    config: Any
    if kind in ("smolvla", "smolvla_grids"):
        sizes = BackboneSizes(image=32, patch=8, width=24, layers=2, heads=2, mlp=32, vocabulary=300)
        backbone = write_backbone(folder / "backbone", ["go to the goal"], sizes)
        kinds = {"smolvla": SmolVLAConfig, "smolvla_grids": SmolVLAGridsConfig}
        config = kinds[kind](
            chunk_size=CHUNK,
            n_action_steps=CHUNK,
            max_state_dim=4,
            max_action_dim=4,
            resize_imgs_with_padding=(32, 32),
            num_steps=3,
            num_vlm_layers=0,
            vlm_model_name=str(backbone),
            **shared | changes,
        )
    elif kind == "act":
        small = {"dim_model": 16, "n_heads": 2, "dim_feedforward": 32, "latent_dim": 4}
        layers = {"n_encoder_layers": 1, "n_decoder_layers": 1, "n_vae_encoder_layers": 1}
        small |= layers | {"chunk_size": CHUNK, "n_action_steps": CHUNK, "pretrained_backbone_weights": None}
        config = ACTConfig(**small | shared | changes)
    else:
        small = {"horizon": CHUNK, "n_action_steps": 8, "down_dims": (16, 32), "n_groups": 4}
        small |= {"num_train_timesteps": 4, "spatial_softmax_num_keypoints": 4, "diffusion_step_embed_dim": 8}
        config = DiffusionConfig(**small | shared | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = get_policy_class(kind)(config)
        with torch.no_grad():
            for parameter in policy.parameters():  # nothing is hidden behind a zero
                parameter.add_(0.05 * torch.randn_like(parameter))
    before, after = make_pre_post_processors(config, dataset_stats=STATS)
    if hasattr(config, "vlm_model_name"):
        policy.config.vlm_model_name = "backbone"  # beside the policy, wherever the folder is
    for part in (policy, before, after):
        part.save_pretrained(folder)
    return folder
