"""`sparsewm train`."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import tyro
import yaml
from rich.console import Console
from tyro.conf import Suppress

from sparsewm.cli.common import check_seed, progress_bar
from sparsewm.config import plain, read_yaml
from sparsewm.training.config import TrainConfig, presets
from sparsewm.training.run import Trained, train

RARE = ("muon", "warmup", "weight_decay", "clip", "ramp", "smallest_group", "trained_groups", "full_every")
RARE += ("ema", "mlp", "heads", "penalty", "smallest", "blind", "frames", "ground", "noise")
"""Settings that --help only names; those of the heads' own optimisers are, too."""


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a world model on recorded episodes: encode them once, train, validate.

    --resume continues after any interruption. No environment is needed where there is a dataset.

    Examples:
    sparsewm train --env wall --dataset data/wall.h5 --output runs/wall
    sparsewm train --dataset my_robot.h5 --steps 2000
    """

    preset: str = "default"
    """Sizes: default (two CPU cores) or paper (a GPU)."""
    config: Path | None = None
    """YAML file of settings, as --show-config prints them; flags come on top."""
    show_config: bool = False
    """Print all settings as YAML, and do nothing."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Train:
        """The command under its flags: these lie over a file's settings, a preset's and an environment's."""
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in ("env", "preset", "config"):
            first.add_argument(f"--{name}")
        for name in ("start", "extend"):
            first.add_argument(f"--{name}", f"--run.{name}", type=Path)
        found, _ = first.parse_known_args(arguments)
        file = found.config
        tree = TrainConfig.of(
            found.env,
            found.preset or "default",
            found.start,
            found.extend,
            read_yaml(file) if file else None,
            str(file),
        )
        usual = {part.name: getattr(tree, part.name) for part in fields(tree)}
        asks = any(word in ("-h", "--help") for word in arguments)
        command: Train = tyro.cli(
            _short(cls) if asks else cls,
            prog="sparsewm train",
            description=f"{cls.__doc__}\n{_named_only()}",
            args=arguments,
            default=None if asks else cls(**usual),
        )
        return command

    def run_command(self) -> int:
        """Train, and say what was made and what to do with it."""
        check_seed(self.run.seed)
        tree = TrainConfig(**{part.name: getattr(self, part.name) for part in fields(TrainConfig)})
        if self.show_config:
            print(yaml.safe_dump(plain(asdict(tree)), sort_keys=False), end="")
            return 0
        try:
            trained = train(tree, progress_bar, _say)
        except KeyboardInterrupt:
            Console(stderr=True).print(
                "interrupted: the same command with --resume goes on from the last checkpoint"
            )
            return 130
        if tree.run.extend is None:
            print(f"{trained.steps} steps in {trained.seconds / 60:.1f} min")
        print(f"checkpoint in {trained.checkpoint}")
        print(_next(tree, trained))
        return 0


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr if sentence.startswith("warning: ") else sys.stdout, flush=True)


def _next(config: TrainConfig, trained: Trained) -> str:
    """What to do with a checkpoint, as a command to copy."""
    if config.env is None:
        words = ["evaluate", "--dataset", config.dataset]
        words += [word for camera in config.cameras[:1] for word in ("--cameras", *config.cameras) if camera]
        purpose = "judge it"
    else:
        words, purpose = ["plan", "--env", config.env], "plan with it"
    words += ["--checkpoint", trained.checkpoint]
    for flag, path in (
        ("--encoder-weights", config.encoder.weights),
        ("--hub-repo", config.encoder.hub_repo),
    ):
        words += [flag, path] if path is not None else []
    if config.env is not None and trained.model.distance is None:
        words += ["--cost.objective", "mse"]
    return f"{purpose}: sparsewm {shlex.join(map(str, words))}"


def _rare(name: str, section: str) -> bool:
    own = ("batch", "lr", "weight_decay", "warmup", "full_every", "ema")
    return (
        name in RARE
        if section in ("optim", "model")
        else section in ("distance", "decoder") and (name in (*RARE, *own))
    )


def _short(tree: type[Any], section: str = "") -> type[Any]:
    """The tree without what `_rare` names, for help that fits on two screens."""
    hints = get_type_hints(tree, include_extras=True)
    parts: list[tuple[str, Any, Any]] = []
    for part in fields(tree):
        kind = hints[part.name]
        if is_dataclass(kind):
            shorter = _short(kind, part.name)  # type: ignore[arg-type]
            parts.append((part.name, shorter, field(default_factory=shorter)))
        elif _rare(part.name, section):
            parts.append((part.name, Suppress[kind], field(default=part.default)))
    return make_dataclass(tree.__name__, parts, bases=(tree,), frozen=True)


def _named_only() -> str:
    """The settings that help leaves out."""

    def names(tree: type[Any], prefix: str, section: str) -> list[str]:
        hints, found, rare = get_type_hints(tree), [], []
        for part in fields(tree):
            if is_dataclass(kind := hints[part.name]):
                found += names(kind, f"{prefix}{part.name}.", part.name)  # type: ignore[arg-type]
            elif _rare(part.name, section):
                rare.append(part.name.replace("_", "-"))
        return found + ([f"--{prefix}{{{','.join(rare)}}}"] if rare else [])

    return "More settings: " + " ".join(names(TrainConfig, "", "")) + f". Presets: {', '.join(presets())}."
