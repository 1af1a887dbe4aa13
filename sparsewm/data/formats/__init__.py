"""Formats of datasets: one reader a file, plus those of packages with an entry point `sparsewm.datasets`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from sparsewm.data.dataset import Dataset
from sparsewm.errors import UserError, suggest
from sparsewm.registry import Registry

FORMATS: Registry[type[Dataset]] = Registry(
    "dataset format",
    "sparsewm.datasets",
    {
        "hdf5": "sparsewm.data.formats.hdf5:HDF5Dataset",
        "lerobot": "sparsewm.data.formats.lerobot:LeRobotData",
        "minari": "sparsewm.data.formats.minari:MinariData",
        "diffusion_policy": "sparsewm.data.formats.diffusion_policy:DiffusionPolicyData",
        "dino_wm": "sparsewm.data.formats.dino_wm:DinoWMData",
        "video": "sparsewm.data.formats.video:VideoData",
    },
)
"""Readers by name; `open_dataset` asks them in this order whether they recognize a path."""


def split_options(source: str | Path) -> tuple[str, dict[str, Any]]:
    """A source without the options that follow it as in an address, and these: `demos.zarr?relative=100`."""
    text = str(source)
    place, mark, options = text.partition("?")
    if not mark or Path(text).exists():
        return text, {}
    return place, dict(parse_qsl(options, keep_blank_values=True))


def reader_options(reader: type[Dataset], options: dict[str, Any]) -> dict[str, Any]:
    """Options of a reader as it takes them: texts become numbers and lists where its signature has those.

    Raises:
        UserError: an option the reader does not have, or a text that is no number.
    """
    known = inspect.signature(reader).parameters
    names = [name for name in list(known)[1:] if name not in ("cameras", "progress")]
    result = {}
    for name, value in options.items():
        if name not in names:
            raise UserError(
                f"{reader.__name__} has no option '{name}'.{suggest(name, names)} It has "
                f"{', '.join(names) or 'none'}; all have relative and position"
            )
        kind = str(known[name].annotation)
        try:
            if isinstance(value, str) and "Sequence" in kind:
                value = tuple(part for part in value.split(",") if part)
            elif isinstance(value, str) and ("float" in kind or "int" in kind):
                value = float(value) if "float" in kind else int(value)
        except ValueError:
            raise UserError(f"option {name} must be a number, got '{value}'") from None
        result[name] = value
    return result


def find_format(source: str | Path, format: str | None = None) -> tuple[type[Dataset], str]:
    """The reader of a dataset, and what to give it: the path, or what follows `format:`.

    Raises:
        UserError: there is nothing at the path, or no format recognizes it.
    """
    text = str(source)
    path = Path(text).expanduser()
    if format is not None:
        return FORMATS.get(format), text.removeprefix(f"{format}:")
    known = FORMATS.names()
    prefix, colon, rest = text.partition(":")
    if colon and prefix in known and not path.exists():
        return FORMATS.get(prefix), rest
    if not path.exists():
        raise UserError(
            f"no dataset at {text}: record one with sparsewm collect, or give the path of another "
            f"(formats: {', '.join(known)})"
        )
    for name in known:
        reader = FORMATS.get(name)
        if reader.recognizes(path):
            return reader, str(path)
    raise UserError(
        f"{text} is no dataset of a known format ({', '.join(known)}): convert it, or name its format"
    )
