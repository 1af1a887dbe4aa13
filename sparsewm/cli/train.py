"""`sparsewm train`."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
import yaml

from sparsewm.cli.common import about, progress_bar, taken
from sparsewm.training.config import TrainConfig, presets
from sparsewm.training.launch import launch
from sparsewm.training.parallel import first_here, launched, leads
from sparsewm.training.run import Trained, train
from sparsewm.trees import plain, read_yaml


@dataclass(frozen=True)
class _Words(TrainConfig):
    """What messages of the library may name, beside the tree's own settings."""

    preset: str = ""
    distance_steps: int = 0
    distance_reach: float = 0
    decoder_steps: int = 0


class Train:
    """Train a world model on recorded episodes: encode them once, train, validate.

    Usual: --dataset FILE --output FOLDER --steps N. --env NAME takes its settings and records its
    usual dataset where none is given. --resume continues after any interruption. -H describes every flag.

    Example: sparsewm train --dataset my_robot.h5 --steps 2000 --output runs/robot
    """

    tree = _Words
    speaks = staticmethod(first_here)
    interrupted = "interrupted: the same command with --resume goes on from the last checkpoint"

    @classmethod
    def parse(cls, arguments: list[str]) -> Train:
        """The command under its flags: these lie over a file's settings, a preset's and an environment's."""
        given = arguments
        found: dict[str, str | None] = {}
        for name in ("preset", "config"):
            found[name], arguments = taken(arguments, f"--{name}")
        show = "--show-config" in arguments
        arguments = [word for word in arguments if word != "--show-config"]
        for name in ("env", "start", "extend"):
            found[name] = taken(arguments, f"--{name}")[0] or taken(arguments, f"--run.{name}")[0]
        start, extend = (
            None if found[name] is None else Path(str(found[name])) for name in ("start", "extend")
        )
        encoder = taken(arguments, "--encoder")[0] or taken(arguments, "--encoder.name")[0]
        file = found["config"]
        config = TrainConfig.of(
            found["env"],
            found["preset"] or "default",
            start,
            extend,
            None if file is None else read_yaml(file),
            str(file),
            encoder,
        )
        sizes = "|".join(presets())
        text = (
            f"{inspect.cleandoc(about(cls) or '')}\n\n--preset {sizes}: for two CPU cores, or a GPU. "
            "--config FILE reads settings from YAML, as --show-config prints them; flags go first."
        )
        config = tyro.cli(
            TrainConfig,
            prog="sparsewm train",
            description=text,
            args=arguments,
            default=config,
            config=(tyro.conf.FlagCreatePairsOff,),
            compact_help=True,
        )
        return cls(config, show, given)

    def __init__(self, config: TrainConfig, show: bool = False, arguments: Sequence[str] = ()) -> None:
        self.config, self.show, self.arguments = config, show, arguments

    def run(self) -> int:
        run = self.config.run
        if self.show and first_here():
            print(yaml.safe_dump(plain(asdict(self.config)), sort_keys=False), end="")
        if self.show:
            return 0
        if run.devices > 1 and run.extend is None and not launched():
            return launch(run.devices, run.device, ["train", *self.arguments])
        trained = train(self.config, progress_bar, _say)
        if not leads():
            return 0
        if run.extend is None:
            print(f"{trained.steps} steps in {trained.seconds / 60:.1f} min")
        print(f"checkpoint in {trained.checkpoint}")
        print(_next(self.config, trained))
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
    words += ["--checkpoint", str(trained.checkpoint)]
    for flag, path in (
        ("--encoder-weights", config.encoder.weights),
        ("--hub-repo", config.encoder.hub_repo),
    ):
        words += [flag, str(path)] if path is not None else []
    if config.env is not None and trained.model.distance is None:
        words += ["--cost.objective", "mse"]
    return f"{purpose}: sparsewm {shlex.join(map(str, words))}"
