"""Frames of video files by number: files read in order are decoded once, others from the key frame before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sparsewm.data.frames import Frames
from sparsewm.errors import UserError, needs_extra

with needs_extra("videos", "data"):
    import av
    import av.error

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
_OPEN = 4  # files kept open, each with its decoder

_ENDS = 1 << 16
"""Bytes of a file's head, and of its tail, that it is told from others by."""

_TOLERANCE = 0.1  # of a frame's duration: how far a frame may be from the time that a row says

Progress = Callable[[int, int], None]
"""Called with what is done and what there is."""


class Video:
    """One video file.

    Args:
        path: the file.

    Attributes:
        path: the file. frames: number of its frames. fps: frames a second. height, width: of a picture.

    Raises:
        UserError: no such file, no video, or one that is cut off.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"no video at {self.path}: copy it there")
        try:
            self._file = av.open(str(self.path))
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"{self.path} is cut off or no video ({_said(error)}): copy it again") from None
        if not self._file.streams.video:
            self._file.close()
            raise UserError(f"{self.path} holds no pictures: give a video")
        self._stream = self._file.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._times: np.ndarray | None = (
            None  # of all frames in the order they are shown, in ticks of the file
        )
        self._decoded: Iterator[av.VideoFrame] | None = None
        self._next = 0  # the frame that `_decoded` yields next
        self.height, self.width = int(self._stream.height), int(self._stream.width)
        rate = self._stream.average_rate
        self.fps = float(rate) if rate else None

    @property
    def frames(self) -> int:
        """Number of frames: what the file says, counted where it says nothing."""
        return self._stream.frames or len(self.times)

    def check_end(self) -> None:
        """Raise a `UserError` where the last frames are missing, whatever the head of the file says."""
        if self._stream.duration is None:
            return
        try:
            self._file.seek(self._stream.duration, stream=self._stream, backward=True)
            there = any(packet.size for packet in self._file.demux(self._stream))
        except av.error.FFmpegError:
            there = False
        self._decoded = None
        if not there:
            raise UserError(f"{self.path} is cut off: copy it again")

    @property
    def times(self) -> np.ndarray:
        """When each frame is shown, float64 (frames,) in seconds from the first one."""
        ticks = self._ticks()
        return (ticks - ticks[0]) * float(self._stream.time_base or 1)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Pictures uint8 (n, H, W, 3) of the frames `numbers` (n,), ascending.

        Raises:
            UserError: frames that are not there or cannot be decoded.
        """
        ticks = self._ticks()
        pictures = np.empty((len(numbers), self.height, self.width, 3), np.uint8)
        if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < len(ticks):
            raise UserError(
                f"{self.path} has {len(ticks)} frames, frame {numbers[-1]} is asked for: the video is cut "
                "off, copy it again"
            )
        try:
            for picture, number in zip(pictures, np.asarray(numbers).tolist(), strict=True):
                picture[:] = self._frame(number).to_ndarray(format="rgb24")
        except av.error.FFmpegError as error:
            raise UserError(
                f"{self.path} cannot be decoded ({_said(error)}): copy it again, or leave it out"
            ) from None
        return pictures

    def close(self) -> None:
        """Release the file."""
        self._decoded = None
        self._file.close()

    def _ticks(self) -> np.ndarray:
        if self._times is None:
            try:
                self._file.seek(0, stream=self._stream)
                packets = [
                    (packet.pts, packet.is_keyframe)
                    for packet in self._file.demux(self._stream)
                    if packet.size and not packet.is_discard
                ]
            except av.error.FFmpegError as error:
                raise UserError(f"{self.path} is cut off ({_said(error)}): copy it again") from None
            if not packets:
                raise UserError(f"{self.path} is cut off: copy it again")
            if any(time is None for time, _ in packets):
                raise UserError(
                    f"{self.path} does not say when its frames are shown: convert it, e.g. "
                    f"ffmpeg -i {self.path.name} {self.path.stem}.mp4"
                )
            self._times = np.sort(np.array([time for time, _ in packets]))
            keys = np.array([time for time, key in packets if key])
            self._keys = np.searchsorted(self._times, np.sort(keys))
            self._decoded = None
        return self._times

    def _frame(self, number: int) -> av.VideoFrame:
        assert self._times is not None
        before = self._keys[self._keys <= number]
        key = int(before[-1]) if len(before) else 0
        if self._decoded is None or not key <= self._next <= number:
            self._file.seek(int(self._times[key]), stream=self._stream, backward=True, any_frame=False)
            self._decoded = self._file.decode(self._stream)
        for frame in self._decoded:
            if frame.pts is not None and frame.pts >= self._times[number]:
                self._next = number + 1
                if frame.pts == self._times[number]:
                    return frame
                break
        self._decoded = None
        raise UserError(
            f"frame {number} of {self.path} cannot be decoded: copy the video again, or leave it out"
        )


