"""Formats of datasets: one reader a file, plus those of packages with an entry point `sparsewm.datasets`."""

from __future__ import annotations

from pathlib import Path

from sparsewm.data.dataset import Dataset
from sparsewm.errors import UserError
from sparsewm.registry import Registry

FORMATS: Registry[type[Dataset]] = Registry(
    "dataset format",
    "sparsewm.datasets",
    {
        "hdf5": "sparsewm.data.formats.hdf5:HDF5Dataset",
    },
)
"""Readers by name; `open_dataset` asks them in this order whether they recognize a path."""


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
