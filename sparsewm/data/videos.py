"""Frames of video files by number: files read in order are decoded once, others from the key frame before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sparsewm.errors import UserError, needs_extra

with needs_extra("videos", "data"):
    import av
    import av.error

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
_OPEN = 8  # files kept open, each with its decoder


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
        self._times: np.ndarray | None = None  # of all frames in the order they are shown, in ticks of the file
        self._decoded: Iterator[av.VideoFrame] | None = None
        self._next = 0  # the frame that `_decoded` yields next
        self.height, self.width = int(self._stream.height), int(self._stream.width)
        rate = self._stream.average_rate
        self.fps = float(rate) if rate else None

    @property
    def frames(self) -> int:
        """Number of frames: what the file says, counted where it says nothing."""
        return self._stream.frames or len(self.times)

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
                f"{self.path} has {len(ticks)} frames, frame {numbers[-1]} is asked for: the video is cut off, "
                "copy it again"
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
                packets = [
                    (packet.pts, packet.is_keyframe)
                    for packet in self._file.demux(self._stream)
                    if packet.size and not packet.is_discard
                ]
            except av.error.FFmpegError as error:
                raise UserError(f"{self.path} is cut off ({_said(error)}): copy it again") from None
            if not packets or any(time is None for time, _ in packets):
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
        raise UserError(f"frame {number} of {self.path} cannot be decoded: copy the video again, or leave it out")


class Videos:
    """Videos opened when needed; those used last stay open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, Video] = OrderedDict()

    def __getitem__(self, path: Path) -> Video:
        if path not in self._open:
            while len(self._open) >= _OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = Video(path)
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        """Release all files."""
        while self._open:
            self._open.popitem()[1].close()


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
