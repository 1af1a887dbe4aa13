"""Coverage-guided fuzzing of what is read, with atheris: nothing but a `UserError` may come out.

Example:

    pip install atheris
    python -m scripts.trust.fuzz --target tokens --seconds 1800

It begins with a small sound input and those in `scripts/trust/corpus/TARGET`, follows what new branches of
this package's own readers are reached, and ends at the first input that raises anything else, which it writes
to `--output`. Readers of other packages (HDF5, safetensors) run as they are.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from scripts.common import launch
from scripts.trust import samples
from sparsewm.errors import UserError

CORPUS = Path(__file__).parent / "corpus"
Target = Literal["yaml", "json", "names", "tokens", "lengths", "hdf5", "checkpoint"]

Reads = Callable[[Path], object]
"""Reads a file, from a folder in which everything else is sound."""


def _yaml(file: Path) -> None:
    from sparsewm.config import PlanConfig
    from sparsewm.trees import merged, read_yaml

    merged(PlanConfig(), read_yaml(file), "it").checked()


def _json(file: Path) -> None:
    from sparsewm.evaluation.cells import read_cell

    read_cell(file.parents[1], file.stem, {})


def _names(file: Path) -> None:
    from sparsewm.proposals.names import read_names

    read_names(file)


def _tokens(file: Path) -> None:
    from sparsewm.data.token_file import Layout, TokenFile

    TokenFile.find(file, Layout((4, 2, 3)))


def _lengths(file: Path) -> None:
    from sparsewm.data.formats.dino_wm import _lengths

    _lengths(file.parent, 2, 11)


def _hdf5(file: Path) -> None:
    from sparsewm.data import open_dataset

    dataset = open_dataset(file)
    dataset.pixels[: min(4, dataset.rows)]
    dataset.close()


def _checkpoint(file: Path) -> None:
    import sparsewm

    sparsewm.load(file.parent)


def _sound_tokens(folder: Path) -> None:
    import torch

    from sparsewm.data.token_file import Layout, TokenFile

    layout = Layout((4, 2, 3))
    file = TokenFile.make(folder / "tokens.bin", layout)
    import numpy as np

    rows = np.arange(3)
    file.note(rows, file.write(rows, layout.pack(torch.ones(3, 2, 3), None)))


def _sound_cell(folder: Path) -> None:
    (folder / "cells").mkdir()
    (folder / "cells" / "one.json").write_text('{"request": {"env": "wall"}, "success_rate": 0.5}')


def _sound_lengths(folder: Path) -> None:
    import pickle

    (folder / "seq_lengths.pkl").write_bytes(pickle.dumps([7, 11]))


def _sound_names(folder: Path) -> None:
    (folder / "names.yaml").write_text("cameras: {a: pixels}\nstate: [x, null]\naction: [0, 1]\nscale: 2.0\n")


TARGETS: dict[str, tuple[Callable[[Path], object], str, Reads]] = {
    "yaml": (samples.plan_yaml, "plan.yaml", _yaml),
    "json": (_sound_cell, "cells/one.json", _json),
    "names": (_sound_names, "names.yaml", _names),
    "tokens": (_sound_tokens, "tokens.bin", _tokens),
    "lengths": (_sound_lengths, "seq_lengths.pkl", _lengths),
    "hdf5": (samples.hdf5, "wall.h5", _hdf5),
    "checkpoint": (samples.checkpoint, "model/config.yaml", _checkpoint),
}
"""What makes a sound folder, the file that is fuzzed, and what reads it."""


def tried(name: str, folder: Path, content: bytes) -> None:
    """Read one input; anything but a `UserError` gets out."""
    _, place, reads = TARGETS[name]
    (folder / place).write_bytes(content)
    with contextlib.suppress(UserError), contextlib.redirect_stderr(io.StringIO()):
        reads(folder / place)


@dataclass
class Arguments:
    """Fuzz one reader."""

    target: Target = "tokens"
    """What is read."""
    seconds: int = 60
    """How long."""
    output: Path = Path("runs/fuzz")
    """Folder of inputs that reach new branches, and of one that fails."""


def instrument(atheris: Any) -> None:
    """Count the branches of this package; what is imported already counts nothing by itself."""
    for name, module in list(sys.modules.items()):
        if name.startswith("sparsewm."):
            for thing in list(vars(module).values()):
                for function in vars(thing).values() if inspect.isclass(thing) else (thing,):
                    if inspect.isfunction(function) and function.__module__ == name:
                        atheris.instrument_func(function)


def main(arguments: Arguments) -> None:
    try:
        import atheris
    except ImportError:
        raise UserError("fuzzing needs atheris: pip install atheris") from None
    found = arguments.output / arguments.target
    found.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    make, place, _ = TARGETS[arguments.target]
    make(folder)
    shutil.copyfile(folder / place, found / "sound")
    tried(arguments.target, folder, (found / "sound").read_bytes())  # imports what reads it
    instrument(atheris)
    for path in (CORPUS / arguments.target).glob("*"):
        shutil.copyfile(path, found / path.name)

    def one(content: bytes) -> None:
        tried(arguments.target, folder, content)

    options = [f"-max_total_time={arguments.seconds}", "-rss_limit_mb=2048", "-timeout=10", "-max_len=65536"]
    options += [f"-artifact_prefix={found}{os.sep}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(found)], one)
    atheris.Fuzz()


assert set(TARGETS) == set(get_args(Target))

if __name__ == "__main__":
    launch(main, Arguments)
