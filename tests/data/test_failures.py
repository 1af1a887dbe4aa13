"""What goes wrong while recording and encoding ends in a sentence, never in a hang or in wrong tokens."""

from __future__ import annotations

import errno
import importlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsewm import processes
from sparsewm.data import Dataset, TokenCache, collect, open_dataset
from sparsewm.encoders import PatchFeatures
from sparsewm.errors import UserError
from sparsewm.files import check_no_pipes
from tests.data.tiny import notes_after, write_dataset

collecting = importlib.import_module("sparsewm.data.collect")


class Stub:
    """Tokens are a frame's mean brightness; stops after `patience` frames, spoils the rest after `sane`."""

    name, hash, key, dim = "stub", "a" * 64, "a" * 10, 8

    def __init__(self, side: int, patience: float = float("inf"), sane: float = float("inf")) -> None:
        self.grid, self.tokens = (side, side), side * side
        self.frames, self.patience, self.sane = 0, patience, sane

    def encode(self, pixels: np.ndarray) -> PatchFeatures:
        self.frames += len(pixels)
        if self.frames > self.patience:
            raise KeyboardInterrupt
        brightness = torch.as_tensor(pixels).float().mean((1, 2, 3)) / 255  # (B,)
        if self.frames > self.sane:
            brightness[-1] = torch.nan
        patches = brightness[:, None, None].expand(-1, self.tokens, self.dim)
        return PatchFeatures(patches, patches[:, 0], self.grid)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset(write_dataset(tmp_path / "d.h5", (9, 5, 12)))


def cache(dataset: Dataset, encoder: Any, folder: Path) -> TokenCache:
    return TokenCache(dataset, encoder, folder)


def die(job: object) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.slow
def test_death_of_a_worker_is_an_error_not_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_record_part", die)  # pickled by name, so the worker runs it
    with pytest.raises(UserError, match=r"process died, .*run it again, with fewer workers"):
        collect("wall", 2, tmp_path / "d.h5", workers=1, steps=4, resolution=16)
    assert not (tmp_path / "d.h5").exists()


@pytest.mark.slow
def test_without_shared_memory_one_worker_records_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect("wall", 2, tmp_path / "a.h5", workers=1, steps=4, resolution=16)

    def refuse(*rest: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(processes, "ProcessPoolExecutor", refuse)
    with pytest.raises(UserError, match=r"several `workers` need shared memory .*: give 1"):
        collect("wall", 2, tmp_path / "b.h5", workers=2, steps=4, resolution=16)
    collect("wall", 2, tmp_path / "b.h5", workers=1, steps=4, resolution=16)
    one, other = (open_dataset(tmp_path / name) for name in ("a.h5", "b.h5"))
    assert np.array_equal(one.pixels[:], other.pixels[:]) and np.array_equal(one.action, other.action)


def test_a_pipe_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demos" / "deep").mkdir(parents=True)
    (tmp_path / "demos" / "a_link").symlink_to("a_link")
    (tmp_path / "demos" / "another").symlink_to("/dev")
    (tmp_path / "demos" / "run_1.mp4").write_bytes(b"no video")
    check_no_pipes(tmp_path)
    os.mkfifo(tmp_path / "demos" / "deep" / "actions.csv")
    with pytest.raises(UserError, match=r"deep/actions.csv is a pipe or a device, no file"):
        open_dataset(tmp_path / "demos", format="video")


def test_negative_seed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`seed` must be at least 0, got -1"):
        collect("wall", 2, tmp_path / "d.h5", steps=4, seed=-1)
    assert list(tmp_path.iterdir()) == []


def test_rest_of_a_build_at_another_resolution_is_not_used(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights at another resolution make another number of tokens under the same hash."""
    notes_after(8, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        cache(dataset, Stub(4, patience=20), tmp_path / "tokens")
    encoder = Stub(2)
    tokens = cache(dataset, encoder, tmp_path / "tokens").rows(np.arange(26))
    assert encoder.frames == 26
    assert torch.equal(tokens, Stub(2).encode(dataset.pixels[:]).patches.half())


def test_tokens_that_are_no_numbers_are_refused(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes_after(8, monkeypatch)
    with pytest.raises(
        UserError, match=r"encoder 'stub' makes NaN, infinite or huge tokens: check its weights"
    ):
        cache(dataset, Stub(2, sane=20), tmp_path / "tokens")
    rest = Stub(2)
    cache(dataset, rest, tmp_path / "tokens")
    assert rest.frames == 26 - 16, "none of the piece with the infinite ones is kept"


def test_encoding_does_not_start_where_there_is_no_room(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = collecting.shutil.disk_usage(tmp_path)
    monkeypatch.setattr("sparsewm.files.shutil.disk_usage", lambda _: usage._replace(free=100))
    encoder = Stub(2)
    with pytest.raises(
        UserError, match=r"the disk is too full for .* are free; free some space, .* or give `directory`"
    ):
        cache(dataset, encoder, tmp_path / "tokens")
    assert encoder.frames == 0


def test_a_disk_that_fills_up_keeps_what_was_written(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes_after(8, monkeypatch)
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 4:  # the file is laid out, two pieces are noted
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the disk is full while writing .*bin: free some space"):
        cache(dataset, Stub(2), tmp_path / "tokens")
    rest = Stub(2)
    tokens = cache(dataset, rest, tmp_path / "tokens").rows(np.arange(26))
    assert rest.frames == 26 - 16
    assert torch.equal(tokens, Stub(2).encode(dataset.pixels[:]).patches.half())
