"""A folder of videos and one table of what was done: what one has who has no format.

::

    demos/
        actions.csv         or .parquet; any other name will do if it is the only table
        run_1.mp4           one episode a video (.mp4, .mkv, .webm, .mov, .avi)
        run_2.mp4

    file,frame,a0,a1,p0,p1
    run_1.mp4,0,0.1,-0.3,12.0,40.5
    run_1.mp4,1,0.2,-0.1,12.4,39.8

One row a frame, in the order of the frames; the last frame of a video may lack its row, or its action, as
none was taken there. `file` says which video, or `episode`: names of videos, or else values that in order are
the videos in the order of their names (2 before 10, in both); with one video neither is needed. `frame`, if
there, counts from 0, and rows may come in any order. Columns are taken by their names, which are kept:

=============  ========================================
column         what
=============  ========================================
a0, action...  actions
p0, proprio... proprioception, may be missing
s0, state...   full state of a simulator, may be missing
=============  ========================================

Several cameras are folders inside, each with videos of the same names: `demos/front/run_1.mp4`,
`demos/wrist/run_1.mp4`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sparsewm.data.dataset import Dataset
from sparsewm.data.frames import choose_cameras, side_by_side
from sparsewm.errors import UserError, needs_extra

_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
_KINDS = {"action": r"a\d+|action.*", "proprio": r"p\d+|proprio.*", "state": r"s\d+|state.*"}


class VideoData(Dataset):
    """A folder of videos with a table of actions, see above.

    Args:
        path: the folder.
        cameras: folders of videos to show; needed where there are several.
        action, proprio, state: names of columns, instead of those that are called so.
        fps: rows a second; what the videos say when None.
        progress: called with the number of videos looked at and that of all.

    Raises:
        UserError: no videos or no table, columns missing, rows that do not fit the videos, damaged files, an
            unknown camera.
    """

    def __init__(
        self,
        path: str | Path,
        cameras: Sequence[str] = (),
        action: Sequence[str] = (),
        proprio: Sequence[str] = (),
        state: Sequence[str] = (),
        fps: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        from sparsewm.data.videos import VideoFrames

        path = Path(path)
        available = _cameras(path)
        if not available:
            raise UserError(f"no videos in {path}: put them there as {', '.join(_SUFFIXES)}")
        shown, obstacles = choose_cameras(path, list(available), cameras)
        videos = available[shown[0]]
        for name in shown:
            if [v.name for v in available[name]] != [v.name for v in videos]:
                raise UserError(f"{path / name} and {path / shown[0]} must hold videos of the same names")
        file = _table_path(path)
        table = _read(file)
        columns = {}
        for kind, named in (("action", action), ("proprio", proprio), ("state", state)):
            columns[kind] = list(named) or [name for name in table if re.fullmatch(_KINDS[kind], name)]
            missing = [name for name in columns[kind] if name not in table]
            if missing or (kind == "action" and not columns[kind]):
                what = f"'{missing[0]}'" if missing else "of actions (a0, a1, ...)"
                raise UserError(f"{file} has no column {what}: it has {', '.join(table)}")
        order = _rows(file, table, videos)
        lengths = [_frames(video) for video in videos]
        values = {kind: _numbers(file, table, names) for kind, names in columns.items()}
        parts: dict[str, list[np.ndarray]] = {kind: [] for kind in values}
        for video, rows, frames in zip(videos, order, lengths, strict=True):
            senses = any(columns[kind] for kind in ("proprio", "state"))
            if len(rows) not in ((frames,) if senses else (frames, frames - 1)):
                raise UserError(
                    f"{video} has {frames} frames, {file.name} has {len(rows)} rows of it: make them equal"
                )
            for kind, numbers in values.items():
                found = numbers[rows]
                parts[kind].append(found if len(rows) == frames else np.pad(found, ((0, 1), (0, 0))))
        episode = np.repeat(np.arange(len(videos)), lengths)
        step = np.arange(len(episode)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        frames_of = [VideoFrames(path, available[name], episode, step, progress=progress) for name in shown]
        rates = np.array([rate or 0 for frames in frames_of for rate in frames.rates])
        if fps is None and len(rates) and rates.max() > 1.02 * rates.min():
            raise UserError(
                f"videos of {path} run at {rates.min():g} to {rates.max():g} frames a second: give fps"
            )
        rate = float(fps) if fps is not None else float(np.median(rates)) or None
        full = {kind: np.concatenate(found) if columns[kind] else None for kind, found in parts.items()}
        assert full["action"] is not None
        super().__init__(
            path,
            lengths=lengths,
            action=full["action"],
            pixels=side_by_side(frames_of),
            proprio=full["proprio"],
            state=full["state"],
            attributes={"format": "video"},
            fps=rate,
            action_names=columns["action"],
            proprio_names=columns["proprio"],
            cameras=shown,
            available_cameras=list(available),
            obstacles=obstacles,
        )

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with a table, and videos in it or in its folders."""
        tables = [*path.glob("*.csv"), *path.glob("*.parquet")] if path.is_dir() else []
        return bool(tables) and bool(_cameras(path))


