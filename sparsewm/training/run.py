"""One training from a dataset to a checkpoint: encode once, train, validate, train the heads, draw."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from sparsewm.data import Dataset, TokenCache, Windows, count_windows, fast_copy
from sparsewm.encoders import PatchEncoder, load_encoder
from sparsewm.envs import GoalEnv
from sparsewm.errors import UserError
from sparsewm.files import only_one, output_folder
from sparsewm.model.checkpoint import checkpoint_hash, load, save
from sparsewm.model.world_model import WorldModel
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.report.plots import plot_training
from sparsewm.settings import make_env
from sparsewm.training.config import TrainConfig
from sparsewm.training.distance import DISTANCE_FRAMES
from sparsewm.training.heads import show_imagination, train_heads
from sparsewm.training.inputs import (
    frameskip_of,
    name_of,
    named_dataset,
    picture_size,
    recorded_dataset,
    token_folder,
)
from sparsewm.training.report import Progress, Say, quiet, silent
from sparsewm.training.start import (
    check_fits,
    interface,
    measures_otherwise,
    new_model,
    translated,
    warnings,
)
from sparsewm.training.trainer import STATE_FILE, Trainer, check_groups


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        model: the world model as it was saved. checkpoint: its folder.
        steps: optimiser steps of the predictor, 0 where it was kept. seconds: they took.
    """

    model: WorldModel
    checkpoint: Path
    steps: int = 0
    seconds: float = 0.0


def train(config: TrainConfig, progress: Progress = quiet, say: Say = silent) -> Trained:
    """Train a world model on recorded episodes.

    Args:
        config: the settings. progress: makes a bar of a label. say: takes what is worth knowing.

    Returns:
        the world model and where it lies.

    Raises:
        UserError: settings or data that cannot be trained with; training diverges; the disk is full.
    """
    run = config.run
    if config.dataset is None and config.env is None:
        raise UserError("give a `dataset` to train on, or an `env` whose usual one is recorded")
    device = choose_device(run.device)
    dtype = choose_dtype(run.dtype, device)
    env = None if config.env is None else make_env(config.env)
    finished = None if run.extend is None else _checkpoint(config, run.extend, env, device)
    first = None if run.start is None else _start(config, run.start, env, device)
    given = finished or first
    if finished is not None and not (config.heads.distance.steps or config.heads.decoder.steps):
        raise UserError("`extend` adds nothing: give steps of the distance or of the decoder above 0")
    dataset = None if config.dataset is None else named_dataset(config, env)
    encoder = _encoder(config, finished, first, picture_size(dataset, env), device)
    if encoder.tokens == 1:
        config = replace(config, optim=replace(config.optim, groups=1))
    check_groups(config.optim, encoder.tokens)
    with closing(dataset or recorded_dataset(env, progress)) as data:
        if given is not None:
            check_fits(given, data)
        frameskip = frameskip_of(config, given, data, env)
        name = given.environment if given is not None else name_of(data, env)
        history = config.model.history if given is None else given.history
        frames = DISTANCE_FRAMES if finished is not None else history + config.optim.horizon
        count_windows(data, frames, frameskip, np.arange(data.episodes))  # is any long enough?
        split = data.split(shortest=(frames - 1) * frameskip + 1)
        folder = output_folder(run.output or Path("runs") / name)
        with only_one(folder):
            _check_free(config, folder)
            pictures = data.pixels[np.unique(np.linspace(0, data.rows - 1, 64).astype(int))]
            space = None if env is None else (env.action_space.low, env.action_space.high)
            shown = interface(data, name, frameskip, space)
            for sentence in warnings(data, pictures, space):
                say(f"warning: {sentence}")
            whitening = config.optim.whitening
            fast = fast_copy(encoder, pictures, dtype, whitening)
            with progress("encoding") as bar:
                tokens = TokenCache(data, fast, token_folder(data, fast, folder), bar, say)
            if finished is not None:
                finished.metadata.setdefault("interface", shown.to_dict())
                _train_heads(config, finished, data, tokens, split, folder, dtype, progress)
                return Trained(finished, save(finished, folder / "checkpoint"))
            if first is None:
                model = new_model(encoder, data, tokens, split[0], config.model, shown, whitening, run.seed)
            elif measures_otherwise(first, encoder, whitening):
                model = translated(first, encoder, data, tokens, split[0], whitening, run.seed)
            else:
                model = first
            model.metadata = _metadata(config, model if first is not None else None, data) | {
                "interface": shown.to_dict()
            }
            model.distance = model.decoder = None  # trained anew for the tokens it will imagine
            trainer = _train_predictor(
                config, model.place(device), data, tokens, split, folder, dtype, progress, say
            )
            heads = lambda: _train_heads(config, model, data, tokens, split, folder, dtype, progress)  # noqa: E731
            if trainer.with_average(heads):
                trainer.save()
    return Trained(model, folder / "checkpoint", trainer.step, trainer.seconds)


def _checkpoint(config: TrainConfig, path: Path, env: GoalEnv | None, device: torch.device) -> WorldModel:
    """A checkpoint of this environment and of the encoder asked for, in float32."""
    encoder = config.encoder
    return load(
        path,
        device,
        environment=None if env is None else env.name,
        encoder_name=encoder.name,
        encoder_weights=encoder.weights,
        hub_repo=encoder.hub_repo,
    )


