"""Typed settings, filled from the YAML files in `configs/`; command-line flags override them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsewm import envs
from sparsewm.config import config_folder, environment_file
from sparsewm.errors import UserError
from sparsewm.trees import one_of, read_yaml


@dataclass(frozen=True)
class EnvironmentSettings:
    """One file of `configs/environments`.

    Attributes:
        episodes, steps, held: of a dataset (`sparsewm.data.collect`).
        train: settings of `sparsewm.training.TrainConfig` by name.
        heads: steps of the temporal `distance` and of the `decoder`. reach: of the distance
        (`sparsewm.training.distance`), None for the usual one.
    """

    episodes: int
    steps: int
    held: float
    train: dict[str, Any]
    heads: dict[str, int]
    reach: float | None


@dataclass(frozen=True)
class Preset:
    """One file of `configs/presets`: the encoder and sizes of the predictor and of its training."""

    encoder: str
    model: dict[str, int]
    train: dict[str, Any]


def environment_settings(name: str) -> EnvironmentSettings:
    """Settings of an environment by its canonical name."""
    path = environment_file(name)
    content = read_yaml(path)
    try:
        train = dict(content["train"])
        return EnvironmentSettings(
            content["collect"]["episodes"],
            content["collect"]["steps"],
            content["collect"].get("held", 0.0),
            train,
            {head: int(train.pop(f"{head}_steps")) for head in ("distance", "decoder")},
            train.pop("distance_reach", None),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} lacks a setting or has one too many ({error}): get it from the repository again"
        ) from None


def preset(name: str) -> Preset:
    """A preset by name, `default` or `paper`.

    Raises:
        UserError: unknown name.
    """
    folder = config_folder() / "presets"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    one_of("preset", name, known)
    return Preset(**read_yaml(folder / f"{name}.yaml"))


def make_env(name: str, **options: Any) -> envs.GoalEnv:
    """`envs.make` for names that come from the command line.

    Raises:
        UserError: unknown name (the nearest one is suggested), impossible option, no GL.
    """
    try:
        env = envs.make(name, **options)
        env.reset(seed=0)  # draws a picture, so that a missing GL shows before any work is done
        return env
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
