"""Tokens are encoded once; windows cut them, proprioception and actions out of whole episodes."""

from __future__ import annotations

import builtins
import errno
import json
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparsewm.data import (
    Dataset,
    TokenCache,
    Windows,
    encoding,
    fast_copy,
    loaded_ahead,
    open_dataset,
    token_bytes,
    token_file,
    token_statistics,
    tokens_of,
)
from sparsewm.encoders import ClsOnly, PatchEncoder, PatchFeatures, ViT
from sparsewm.errors import UserError
from tests.data.tiny import notes_after, small_disk, write_dataset
from tests.model.tiny import tiny_encoder


class Counting(ViT):
    """Counts the frames it encodes; breaks down after `patience` of them."""

    def __init__(self, weights_hash: str = "a" * 64, seed: int = 0, patience: float = float("inf")) -> None:
        super().__init__(resolution=28, patch=14, width=32, depth=1, heads=1, dim=8)
        self.load_state_dict(tiny_encoder(28, seed=seed).state_dict())
        self.hash, self.frames, self.patience = weights_hash, 0, patience
        self.freeze()

    def encode(self, pixels: Any, attention: bool = False) -> PatchFeatures:
        self.frames += len(pixels)
        if self.frames > self.patience:
            raise KeyboardInterrupt
        return super().encode(pixels, attention)


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """But for the last bit of float16: tokens of another batch may be rounded otherwise."""
    return torch.allclose(found.float(), expected.float(), rtol=2**-10, atol=2**-14)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset(write_dataset(tmp_path / "d.h5", (9, 5, 12)))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_cache_holds_the_tokens_of_every_row(dataset: Dataset) -> None:
    encoder, calls = Counting(), []
    cache = TokenCache(dataset, encoder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(26, 26)]
    expected = encoder.encode(dataset.pixels[:]).patches.half()
    assert alike(cache.rows(np.arange(26)), expected)
    assert alike(cache.rows(np.array([[3, 3], [25, 0]])), expected[torch.tensor([[3, 3], [25, 0]])])
    statistics = cache.statistics(np.arange(9), 0.5)
    torch.testing.assert_close(statistics, token_statistics(expected[:9].float(), 0.5))


def test_cache_is_built_once(dataset: Dataset) -> None:
    first = TokenCache(dataset, Counting())
    again = Counting()
    second = TokenCache(dataset, again)
    assert again.frames == 0 and second.path == first.path
    assert torch.equal(second.rows(np.arange(26)), first.rows(np.arange(26)))
    assert files(dataset.path.parent) == {"d.h5", first.path.name}


def test_cache_is_rebuilt_for_another_encoder(dataset: Dataset) -> None:
    first, other = TokenCache(dataset, Counting()), Counting("b" * 64, seed=1)
    second = TokenCache(dataset, other)
    assert other.frames == 26 and second.path != first.path
    assert alike(second.rows(np.arange(26)), other.encode(dataset.pixels[:]).patches.half())


def test_cache_is_rebuilt_for_other_data_under_the_same_name(tmp_path: Path) -> None:
    first = TokenCache(open_dataset(write_dataset(tmp_path / "d.h5")), Counting())
    changed, encoder = open_dataset(write_dataset(tmp_path / "d.h5", seed=3)), Counting()
    second = TokenCache(changed, encoder)
    assert encoder.frames == 26 and second.path != first.path
    assert alike(second.rows(np.arange(26)), encoder.encode(changed.pixels[:]).patches.half())


def test_cache_elsewhere(dataset: Dataset, tmp_path: Path) -> None:
    cache = TokenCache(dataset, Counting(), tmp_path / "scratch" / "tokens")
    assert cache.path.parent == tmp_path / "scratch" / "tokens"
    assert files(tmp_path) == {"d.h5", "scratch"}


