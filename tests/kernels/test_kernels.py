"""Kernels are compiled once, loaded where processor and system allow it, and nothing depends on them."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsewm.kernels import LAYOUTS, Layout, build, denormals, layers, layers_library, training


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look for the kernels anew, now and afterwards."""
    monkeypatch.delenv("SPARSEWM_KERNELS", raising=False)
    layers_library.cache_clear()
    yield
    layers_library.cache_clear()


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("load", [partial(layers_library, layout) for layout in LAYOUTS])
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("SPARSEWM_KERNELS", "0", "SPARSEWM_KERNELS=0"),
        ("CC", "false --really", "does not compile them"),
        ("CC", "no-such-compiler", "no-such-compiler"),
        ("PATH", "", "no C compiler"),
    ],
)
def test_without_a_kernel_there_is_a_reason(
    load: Any,
    name: str,
    value: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    able = {name for layout in LAYOUTS for name in layout.needed}
    monkeypatch.setattr(build, "processor", lambda: able)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert reason in str(load())
    left = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {".failed"}  # nothing is left half-made


@pytest.mark.usefixtures("afresh")
def test_another_processor_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "processor", lambda: {"avx2"})
    for layout in LAYOUTS:
        assert layers_library(layout) == "the processor has no avx512_bf16"


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize(
    "layout", [layout for layout in LAYOUTS if layout.tiles], ids=lambda layout: layout.name
)
def test_a_matrix_unit_that_is_not_lent_is_not_used(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(request_tiles=lambda: -1)
    monkeypatch.setattr(layers, "load_library", lambda *arguments: refusing)
    assert layers_library(layout) == "the system does not lend its matrix unit"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sources", "flags"),
    [
        (denormals.SOURCES, denormals.FLAGS),
        *((layers.SOURCES, layout.flags) for layout in LAYOUTS),
        *((training.SOURCES, flags) for flags, _ in training.VARIANTS.values()),
    ],
    ids=["denormals", *(layout.name for layout in LAYOUTS), *training.VARIANTS],
)
def test_kernels_are_compiled_once(
    sources: list[Path], flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = build.compiled("kernels", sources, flags)  # whatever this processor could run of them
    if platform.machine() != "x86_64":
        assert "does not compile them" in str(library)
        return
    assert isinstance(library, Path) and [*(tmp_path / "sparsewm").iterdir()] == [library]
    made = os.stat(library).st_mtime_ns
    assert build.compiled("kernels", sources, flags) == library and os.stat(library).st_mtime_ns == made


def compiler(folder: Path, version: str, exit_code: int) -> str:
    """A stand-in for a compiler, which notes its calls; its name."""
    program = folder / "compiler"
    program.write_text(
        f"""#!/bin/sh
[ "$1" = --version ] && echo {version} && exit 0
echo x >> {folder}/calls
for word; do last=$word; done
touch "$last"; echo it does not like it >&2; exit {exit_code}
"""
    )
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "some.c"
    path.write_text("int one;")
    return path


def test_what_does_not_compile_is_tried_once_a_day(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, "1.0", 1))
    for _ in range(3):
        assert "it does not like it" in str(build.compiled("some", [source], ()))
    assert (tmp_path / "calls").read_text() == "x\n"
    (note,) = (tmp_path / "cache" / "sparsewm").iterdir()
    os.utime(note, (0, 0))
    build.compiled("some", [source], ())
    assert (tmp_path / "calls").read_text() == "x\nx\n"


def test_compiling_is_announced_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, "1.0", 0))
    monkeypatch.setattr(logging.getLogger("sparsewm.kernels.build"), "propagate", False)  # as without pytest
    build._announce.cache_clear()
    for name in ("some", "another"):
        build.compiled(name, [source], ())
    assert capfd.readouterr() == ("", "compiling kernels for this processor, once: 5 to 20 s\n")
    build._announce.cache_clear()
    build.compiled("some", [source], ())
    assert capfd.readouterr() == ("", "")  # it is there


def test_another_version_of_the_compiler_compiles_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, "1.0", 0))
    first = build.compiled("some", [source], ())
    compiler(tmp_path, "2.0", 0)
    second = build.compiled("some", [source], ())
    assert isinstance(first, Path) and isinstance(second, Path) and first != second
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert build.compiled("some", [source], ()) in (first, second)  # made while there was a compiler


def test_code_that_another_user_could_have_written_is_not_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, "1.0", 0))
    library = build.compiled("some", [source], ())
    assert isinstance(library, Path)
    library.write_text("planted")
    library.chmod(0o777)
    assert build.compiled("some", [source], ()) == library and library.read_text() != "planted"
    library.parent.chmod(0o777)
    build.compiled("some", [source], ())
    assert library.parent.stat().st_mode & 0o077 == 0
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert "belongs to another user: set XDG_CACHE_HOME" in str(build.compiled("some", [source], ()))


def test_without_a_home_there_is_a_reason(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert build.compiled("some", [source], ()) == "no home folder: set XDG_CACHE_HOME"
