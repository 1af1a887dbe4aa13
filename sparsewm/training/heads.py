"""What is trained beside the predictor, on recorded frames: the temporal distance and the decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from sparsewm.data import Dataset, Tokens, Windows
from sparsewm.model.decoder import Decoder, DecoderConfig
from sparsewm.model.distance import DistanceConfig, TemporalDistance
from sparsewm.model.world_model import WorldModel
from sparsewm.report.plots import plot_imagination
from sparsewm.training.config import HeadsConfig
from sparsewm.training.decoder import imagine_windows, train_decoder
from sparsewm.training.distance import train_distance
from sparsewm.training.draws import DISTANCE_FRAMES, shown_windows
from sparsewm.training.report import Progress, quiet


def train_heads(
    model: WorldModel,
    dataset: Dataset,
    tokens: Tokens,
    episodes: np.ndarray,
    config: HeadsConfig,
    dtype: torch.dtype,
    seed: int,
    progress: Progress = quiet,
) -> bool:
    """Train the heads that are asked for, into the model; whether there were any.

    Args:
        model: with statistics filled in, and a trained predictor.
        dataset, tokens: the data and its encoded frames. episodes: those trained on.
        dtype: precision of live weights. seed: of all random choices.
    """
    sizes = model.config
    if config.distance.steps:
        torch.manual_seed(seed)
        distance = TemporalDistance(sizes.token_dim, sizes.grid, sizes.proprio_dim, DistanceConfig())
        distance.to(model.device)
        windows = Windows(dataset, tokens, DISTANCE_FRAMES, model.frameskip, episodes)
        with progress("temporal distance") as bar:
            model.metadata["distance"] = train_distance(
                model,
                distance,
                windows,
                config.distance,
                dtype,
                lambda step, values: bar(step, config.distance.steps, f"loss {values['loss']:.2f}"),
                seed,
            )
        model.distance = distance
    drawn = config.decoder.steps > 0 and model.patches > 1  # the image token alone draws nothing
    if drawn:
        torch.manual_seed(seed)
        decoder = Decoder(sizes.token_dim, sizes.grid, DecoderConfig()).to(model.device)
        with progress("decoder") as bar:
            model.metadata["decoder"] = train_decoder(
                model,
                decoder,
                dataset,
                tokens,
                episodes,
                config.decoder,
                dtype,
                lambda step, values: bar(step, config.decoder.steps, f"loss {values['loss']:.3f}"),
                seed,
            )
        model.decoder = decoder
    return model.distance is not None or drawn


def show_imagination(
    model: WorldModel, dataset: Dataset, tokens: Tokens, episodes: np.ndarray, folder: Path, seed: int
) -> None:
    """Real frames and imagined ones of windows of episodes, as imagination_drop_*.png and in TensorBoard."""
    shown, picked = shown_windows(dataset, episodes, model.frameskip, seed)
    windows = Windows(dataset, tokens, shown.frames, model.frameskip, episodes)
    real = np.stack([dataset.pixels[sequence] for sequence in windows.rows(picked)])
    with SummaryWriter(folder / "tensorboard") as board:
        for drop in (0.0, 0.5):
            picture = plot_imagination(
                folder / f"imagination_drop_{drop:g}.png",
                real,
                imagine_windows(model, windows.batch(picked), drop),
                f"{model.environment}, drop {drop:g}",
            )
            board.add_image(f"imagination/drop_{drop:g}", picture, dataformats="HWC")
