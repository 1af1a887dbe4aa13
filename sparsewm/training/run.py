"""One training from a dataset to a checkpoint: encode once, train, validate, train the heads, draw."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from sparsewm.data import Dataset, Tokens, Windows, count_windows, fast_copy, tokens_of
from sparsewm.data.oddities import warnings
from sparsewm.encoders import PatchEncoder, load_encoder, weights_hash
from sparsewm.envs import GoalEnv
from sparsewm.errors import UserError
from sparsewm.files import only_one, output_folder
from sparsewm.kernels import flushed
from sparsewm.model.checkpoint import load, save
from sparsewm.model.interface import Interface
from sparsewm.model.world_model import WorldModel
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.report.plots import plot_training
from sparsewm.settings import make_env
from sparsewm.training.config import TrainConfig
from sparsewm.training.draws import DISTANCE_FRAMES, rows_read
from sparsewm.training.heads import show_imagination, train_heads
from sparsewm.training.inputs import (
    frameskip_of,
    name_of,
    named_dataset,
    picture_size,
    recorded_dataset,
    token_folder,
)
from sparsewm.training.parallel import Processes, connect
from sparsewm.training.report import Progress, Say, quiet, silent
from sparsewm.training.standard_tokens import standard_tokens
from sparsewm.training.start import (
    check_kept,
    check_sizes,
    interface,
    measures_otherwise,
    new_model,
    translated,
)
from sparsewm.training.state import STATE_FILE
from sparsewm.training.trainer import Trainer, check_groups


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


@dataclass(frozen=True)
class _Found:
    """What a training works on."""

    config: TrainConfig
    device: torch.device
    encoder: PatchEncoder
    data: Dataset
    rows: np.ndarray  # whose tokens are read
    split: tuple[np.ndarray, np.ndarray]  # episodes for training, and for validation
    folder: Path
    name: str
    frameskip: int
    space: tuple[np.ndarray, np.ndarray] | None  # bounds of actions
    first: WorldModel | None  # to go on from
    finished: WorldModel | None  # to extend


@dataclass(frozen=True)
class _Job:
    """What the stages of a training share."""

    config: TrainConfig
    data: Dataset
    tokens: Tokens
    split: tuple[np.ndarray, np.ndarray]  # episodes for training, and for validation
    folder: Path
    dtype: torch.dtype
    processes: Processes
    progress: Progress
    say: Say


@flushed()
def train(config: TrainConfig, progress: Progress = quiet, say: Say = silent) -> Trained:
    """Train a world model on recorded episodes.

    Where a launcher started several processes all of them call this alike: they share every batch, and the
    main one writes and speaks.

    Args:
        config: the settings. progress: makes a bar of a label. say: takes what is worth knowing.

    Returns:
        the world model as it was saved, and where it lies.

    Raises:
        UserError: settings or data that cannot be trained with; training diverges; the disk is full.
    """
    processes = connect(config.run.device, say)
    if config.run.devices > 1 and config.run.extend is None and processes.count == 1:
        raise UserError(
            f"`devices` {config.run.devices} need a launcher: start this program by accelerate launch "
            "--multi_gpu --num_processes NUMBER, or use sparsewm train"
        )
    if not processes.main:
        progress, say = quiet, silent
    with ExitStack() as held:
        found = processes.in_turn(lambda: _find(config, processes, held, progress))
        folder, finished = found.folder, found.finished
        job = processes.agree(lambda: _job(found, processes, progress, say))

        def saved(model: WorldModel) -> WorldModel:
            return load(folder / "checkpoint", found.device, encoder=model.encoder)

        shown = interface(found.data, found.name, found.frameskip, found.space)
        if finished is not None:
            finished.metadata.setdefault("interface", shown.to_dict())

            def extend() -> None:
                _train_heads(job, finished)
                save(finished, folder / "checkpoint")

            processes.by_main(extend)
            return Trained(saved(finished), folder / "checkpoint")
        model = processes.agree(lambda: _newborn(job, found.first, found.encoder, shown).place(found.device))
        trainer = _train_predictor(job, model)

        def finish() -> None:
            _report(job, trainer)
            if trainer.with_average(lambda: _train_heads(job, model)):
                trainer.save()

        processes.by_main(finish)
        return Trained(saved(model), folder / "checkpoint", trainer.step, trainer.seconds)


def _find(config: TrainConfig, processes: Processes, held: ExitStack, progress: Progress) -> _Found:
    """What a training works on, checked; data and folder are held until it ends."""
    run = config.run
    if config.dataset is None and config.env is None:
        raise UserError("give a `dataset` to train on, or an `env` whose usual one is recorded")
    heads = config.heads.distance.steps or config.heads.decoder.steps
    if run.extend is not None and not heads:
        raise UserError("`extend` adds nothing: give `distance_steps` or `decoder_steps` above 0")
    device = choose_device(run.device if processes.device is None else processes.device)
    env = None if config.env is None else make_env(config.env)
    finished = None if run.extend is None else _checkpoint(config, run.extend, env, device)
    first = None if run.start is None else _start(config, run.start, env, device)
    given = finished or first
    own = finished is not None or (config.encoder.name is None and config.encoder.weights is None)
    if given is not None:
        check_kept(config, given, own)
    dataset = None if config.dataset is None else named_dataset(config, env)
    encoder = _encoder(config, finished, first, picture_size(dataset, env), device)
    if encoder.tokens == 1:
        config = replace(config, optim=replace(config.optim, groups=1))
    check_groups(config.optim, encoder.tokens)
    data = held.enter_context(closing(recorded_dataset(env, progress) if dataset is None else dataset))
    if given is not None:
        check_sizes(given, data)
    frameskip = frameskip_of(config, given, data, env)
    data.stride = frameskip if config.encoder.aligned else 1
    name = given.environment if given is not None else name_of(data, env)
    history = config.model.history if given is None else given.history
    frames = DISTANCE_FRAMES if finished is not None else history + config.optim.horizon
    count_windows(data, frames, frameskip, np.arange(data.episodes))  # is any long enough?
    split = data.split(shortest=(frames - 1) * frameskip + 1)
    if config.heads.distance.steps:
        frames = min(frames, DISTANCE_FRAMES)
    split = split[0][data.lengths[split[0]] > (frames - 1) * frameskip], split[1]  # nobody reads the others
    folder = run.output or Path("runs") / name
    if processes.main:
        held.enter_context(only_one(output_folder(folder)))
        _check_free(config, folder)
    space = None if env is None else (env.action_space.low, env.action_space.high)
    other = first is not None and bool(
        measures_otherwise(first, encoder, config.optim.whitening, config.encoder.space)
    )
    trained = None if finished is not None else history
    rows = rows_read(config, data, split, frameskip, trained, given is None or other, other)
    return _Found(config, device, encoder, data, rows, split, folder, name, frameskip, space, first, finished)


def _job(found: _Found, processes: Processes, progress: Progress, say: Say) -> _Job:
    """What the stages share, when the pictures are encoded."""
    config, folder = found.config, found.folder
    dtype = choose_dtype(config.run.dtype, found.device)
    tokens = _encoded(
        config, found.data, found.rows, found.encoder, found.space, folder, dtype, progress, say
    )
    return _Job(config, found.data, tokens, found.split, folder, dtype, processes, progress, say)


def _encoded(
    config: TrainConfig,
    data: Dataset,
    rows: np.ndarray,
    encoder: PatchEncoder,
    space: tuple[np.ndarray, np.ndarray] | None,
    folder: Path,
    dtype: torch.dtype,
    progress: Progress,
    say: Say,
) -> Tokens:
    """The tokens of rows, after what is odd about the data has been said."""
    pictures = data.pixels[np.unique(np.linspace(0, data.rows - 1, 64).astype(int))]
    for sentence in warnings(data, pictures, space):
        say(f"warning: {sentence}")
    fast = fast_copy(encoder, pictures, dtype, config.optim.whitening, report=say)
    cache = config.encoder.cache
    place = None if cache == "none" else token_folder(data, fast, folder, cache, len(rows))
    with progress("encoding") as bar:
        return tokens_of(data, fast, cache, place, bar, say, rows, config.optim.whitening)


def _newborn(job: _Job, first: WorldModel | None, encoder: PatchEncoder, shown: Interface) -> WorldModel:
    """The world model to train: a new one, or one that goes on from `first`."""
    config, whitening, seed = job.config, job.config.optim.whitening, job.config.run.seed
    data, tokens, episodes, space = job.data, job.tokens, job.split[0], config.encoder.space
    if first is None:
        model = new_model(
            encoder, data, tokens, episodes, config.model, shown, whitening, seed, space, job.progress
        )
    elif other := measures_otherwise(first, encoder, whitening, space):
        job.say(f"the checkpoint's predictor is translated to other tokens: {', '.join(other)}")
        model = translated(first, encoder, data, tokens, episodes, whitening, seed, space, job.progress)
    else:
        model = first
    about: dict[str, Any] = {
        "dataset": {
            "hash": data.hash,
            "episodes": data.episodes,
            "rows": data.rows,
            "policy": str(data.attributes.get("policy", "unknown")),
        },
        "interface": shown.to_dict(),
    }
    if first is not None:
        kept = ("encoder", "training", "dataset", "start")
        about["start"] = {k: first.metadata[k] for k in kept if k in first.metadata}
        about["start"]["weights"] = weights_hash(first)
    model.metadata = about
    model.distance = model.decoder = None  # trained anew for the tokens it will imagine
    return model


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


def _train_predictor(job: _Job, model: WorldModel) -> Trainer:
    """Train the predictor to its last step; the trainer has saved it then."""
    run, optim, folder = job.config.run, job.config.optim, job.folder
    frames = model.history + optim.horizon
    train, validation = (Windows(job.data, job.tokens, frames, model.frameskip, part) for part in job.split)
    processes = job.processes

    def begin() -> Trainer:
        trainer = Trainer(model, train, validation, folder, optim, job.dtype, run.seed, processes)
        if run.resume:
            found = trainer.resume()
            job.say(
                f"continuing at step {trainer.step} of {optim.steps}"
                if found
                else f"no run in {folder}: starting one"
            )
        train.tokens = validation.tokens = standard_tokens(job.tokens, model, job.data, job.progress)
        return trainer

    trainer = processes.agree(begin)
    if not processes.main:
        trainer.run()
        return trainer
    with (
        SummaryWriter(folder / "tensorboard", purge_step=trainer.step) as board,
        job.progress("training") as bar,
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
    return trainer


def _report(job: _Job, trainer: Trainer) -> None:
    """Draw how the predictor was trained, and say how well it imagines."""
    if trainer.metrics:
        model = trainer.model
        title = f"{model.environment}, {model.encoder.name}"
        plot_training(job.folder / "training.png", trainer.metrics, title)
        last = trainer.metrics[-1]["validation"]
        job.say(
            f"rollout error over {trainer.config.horizon} steps, as a share of copying the last frame: "
            + ", ".join(f"{name.replace('_', ' ')} {value['ratio']:.3f}" for name, value in last.items())
        )


def _train_heads(job: _Job, model: WorldModel) -> bool:
    """Train the heads and draw what is imagined; whether there are any."""
    heads, seed = job.config.heads, job.config.run.seed
    trained = train_heads(model, job.data, job.tokens, job.split[0], heads, job.dtype, seed, job.progress)
    if heads.decoder.steps and model.decoder is not None:
        show_imagination(model, job.data, job.tokens, job.split[1], job.folder, seed)
    return trained
