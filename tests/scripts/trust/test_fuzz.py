"""What fuzzing found before is read as promised: inputs of the corpus are read, or end in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import pytest

from scripts.trust import fuzz

if sys.platform != "linux":
    pytest.skip("processes that are forked", allow_module_level=True)


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_inputs_that_reached_new_branches(target: str, tmp_path: Path) -> None:
    if target == "table":
        pytest.importorskip("pyarrow")
    fuzz.sound(target, tmp_path)
    inputs = sorted((fuzz.CORPUS / target).glob("*"))
    assert inputs
    for path in inputs:
        content = path.read_bytes()
        assert len(content) <= fuzz.LARGEST
        fuzz.tried(target, tmp_path, content)  # raises anything but a `UserError`


def test_a_reader_that_raises_something_else_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(file: Path) -> object:
        return {b"x": 1}[file.read_bytes()]

    make, place, _ = fuzz.TARGETS["names"]
    monkeypatch.setitem(fuzz.TARGETS, "names", (make, place, reads))
    make(tmp_path)
    fuzz.tried("names", tmp_path, b"x")
    with pytest.raises(KeyError):
        fuzz.tried("names", tmp_path, b"y")


def test_the_smallest_inputs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that reach the same, the shorter one; none that reaches what the sound one does."""
    monkeypatch.setattr(fuzz, "CORPUS", tmp_path / "corpus")
    work = tmp_path / "work" / "names"
    work.mkdir(parents=True)
    for name, content in (("a", "scale: many\n"), ("b", "# why\nscale: many\n"), ("c", "scale: 3.0\n")):
        (work / name).write_text(content)
    assert fuzz.keep("names", work.parent) == 1
    (kept,) = (fuzz.CORPUS / "names").iterdir()
    assert kept.read_text() == "scale: many\n"


def test_inputs_that_keep_the_hdf5_library_itself_busy_are_known(tmp_path: Path) -> None:
    """A text longer than the file, and a heap whose free room has no size."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["environment"] = "wall"
    content = (tmp_path / "a.h5").read_bytes()
    assert not fuzz.boundless(content) and not fuzz.endless(content)
    heap = content.index(b"GCOL")
    named = content.rindex(heap.to_bytes(8, "little"))
    assert int.from_bytes(content[named - 4 : named], "little") == len("wall")
    huge = content[: named - 4] + (1 << 31).to_bytes(4, "little") + content[named:]
    assert fuzz.boundless(huge) and not fuzz.endless(huge)
    room = heap + 16 + 16 + 8  # behind the heap's head and the one text, padded
    assert int.from_bytes(content[room : room + 2], "little") == 0
    stuck = content[: room + 8] + bytes(8) + content[room + 16 :]
    assert fuzz.endless(stuck) and not fuzz.boundless(stuck)
