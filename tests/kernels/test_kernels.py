"""The compiled kernels compute what torch's operations do, and nothing depends on them."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.trust.emulation import emulated
from sparsewm.kernels import LAYOUTS, Frame, Kernels, amx, build, denormals, kernels, layers, layers_library
from sparsewm.model import rollout
from sparsewm.model.latent import gather_patches
from sparsewm.model.rollout import BufferWindow, Rollout
from tests.model.tiny import random_actions, random_latent, tiny_model

KERNELS = kernels()
LOADERS = (kernels, layers_library)
UNIT = emulated() if isinstance(KERNELS, str) else KERNELS  # its tiles in plain C where there is no unit
compiled = pytest.mark.skipif(isinstance(UNIT, str), reason=f"{UNIT}")


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look for the kernels anew, now and afterwards."""
    monkeypatch.delenv("SPARSEWM_KERNELS", raising=False)
    for load in LOADERS:
        load.cache_clear()
    yield
    for load in LOADERS:
        load.cache_clear()


def reference(queries: Tensor, frames: list[Frame]) -> Tensor:
    keys, values = [], []
    for frame in frames:
        age = 0 if frame.age is None else frame.age.float().transpose(0, 1)
        keys.append((frame.keys.float() + age).transpose(2, 3))
        values.append(frame.values.float().transpose(2, 3))
    weights = torch.softmax(queries.float().transpose(2, 3) @ torch.cat(keys, 3).mT, -1)
    return (weights @ torch.cat(values, 3)).transpose(2, 3).flatten(3)


def queries_and_frames(
    size: int,
    length: int,
    own: int,
    shared: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, list[Frame]]:
    """What attention is asked in a rollout: frames of each candidate's own, then recorded ones for all."""
    generator = torch.Generator().manual_seed(size * length + own)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    b, s, heads = 2, 3, 2
    ages = 0.5 * random(own + shared, heads, 1, size)
    frames = []
    for age in range(own):
        qkv = random(b, s, length, 3, heads, size)
        frames.append(Frame(qkv[:, :, :, 1], qkv[:, :, :, 2], ages[age] if age else None))
    queries = qkv[:, :, :, 0] * size**-0.5
    for age in range(own, own + shared):  # of another length, in another layout, one for all candidates
        keys, values = (random(b, heads, length + 3, size).transpose(1, 2)[:, None] for _ in range(2))
        frames.append(Frame(*(x.expand(-1, s, -1, -1, -1) for x in (keys, values)), ages[age]))
    return queries, frames


class ByTorch(Kernels):
    """The compiled functions by torch's operations: what is built around them runs on any processor."""

    def __init__(self) -> None:
        pass

    def attend(self, queries: Tensor, frames: Sequence[Frame]) -> Tensor:
        return reference(queries, [*frames]).to(queries.dtype)

    def modulate(
        self, x: Tensor, added: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        return rollout.modulate(x, added, gate, shift, scale)


@compiled
@pytest.mark.parametrize("size", [2, 16, 24, 32, 40, 64])
@pytest.mark.parametrize("length", [1, 15, 16, 33, 50])
@pytest.mark.parametrize(("own", "shared"), [(1, 0), (3, 0), (1, 2), (2, 1)])
def test_attention_is_softmax_of_products(size: int, length: int, own: int, shared: int) -> None:
    assert isinstance(UNIT, Kernels)
    queries, frames = queries_and_frames(size, length, own, shared)
    found = UNIT.attend(queries, frames)
    assert found.shape == (*queries.shape[:3], queries.shape[3] * size) and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), reference(queries, frames), rtol=0.02, atol=0.02)


@compiled
def test_large_scores_do_not_overflow() -> None:
    assert isinstance(UNIT, Kernels)
    qkv = 60 * torch.randn(1, 2, 40, 3, 2, 32).bfloat16()
    frame = Frame(qkv[:, :, :, 1], qkv[:, :, :, 2])
    found = UNIT.attend(qkv[:, :, :, 0], [frame])
    torch.testing.assert_close(found.float(), reference(qkv[:, :, :, 0], [frame]), rtol=0.02, atol=2.0)


