"""`sparsewm inspect`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from sparsewm.cli.common import output_folder, progress_bar
from sparsewm.data import open_dataset
from sparsewm.data.inspect import contact_sheet, describe
from sparsewm.encoders import load_encoder
from sparsewm.errors import UserError
from sparsewm.files import atomic_path, write_json
from sparsewm.model.predictor import PredictorConfig
from sparsewm.trees import at_least

FRAMESKIP = 5
SHOWN = 40  # numbers listed on the screen


@dataclass
class Inspect:
    """Say what a dataset holds and what training would do with it, also of one it would refuse.

    Example: sparsewm inspect data/wall.h5
    """

    data: Positional[str]
    """Path of a dataset of any known format, or format:name, e.g. lerobot:user/name."""
    format: str | None = None
    """Its format, or module:class of your own reader; found out when left out."""
    cameras: tuple[str, ...] = ()
    """Cameras to show, side by side; needed where there are several."""
    frameskip: int | None = None
    """Environment steps of a model step; what the dataset says, or 5, when left out."""
    history: int = PredictorConfig.history
    """Model frames the predictor sees."""
    horizon: int = 5
    """Model frames it imagines in training."""
    encoder: str = "embedded"
    """Patch encoder whose tokens are counted."""
    output: Path = Path("runs/inspect")
    """Folder for NAME.json and the contact sheet NAME.png."""

    def run(self) -> int:
        at_least(1, frameskip=self.frameskip, history=self.history, horizon=self.horizon)
        with reading() as progress:
            dataset = open_dataset(
                self.data, cameras=self.cameras, format=self.format, check=False, progress=progress
            )
        said = dataset.attributes.get("frameskip")  # anything else is an obstacle
        frameskip = self.frameskip or (said if type(said) is int and said > 0 else FRAMESKIP)
        height, width = dataset.pixels.shape[1:3]
        picture = (int(height), int(width)) if height and width else None
        encoder = load_encoder(self.encoder, picture=picture)
        found = describe(dataset, self.history + self.horizon, frameskip, encoder.tokens, encoder.dim)
        found["encoder"] = encoder.name
        folder, name = output_folder(self.output), dataset.path.stem or "dataset"
        write_json(folder / f"{name}.json", found)
        sheet = contact_sheet(dataset)
        if sheet is not None:
            with atomic_path(folder / f"{name}.png") as temporary:
                good, data = cv2.imencode(".png", sheet[..., ::-1])
                if not good:
                    raise UserError(f"the contact sheet of {dataset.path} could not be drawn")
                temporary.write_bytes(data.tobytes())
        dataset.close()
        show(found, Console())
        print(f"{folder / name}.json" + ("" if sheet is None else f" and {name}.png (contact sheet)"))
        return 0


@contextmanager
def reading() -> Iterator[Callable[[int, int], None]]:
    """A bar for readers that take long to open a dataset; quick ones show none."""
    with ExitStack() as shown:
        bars: list[Callable[..., None]] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(shown.enter_context(progress_bar("reading")))
            bars[0](done, total)

        yield progress


def show(found: dict[str, Any], console: Console) -> None:
    """Print a description of `sparsewm.data.inspect.describe`."""
    length, (height, width), fps = found["length"], found["picture"], found["fps"]
    rate = "rate unknown" if not fps else f"{fps:g} rows a second, {found['rows'] / fps / 60:.1f} min"
    lines = [
        f"{found['path']} ({found['format']})",
        f"{found['episodes']} episodes of {length['min']} to {length['max']} rows (median "
        f"{length['median']:g}), {found['rows']} rows; {rate}",
        f"pictures {height} x {width} (height x width) of {', '.join(found['cameras'])}; "
        f"cameras there are: {', '.join(found['available_cameras'])}"
        if found["cameras"]
        else "no pictures",
        "columns: " + ", ".join(f"{name} {what}" for name, what in found["columns"].items()),
    ]
    if found["attributes"]:
        lines.append("says of itself: " + ", ".join(f"{k} {v}" for k, v in found["attributes"].items()))
    for line in lines:
        console.print(escape(line), soft_wrap=True, highlight=False)
    table = Table("column", "number", "least", "greatest", "mean", "deviation", "")
    rows = [(column, number) for column, part in found["numbers"].items() for number in part]
    for column, number in rows[:SHOWN]:
        values = [
            f"{number[k]:.4g}" if number.get(k) is not None else "" for k in ("min", "max", "mean", "std")
        ]
        notes = [f"{number['not_finite']} not finite"] if number["not_finite"] else []
        notes += ["never changes"] if number["constant"] else []
        table.add_row(column, escape(number["name"]), *values, ", ".join(notes))
    console.print(table)
    if len(rows) > SHOWN:
        print(f"{len(rows) - SHOWN} more numbers are in the JSON file")
    for warning in found["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    if (use := found["training"]) is None:
        why = "; ".join(found["obstacles"])
        console.print(f"[bold red]training refuses it:[/] {escape(why)}", soft_wrap=True, highlight=False)
        return
    lines = [
        f"training: windows of {use['window_frames']} frames {use['frameskip']} steps apart "
        f"({use['window_rows']} rows): {use['train_windows']} in {use['train_episodes']} episodes, "
        f"{use['held_out_windows']} in {use['held_out_episodes']} held out; "
        f"{use['too_short_episodes']} episodes are too short",
        f"encoder {found['encoder']}: {use['frames_encoded']} frames of {use['tokens_per_frame']} tokens of "
        f"{use['token_size']}; they take {use['token_cache_bytes'] / 1e6:.4g} MB on the disk",
    ]
    for line in lines:
        console.print(escape(line), soft_wrap=True, highlight=False)