def _start(config: TrainConfig, path: Path, env: GoalEnv | None, device: torch.device) -> WorldModel:
    """A checkpoint to go on from, on its own encoder; the settings may name that one or another."""
    try:
        return _checkpoint(config, path, env, device)
    except UserError:
        if config.encoder.name is None and config.encoder.weights is None:
            raise
        name = None if env is None else env.name
        return load(path, device, environment=name, hub_repo=config.encoder.hub_repo)


def _encoder(
    config: TrainConfig,
    finished: WorldModel | None,
    first: WorldModel | None,
    picture: tuple[int, int],
    device: torch.device,
) -> PatchEncoder:
    """The encoder of a checkpoint that is extended or gone on from, or the one that is asked for."""
    asked = config.encoder
    if finished is not None:
        return finished.encoder
    if first is not None and asked.name is None and asked.weights is None:
        return first.encoder
    name = asked.name if first is None else asked.name or first.encoder.name
    named: dict[str, Any] = {} if name is None else {"name": name}
    sides = asked.resolution
    return load_encoder(
        **named,
        weights=asked.weights,
        hub_repo=asked.hub_repo,
        device=device,
        resolution=None if not sides else sides[0] if len(sides) == 1 else (sides[0], sides[1]),
        letterbox=asked.letterbox,
        picture=picture,
    )


def _check_free(config: TrainConfig, folder: Path) -> None:
    """Raise a `UserError` where a run lies in the folder that is not to be resumed."""
    extends = config.run.extend is not None
    if config.run.resume or not (folder / ("checkpoint" if extends else STATE_FILE)).exists():
        return
    remedy = "" if extends else "`resume` it, or "
    raise UserError(f"{folder} holds a run already: {remedy}give another `output`")


def _metadata(config: TrainConfig, first: WorldModel | None, dataset: Dataset) -> dict[str, Any]:
    """What the checkpoint will say of its data, and of the checkpoint that it goes on from."""
    about: dict[str, Any] = {
        "dataset": {
            "hash": dataset.hash,
            "episodes": dataset.episodes,
            "rows": dataset.rows,
            "policy": str(dataset.attributes.get("policy", "unknown")),
        }
    }
    if first is not None:
        kept = ("encoder", "training", "dataset", "start")
        about["start"] = {k: first.metadata[k] for k in kept if k in first.metadata}
        about["start"]["checkpoint"] = checkpoint_hash(config.run.start)  # type: ignore[arg-type]
    return about


def _train_predictor(
    config: TrainConfig,
    model: WorldModel,
    dataset: Dataset,
    tokens: TokenCache,
    split: tuple[np.ndarray, np.ndarray],
    folder: Path,
    dtype: torch.dtype,
    progress: Progress,
    say: Say,
) -> Trainer:
    """Train the predictor to its last step; the trainer has saved it then."""
    optim, frames = config.optim, model.history + config.optim.horizon
    train, validation = (Windows(dataset, tokens, frames, model.frameskip, part) for part in split)
    trainer = Trainer(model, train, validation, folder, optim, dtype, config.run.seed)
    if config.run.resume:
        found = trainer.resume()
        say(
            f"continuing at step {trainer.step} of {optim.steps}"
            if found
            else f"no run in {folder}: starting one"
        )
    with (
        SummaryWriter(folder / "tensorboard", purge_step=trainer.step) as board,
        progress("training") as bar,
    ):
        seen = len(trainer.metrics)

        def on_step(run: Trainer, values: dict[str, float]) -> None:
            nonlocal seen
            bar(run.step, optim.steps, f"loss {values['loss']:.3f}")
            if run.step % 20 == 0:
                for name, value in values.items():
                    board.add_scalar(f"train/{name}", value, run.step)
            if len(run.metrics) > seen:
                seen = len(run.metrics)
                for drop, result in run.metrics[-1]["validation"].items():
                    board.add_scalar(f"validation/{drop}/tokens_ratio", result["ratio"], run.step)
                    proprio = float(np.mean(result["proprio_ratio"]))
                    board.add_scalar(f"validation/{drop}/proprio_ratio", proprio, run.step)

        trainer.run(on_step)
    if trainer.metrics:
        plot_training(folder / "training.png", trainer.metrics, f"{model.environment}, {model.encoder.name}")
        last = trainer.metrics[-1]["validation"]
        say(
            f"rollout error over {optim.horizon} steps, as a share of copying the last frame: "
            + ", ".join(f"{name.replace('_', ' ')} {value['ratio']:.3f}" for name, value in last.items())
        )
    return trainer


def _train_heads(
    config: TrainConfig,
    model: WorldModel,
    dataset: Dataset,
    tokens: TokenCache,
    split: tuple[np.ndarray, np.ndarray],
    folder: Path,
    dtype: torch.dtype,
    progress: Progress,
) -> bool:
    """Train the heads and draw what is imagined; whether there are any."""
    seed = config.run.seed
    any_head = train_heads(model, dataset, tokens, split[0], config.heads, dtype, seed, progress)
    if config.heads.decoder.steps and model.decoder is not None:
        show_imagination(model, dataset, tokens, split[1], folder, seed)
    return any_head
