"""LeRobotDataset, version 3: a local folder or a name on the hub, pictures kept as images or as videos."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsewm.data.dataset import Dataset
from sparsewm.data.frames import Frames, ReadFrames, choose_cameras, side_by_side
from sparsewm.errors import UserError, needs_extra
from sparsewm.files import parse_json

_PREFIX = re.compile(r"^observation\.(images\.)?")
Progress = Callable[[int, int], None]


class LeRobotData(Dataset):
    """A dataset recorded with LeRobot, read by LeRobot.

    Args:
        source: its folder, or `user/name` on the hub, which is downloaded to where LeRobot keeps datasets.
        cameras: those to show, e.g. `wrist` for `observation.images.wrist`; needed where there are several.
        proprio: features that make up proprioception; `observation.state` when empty.
        state: features that make up the full state; `observation.environment_state`, if there, when empty.
        progress: called with the number of video files looked at and that of all.

    Raises:
        UserError: no such dataset, an older version, a file missing or damaged, an unknown camera or feature.
    """

    def __init__(
        self,
        source: str | Path,
        cameras: Sequence[str] = (),
        proprio: Sequence[str] = (),
        state: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> None:
        with needs_extra("datasets of LeRobot", "data"):
            from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
        read, path = _open(source)
        features: Mapping[str, Any] = read.meta.features
        available = {_PREFIX.sub("", key): key for key in read.meta.camera_keys}
        named = [_PREFIX.sub("", name) for name in cameras]
        shown, obstacles = choose_cameras(source, list(available), named)
        states = list(state) or [key for key in (OBS_ENV_STATE,) if key in features]
        senses = list(proprio) or [key for key in (OBS_STATE,) if key in features]
        for key in (ACTION, *senses, *states):
            if key not in features or len(features[key]["shape"]) != 1 or features[key]["dtype"] == "string":
                numbers = ", ".join(k for k, feature in features.items() if len(feature["shape"]) == 1)
                raise UserError(f"{source} has no numbers '{key}': it has {numbers}")
        wanted = list(dict.fromkeys([ACTION, *senses, *states, "timestamp"]))
        try:
            table = read.hf_dataset.select_columns(wanted).with_format("numpy")[:]
            episodes = read.meta.episodes.with_format("numpy")
            ends = np.asarray(episodes["dataset_to_index"][:], np.int64)
            lengths = ends - np.asarray(episodes["dataset_from_index"][:], np.int64)
        except Exception as error:  # whatever pyarrow says of a damaged file
            raise UserError(f"{source} is damaged ({error}): copy it again") from None
        rows = len(table[ACTION])
        parts = []
        for name in shown:
            key = available[name]
            if key in read.meta.video_keys:
                parts.append(_video_frames(read, key, table["timestamp"], lengths, progress))
            else:
                parts.append(_image_frames(read, key, rows))
        super().__init__(
            path,
            lengths=lengths,
            action=_numbers(table, [ACTION]),
            pixels=side_by_side(parts),
            proprio=_numbers(table, senses) if senses else None,
            state=_numbers(table, states) if states else None,
            attributes={
                "format": "lerobot",
                **({"robot": read.meta.robot_type} if read.meta.robot_type else {}),
            },
            fps=read.meta.fps,
            action_names=_names(features, [ACTION]),
            proprio_names=_names(features, senses),
            cameras=shown,
            available_cameras=list(available),
            obstacles=obstacles,
        )

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """A folder with `meta/info.json`."""
        return (path / "meta" / "info.json").is_file()


def _open(source: str | Path) -> tuple[Any, Path]:
    """The dataset, opened by LeRobot, and where it lies. The network is asked for names on the hub only."""
    import lerobot.datasets.lerobot_dataset as lerobot

    path = Path(source).expanduser()
    root = path.resolve() if path.is_dir() else None
    if root is not None:
        repo, flags = root.name, f"--repo-id={root.name} --root={root.parent} --push-to-hub=false"
        _check_info(root, flags)
    else:
        repo, flags = str(source), f"--repo-id={source} --push-to-hub=false"
        if not re.fullmatch(r"[-.\w]+/[-.\w]+", repo):
            raise UserError(
                f"no LeRobotDataset at {source}: give its folder, or lerobot:user/name for one on the hub"
            )
        if (lerobot.HF_LEROBOT_HOME / repo / "meta" / "info.json").is_file():
            _check_info(lerobot.HF_LEROBOT_HOME / repo, flags)
    try:
        if root is not None:
            _check_files(root, lerobot.LeRobotDatasetMetadata(repo, root))
        read = lerobot.LeRobotDataset(repo, root)
        total = len(read.hf_dataset)
    except UserError:
        raise
    except Exception as error:  # LeRobot, datasets and the hub have errors of many kinds
        if "Compatibility" in type(error).__name__ or isinstance(error, NotImplementedError):
            raise UserError(_too_old(source, "an older version", flags)) from None
        said = " ".join(str(error).split())[:200] or type(error).__name__
        advice = "copy it again" if root is not None else "check its name and the network"
        raise UserError(f"LeRobot cannot open {source} ({said}): {advice}") from None
    if total != read.meta.total_frames:
        raise UserError(
            f"{source} holds {total} frames, its description says {read.meta.total_frames}: the recording "
            "was not finalized or not copied whole; copy it again"
        )
    return read, Path(read.root)


def _check_info(root: Path, flags: str) -> None:
    """Raise a `UserError` for an old version, or where LeRobot would look on the hub for what is missing."""
    file = root / "meta" / "info.json"
    try:
        version = str(parse_json(file)["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{root} is no LeRobotDataset: meta/info.json is missing or damaged ({error})"
        ) from None
    if version.startswith(("v1", "v2")):
        raise UserError(_too_old(root, version, flags))
    if not version.startswith("v3"):
        raise UserError(f"{root} is a LeRobotDataset of {version}, v3.0 is needed: install a newer sparsewm")
    for pattern in ("meta/tasks.parquet", "meta/episodes/*/*.parquet", "data/*/*.parquet"):
        if not any(root.glob(pattern)):
            raise UserError(f"{root} lacks {pattern}: the recording was not finalized, or not copied whole")


def _check_files(root: Path, meta: Any) -> None:
    files = _files(meta, "data", meta.data_path)
    for key in meta.video_keys:
        files += _files(meta, f"videos/{key}", meta.video_path, key)
    for file in dict.fromkeys(files):
        if not (root / file).is_file():
            raise UserError(f"{root / file} is missing: copy the dataset again")


def _files(meta: Any, kind: str, template: str, key: str = "") -> list[Path]:
    """The file each episode is in, of all at once."""
    episodes = meta.episodes.with_format("numpy")
    chunks, files = (np.asarray(episodes[f"{kind}/{name}_index"][:]).tolist() for name in ("chunk", "file"))
    return [
        Path(template.format(video_key=key, chunk_index=chunk, file_index=file))
        for chunk, file in zip(chunks, files, strict=True)
    ]


def _too_old(source: str | Path, version: str, flags: str) -> str:
    return (
        f"{source} is a LeRobotDataset of {version}, v3.0 is needed: convert it with "
        f"python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 {flags}"
    )


def _numbers(table: Mapping[str, np.ndarray], keys: Sequence[str]) -> np.ndarray:
    return np.concatenate(
        [np.asarray(table[key], np.float64).reshape(len(table[key]), -1) for key in keys], 1
    )


def _names(features: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Names of the numbers of features, where all have some."""
    found: list[str] = []
    for key in keys:
        names = features[key].get("names") or []
        if isinstance(names, Mapping):  # {"motors": [...]}, or names with their places
            lists = [
                value
                for value in names.values()
                if isinstance(value, Sequence) and not isinstance(value, str)
            ]
            names = [name for value in lists for name in value] if lists else list(names)
        if len(names) != features[key]["shape"][0]:
            return []
        found += [str(name) for name in names]
    return found