class VideoFrames(Frames):
    """Rows of a dataset in video files.

    Args:
        source: the dataset, for messages.
        files: the videos. file: (rows,) the one each row is in.
        number: (rows,) the frame of the row in that file.
        time: instead of numbers, (rows,) seconds from the file's first frame, with `fps` rows a second.
        progress: called with the number of files looked at and that of all.

    Raises:
        UserError: a file is missing, damaged or too short, or pictures have several sizes.
    """

    def __init__(
        self,
        source: object,
        files: Sequence[Path],
        file: np.ndarray,
        number: np.ndarray | None = None,
        time: np.ndarray | None = None,
        fps: float = 1.0,
        progress: Progress | None = None,
    ) -> None:
        self._files, self._file, self._number, self._time, self._fps = list(files), file, number, time, fps
        self._open: OrderedDict[Path, Video] = OrderedDict()
        self.rates: list[float | None] = []
        size: tuple[int, int] = (0, 0)
        needed = np.zeros(len(files), np.int64)
        if number is None:
            assert time is not None, "number or time"
            number = np.floor(time * fps + 0.5).astype(np.int64)
        np.maximum.at(needed, file, number + 1)
        for place, path in enumerate(self._files):
            video = self._video(path)
            if video.frames < needed[place]:
                raise UserError(
                    f"{path} has {video.frames} frames, the rows of its episodes need {needed[place]}: copy "
                    "the dataset again"
                )
            if place == 0:
                size = (video.height, video.width)
            elif size != (video.height, video.width):
                raise UserError(
                    f"{path} has pictures of {video.height} x {video.width}, {self._files[0].name} of "
                    f"{size[0]} x {size[1]}: make them equal"
                )
            video.check_end()
            self.rates.append(video.fps)
            if progress is not None:
                progress(place + 1, len(self._files))
        super().__init__((len(file), *size, 3), source)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `Frames.read`."""
        runs = np.split(rows, np.flatnonzero(np.diff(self._file[rows])) + 1)
        parts = []
        for run in runs:
            video = self._video(self._files[self._file[run[0]]])
            wanted = self._number[run] if self._number is not None else self._at(video, run)
            parts.append(video.read(wanted))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def fingerprint(self, rows: np.ndarray) -> bytes:
        """See `Frames.fingerprint`: by the size, the head and the tail of files, for decoding takes long.

        The head or the tail lists the size of every frame, so a film of something else differs there.
        """
        digest = hashlib.sha256()
        for place in np.unique(self._file[rows]).tolist():
            with self._files[place].open("rb") as file:
                size = file.seek(0, 2)
                digest.update(size.to_bytes(8, "little"))
                for start in (0, max(0, size - _ENDS)):
                    file.seek(start)
                    digest.update(file.read(_ENDS))
        return digest.digest()

    def close(self) -> None:
        """Release all files."""
        while self._open:
            self._open.popitem()[1].close()

    def _at(self, video: Video, rows: np.ndarray) -> np.ndarray:
        """Numbers of the frames shown at the times of rows."""
        assert self._time is not None
        shown, wanted, tolerance = video.times, self._time[rows], _TOLERANCE / self._fps
        found = np.clip(np.searchsorted(shown, wanted - tolerance), 0, len(shown) - 1)
        away = np.abs(shown[found] - wanted)
        if (away > tolerance).any():
            raise UserError(
                f"{video.path} has no frame at the time of row {rows[away.argmax()]} ({away.max():.3f} s "
                "away): video and table do not belong together, copy the dataset again"
            )
        return found

    def _video(self, path: Path) -> Video:
        if path not in self._open:
            while len(self._open) >= _OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = Video(path)
        self._open.move_to_end(path)
        return self._open[path]


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