def _cameras(path: Path) -> dict[str, list[Path]]:
    """Videos of each camera, in the order of their names."""

    def videos(folder: Path) -> list[Path]:
        found = [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES]
        return sorted(found, key=lambda file: _natural(file.name))

    if not path.is_dir():
        return {}
    if here := videos(path):
        return {"camera": here}
    inside = {folder.name: videos(folder) for folder in sorted(path.iterdir()) if folder.is_dir()}
    return {name: found for name, found in inside.items() if found}


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """What names are sorted by: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts], name


def _table_path(path: Path) -> Path:
    tables = sorted([*path.glob("*.csv"), *path.glob("*.parquet")])
    named = [table for table in tables if table.stem == "actions"] or tables
    if len(named) != 1:
        what = ", ".join(table.name for table in named) or "none"
        raise UserError(f"{path} needs one table, actions.csv or actions.parquet, it has {what}")
    return named[0]


def _read(file: Path) -> dict[str, np.ndarray]:
    """Columns of a table by name."""
    with needs_extra("videos with tables", "data"):
        import pyarrow.csv
        import pyarrow.parquet
    try:
        table = pyarrow.csv.read_csv(file) if file.suffix == ".csv" else pyarrow.parquet.read_table(file)
        names = [name.strip() for name in table.column_names]
    except Exception as error:  # pyarrow has errors of many kinds for a damaged file
        raise UserError(f"{file} is damaged or no table ({error}): write it again") from None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file} has two columns '{twice}': give each a name of its own")
    return {name: column.to_numpy() for name, column in zip(names, table.itercolumns(), strict=True)}


def _numbers(file: Path, table: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    parts: list[np.ndarray] = [np.zeros((len(next(iter(table.values()))), 0))]
    for name in names:
        try:
            values = table[name].astype(np.float64)
        except (TypeError, ValueError):
            raise UserError(f"column '{name}' of {file} must be numbers: leave others empty") from None
        parts.append(values[:, None])
    return np.concatenate(parts, 1)


def _rows(file: Path, table: dict[str, np.ndarray], videos: Sequence[Path]) -> list[np.ndarray]:
    """Rows of the table of each video, in the order of its frames."""
    count = len(next(iter(table.values()), ()))
    places = {name: place for place, video in enumerate(videos) for name in (video.name, video.stem)}
    if "file" in table:
        said = [Path(str(name)).name for name in table["file"]]
        foreign = next((name for name in said if name not in places), None)
        if foreign is not None:
            raise UserError(
                f"{file} names the video {foreign}, which is not in {videos[0].parent}: copy it there"
            )
        of = np.array([places[name] for name in said], np.int64)
    elif "episode" in table:
        episode = table["episode"]
        if any(value is None or value != value for value in episode.tolist()):
            raise UserError(f"column 'episode' of {file} has empty rows: fill them in")
        said = [str(value) for value in episode.tolist()]
        if not all(name in places for name in said):
            values = (
                np.unique(episode).tolist() if episode.dtype != object else sorted(set(said), key=_natural)
            )
            if len(values) != len(videos):
                raise UserError(
                    f"{file} has {len(values)} episodes, {videos[0].parent} has {len(videos)} videos: make "
                    "them equal"
                )
            places = {str(value): place for place, value in enumerate(values)}
        of = np.array([places[name] for name in said], np.int64)
    elif len(videos) == 1:
        of = np.zeros(count, np.int64)
    else:
        raise UserError(
            f"{file} must say in a column file or episode which of {len(videos)} videos a row belongs to"
        )
    found = []
    for place, video in enumerate(videos):
        rows = np.flatnonzero(of == place)
        if "frame" in table:
            rows = rows[np.argsort(table["frame"][rows], kind="stable")]
            if not np.array_equal(table["frame"][rows], np.arange(len(rows))):
                raise UserError(f"frames of {video.name} in {file} must be 0, 1, 2, ... without a gap")
        found.append(rows)
    return found


def _frames(video: Path) -> int:
    from sparsewm.data.videos import Video

    opened = Video(video)
    frames = opened.frames
    opened.close()
    return frames
