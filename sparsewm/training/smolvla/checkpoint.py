"""What is kept of a SmolVLA's training: a checkpoint, as LeRobot writes it, and the policy to carry away."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from sparsewm.errors import UserError
from sparsewm.files import (
    disk_errors,
    parse_json,
    read_json,
    recover_folder,
    replace_folder,
    temporary_folder,
    umask,
    write_json,
    write_text,
)
from sparsewm.proposals.configuration_grids import SmolVLAGridsConfig
from sparsewm.proposals.version import lerobot_imports
from sparsewm.training.smolvla.frames import HindsightFrames
from sparsewm.training.smolvla.learner import Learner

with lerobot_imports("training policies of LeRobot"):
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.utils import dataset_to_policy_features
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.utils.constants import ACTION, PRETRAINED_MODEL_DIR
    from lerobot.utils.train_utils import load_training_state, save_training_state
    from safetensors.torch import load_file, load_model, save_file

RECORD = "run.json"
WEIGHTS = "model.safetensors"


class Checkpoint:
    """The last checkpoint of a training, a folder that is whole at any time.

    Args:
        folder: of the checkpoint. backbone: folder of the policy's backbone.
    """

    def __init__(self, folder: Path, backbone: Path) -> None:
        self.folder, self.backbone = folder, backbone
        self.policy = folder / PRETRAINED_MODEL_DIR
        recover_folder(folder)

    def __bool__(self) -> bool:
        return self.folder.exists()

    def record(self) -> dict[str, Any]:
        """What was recorded beside it.

        Raises:
            UserError: it is damaged.
        """
        try:
            found = parse_json(self.folder / RECORD)
            if not {"settings", "identity", "early", "step", "seconds", "look", "metrics"} <= set(found):
                raise ValueError("entries are missing")
        except (OSError, ValueError, TypeError) as error:
            raise self.damaged(error) from None
        assert isinstance(found, dict)
        return found

    def damaged(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:120]
        return UserError(f"{self.folder} is damaged ({reason}): delete it to start this run anew")

    def save(self, policy: Learner, processors: Any, step: int, record: dict[str, Any], *state: Any) -> None:
        """Write it in place of the one before.

        Args:
            state: optimiser and scheduler, once there are any.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        with disk_errors(self.folder), temporary_folder(self.folder) as place:
            for part in (policy, *processors):
                part.save_pretrained(place / "new" / PRETRAINED_MODEL_DIR)
            save_training_state(place / "new", step, *state)
            write_json(place / "new" / RECORD, record)
            replace_folder(place / "new", self.folder)

    def load(self, bfloat16: bool, device: Any) -> tuple[Learner, Any]:
        """The policy, with its processors, to go on with.

        Raises:
            UserError: it is damaged.
        """
        try:
            config = PreTrainedConfig.from_pretrained(self.policy)
            config.vlm_model_name, config.device = str(self.backbone.resolve()), device.type
            policy = Learner(config, bfloat16).to(device)
            load_model(policy, self.policy / WEIGHTS, device=str(device))
            override = {
                "device_processor": {"device": str(device)},
                "tokenizer_processor": {"tokenizer_name": str(self.backbone.resolve())},
            }
            return policy, make_pre_post_processors(config, str(self.policy), preprocessor_overrides=override)
        except UserError:
            raise
        except Exception as error:  # whatever damaged files make LeRobot, transformers and draccus raise
            raise self.damaged(error) from None

    def load_state(self, optimizer: Any, scheduler: Any) -> tuple[Any, Any]:
        """Optimiser and scheduler as they were.

        Raises:
            UserError: their state is damaged.
        """
        try:
            _, optimizer, scheduler = load_training_state(self.folder, optimizer, scheduler)
        except Exception as error:
            raise self.damaged(error) from None
        return optimizer, scheduler


def new_policy(
    config: SmolVLAGridsConfig, frames: HindsightFrames, bfloat16: bool, device: Any
) -> tuple[Learner, Any]:
    """A policy for the features of these frames, with pre- and post-processor."""
    features = dataset_to_policy_features(frames.features)
    config.output_features = {ACTION: features.pop(ACTION)}
    config.input_features = features
    policy = Learner(config, bfloat16).to(device)
    config.device = str(device)
    return policy, make_pre_post_processors(config, dataset_stats=frames.stats)


def take_weights(policy: Learner, folder: Path) -> None:
    """Give a policy the weights of another one, which may see other tokens of a picture.

    Raises:
        UserError: it has other sizes, or is of another kind.
    """
    try:
        found = load_model(policy, folder / WEIGHTS, strict=False, device=str(policy.config.device))
    except Exception as error:  # sizes, or a damaged file
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"`start` {folder} is damaged or a policy of other sizes ({reason})") from None
    other = [name for names in found for name in names if not name.startswith("grids.")]
    if other:
        raise UserError(f"`start` {folder} is another kind of policy ({', '.join(other[:3])} ...)")


def ship(checkpoint: Checkpoint, folder: Path, card: str, names: dict[str, Any] | None = None) -> None:
    """Copy a checkpoint so that it can be carried anywhere: weights in bfloat16, the backbone beside them.

    Args:
        folder: where to; one that is there gives way. card: its README. names: of its cameras, where they are
            not the usual ones (`sparsewm.proposals.names`).

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    recover_folder(folder)
    with disk_errors(folder), temporary_folder(folder) as place:
        policy = place / "new"
        shutil.copytree(checkpoint.policy, policy)
        shutil.copytree(checkpoint.backbone, policy / "backbone")
        weights = load_file(policy / WEIGHTS)
        half = {
            name: value.bfloat16() if value.is_floating_point() else value for name, value in weights.items()
        }
        save_file(half, policy / WEIGHTS)
        config = read_json(policy / "config.json")  # no path of this machine
        config.pop("pretrained_path", None)
        write_json(policy / "config.json", config | {"vlm_model_name": "backbone"})
        before = read_json(policy / "policy_preprocessor.json")
        for step in before["steps"]:
            if "tokenizer_name" in step["config"]:
                step["config"]["tokenizer_name"] = "backbone"
        write_json(policy / "policy_preprocessor.json", before)
        write_text(policy / "README.md", card)
        if names is not None:
            write_text(policy / "names.yaml", yaml.safe_dump(names, default_flow_style=None))
        for file in policy.rglob("*.safetensors"):
            file.chmod(0o666 & ~umask())
        replace_folder(policy, folder)
