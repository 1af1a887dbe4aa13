"""How a world model is trained: one tree of settings, the only source of every default.

The command line, the presets in `configs/presets`, the section `train` of `configs/environments` and a file
of one's own name what differs from it: ``--optim.warmup 100``, or in YAML

    optim: {warmup: 100}
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from sparsewm.config import config_folder, encoder_file, environment_file, usual
from sparsewm.data.token_file import CACHES, Cache
from sparsewm.encoders import base_name
from sparsewm.envs import canonical
from sparsewm.errors import UserError
from sparsewm.files import read_json
from sparsewm.model.latent import TokenSpace
from sparsewm.model.predictor import PredictorConfig
from sparsewm.trees import at_least, merged, one_of, read_yaml

_UNREADABLE = (UserError, OSError, KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class EncoderConfig:
    """The frozen network that makes tokens of pictures."""

    name: Annotated[str | None, usual("encoder")] = None
    """embedded (usual), dinov2_vits14, timm:NAME, hf:NAME, module:Class, ...; a checkpoint brings its own."""
    weights: Annotated[Path | None, usual("encoder-weights")] = None
    """Local weights file."""
    hub_repo: Annotated[Path | None, usual("hub-repo")] = None
    """Local clone of its torch.hub repository."""
    resolution: Annotated[tuple[int, ...], usual("resolution")] = ()
    """Height and width it sees in pixels, or one number; its own in the data's aspect ratio if left out."""
    letterbox: Annotated[bool, usual("letterbox")] = False
    """Pad pictures of another aspect ratio instead of fitting the resolution to them."""
    features: Annotated[int, usual("features")] = 0
    """Features kept of a token, those that change where the picture does and nowhere else; 0: all of them."""
    pool: Annotated[float, usual("pool")] = 0.0
    """Deviation of the Gaussian that pools a token with its neighbours, as a share of the picture's side."""
    reader: Annotated[int, usual("reader")] = 0
    """Width of a network that reads from a token what its patch shows, instead; 0: none."""
    window: Annotated[int, usual("window")] = 3
    """Side of the square of patches whose tokens that network looks at for one patch; odd."""
    aligned: Annotated[bool, usual("aligned")] = False
    """Windows start at multiples of the frameskip only, so that the frames between are not encoded."""
    cache: Annotated[Cache, usual("cache")] = "float16"
    """How encoded frames are kept: float16, int8 (half the disk), or none: frames are encoded as training
    reads them."""

    def __post_init__(self) -> None:
        one_of("cache", self.cache, CACHES)
        at_least(0, features=self.features, pool=self.pool, reader=self.reader)
        if self.window < 1 or self.window % 2 == 0:
            raise UserError(f"`window` is an odd number of patches, not {self.window}")
        if len(self.resolution) > 2 or min(self.resolution, default=1) < 1:
            raise UserError(
                f"`resolution` is a height and a width in pixels, or one number, not {self.resolution}"
            )

    @property
    def space(self) -> TokenSpace | None:
        """What a world model keeps of the tokens; None: all of them, as they are."""
        space = TokenSpace(self.features, self.pool, self.reader, self.window if self.reader else 1)
        return None if space == TokenSpace() else space


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the predictor."""

    width: int = PredictorConfig.width
    """Features of a token inside; a multiple of 4, and of the heads unless their size is given."""
    depth: int = PredictorConfig.depth
    """Layers."""
    heads: int = PredictorConfig.heads
    """Attention heads."""
    head_dim: int | None = PredictorConfig.head_dim
    """Features of a head; width / heads if left out."""
    mlp: int = PredictorConfig.mlp
    """Features between the two matrices of a layer."""
    history: int = PredictorConfig.history
    """Frames of the attention window, the present one included."""

    def __post_init__(self) -> None:
        at_least(1, **vars(self))
        try:
            PredictorConfig(1, (1, 1), 1, 1, **vars(self))
        except ValueError as error:
            raise UserError(str(error)) from None


@dataclass(frozen=True)
class OptimConfig:
    """How the predictor is trained."""

    steps: Annotated[int, usual("steps")] = 8000
    """Optimiser steps."""
    batch: Annotated[int, usual("batch")] = 128
    """Windows a step."""
    lr: Annotated[float, usual("lr")] = 2e-3
    """Peak learning rate; unless given, a quarter of it when starting from a checkpoint."""
    muon: float = 5.0
    """Learning rate of the blocks' matrices, which Muon moves, in units of lr (0: AdamW moves them too)."""
    warmup: int = 200
    """Steps of linear warm-up; a cosine follows."""
    weight_decay: float = 0.02
    """Decoupled decay of matrices."""
    clip: float = 1.0
    """Largest gradient norm."""
    horizon: Annotated[int, usual("horizon")] = 5
    """Imagined frames of a training rollout."""
    ramp: float = 0.3
    """Fraction of training over which rollouts grow from 1 to the horizon."""
    groups: Annotated[int, usual("groups")] = 4
    """Random groups the patches are split into; 1 trains without grouping (the ablation)."""
    smallest_group: int = 8
    """Patches of a group at least."""
    trained_groups: int = 1
    """How many of the groups, drawn at random, are computed (0: all). Leaving some out saves their time."""
    full_every: int = 8
    """Every so many steps the patches stay together, as when nothing is dropped (0: never), in a batch
    smaller by the number of groups, if these are not all trained."""
    whitening: Annotated[float, usual("whitening")] = 0.5
    """How much fine detail counts in the error of tokens: 0 as it comes, 1 as much as coarse places do."""
    ema: float = 0.999
    """Decay of the averaged weights that are saved and validated."""
    validate_every: Annotated[int, usual("validate-every")] = 500
    """Steps between validations."""
    checkpoint_every: Annotated[int, usual("checkpoint-every")] = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "horizon", "groups", "validate_every", "checkpoint_every"):
            at_least(1, **{name: getattr(self, name)})
        for name in ("warmup", "trained_groups", "full_every", "weight_decay", "muon"):
            at_least(0, **{name: getattr(self, name)})
        at_least(1, smallest_group=self.smallest_group)
        for name in ("ramp", "whitening", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"`{name}` must be between 0 and 1, got {getattr(self, name):g}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"`{name}` must be a number above 0, got {getattr(self, name):g}")


@dataclass(frozen=True)
class DistanceTrainConfig:
    """How the temporal distance, a cost for planning, is trained."""

    steps: Annotated[int, usual("distance-steps")] = 400
    """Optimiser steps; 0: none is trained."""
    batch: int = 96
    """Windows a step."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices."""
    reach: Annotated[float, usual("distance-reach")] = 30.0
    """Model steps beyond which random pairs are hardly pushed apart: about the longest way there is."""
    penalty: float = 5.0
    """Weight of successive frames being more than one step apart."""
    smallest: int = 8
    """Fewest patches of a random subset."""
    blind: int = 4
    """Every so many steps proprioception is left out, as for planning by vision alone."""
    full_every: int = 8
    """Every so many steps all patches are seen."""
    ema: float = 0.99
    """Decay of the averaged weights that are kept."""

    def __post_init__(self) -> None:
        at_least(0, distance_steps=self.steps)
        at_least(1, distance_reach=self.reach)
        _check_head("heads.distance", self, ("warmup", "weight_decay", "penalty", "blind"))
        if not 0 <= self.ema <= 1:
            raise UserError(f"`heads.distance.ema` must be between 0 and 1, got {self.ema:g}")


@dataclass(frozen=True)
class DecoderTrainConfig:
    """How the decoder that draws imagined frames is trained."""

    steps: Annotated[int, usual("decoder-steps")] = 600
    """Optimiser steps; 0: none is trained."""
    batch: int = 32
    """Frames a step."""
    lr: float = 2e-3
    """Peak learning rate."""
    warmup: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices."""
    frames: int = 4096
    """Drawn from the data and kept in memory."""
    ground: float = 0.05
    """Weight of pixels that look as always; those that differ from the mean picture weigh up to 1."""
    smallest: int = 8
    """Fewest patches of a random subset."""
    full_every: int = 4
    """Every so many steps all patches are seen."""
    noise: float = 0.1
    """Deviation added to the tokens, in theirs: imagined tokens are not exact."""

    def __post_init__(self) -> None:
        at_least(0, decoder_steps=self.steps)
        at_least(1, **{"heads.decoder.frames": self.frames})
        _check_head("heads.decoder", self, ("warmup", "weight_decay", "ground", "noise"))


def _check_head(
    section: str, config: DistanceTrainConfig | DecoderTrainConfig, not_below_0: Sequence[str]
) -> None:
    """Raise a `UserError` for settings of a head that cannot be trained with."""
    at_least(0, **{f"{section}.{name}": getattr(config, name) for name in not_below_0})
    at_least(
        1, **{f"{section}.{name}": getattr(config, name) for name in ("batch", "smallest", "full_every")}
    )
    if not 0 < config.lr < math.inf:
        raise UserError(f"`{section}.lr` must be a number above 0, got {config.lr:g}")


@dataclass(frozen=True)
class HeadsConfig:
    """What is trained last, beside the predictor."""

    distance: DistanceTrainConfig = field(default_factory=DistanceTrainConfig)
    decoder: DecoderTrainConfig = field(default_factory=DecoderTrainConfig)


@dataclass(frozen=True)
class TrainRunConfig:
    """Where training starts, on what it runs, and what is written."""

    start: Annotated[Path | None, usual("start")] = None
    """Checkpoint to go on from, on a new schedule. On another encoder or whitening it is translated."""
    extend: Annotated[Path | None, usual("extend")] = None
    """Checkpoint whose predictor is kept: only temporal distance and decoder are trained for it."""
    resume: Annotated[bool, usual("resume")] = False
    """Continue the run in the output folder bit for bit from its last checkpoint."""
    device: Annotated[str, usual("device")] = "auto"
    """auto, cpu, cuda, ..."""
    devices: Annotated[int, usual("devices")] = 1
    """Processes that share every batch, each on a GPU or on a part of the cores; the run is the same."""
    dtype: Annotated[str, usual("dtype")] = "auto"
    """Precision of weights and activations: auto, bfloat16 or float32."""
    seed: Annotated[int, usual("seed")] = 0
    """Seed of weights, windows and groups."""
    output: Annotated[Path | None, usual("output")] = None
    """Folder of checkpoint/, metrics.json, training.png and the TensorBoard log; runs/NAME when left out."""

    def __post_init__(self) -> None:
        at_least(0, seed=self.seed)
        at_least(1, devices=self.devices)
        if self.start is not None and self.extend is not None:
            raise UserError("`start` and `extend` exclude each other: `extend` keeps the predictor as it is")
        if self.resume and self.extend is not None:
            raise UserError("`resume` and `extend` exclude each other: leave `resume` out")


@dataclass(frozen=True)
class TrainConfig:
    """Train a world model on recorded episodes: encode them once, train, validate."""

    dataset: str | None = None
    """Recorded episodes: a file or folder, lerobot:user/name, minari:NAME; data/ENV.h5 when left out."""
    env: str | None = None
    """Environment whose settings are used and that is to be planned in; not needed with a dataset."""
    format: str | None = None
    """Format of the dataset, or module:Class of your own reader; found out when left out."""
    cameras: tuple[str, ...] = ()
    """Cameras of the dataset, shown side by side; all of them when left out."""
    frameskip: int | None = None
    """Environment steps per model step; the dataset's own when left out, or the environment's, or 5."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    run: TrainRunConfig = field(default_factory=TrainRunConfig)

    def __post_init__(self) -> None:
        at_least(1, frameskip=self.frameskip)

    @classmethod
    def of(
        cls,
        env: str | None = None,
        preset: str = "default",
        start: Path | None = None,
        extend: Path | None = None,
        content: Mapping[str, Any] | None = None,
        source: str = "the given settings",
        encoder: str | None = None,
    ) -> TrainConfig:
        """The tree's defaults under an environment's, an encoder's, a preset's, and given ones.

        Args:
            env, start, extend: as in the tree, in place of what `content` says of them.
            encoder: name of the encoder whose settings are used; that of `content` or of `start` when None.
            preset: a name of `presets`.
            content: settings by section, as in YAML. source: where they come from, for messages.

        Raises:
            UserError: unknown preset or setting, or a value that is impossible.
        """
        content = dict(content or {})
        content["run"] = content.get("run") or {}
        merged(cls(), content, source)  # refuses what has another shape than the tree
        given = {"start": start, "extend": extend}
        run = dict(content["run"]) | {name: path for name, path in given.items() if path is not None}
        content |= {"run": run}
        if env := env or content.get("env"):
            content["env"] = env
        tree = cls()
        named = encoder or (content.get("encoder") or {}).get("name")
        encoder = named or _encoder_of(run.get("start"))
        name = canonical(env) if env else ""
        for path in (environment_file(name) if env else None, encoder_file(encoder) if encoder else None):
            if path is not None and path.is_file():
                found = read_yaml(path)
                tree = merged(tree, found.get("train", {}), str(path))
                own = found.get("environments", {}).get(name, {})  # an encoder's, in this environment
                tree = merged(tree, own.get("train", {}), str(path))
        given_by = run.get("start") or run.get("extend")
        tree = merged(tree, _preset_content(preset, not given_by), preset)
        if given_by:  # a checkpoint has its sizes, and what it makes of pictures unless on another encoder
            tree = merged(replace(tree, model=ModelConfig()), _of_checkpoint(given_by, named), str(given_by))
        if run.get("start"):  # it imagines well already, and the full rate would undo that
            tree = merged(tree, {"optim": {"ramp": 0.0, "lr": tree.optim.lr / 4}}, source)
        return merged(tree, content, source)


def _checkpoint_in(start: str | Path) -> Path:
    """The folder of a checkpoint, where that of a run may be given."""
    inside = Path(start) / "checkpoint"
    return inside if inside.is_dir() else Path(start)


def _encoder_of(start: str | Path | None) -> str | None:
    """The encoder of a checkpoint to go on from, where its folder says so."""
    with contextlib.suppress(*_UNREADABLE):
        return (
            None
            if start is None
            else str(read_json(_checkpoint_in(start) / "metadata.json")["encoder"]["name"])
        )
    return None


def _of_checkpoint(start: str | Path, encoder: str | None) -> dict[str, Any]:
    """What a run takes over from the checkpoint that it goes on from: sizes, and what it sees of pictures.

    A damaged one is named when it is loaded, and one of the hub is not looked into: they give nothing.

    Args:
        encoder: of the run, if named; on another one than the checkpoint's, that one's settings are used.
    """
    content: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(*_UNREADABLE):
        folder = _checkpoint_in(start)
        sizes, metadata = read_yaml(folder / "config.yaml"), read_json(folder / "metadata.json")
        content["model"] = {part.name: sizes[part.name] for part in fields(ModelConfig)}
        seen = metadata["encoder"]
        if encoder is None or base_name(encoder) == base_name(str(seen["name"])):
            kept = sizes.get("space") or {}
            space = {name: kept.get(name, 0) for name in ("features", "pool", "reader")}
            space |= {"window": kept["window"]} if space["reader"] else {}
            resolution = tuple(seen.get("resolution") or ())
            content["encoder"] = space | {"resolution": resolution, "letterbox": bool(seen.get("letterbox"))}
            content["optim"] = {"whitening": metadata.get("training", {}).get("whitening", 0.0)}
        merged(TrainConfig(), content, str(start))
        return content
    return {}


def presets() -> list[str]:
    """Names of presets: `default`, which is the tree as it stands, and the files of `configs/presets`."""
    return sorted(["default", *(path.stem for path in (config_folder() / "presets").glob("*.yaml"))])


def preset(name: str) -> TrainConfig:
    """The tree's defaults under those of a preset.

    Raises:
        UserError: unknown name.
    """
    return merged(TrainConfig(), _preset_content(name), name)


def _preset_content(name: str, encoder: bool = True) -> dict[str, Any]:
    """What a preset says; without its encoder where a checkpoint brings one."""
    one_of("preset", name, presets())
    content = {} if name == "default" else read_yaml(config_folder() / "presets" / f"{name}.yaml")
    return content if encoder else {part: value for part, value in content.items() if part != "encoder"}
