"""A learner of a few numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig

from sparsewm.training.smolvla.learner import Learner
from tests.proposals.tiny import tiny_policy


def tiny_learner(folder: Path, **changes: Any) -> Learner:
    """A new policy for Wall, in pictures of 32 px."""
    options: dict[str, Any] = {"load_vlm_weights": False, "train_expert_only": False} | changes
    config = PreTrainedConfig.from_pretrained(tiny_policy(folder, "smolvla_grids", **options))
    config.vlm_model_name = str(folder / "backbone")
    return Learner(config)