def _image_frames(read: Any, key: str, rows: int) -> Frames:
    pictures = read.hf_dataset.select_columns([key]).with_format("numpy")

    def load(wanted: np.ndarray) -> np.ndarray:
        return np.stack([_rgb(picture) for picture in pictures[wanted.tolist()][key]])

    try:
        first = _rgb(pictures[0][key]) if rows else np.zeros((0, 0, 3), np.uint8)
    except Exception as error:  # whatever pyarrow or PIL say of a damaged file
        raise UserError(f"pictures of {read.root} ({key}) are damaged ({error}): copy it again") from None
    return ReadFrames((rows, *first.shape), f"{read.root} ({key})", load)


def _rgb(picture: np.ndarray) -> np.ndarray:
    picture = np.asarray(picture)
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, 2)
    if picture.dtype != np.uint8:
        raise ValueError(f"pictures of {picture.dtype}")
    return picture[..., :3]


def _video_frames(
    read: Any, key: str, timestamps: np.ndarray, lengths: np.ndarray, progress: Progress | None
) -> Frames:
    """Pictures out of the videos: many episodes lie in one file, each from a time of its own."""
    from sparsewm.data.videos import VideoFrames

    starts = np.asarray(
        read.meta.episodes.with_format("numpy")[f"videos/{key}/from_timestamp"][:], np.float64
    )
    paths = [read.root / file for file in _files(read.meta, f"videos/{key}", read.meta.video_path, key)]
    files = list(dict.fromkeys(paths))
    places = {path: place for place, path in enumerate(files)}
    return VideoFrames(
        f"{read.root} ({key})",
        files,
        np.repeat(np.array([places[path] for path in paths], np.int64), lengths),
        time=np.repeat(starts, lengths) + np.asarray(timestamps, np.float64).ravel(),
        fps=float(read.meta.fps),
        progress=progress,
    )
