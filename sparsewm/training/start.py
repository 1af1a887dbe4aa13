"""Where a training starts: a new world model with the statistics of its data, or one that goes on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from sparsewm.data import Dataset, Tokens
from sparsewm.encoders import PatchEncoder
from sparsewm.errors import UserError
from sparsewm.model.interface import Interface
from sparsewm.model.latent import TokenSpace
from sparsewm.model.predictor import PredictorConfig
from sparsewm.model.world_model import WorldModel
from sparsewm.training.config import ModelConfig, TrainConfig
from sparsewm.training.draws import translated_rows
from sparsewm.training.report import Progress, quiet
from sparsewm.training.space import space_statistics


def interface(dataset: Dataset, name: str, frameskip: int, space: Any = None) -> Interface:
    """What a world model trained on a dataset is shown and asked to do.

    Args:
        space: bounds (low, high) of actions, each (A,), where the dataset declares none; None: their range.
    """
    low, high = dataset.action_low, dataset.action_high
    if space is not None and not dataset.declared_bounds:
        low, high = space
    height, width = dataset.pixels.shape[1:3]
    return Interface(
        name=name,
        picture=(int(height), int(width)),
        action_low=tuple(float(x) for x in low),
        action_high=tuple(float(x) for x in high),
        action_names=dataset.action_names,
        proprio_names=dataset.proprio_names,
        frameskip=frameskip,
        fps=dataset.fps,
        cameras=dataset.cameras,
    )


def new_model(
    encoder: PatchEncoder,
    dataset: Dataset,
    tokens: Tokens,
    episodes: np.ndarray,
    sizes: ModelConfig,
    shown: Interface,
    whitening: float,
    seed: int,
    space: TokenSpace | None = None,
    progress: Progress = quiet,
) -> WorldModel:
    """An untrained world model with the statistics of episodes.

    Raises:
        UserError: sizes that are impossible, or data whose statistics are not finite.
    """
    torch.manual_seed(seed)
    actions = dataset.action.shape[1] * shown.frameskip
    most = encoder.dim if space is None else space.largest(encoder.dim)
    size = (space and space.features) or most
    if size > most:
        giver = f"encoder '{encoder.name}'" if most == encoder.dim else "a reader"
        raise UserError(f"`features` {size} are more than {giver} gives: {most}")
    try:
        config = PredictorConfig(size, encoder.grid, dataset.proprio.shape[1], actions, **asdict(sizes))
    except ValueError as error:
        raise UserError(str(error)) from None
    model = WorldModel(encoder, config, shown.name, shown.frameskip, space=space)
    rows = dataset.rows_of(episodes)
    statistics = tokens.statistics(rows, 0.0 if space is not None else whitening) | dataset.statistics(rows)
    if space is not None:
        statistics |= space_statistics(
            space, dataset, tokens, encoder, statistics, rows, whitening, progress=progress
        )
    model.standardizer.fit(statistics)
    for name, value in model.standardizer.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(
                f"{name.split('_')[0]} of {dataset.path} has statistics that are not finite: its numbers are "
                "too large, remove those episodes"
            )
    return model


def measures_otherwise(
    first: WorldModel, encoder: PatchEncoder, whitening: float, space: TokenSpace | None = None
) -> list[str]:
    """In what tokens of a checkpoint to go on from differ from those of this run; empty if in nothing."""
    before = first.metadata.get("training", {}).get("whitening", 0.0)
    kept = [TokenSpace() if one is None else one for one in (first.space, space)]
    found = ["encoder"] if first.encoder.key != encoder.key else []
    found += ["whitening"] if before != whitening else []
    return found + [name for name, value in vars(kept[0]).items() if value != getattr(kept[1], name)]


def translated(
    first: WorldModel,
    encoder: PatchEncoder,
    dataset: Dataset,
    tokens: Tokens,
    episodes: np.ndarray,
    whitening: float,
    seed: int,
    space: TokenSpace | None = None,
    progress: Progress = quiet,
) -> WorldModel:
    """A model of other tokens (encoder, whitening, features) that goes on from the predictor of `first`.

    Raises:
        UserError: the encoders see different grids of patches.
    """
    config = first.config
    if encoder.grid != config.grid:
        raise UserError(
            f"the checkpoint to start from was trained on {first.patches} patches, {encoder.name} has "
            f"{encoder.tokens}: train without it"
        )
    sizes = ModelConfig(config.width, config.depth, config.heads, config.head_dim, config.mlp, config.history)
    shown = interface(dataset, first.environment, first.frameskip)
    model = new_model(encoder, dataset, tokens, episodes, sizes, shown, whitening, seed, space, progress)
    model.place(first.device)
    rows = translated_rows(dataset.rows_of(episodes))
    with torch.inference_mode():
        theirs = [first.encoder.encode(dataset.pixels[part]).patches for part in np.array_split(rows, 8)]
    ours = model.standardizer.tokens(tokens.rows(rows).to(first.device))
    model.take_over(first, ours, first.standardizer.tokens(torch.cat(theirs)))
    return model


def check_kept(config: TrainConfig, given: WorldModel, encodes: bool) -> None:
    """Raise a `UserError` for a setting that would have no effect beside a checkpoint, which has its own.

    Args:
        given: the checkpoint. encodes: whether its encoder is used as it is.
    """
    asked, usual = {}, ModelConfig()
    for name, value in vars(config.model).items():
        if value != getattr(usual, name):
            asked[name] = value, getattr(given.config, name)
    if encodes and (sides := config.encoder.resolution):
        seen = tuple(given.encoder.resolution)
        asked["resolution"] = (sides, seen) if len(sides) == 2 else (sides[0], min(seen))
    if encodes and config.encoder.letterbox:
        asked["letterbox"] = True, given.encoder.letterbox
    if config.run.extend is not None and config.encoder.space is not None:
        kept = given.space or TokenSpace()
        asked |= {name: (value, getattr(kept, name)) for name, value in vars(config.encoder.space).items()}
    for name, (value, has) in asked.items():
        if value != has:
            raise UserError(f"the checkpoint has `{name}` {has}, not {value}: leave it out")


def check_sizes(model: WorldModel, dataset: Dataset) -> None:
    """Raise a `UserError` where a checkpoint knows other numbers of actions or proprioception."""
    sizes = {"action": model.action_dim // model.frameskip, "proprio": model.config.proprio_dim}
    for name, size in sizes.items():
        found = getattr(dataset, name).shape[1]
        if found != size:
            raise UserError(
                f"column '{name}' of {dataset.path} has {found} numbers a row, the checkpoint was trained on "
                f"{size}: give another dataset or checkpoint"
            )