def test_interrupted_build_goes_on_where_it_stopped(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes_after(8, monkeypatch)
    whole = TokenCache(dataset, Counting(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        TokenCache(dataset, Counting(patience=20), tmp_path / "resumed")  # in the third piece of eight rows
    rest = Counting()
    resumed = TokenCache(dataset, rest, tmp_path / "resumed")
    assert rest.frames == 26 - 16
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert files(tmp_path / "resumed") == {resumed.path.name}


def test_damaged_rest_of_a_build_is_started_anew(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes_after(8, monkeypatch)
    whole = TokenCache(dataset, Counting(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        TokenCache(dataset, Counting(patience=20), tmp_path / "resumed")
    (part,) = (tmp_path / "resumed").iterdir()
    part.write_bytes(part.read_bytes()[:10])
    assert TokenCache(dataset, Counting(), tmp_path / "resumed").path.read_bytes() == whole.path.read_bytes()


def test_cut_cache_is_built_again(dataset: Dataset) -> None:
    first = TokenCache(dataset, Counting())
    content = first.path.read_bytes()
    first.path.write_bytes(content[:-2])
    assert TokenCache(dataset, Counting()).path.read_bytes() == content


def test_a_hole_in_the_middle_is_seen(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the right size whose rows are partly zero, as two writers once left it."""
    notes_after(8, monkeypatch)
    first = TokenCache(dataset, Counting())
    content = first.path.read_bytes()
    row = first.values[0].nbytes
    first.path.write_bytes(content[: 9 * row] + bytes(5 * row) + content[14 * row :])
    again = Counting()
    assert TokenCache(dataset, again).path.read_bytes() == content and again.frames == 26


def test_rows_changed_after_an_interruption_are_encoded_again(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes_after(8, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        TokenCache(dataset, Counting(patience=20), tmp_path / "tokens")
    (part,) = (tmp_path / "tokens").iterdir()
    content = part.read_bytes()
    row = Counting().tokens * Counting().dim * 2
    part.write_bytes(bytes(row) + content[row:])
    encoder = Counting()
    cache = TokenCache(dataset, encoder, tmp_path / "tokens")
    assert encoder.frames == 26
    assert alike(cache.rows(np.arange(26)), encoder.encode(dataset.pixels[:]).patches.half())


class Slow(Counting):
    """Lets others run while it encodes."""

    def encode(self, pixels: Any, attention: bool = False) -> PatchFeatures:
        time.sleep(0.05)
        return super().encode(pixels, attention)


def test_two_programs_encode_one_dataset_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    notes_after(8, monkeypatch)
    encoders, said = [Slow(), Slow()], list[str]()
    with ThreadPoolExecutor(2) as pool:
        caches = list(pool.map(lambda one: TokenCache(dataset, one, report=said.append), encoders))
    assert sum(one.frames for one in encoders) == 26 and min(one.frames for one in encoders) >= 8
    assert sum("waiting for" in sentence for sentence in said) <= 2  # by each once
    expected = encoders[0].encode(dataset.pixels[:]).patches.half()
    assert all(alike(cache.rows(np.arange(26)), expected) for cache in caches)
    assert files(dataset.path.parent) == {"d.h5", caches[0].path.name}


@pytest.mark.slow
def test_what_a_killed_program_claimed_is_encoded_by_another(dataset: Dataset, tmp_path: Path) -> None:
    """It dies while it holds a claim; one that waits for it goes on."""
    arguments = (dataset.path, tmp_path / "tokens")
    process = multiprocessing.get_context("spawn").Process(target=_die, args=arguments)
    process.start()
    while process.is_alive() and not list((tmp_path / "tokens").glob("*.bin")):
        time.sleep(0.01)
    rest = Slow()
    cache = TokenCache(dataset, rest, tmp_path / "tokens")
    process.join()
    assert process.exitcode == -signal.SIGKILL and 0 < rest.frames <= 26
    assert alike(cache.rows(np.arange(26)), rest.encode(dataset.pixels[:]).patches.half())


class Dying(Slow):
    """Kills its process in the second batch."""

    def encode(self, pixels: Any, attention: bool = False) -> PatchFeatures:
        time.sleep(0.3)
        if self.frames >= 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(pixels, attention)


def _die(path: Path, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        notes_after(8, monkeypatch)
        TokenCache(open_dataset(path), Dying(), folder)


def test_only_rows_that_are_asked_for_are_encoded(dataset: Dataset) -> None:
    encoder, said = Counting(), list[str]()
    cache = TokenCache(dataset, encoder, report=said.append, rows=np.array([3, 4, 20, 4]))
    assert encoder.frames == 3 and "encoding 3 pictures" in said[0] and "192 bytes" in said[0]
    expected = Counting().encode(dataset.pixels[:]).patches.half()
    again = Counting()
    more = TokenCache(dataset, again, rows=np.array([4, 5]))
    assert again.frames == 1 and more.path == cache.path, "a later run adds what it lacks"
    assert alike(cache.rows(np.array([[3, 5], [20, 4]])), expected[torch.tensor([[3, 5], [20, 4]])])
    assert alike(more.rows(np.arange(26)), expected), "what nobody asked for is encoded when it is read"
    assert again.frames == 26 - 3 and encoder.frames == 3


def test_rows_that_are_missing_take_no_disk(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "d.h5", [2000]))
    found = TokenCache(dataset, Counting(), rows=np.arange(100, 110)).path.stat()
    assert found.st_size > 2000 * 64 > 2 * 512 * found.st_blocks


def test_a_file_of_an_earlier_version_is_used(dataset: Dataset, tmp_path: Path) -> None:
    name = TokenCache(dataset, Counting()).path.name
    values = Counting().encode(dataset.pixels[:]).patches.half().numpy()
    checksums = [zlib.crc32(values[i : i + 8].tobytes()) for i in range(0, 26, 8)]
    record = json.dumps({"shape": values.shape, "block": 8, "rows": 26, "checksums": checksums}).encode()
    whole = values.tobytes() + record + len(record).to_bytes(8, "little") + b"sparsewm tokens1"
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / name).write_bytes(whole)
    again = Counting()
    cache = TokenCache(dataset, again, folder)
    assert again.frames == 0 and torch.equal(cache.rows(np.arange(26)), torch.from_numpy(values))
    assert (folder / name).read_bytes() == whole
    (folder / name).write_bytes(whole[:700] + b"xxxx" + whole[704:])
    assert torch.equal(TokenCache(dataset, again, folder).rows(np.arange(26)), torch.from_numpy(values))
    assert again.frames == 26


def test_eight_bits_take_half_the_disk_and_keep_what_tells_pictures_apart(dataset: Dataset) -> None:
    encoder, said = Counting(), list[str]()
    cache = TokenCache(dataset, encoder, report=said.append, kind="int8", whitening=0.5)
    assert re.fullmatch(r"tokens in 8 bits: rounding takes [0-4][.]\d% of their deviation .*", said[0])
    assert cache.path.name.endswith("-int8.bin")
    assert token_bytes(26, encoder, "int8") == 26 * 4 * (8 + 2) == cache.values.nbytes
    exact = encoder.encode(dataset.pixels[:]).patches.float()
    found = cache.rows(np.arange(26))
    assert found.dtype == torch.float32
    assert (found - exact).square().mean() < 0.03**2 * (exact - exact.mean(0)).square().mean()
    again = Counting()
    assert torch.equal(TokenCache(dataset, again, kind="int8", whitening=0.5).rows(np.arange(26)), found)
    assert again.frames == 0
    assert TokenCache(dataset, Counting()).path != cache.path


def test_eight_bits_that_round_off_too_much_are_refused(dataset: Dataset) -> None:
    layout = token_file.Layout((26, 4, 8), "int8")
    said = (
        r"round off \d.* of what tells the tokens of encoder 'embedded' apart.*: give `cache` float16 or none"
    )
    with pytest.raises(UserError, match=said):
        encoding.common_part(Counting(), dataset, layout, tolerance=1e-4)


def test_without_a_cache_pictures_are_encoded_when_they_are_read(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Counting()
    tokens = tokens_of(dataset, encoder, "none")
    expected = Counting().encode(dataset.pixels[:]).patches.half()
    rows = np.array([[3, 4], [4, 20]])
    assert alike(tokens.rows(rows), expected[torch.from_numpy(rows)]) and encoder.frames == 3
    assert alike(tokens.rows(rows), expected[torch.from_numpy(rows)]) and encoder.frames == 3
    monkeypatch.setattr(tokens, "_most", 2)
    for row in (5, 6, 7):
        assert alike(tokens.rows(np.array([row])), expected[[row]])
    assert encoder.frames == 6
    tokens.rows(np.array([7, 6]))
    assert encoder.frames == 6, "those read last are kept"
    tokens.rows(np.array([5]))
    assert encoder.frames == 7
    assert alike(tokens.rows(np.arange(26)), expected), "more than are kept at once"
    assert files(dataset.path.parent) == {"d.h5"}
    with pytest.raises(UserError, match=r"unknown `cache` 'int7'. Did you mean 'int8'"):
        tokens_of(dataset, encoder, "int7")


def test_a_cache_that_cannot_be_written_to_is_used_and_added_to_elsewhere(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEWM_CACHE", str(tmp_path / "cache"))
    first = TokenCache(dataset, Counting(), rows=np.arange(5))
    opened, made = builtins.open, tempfile.TemporaryFile

    def read_only(path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if path == first.path and "+" in mode:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, mode, *rest, **named)

    def no_file(dir: Path) -> Any:
        if Path(dir) == dataset.path.parent:
            raise OSError(errno.EROFS, "Read-only file system")
        return made(dir=dir)

    monkeypatch.setattr("builtins.open", read_only)
    monkeypatch.setattr("tempfile.TemporaryFile", no_file)
    encoder = Counting()
    cache = TokenCache(dataset, encoder, rows=np.arange(4))
    assert encoder.frames == 0 and cache.path == first.path
    assert alike(cache.rows(np.arange(6)), Counting().encode(dataset.pixels[:6]).patches.half())
    assert encoder.frames == 6 and cache.path.parent == tmp_path / "cache"


def test_two_programs_on_a_disk_without_locks(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr("fcntl.fcntl", no_locks)
    monkeypatch.setattr("os.getpid", threading.get_ident)  # as if threads were programs
    encoders = [Slow(), Slow()]
    with ThreadPoolExecutor(2) as pool:
        caches = list(pool.map(lambda one: TokenCache(dataset, one), encoders))
    expected = encoders[0].encode(dataset.pixels[:]).patches.half()
    assert all(alike(cache.rows(np.arange(26)), expected) for cache in caches)
    assert not list(dataset.path.parent.glob("*.partial-*"))


def test_precision_resolution_and_bars_have_files_of_their_own(dataset: Dataset) -> None:
    def varied(change: Any) -> PatchEncoder:
        encoder = Counting()
        change(encoder)
        return encoder

    exact = TokenCache(dataset, Counting())
    others = [
        varied(lambda encoder: encoder.bfloat16()),
        varied(lambda encoder: encoder.resize((42, 42))),
        varied(lambda encoder: setattr(encoder, "letterbox", True)),
        varied(lambda encoder: setattr(encoder, "mean", (0.5, 0.5, 0.5))),
        varied(lambda encoder: setattr(encoder, "name", "timm:the_same_weights")),
        ClsOnly(Counting()),
    ]
    assert len({exact.path, *(TokenCache(dataset, other).path for other in others)}) == 7


def test_the_place_and_the_disk_are_said_before(dataset: Dataset) -> None:
    said: list[str] = []
    TokenCache(dataset, Counting(), report=said.append)
    assert said == [f"encoding 26 pictures with embedded: tokens take 1.66 kB in {dataset.path.parent}"]
    assert token_bytes(26, Counting()) == 26 * 4 * 8 * 2


def test_tokens_go_to_the_cache_folder_where_the_data_cannot_be_written_to(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, said = tempfile.TemporaryFile, list[str]()

    def read_only(dir: Path) -> Any:
        if Path(dir) == dataset.path.parent:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(dir=dir)

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    monkeypatch.setenv("SPARSEWM_CACHE", str(tmp_path / "cache"))
    cache = TokenCache(dataset, Counting(), report=said.append)
    assert cache.path.parent == tmp_path / "cache" and str(tmp_path / "cache") in said[0]
    again = Counting()
    assert TokenCache(dataset, again).path == cache.path and again.frames == 0
    monkeypatch.setenv("SPARSEWM_CACHE", str(dataset.path / "inside a file"))
    with pytest.raises(UserError, match=r"Read-only file system.* or .*give `directory` a folder that can"):
        TokenCache(dataset, Counting("b" * 64))


def test_tokens_beside_data_that_cannot_be_written_to_are_used(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    TokenCache(dataset, Counting())
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: pytest.fail("nothing needs to be written"))
    again = Counting()
    assert TokenCache(dataset, again).path.parent == dataset.path.parent and again.frames == 0


def test_a_disk_too_small_is_told_before_the_encoding(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    encoder = Counting()
    said = r"needs 1.66 kB and 1 kB are free; free some space, give `cache` int8 or none, or give `directory`"
    with pytest.raises(UserError, match=said):
        TokenCache(dataset, encoder)
    assert encoder.frames == 0


def test_full_disk_while_encoding(dataset: Dataset, tmp_path: Path) -> None:
    said = r"disk is full while writing .*: free some space, give `cache` int8 or none, or give `directory`"
    with small_disk(500), pytest.raises(UserError, match=said):
        TokenCache(dataset, Counting(), tmp_path / "tokens")
    assert not list((tmp_path / "tokens").glob("*.bin"))


def test_windows_are_slices_of_the_dataset(dataset: Dataset) -> None:
    """Lengths 9, 5 and 12 with windows of 4 frames 2 steps apart (7 rows): 3 + 0 + 6 of them."""
    cache = TokenCache(dataset, Counting())
    windows = Windows(dataset, cache, frames=4, frameskip=2, episodes=np.arange(3))
    starts = [0, 1, 2, 14, 15, 16, 17, 18, 19]
    assert len(windows) == len(starts)
    batch = windows.batch(np.arange(len(windows)))
    everything = cache.rows(np.arange(dataset.rows))
    for i, start in enumerate(starts):
        rows = slice(start, start + 7, 2)
        assert torch.equal(batch["tokens"][i], everything[rows])
        assert np.array_equal(batch["proprio"][i], dataset.proprio[rows])
        assert np.array_equal(batch["state"][i], dataset.state[rows])
        for t in range(3):
            joined = np.concatenate([dataset.action[start + 2 * t], dataset.action[start + 2 * t + 1]])
            assert np.array_equal(batch["action"][i, t], joined)
    assert {name: value.dtype for name, value in batch.items()} == {
        "tokens": torch.float16,
        "proprio": torch.float32,
        "action": torch.float32,
        "state": torch.float64,
    }


def test_windows_never_leave_their_episodes(dataset: Dataset) -> None:
    """Actions lead from each frame to the next: across the end of an episode they would not."""
    cache = TokenCache(dataset, Counting())
    windows = Windows(dataset, cache, frames=3, frameskip=2, episodes=np.array([2, 0]))
    batch = windows.batch(np.arange(len(windows)))
    assert len(windows) == 8 + 5
    assert not np.isin(windows.starts, np.arange(9, 14)).any()  # the middle episode
    moves = batch["action"].reshape(len(windows), 2, 2, 2).numpy()
    position = batch["state"][:, :-1].numpy()
    for step in range(2):
        position = np.clip(position + 0.1 * moves[:, :, step], 0, 1)
    np.testing.assert_allclose(position, batch["state"][:, 1:].numpy(), atol=1e-6)


def test_sampled_windows_are_a_function_of_the_generator(dataset: Dataset) -> None:
    windows = Windows(dataset, TokenCache(dataset, Counting()), 2, 1, np.arange(3))
    first, same, other = (windows.sample(np.random.default_rng(seed), 6)["proprio"] for seed in (1, 1, 2))
    assert first.shape == (6, 2, 2) and torch.equal(first, same) and not torch.equal(first, other)
    seen = {
        start
        for seed in range(40)
        for start in windows.sample(np.random.default_rng(seed), 8)["state"][:, 0, 0]
    }
    assert len({float(value) for value in seen}) == len(windows)  # every window gets its turn


def test_windows_are_cut_after_their_first_frames(dataset: Dataset) -> None:
    windows = Windows(dataset, TokenCache(dataset, Counting()), frames=4, frameskip=2, episodes=np.arange(3))
    whole, part = windows.batch(np.array([1, 5])), windows.batch(np.array([1, 5]), 2)
    for name, value in part.items():
        assert torch.equal(value, whole[name][:, : value.shape[1]])
    assert {name: value.shape[1] for name, value in part.items()} == {
        "tokens": 2,
        "proprio": 2,
        "action": 1,
        "state": 2,
    }


def test_loading_ahead_gives_and_raises_the_same_and_leaves_no_thread() -> None:
    before, seen = threading.active_count(), list[int]()

    def load(step: int) -> int:
        seen.append(step)
        if step == 3:
            raise UserError("no third step")
        return step * step

    with pytest.raises(UserError, match="no third step"), loaded_ahead(load, 9) as ahead:
        assert [ahead(step) for step in (0, 1, 2)] == [0, 1, 4]
        ahead(3)
    assert threading.active_count() == before and seen == [0, 1, 2, 3]
    with pytest.raises(KeyboardInterrupt), loaded_ahead(load, 9) as ahead:
        assert ahead(5) == 25
        raise KeyboardInterrupt
    assert threading.active_count() == before
    seen.clear()
    with loaded_ahead(load, 7) as ahead:
        assert [ahead(step) for step in (6, 4, 6)] == [36, 16, 36], "steps may come in any order"
    assert 7 not in seen, "nothing behind the last step"


def test_no_episode_is_long_enough(dataset: Dataset) -> None:
    cache = TokenCache(dataset, Counting())
    assert len(Windows(dataset, cache, frames=12, frameskip=1, episodes=np.arange(3))) == 1
    message = (
        "no episode of .*: 8 frames 2 steps apart need 15 rows, the longest of these 3 has 12; "
        "collect longer episodes"
    )
    with pytest.raises(UserError, match=message):
        Windows(dataset, cache, frames=8, frameskip=2, episodes=np.arange(3))
    with pytest.raises(UserError, match=r"the longest of these 1 has 5"):
        Windows(dataset, cache, frames=4, frameskip=2, episodes=np.array([1]))


def test_an_encoder_whose_tokens_hardly_change_is_not_rounded(dataset: Dataset) -> None:
    encoder, pixels = tiny_encoder(28), dataset.pixels[:]
    rounded = fast_copy(encoder, pixels, torch.bfloat16)
    assert next(rounded.parameters()).dtype == torch.bfloat16 and rounded.hash == encoder.hash
    assert next(encoder.parameters()).dtype == torch.float32, "the encoder itself stays exact"
    with torch.no_grad():
        encoder.project.weight.mul_(0.05)
        encoder.project.bias.fill_(2.0)  # a large constant, beside which frames differ by very little
    assert fast_copy(encoder, pixels, torch.bfloat16) is encoder
    tokens = TokenCache(dataset, encoder).rows(np.arange(dataset.rows)).float()
    exact = encoder.encode(pixels).patches
    assert (tokens - exact).std() < 0.3 * (exact - exact.mean(0)).std()
    assert (exact.bfloat16().float() - exact).std() > (exact - exact.mean(0)).std()


def narrow_tokens() -> torch.Tensor:
    """Tokens (400, 3, 5) that vary along two directions, one of them ten times as much as the other."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0][:2]
    strength = torch.randn(400, 3, 2, generator=generator) * torch.tensor([10.0, 1.0])
    return strength @ directions + torch.randn(3, 5, generator=generator)


def test_statistics_without_whitening_divide_every_feature_by_its_deviation() -> None:
    tokens = narrow_tokens()
    statistics = token_statistics(tokens)
    torch.testing.assert_close(statistics["token_mean"], tokens.mean(0))
    deviation = (tokens - tokens.mean(0)).square().mean((0, 1)).sqrt()
    torch.testing.assert_close(statistics["token_map"], torch.diag(1 / deviation))


@pytest.mark.parametrize("whitening", [0.0, 0.7])
def test_statistics_in_blocks_are_those_of_all_at_once(
    whitening: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = narrow_tokens().half()
    whole = token_statistics(tokens, whitening)
    monkeypatch.setattr("sparsewm.data.statistics.BLOCK_BYTES", 8 * 3 * 5 * 7)  # seven frames
    torch.testing.assert_close(token_statistics(tokens, whitening), whole)


def test_whitening_weighs_weak_directions_up_and_keeps_the_scale() -> None:
    tokens, shares = narrow_tokens(), []
    for whitening in (0.0, 0.5, 1.0):
        statistics = token_statistics(tokens, whitening)
        mapped = ((tokens - statistics["token_mean"]) @ statistics["token_map"]).flatten(0, 1)
        assert mapped.square().mean().item() == pytest.approx(1, rel=1e-3)
        variances = torch.linalg.eigvalsh(mapped.T @ mapped / len(mapped))
        shares.append(float(variances[-2] / variances[-1]))
        assert variances[:3].abs().max() < 1e-3  # what never varies is not blown up
    assert shares[0] < 0.4 and shares[0] < shares[1] < shares[2] and shares[2] > 0.5


def test_rounding_is_judged_in_the_measure_of_the_cost() -> None:
    encoder = tiny_encoder(28)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 3), dtype=np.uint8)
    plain, white = (
        encoding.token_precision(encoder, deepcopy(encoder).bfloat16(), pixels, whitening)
        for whitening in (0.0, 1.0)
    )
    assert plain["deviation"] == pytest.approx(1, rel=1e-3) == pytest.approx(white["deviation"], rel=1e-3)
    assert white["error"] > plain["error"] > 0
