"""Files: leftovers of killed processes vanish, folders are replaced at once, hostile texts are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sparsewm import files
from sparsewm.encoders.weights import read_weights
from sparsewm.errors import UserError, machine_fault
from sparsewm.files import (
    atomic_path,
    check_unwritten,
    only_one,
    parse_json,
    parse_yaml,
    recover_folder,
    replace_folder,
    sha256_file,
    stays_inside,
    temporary_folder,
    write_tensors,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="locks and exchanges of Linux")


def die_while_writing(kind: str, path: Path) -> None:
    """Let a process be killed while it writes a file or a folder."""
    program = f"""
import os, signal
from pathlib import Path
from sparsewm import files
from sparsewm.encoders.weights import read_weights
with files.{kind}(Path({str(path)!r})) as place:
    (place / "part" if place.is_dir() else place).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9


@linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["atomic_path", "temporary_folder"])
def test_what_a_killed_process_leaves_is_swept_away_by_the_next(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("result.json" if kind == "atomic_path" else "result")
    die_while_writing(kind, path)
    assert len(left := list(tmp_path.iterdir())) == 1 and left[0].name.startswith(".result-")
    (tmp_path / ".result-mine.json").write_text("of somebody else")
    with getattr(files, kind)(path):
        assert not left[0].exists()
    assert (tmp_path / ".result-mine.json").exists()


@linux
def test_a_folder_with_a_dot_is_swept_and_left_alone_like_others(tmp_path: Path) -> None:
    path = tmp_path / "arm-v1.0"
    with temporary_folder(path) as place:
        with pytest.raises(UserError, match=r"another process writes .*arm-v1.0 right now: wait"):
            check_unwritten(path)
        left = place
    left.mkdir()  # as one who was killed leaves it
    with temporary_folder(path):
        assert not left.exists()


@linux
def test_what_somebody_writes_now_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with atomic_path(path) as one:
        one.write_text("1")
        with pytest.raises(UserError, match=r"another process writes .*result.json right now: wait"):
            check_unwritten(path)
        with atomic_path(path) as other:
            other.write_text("2")
        assert one.exists()
    assert path.read_text() == "1" and [file.name for file in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    path = tmp_path / "model"
    for content in ("first", "second"):
        with temporary_folder(path) as place:
            (place / "new").mkdir()
            (place / "new" / content).touch()
            replace_folder(place / "new", path)
        assert [file.name for file in path.iterdir()] == [content]
        assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_was_about_to_be_replaced_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".model-old").mkdir()
    recover_folder(tmp_path / "model")
    assert (tmp_path / "model").is_dir() and not (tmp_path / ".model-old").exists()


@linux
def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with (
        only_one(tmp_path),
        pytest.raises(UserError, match=r"another process writes to .* right now: give another `output`"),
        only_one(tmp_path),
    ):
        pass
    with only_one(tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_hostile_texts(parse: Any, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("[" * 20_000)
    with pytest.raises(ValueError, match=r"too deep inside each other|while parsing"):
        parse(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError):
        parse(path)
    path.write_text("1")
    os.truncate(path, 1 << 40)
    with pytest.raises(ValueError, match="at most are read"):
        parse(path)
    path.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        with pytest.raises(OSError, match="it is no file"):
            parse(path)
        path.unlink()
        path.symlink_to("/dev/zero")
        with pytest.raises(OSError, match="it is no file"):
            parse(path)


def test_names_that_lead_out_of_a_folder() -> None:
    for name in ("wall", "ogbench/cube-single", "module:Class", "a..b"):
        assert stays_inside(name)
    for name in ("../x", "a/../../x", "/etc/x", "", ".", "a\0b"):
        assert not stays_inside(name)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_weights_and_hashes_of_a_pipe_are_refused(tmp_path: Path) -> None:
    for name in ("weights.pth", "weights.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(OSError, match="it is no file"):
            sha256_file(tmp_path / name)
        with pytest.raises(UserError, match="is not a readable weights file"):
            read_weights(tmp_path / name)


def test_what_a_machine_runs_out_of_is_one_sentence() -> None:
    lacks = (
        OSError(28, "No space left on device", "there"),
        OSError(24, "Too many open files"),
        MemoryError("Unable to allocate 9 TiB"),
        RuntimeError("could not create a primitive"),
        RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    )
    for error in lacks:
        assert "machine" in str(machine_fault(error))
    for error in (RuntimeError("a bug"), FileNotFoundError(2, "No such file"), KeyError("a bug")):
        assert machine_fault(error) is None


def test_tensors_that_a_killed_process_left_are_removed(tmp_path: Path) -> None:
    killed = tmp_path / ".weights-0abcdefg"
    killed.mkdir()
    (killed / ".tmp123456").write_bytes(b"half of them")
    path = tmp_path / "weights.safetensors"
    for value in (1.0, 2.0):
        write_tensors(path, {"a": torch.full((3,), value)}, {"said": "so"})
        assert [one.name for one in tmp_path.iterdir()] == [path.name]
        assert load_file(path)["a"].tolist() == [value] * 3
    with pytest.raises(UserError, match="cannot write"):
        write_tensors(path / "inside.safetensors", {"a": torch.zeros(1)}, {})
