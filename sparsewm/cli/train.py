"""`sparsewm train`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from sparsewm.cli.common import check_seed, output_folder, progress_bar
from sparsewm.data import Dataset, TokenCache, Windows, collect, count_windows, fast_copy, open_dataset
from sparsewm.encoders import PatchEncoder, load_encoder
from sparsewm.envs import GoalEnv
from sparsewm.errors import UserError
from sparsewm.model.checkpoint import load, save
from sparsewm.model.decoder import Decoder, DecoderConfig
from sparsewm.model.distance import DistanceConfig, TemporalDistance
from sparsewm.model.predictor import PredictorConfig
from sparsewm.model.world_model import WorldModel
from sparsewm.report.plots import plot_imagination, plot_training
from sparsewm.settings import (
    Preset,
    at_least,
    choose_device,
    choose_dtype,
    environment_settings,
    make_env,
    preset,
)
from sparsewm.training.decoder import DecoderTrainConfig, imagine_windows, train_decoder
from sparsewm.training.distance import DISTANCE_FRAMES, DistanceTrainConfig, train_distance
from sparsewm.training.trainer import STATE_FILE, TrainConfig, Trainer, check_groups

SHOWN_FRAMES = 6
"""Of an imagined sequence, the recorded first one included; fewer where episodes are shorter."""


@dataclass
class Train:
    """Train a world model on an offline dataset: encode once, train, validate.

    --resume continues after any interruption.

    Example: sparsewm train --env wall --dataset data/wall.h5 --output runs/wall
    """

    env: str
    """Environment: pusht, wall, pointmaze, pointmaze-large, rope, granular or blockpush."""
    dataset: Path | None = None
    """HDF5 dataset; data/ENV.h5 when left out, recorded first if it is not there."""
    encoder: str | None = None
    """Patch encoder, e.g. embedded, dinov2_vits14, dino_vits16; the preset's when left out."""
    encoder_weights: Path | None = None
    """Local weights file of the encoder."""
    hub_repo: Path | None = None
    """Local clone of the encoder's torch.hub repository."""
    preset: str = "default"
    """Sizes: default (two CPU cores) or paper (a GPU)."""
    steps: int | None = None
    """Optimiser steps."""
    batch: int | None = None
    """Windows a step."""
    lr: float | None = None
    """Peak learning rate; the preset's when left out, a quarter of it with --start."""
    groups: int | None = None
    """Random attention groups; 1 trains without grouping (the ablation)."""
    horizon: int | None = None
    """Imagined frames of a training rollout."""
    whitening: float | None = None
    """How much fine detail counts in the squared error of tokens: 0 as it comes, up to 1 as much as the
    coarse place of the largest object."""
    validate_every: int | None = None
    """Steps between validations."""
    checkpoint_every: int | None = None
    """Steps between checkpoints."""
    distance_steps: int | None = None
    """Optimiser steps of the temporal distance (`plan --cost temporal`), trained last; 0: none."""
    distance_reach: float | None = None
    """Model steps up to which the temporal distance tells ways apart: about the longest one there is."""
    decoder_steps: int | None = None
    """Optimiser steps of the decoder that draws imagined frames, trained last; 0: none."""
    extend: Path | None = None
    """Checkpoint whose predictor is kept: only temporal distance and decoder are trained for it."""
    start: Path | None = None
    """Checkpoint to go on from: this run starts with its predictor and statistics, on a new schedule. With
    --encoder or --encoder-weights of another encoder, or another --whitening, its predictor is translated."""
    resume: bool = False
    """Continue the run in --output bit for bit from its last checkpoint."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    dtype: str = "auto"
    """Precision of weights and activations: auto, bfloat16 or float32."""
    seed: int = 0
    """Seed of weights, windows and groups."""
    output: Path | None = None
    """Folder for checkpoint/, metrics.json, training.png and the TensorBoard log; runs/ENV when left out."""

    def run(self) -> int:
        env, sizes = make_env(self.env), preset(self.preset)
        config = self.config(env, sizes)
        device = choose_device(self.device)
        dtype = choose_dtype(self.dtype, device)
        if self.start is not None and self.extend is not None:
            raise UserError("--start and --extend exclude each other: --extend keeps the predictor as it is")
        finished = None if self.extend is None else self.load_model(env, self.extend, device)
        first = None if self.start is None else self.load_start(env, self.start, device)
        given = finished or first
        other = first is not None and (self.encoder or self.encoder_weights)
        name = self.encoder or (sizes.encoder if given is None else given.encoder.name)
        encoder = (
            given.encoder
            if given is not None and not other
            else load_encoder(name, self.encoder_weights, self.hub_repo, device)
        )
        if encoder.tokens == 1:
            config = replace(config, groups=1)
        check_groups(config, encoder.tokens)
        dataset = self.open_dataset(env)
        history = sizes.model["history"] if first is None else first.history
        frames = DISTANCE_FRAMES if finished is not None else history + config.horizon
        train_episodes, held_out = dataset.split()
        for episodes in (train_episodes, held_out):
            count_windows(dataset, frames, env.frameskip, episodes)  # before the long encoding
        folder = output_folder(self.output or Path("runs") / env.name)
        held = STATE_FILE if finished is None else "checkpoint"
        if not self.resume and (folder / held).exists():
            raise UserError(
                f"{folder} holds a run already: "
                + ("continue it with --resume, or " if finished is None else "")
                + "give another --output"
            )
        some = np.unique(np.linspace(0, dataset.rows - 1, 64).astype(int))
        with progress_bar("encoding") as progress:
            fast = fast_copy(encoder, dataset.pixels[some], dtype, config.whitening)
            tokens = TokenCache(dataset, fast, progress=progress)
        if finished is not None:
            self.train_heads(env, finished, dataset, tokens, folder, dtype)
            save(finished, folder / "checkpoint")
            print(f"checkpoint in {folder / 'checkpoint'}")
            return 0
        model = first or self.new_model(env, encoder, dataset, tokens, sizes, config.whitening)
        if first is not None and self.measures_otherwise(first, encoder, config):
            model = self.translated(env, first, encoder, dataset, tokens, config.whitening)
        trainer = self.train_predictor(model.place(device), dataset, tokens, folder, config, dtype)
        if trainer.with_average(lambda: self.train_heads(env, trainer.model, dataset, tokens, folder, dtype)):
            trainer.save()
        print(
            f"{trainer.step} steps in {trainer.seconds / 60:.1f} min; checkpoint in {folder / 'checkpoint'}"
        )
        print(f"plan with it: sparsewm plan --env {env.name} --checkpoint {folder / 'checkpoint'}")
        return 0

    def load_model(self, env: GoalEnv, path: Path, device: torch.device) -> WorldModel:
        """A checkpoint of this environment and of the encoder asked for, in float32."""
        return load(
            path,
            device,
            environment=env.name,
            encoder_name=self.encoder,
            encoder_weights=self.encoder_weights,
            hub_repo=self.hub_repo,
        )

    def load_start(self, env: GoalEnv, path: Path, device: torch.device) -> WorldModel:
        """A checkpoint to go on from, on its own encoder; the flags may name that one or another."""
        try:
            return self.load_model(env, path, device)
        except UserError:
            if not (self.encoder or self.encoder_weights):
                raise
            return load(path, device, environment=env.name, hub_repo=self.hub_repo)

    def new_model(
        self,
        env: GoalEnv,
        encoder: PatchEncoder,
        dataset: Dataset,
        tokens: TokenCache,
        sizes: Preset,
        whitening: float,
    ) -> WorldModel:
        """An untrained world model with the statistics of the training episodes."""
        torch.manual_seed(self.seed)
        action_dim = dataset.action.shape[1]
        model = WorldModel(
            encoder,
            PredictorConfig(
                encoder.dim, encoder.grid, dataset.proprio.shape[1], action_dim * env.frameskip, **sizes.model
            ),
            env.name,
            env.frameskip,
            {"preset": self.preset},
        )
        rows = dataset.rows_of(dataset.split()[0])
        statistics = tokens.statistics(rows, whitening) | {
            name: torch.from_numpy(value) for name, value in dataset.statistics(rows).items()
        }
        model.standardizer.fit(statistics)
        return model

    @staticmethod
    def measures_otherwise(first: WorldModel, encoder: PatchEncoder, config: TrainConfig) -> bool:
        """Whether the tokens of a checkpoint to go on from differ from those of this run."""
        before = first.metadata.get("training", {}).get("whitening", 0.0)
        return first.encoder.hash != encoder.hash or before != config.whitening

    def translated(
        self,
        env: GoalEnv,
        first: WorldModel,
        encoder: PatchEncoder,
        dataset: Dataset,
        tokens: TokenCache,
        whitening: float,
    ) -> WorldModel:
        """A model on another encoder, or of other whitening, that goes on from the predictor of `first`."""
        config = first.config
        if encoder.grid != config.grid:
            raise UserError(
                f"{self.start} was trained on {first.patches} patches, {encoder.name} has {encoder.tokens}: "
                "train without --start"
            )
        sizes = {name: getattr(config, name) for name in ("history", "width", "depth", "heads", "mlp")}
        model = self.new_model(
            env, encoder, dataset, tokens, Preset(encoder.name, sizes, {}), whitening
        ).place(first.device)
        model.metadata = dict(first.metadata)
        rows = dataset.rows_of(dataset.split()[0])
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, 1024).astype(int))]
        with torch.inference_mode():
            theirs = [first.encoder.encode(dataset.pixels[part]).patches for part in np.array_split(rows, 8)]
        ours = model.standardizer.tokens(tokens.rows(rows).to(first.device))
        model.take_over(first, ours, first.standardizer.tokens(torch.cat(theirs)))
        return model

    def train_predictor(
        self,
        model: WorldModel,
        dataset: Dataset,
        tokens: TokenCache,
        folder: Path,
        config: TrainConfig,
        dtype: torch.dtype,
    ) -> Trainer:
        """Train the predictor to its last step; the trainer has saved it then."""
        train_episodes, held_out = dataset.split()
        frames = model.history + config.horizon
        train = Windows(dataset, tokens, frames, model.frameskip, train_episodes)
        validation = Windows(dataset, tokens, frames, model.frameskip, held_out)
        if self.start is not None:
            kept = ("encoder", "training", "dataset", "start")
            model.metadata = {"start": {k: model.metadata[k] for k in kept if k in model.metadata}}
            model.distance = model.decoder = None  # trained anew for the tokens it will imagine
        model.metadata["dataset"] = {
            "hash": dataset.hash,
            "episodes": dataset.episodes,
            "rows": dataset.rows,
            "policy": str(dataset.attributes.get("policy", "unknown")),
        }
        trainer = Trainer(model, train, validation, folder, config, dtype)
        if self.resume:
            found = trainer.resume()
            print(
                f"continuing at step {trainer.step} of {config.steps}"
                if found
                else f"no run in {folder}: starting one"
            )
        with (
            SummaryWriter(folder / "tensorboard", purge_step=trainer.step) as board,
            progress_bar("training") as bar,
        ):
            seen = len(trainer.metrics)

            def on_step(run: Trainer, values: dict[str, float]) -> None:
                nonlocal seen
                bar(run.step, config.steps, f"loss {values['loss']:.3f}")
                if run.step % 20 == 0:
                    for name, value in values.items():
                        board.add_scalar(f"train/{name}", value, run.step)
                if len(run.metrics) > seen:
                    seen = len(run.metrics)
                    for drop, result in run.metrics[-1]["validation"].items():
                        board.add_scalar(f"validation/{drop}/tokens_ratio", result["ratio"], run.step)
                        board.add_scalar(
                            f"validation/{drop}/proprio_ratio",
                            float(np.mean(result["proprio_ratio"])),
                            run.step,
                        )

            trainer.run(on_step)
        if trainer.metrics:
            plot_training(
                folder / "training.png", trainer.metrics, f"{model.environment}, {model.encoder.name}"
            )
            last = trainer.metrics[-1]["validation"]
            print(
                f"rollout error over {config.horizon} steps, as a share of copying the last frame: "
                + ", ".join(f"{name.replace('_', ' ')} {value['ratio']:.3f}" for name, value in last.items())
            )
        return trainer

    def train_heads(
        self,
        env: GoalEnv,
        model: WorldModel,
        dataset: Dataset,
        tokens: TokenCache,
        folder: Path,
        dtype: torch.dtype,
    ) -> bool:
        """Train what is asked for beside the predictor; whether there was anything."""
        train_episodes, held_out = dataset.split()
        if steps := self.head_steps(env, "distance"):
            usual = environment_settings(env.name).reach or DistanceTrainConfig.reach
            config = DistanceTrainConfig(steps, reach=self.distance_reach or usual, seed=self.seed)
            model.distance = self.train_distance(model, dataset, tokens, train_episodes, config, dtype)
        drawn = self.head_steps(env, "decoder")
        if drawn and model.patches > 1:  # the image token alone draws nothing
            decoder = DecoderTrainConfig(steps=drawn, seed=self.seed)
            model.decoder = self.train_decoder(model, dataset, tokens, train_episodes, decoder, dtype)
            self.show_imagination(model, dataset, tokens, held_out, folder)
        return model.distance is not None or model.decoder is not None

    def train_distance(
        self,
        model: WorldModel,
        dataset: Dataset,
        tokens: TokenCache,
        episodes: np.ndarray,
        config: DistanceTrainConfig,
        dtype: torch.dtype,
    ) -> TemporalDistance:
        """A trained temporal distance for a model with statistics."""
        sizes = model.config
        torch.manual_seed(self.seed)
        distance = TemporalDistance(sizes.token_dim, sizes.grid, sizes.proprio_dim, DistanceConfig())
        distance.to(model.device)
        windows = Windows(dataset, tokens, DISTANCE_FRAMES, model.frameskip, episodes)
        with progress_bar("temporal distance") as bar:

            def on_step(step: int, values: dict[str, float]) -> None:
                bar(step, config.steps, f"loss {values['loss']:.2f}")

            metadata = train_distance(model, distance, windows, config, dtype, on_step)
        model.metadata["distance"] = metadata
        return distance

    def train_decoder(
        self,
        model: WorldModel,
        dataset: Dataset,
        tokens: TokenCache,
        episodes: np.ndarray,
        config: DecoderTrainConfig,
        dtype: torch.dtype,
    ) -> Decoder:
        """A trained decoder for a model with statistics."""
        torch.manual_seed(self.seed)
        decoder = Decoder(model.config.token_dim, model.config.grid, DecoderConfig()).to(model.device)
        with progress_bar("decoder") as bar:

            def on_step(step: int, values: dict[str, float]) -> None:
                bar(step, config.steps, f"loss {values['loss']:.3f}")

            metadata = train_decoder(model, decoder, dataset, tokens, episodes, config, dtype, on_step)
        model.metadata["decoder"] = metadata
        return decoder

    def show_imagination(
        self, model: WorldModel, dataset: Dataset, tokens: TokenCache, episodes: np.ndarray, folder: Path
    ) -> None:
        """Real frames and imagined ones of held-out windows, as imagination.png and in TensorBoard."""
        longest = int(dataset.lengths[episodes].max() - 1) // model.frameskip + 1
        frames = min(SHOWN_FRAMES, longest)  # two at least, for the predictor had such windows
        windows = Windows(dataset, tokens, frames, model.frameskip, episodes)
        picked = np.sort(np.random.default_rng(self.seed).integers(len(windows), size=4))
        rows = windows.starts[picked][:, None] + model.frameskip * np.arange(frames)
        real = np.stack([[dataset.pixels[row] for row in sequence] for sequence in rows])
        with SummaryWriter(folder / "tensorboard") as board:
            for drop in (0.0, 0.5):
                imagined = imagine_windows(model, windows.batch(picked), drop)
                picture = plot_imagination(
                    folder / f"imagination_drop_{drop:g}.png",
                    real,
                    imagined,
                    f"{model.environment}, drop {drop:g}",
                )
                board.add_image(f"imagination/drop_{drop:g}", picture, dataformats="HWC")

    def config(self, env: GoalEnv, sizes: Preset) -> TrainConfig:
        """The preset's training under this command's flags, checked."""
        check_seed(self.seed)
        at_least(1, steps=self.steps, batch=self.batch, groups=self.groups, horizon=self.horizon)
        at_least(1, distance_reach=self.distance_reach)
        at_least(0, distance_steps=self.distance_steps, decoder_steps=self.decoder_steps)
        if self.extend is not None and not any(
            self.head_steps(env, head) for head in ("distance", "decoder")
        ):
            raise UserError("--extend adds nothing: give --distance-steps or --decoder-steps above 0")
        at_least(1, validate_every=self.validate_every, checkpoint_every=self.checkpoint_every)
        names = {field.name for field in fields(TrainConfig)}
        given = {name: value for name, value in vars(self).items() if name in names and value is not None}
        usual = environment_settings(env.name).train | sizes.train
        if self.start is not None:  # it imagines well already, and the full rate would undo that
            given = {"ramp": 0.0, "lr": usual["lr"] / 4} | given
        return replace(TrainConfig(), **(usual | given))

    def head_steps(self, env: GoalEnv, head: str) -> int:
        """Steps of the temporal distance or the decoder: the flag, or with none the environment's setting."""
        given: int | None = getattr(self, f"{head}_steps")
        return environment_settings(env.name).heads[head] if given is None else given

    def open_dataset(self, env: GoalEnv) -> Dataset:
        """The given dataset, or the usual one, recorded first where it is not there."""
        if self.dataset is not None:
            dataset = open_dataset(self.dataset, env.name)
            sizes = {"action": env.action_dim, "proprio": env.proprio_dim, "state": env.state_dim}
            for name, size in sizes.items():
                if (found := getattr(dataset, name).shape[1]) != size:
                    raise UserError(
                        f"column '{name}' of {self.dataset} has {found} numbers a row, {env.name} has "
                        f"{size}: give --env the environment it was recorded in, or another --dataset"
                    )
            return dataset
        path, usual = Path("data") / f"{env.name}.h5", environment_settings(env.name)
        if not path.is_file():
            with progress_bar(f"recording {env.name}") as progress:
                collect(
                    env.name,
                    usual.episodes,
                    path,
                    steps=usual.steps,
                    progress=progress,
                    held=usual.held,
                )
        return open_dataset(path, env.name)
