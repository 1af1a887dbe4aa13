"""What a training works on: the dataset, its pictures, names and rates, and where its tokens are kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sparsewm.config import environment_file
from sparsewm.data import Dataset, collect, open_dataset
from sparsewm.data.tokens import token_bytes, token_file_name
from sparsewm.encoders import PatchEncoder
from sparsewm.envs import GoalEnv
from sparsewm.errors import UserError
from sparsewm.files import slug, stays_inside
from sparsewm.model.world_model import WorldModel
from sparsewm.training.config import TrainConfig
from sparsewm.training.report import Progress
from sparsewm.trees import read_yaml

FRAMESKIP = 5
"""Environment steps per model step where neither data nor environment says."""


def named_dataset(config: TrainConfig, env: GoalEnv | None) -> Dataset:
    """The dataset that is named, of the environment's sizes."""
    assert config.dataset is not None
    dataset = open_dataset(config.dataset, None if env is None else env.name, config.cameras, config.format)
    if env is None:
        return dataset
    sizes = {"action": env.action_space.shape}
    if dataset.has_proprio:
        sizes["proprio"] = env.observation_space["proprio"].shape  # type: ignore[index]
    for name, (size,) in sizes.items():
        if (found := getattr(dataset, name).shape[1]) != size:
            dataset.close()
            raise UserError(
                f"column '{name}' of {config.dataset} has {found} numbers a row, {env.name} has {size}: name "
                "the environment it was recorded in, or another dataset"
            )
    return dataset


def recorded_dataset(env: GoalEnv | None, progress: Progress) -> Dataset:
    """The usual dataset of an environment, recorded first where it is not there."""
    assert env is not None
    path = Path("data") / f"{slug(env.name)}.h5"
    if not path.is_file():
        file = environment_file(env.name)
        usual = read_yaml(file).get("collect") if file.is_file() else None
        if usual is None:
            raise UserError(f"nobody says how {env.name} is recorded: give a `dataset`")
        with progress(f"recording {env.name}") as bar:
            collect(
                env.name,
                usual["episodes"],
                path,
                steps=usual["steps"],
                progress=bar,
                held=usual.get("held", 0.0),
            )
    return open_dataset(path, env.name)


def picture_size(dataset: Dataset | None, env: GoalEnv | None) -> tuple[int, int]:
    """(height, width) of the pictures that will be trained on."""
    if dataset is not None:
        height, width = dataset.pixels.shape[1:3]
    else:
        assert env is not None
        height, width = env.observation_space["pixels"].shape[:2]  # type: ignore[index]
    return int(height), int(width)


def frameskip_of(config: TrainConfig, given: WorldModel | None, dataset: Dataset, env: GoalEnv | None) -> int:
    """Environment steps per model step: asked for, the checkpoint's, the data's, the environment's."""
    asked, recorded = config.frameskip, dataset.attributes.get("frameskip")
    if given is not None:
        if asked not in (None, given.frameskip):
            raise UserError(f"the checkpoint has `frameskip` {given.frameskip}, not {asked}: leave it out")
        return given.frameskip
    if asked is None:
        asked = recorded
    if asked is None and env is not None:
        asked = env.frameskip
    return asked or FRAMESKIP


def name_of(dataset: Dataset, env: GoalEnv | None) -> str:
    """What the checkpoint is for: the environment's name, or else the dataset's.

    Raises:
        UserError: the dataset's is none, or leads out of the folder of runs.
    """
    recorded = dataset.attributes.get("environment")
    if env is not None:
        return env.name
    name = str(recorded) if recorded else dataset.path.stem
    if not stays_inside(name):
        how = f"was recorded in '{recorded}', which names no environment" if recorded else "has no name"
        raise UserError(f"{dataset.path} {how}: give `env`")
    return name


def token_folder(
    dataset: Dataset, encoder: PatchEncoder, folder: Path, cache: str = "float16", rows: int | None = None
) -> Path | None:
    """Where encoded frames are kept: beside the dataset (None), or with the results if there is no room.

    Args:
        cache: how compact, one of `CACHES`. rows: how many are kept; all when None.
    """
    beside = dataset.path.parent
    if (beside / token_file_name(dataset, encoder, cache)).is_file():
        return None
    size = token_bytes(dataset.rows if rows is None else rows, encoder, cache)
    room = beside.is_dir() and shutil.disk_usage(beside).free > size
    return None if room and os.access(beside, os.W_OK) else folder
