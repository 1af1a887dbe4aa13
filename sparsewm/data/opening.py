"""Datasets of any format, opened by their name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparsewm.data.dataset import WITHOUT_PICTURES, Dataset, environment_name
from sparsewm.data.formats import find_format, reader_options, split_options
from sparsewm.data.relative import make_relative
from sparsewm.errors import UserError
from sparsewm.files import check_no_pipes


def open_dataset(
    source: str | Path,
    environment: str | None = None,
    cameras: Sequence[str] = (),
    format: str | None = None,
    check: bool = True,
    pictures: bool = True,
    relative: float | str | None = None,
    position: Sequence[str] | str = (),
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Dataset:
    """A dataset of any known format, opened and checked.

    Args:
        source: a path, or `format:rest` where a format knows datasets by name, e.g. `lerobot:user/name`.
        environment: it must have been recorded there, if the dataset says where.
        cameras: those to show, from left to right; needed where the dataset has several.
        format: a name in `sparsewm.data.formats.FORMATS`, or `module:class`; found out when None.
        check: refuse a dataset that training cannot use. pictures: also one that was recorded without.
        relative, position: turn absolute targets into relative actions, a full one of which is `relative`, or
            the longest step for "auto"; see `sparsewm.data.relative.make_relative`.
        progress: called with what is done and what there is, by readers for which opening takes long.
        options: of the reader. They may also follow the source, `demos.zarr?relative=100&proprio=agent_pos`.

    Raises:
        UserError: no such dataset, a format that is not known, a damaged file, another environment.
    """
    place, said = split_options(source)
    relative, position = said.pop("relative", relative), said.pop("position", position)
    reader, rest = find_format(place, format)
    chosen = reader_options(reader, {**said, **options})
    check_no_pipes(Path(rest).expanduser())
    if progress is not None and "progress" in inspect.signature(reader).parameters:
        chosen["progress"] = progress
    dataset = reader(rest, cameras=tuple(cameras), **chosen)  # type: ignore[call-arg]
    if check:
        try:
            dataset.check(pictures)
        except UserError:
            dataset.close()
            raise
    if relative is not None and set(dataset.obstacles) <= {WITHOUT_PICTURES}:  # whose columns fit together
        make_relative(dataset, relative, position.split(",") if isinstance(position, str) else position)
    found = dataset.attributes.get("environment")
    if environment is not None and found is not None and found != environment_name(environment):
        dataset.close()
        raise UserError(
            f"{dataset.path} was recorded in {found}, not {environment}: name that environment or give "
            "another dataset"
        )
    return dataset