@compiled
def test_any_number_of_threads_gives_the_same() -> None:
    assert isinstance(UNIT, Kernels)
    qkv = torch.randn(2, 5, 20, 3, 2, 24).bfloat16()
    frame, before = Frame(qkv[:, :, :, 1], qkv[:, :, :, 2]), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(UNIT.attend(qkv[:, :, :, 0], [frame]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@compiled
@pytest.mark.parametrize("width", [16, 192, 400])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("everywhere", [True, False])
def test_modulation_is_that_of_torch(width: int, alone: bool, adds: bool, everywhere: bool) -> None:
    assert isinstance(UNIT, Kernels)
    generator = torch.Generator().manual_seed(width)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    x = 3 + random(2, 1 if alone else 3, 5, width)
    parts = random(2, 3, 1, 4 * width).chunk(4, -1)  # rows of a larger tensor, as in the rollout
    added, gate = (random(2, 3, 5, width), parts[0]) if adds else (None, None)
    shift, scale = (random(width), random(width)) if everywhere else parts[1:3]
    wide = [None if part is None else part.float() for part in (x, added, gate, shift, scale)]
    total, y = rollout.modulate(*wide)  # type: ignore[arg-type]
    if everywhere and not adds:
        y = y.expand(2, x.shape[1], -1, -1)
    found_total, found = UNIT.modulate(x.clone(), added, gate, shift, scale)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found_total.float(), total, rtol=0.01, atol=0.01)
    torch.testing.assert_close(found.float(), y, rtol=0.02, atol=0.03)


@compiled
def test_modulation_of_episodes_with_one_candidate_each() -> None:
    assert isinstance(UNIT, Kernels)
    x, added = torch.randn(2, 2, 1, 5, 32).bfloat16()
    gate, shift, scale = torch.randn(2, 1, 1, 96).bfloat16().chunk(3, -1)
    expected = rollout.modulate(*(part.float() for part in (x, added, gate, shift, scale)))
    for found, exact in zip(UNIT.modulate(x, added, gate, shift, scale), expected, strict=True):
        torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.03)


@pytest.mark.parametrize("seen", [0, 2])
@pytest.mark.parametrize(
    "used", [KERNELS, UNIT, ByTorch(), "off"], ids=["as here", "unit", "stand-in", "off"]
)
def test_rollout_in_bfloat16_is_near_the_exact_one(
    seen: int, used: Kernels | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    model = tiny_model(history=3)
    with torch.no_grad():
        for block in model.predictor.blocks:
            block.age += torch.randn(block.age.shape, generator=generator)
    latent, patches = random_latent(model, 2, generator), torch.tensor([[3, 1, 9], [14, 0, 5]])
    seen_frames = [(random_latent(model, 2, generator), random_actions(model, 2, generator=generator))] * seen
    actions = random_actions(model, 2, 4, 5, generator=generator)
    start = gather_patches(latent.tokens, patches), latent.proprio
    exact = list(model.imagine(*start, actions, patches, model.remember(seen_frames, patches)))
    model.predictor.to(torch.bfloat16)
    monkeypatch.setattr(rollout, "kernels", lambda: used)
    with torch.inference_mode():
        fast = Rollout(model.predictor)
        past = model.remember(seen_frames, patches, fast)
        assert fast.compiled is (used if isinstance(used, Kernels) else None)
        found = list(fast.imagine(*start, model.standardizer.actions(actions), patches, past))
    change = (exact[-1][0] - start[0][:, None]).square().mean().sqrt()
    for (tokens, _), (expected, _) in zip(found, exact, strict=True):
        assert (tokens - expected).square().mean().sqrt() < 0.03 * change


def test_heads_the_kernel_has_no_room_for_take_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Kernels.fit(torch.bfloat16, 384, 64) and not Kernels.fit(torch.float32, 384, 64)
    assert not Kernels.fit(torch.bfloat16, 32, 72) and not Kernels.fit(torch.bfloat16, 384, 23)
    model = tiny_model(width=160, heads=2)
    model.predictor.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    latent, patches = random_latent(model, 1, generator), torch.arange(4)[None]
    actions = random_actions(model, 1, 2, 1, generator=generator)
    used = []
    attend = BufferWindow.attend
    monkeypatch.setattr(BufferWindow, "attend", lambda self, *rest: used.append(1) or attend(self, *rest))
    start = gather_patches(latent.tokens, patches), latent.proprio
    with torch.inference_mode():
        next(Rollout(model.predictor).imagine(*start, actions, patches))
    assert used


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("load", [kernels, *(partial(layers_library, layout) for layout in LAYOUTS.values())])
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
    able = {name for layout in LAYOUTS.values() for name in layout.needed}
    monkeypatch.setattr(build, "processor", lambda: able.union(amx.NEEDED))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert reason in str(load())
    left = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {".failed"}  # nothing is left half-made


@pytest.mark.usefixtures("afresh")
def test_another_processor_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "processor", lambda: {"avx2"})
    assert kernels() == "the processor has no amx_bf16"
    assert layers_library(layers.BFLOAT16) == "the processor has no avx512_bf16"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sources", "flags"),
    [
        (amx.SOURCES, amx.FLAGS),
        (denormals.SOURCES, denormals.FLAGS),
        *((layers.SOURCES, layout.flags) for layout in LAYOUTS.values()),
    ],
    ids=["amx", "denormals", *(layout.name for layout in LAYOUTS.values())],
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
