"""What can be wrong with a file: of any kind, and of HDF5, checkpoints, settings, tables and videos."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml

CANARY = "EXECUTED"
"""A file that appears where an input runs something."""

Damage = Callable[[Path, np.random.Generator], Any]


@dataclass(frozen=True)
class Case:
    """One thing that is wrong.

    Attributes:
        name: what. apply: does it to a file or folder.
        may_pass: whether a reader cannot notice, or need not mind.
    """

    name: str
    apply: Damage
    may_pass: bool = False


class Evil:
    """An object that runs a program when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


# Any file ------------------------------------------------------------------------------------------------


def _cut(share: float) -> Damage:
    def apply(path: Path, rng: np.random.Generator) -> None:
        os.truncate(path, int(share * path.stat().st_size))

    return apply


def _shorter(path: Path, rng: np.random.Generator) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _flips(count: int, first: int | None = None) -> Damage:
    def apply(path: Path, rng: np.random.Generator) -> None:
        data = bytearray(path.read_bytes())
        for place in rng.integers(0, min(len(data), first or len(data)), count):
            data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)

    return apply


def _zeros(first: float, last: float) -> Damage:
    def apply(path: Path, rng: np.random.Generator) -> None:
        data = bytearray(path.read_bytes())
        start, stop = int(first * len(data)), int(last * len(data))
        data[start:stop] = bytes(stop - start)
        path.write_bytes(data)

    return apply


def _replaced(content: Callable[[np.random.Generator], bytes]) -> Damage:
    return lambda path, rng: path.write_bytes(content(rng))


def _longer(size: int) -> Damage:
    return lambda path, rng: os.truncate(path, path.stat().st_size + size)


def _instead(make: Callable[[Path], Any]) -> Damage:
    def apply(path: Path, rng: np.random.Generator) -> None:
        path.unlink()
        make(path)

    return apply


def _torch_pickle(path: Path, rng: np.random.Generator) -> None:
    with path.open("wb") as file:  # by its name torch does not write a file that begins with a dot
        torch.save({"weights": Evil()}, file)


def _zip_bomb(path: Path, rng: np.random.Generator) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        block = bytes(1 << 20)
        with file.open("archive/data/0", "w", force_zip64=True) as part:
            for _ in range(96):
                part.write(block)
        file.writestr("archive/data.pkl", pickle.dumps([0]))
        file.writestr("archive/version", "3\n")


def _escaping_zip(path: Path, rng: np.random.Generator) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../escaped", "x")
        file.writestr("/tmp/escaped-from-zip", "x")


FILE = [
    Case("missing", lambda path, rng: path.unlink(), True),
    Case("empty", _cut(0)),
    Case("a tenth of it", _cut(0.1)),
    Case("half of it", _cut(0.5)),
    Case("nine tenths of it", _cut(0.9)),
    Case("the last byte cut off", _shorter, True),
    Case("a bit of its head flipped", _flips(1, 64), True),
    Case("bits of its head flipped", _flips(16, 64), True),
    Case("a bit flipped", _flips(1), True),
    Case("bits flipped", _flips(32), True),
    Case("many bits flipped", _flips(1000), True),
    Case("its head zeros", _zeros(0, 0.05), True),
    Case("its middle zeros", _zeros(0.3, 0.6), True),
    Case("zeros alone", _zeros(0, 1)),
    Case("noise", _replaced(lambda rng: rng.bytes(4096))),
    Case("text", _replaced(lambda rng: b"this is a text, no data\n" * 20)),
    Case("no text of UTF-8", _replaced(lambda rng: b"\xff\xfe\xfa" * 99)),
    Case("a pickle that runs", _replaced(lambda rng: pickle.dumps(Evil()))),
    Case("weights that run", _torch_pickle),
    Case("a zip bomb", _zip_bomb),
    Case("a zip that leaves its folder", _escaping_zip),
    Case("64 GB of a hole behind it", _longer(1 << 36), True),
    Case("a folder", _instead(Path.mkdir)),
    Case("a link to itself", _instead(lambda path: path.symlink_to(path.name)), True),
    Case("a link to nothing", _instead(lambda path: path.symlink_to("/nowhere/at/all")), True),
    Case("a link to /dev/zero", _instead(lambda path: path.symlink_to("/dev/zero"))),
    Case("a link to /etc/passwd", _instead(lambda path: path.symlink_to("/etc/passwd"))),
    Case("a pipe that nobody writes to", _instead(os.mkfifo)),
]
"""What can be wrong with a file of any kind."""


# HDF5 ----------------------------------------------------------------------------------------------------


def _edit(change: Callable[[h5py.File], Any]) -> Damage:
    def apply(path: Path, rng: np.random.Generator) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return apply


def _put(name: str, make: Callable[[np.ndarray], Any]) -> Damage:
    def change(file: h5py.File) -> None:
        values = file[name][:]
        del file[name]
        file[name] = make(values)

    return _edit(change)


def _at(name: str, value: float, row: int = 7) -> Damage:
    def change(file: h5py.File) -> None:
        file[name][row, 0] = value

    return _edit(change)


def _instead_of(name: str, link: Any) -> Damage:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link(file) if callable(link) else link

    return _edit(change)


def _promised(name: str, shape: tuple[int, ...], dtype: str) -> Damage:
    """A column that takes no disk and promises these sizes."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]) if len(shape) < 3 else True)

    return _edit(change)


def _unknown_filter(name: str) -> Damage:
    def change(file: h5py.File) -> None:
        values = file[name][:]
        del file[name]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, *values.shape[1:]))
        plist.set_filter(31999, h5py.h5z.FLAG_OPTIONAL, (0,))
        space = h5py.h5s.create_simple(values.shape)
        kind = h5py.h5t.py_create(values.dtype)
        column = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=plist)
        for row in range(len(values)):
            column.write_direct_chunk((row, *[0] * (values.ndim - 1)), b"not compressed by anything", 0)

    return _edit(change)


def _gzip_bomb(name: str, shape: tuple[int, ...]) -> Damage:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, "f8", chunks=(1, shape[1]), compression="gzip", fillvalue=0.0)[0] = (
            0.0
        )

    return _edit(change)


def _virtual(file: h5py.File) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout(shape=(110, 2), dtype="f4")
    layout[:] = h5py.VirtualSource("nowhere.h5", "action", shape=(110, 2))
    return layout


def _virtual_action(file: h5py.File) -> None:
    del file["action"]
    file.create_virtual_dataset("action", _virtual(file))


def _attribute(name: str, value: Any) -> Damage:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return _edit(change)


def _many_columns(file: h5py.File) -> None:
    for i in range(3000):
        file.create_group(f"group{i}")


def _deep(file: h5py.File) -> None:
    file.create_group("/".join(["deep"] * 400))


_LAST = np.iinfo(np.int64).max

HDF5 = [
    Case("pixels elsewhere, lost", _instead_of("pixels", h5py.ExternalLink("nowhere.h5", "pixels"))),
    Case("action elsewhere, lost", _instead_of("action", h5py.ExternalLink("nowhere.h5", "action"))),
    Case("ep_len elsewhere, a device", _instead_of("ep_len", h5py.ExternalLink("/dev/zero", "x"))),
    Case("pixels elsewhere, /etc/passwd", _instead_of("pixels", h5py.ExternalLink("/etc/passwd", "x"))),
    Case("action a link to nothing", _instead_of("action", h5py.SoftLink("/nowhere"))),
    Case("action a link to itself", _instead_of("action", h5py.SoftLink("/action"))),
    Case("pixels a group", _edit(lambda file: (file.__delitem__("pixels"), file.create_group("pixels")))),
    Case("ep_len a group", _edit(lambda file: (file.__delitem__("ep_len"), file.create_group("ep_len")))),
    Case("the file a column of its own", _instead_of("action", lambda file: file["/"])),
    Case("action virtual, its source lost", _edit(_virtual_action)),
    Case("action of a filter that is not there", _unknown_filter("action")),
    Case("pixels of a filter that is not there", _unknown_filter("pixels")),
    Case("ep_len of a filter that is not there", _unknown_filter("ep_len")),
    Case("action of 1e13 rows", _promised("action", (10**13, 2), "f4")),
    Case("action of 1e9 rows", _promised("action", (10**9, 2), "f4")),
    Case("action of 1e8 numbers", _promised("action", (110, 10**8), "f4")),
    Case("ep_len of 1e13 rows", _promised("ep_len", (10**13,), "i8")),
    Case("ep_offset of 1e13 rows", _promised("ep_offset", (10**13,), "i8")),
    Case("state of 80 GB", _promised("state", (110, 10**8), "f8")),
    Case("state a bomb of 4 GB", _gzip_bomb("state", (110, 5 * 10**6))),
    Case("pictures of 1e6 x 1e6", _promised("pixels", (110, 10**6, 10**6, 3), "u1")),
    Case("pictures of 30000 x 30000", _promised("pixels", (110, 30000, 30000, 3), "u1")),
    Case("1e12 pictures", _promised("pixels", (10**12, 28, 28, 3), "u1")),
    Case("pictures of no size", _promised("pixels", (110, 0, 0, 3), "u1")),
    Case("pictures of four channels", _put("pixels", lambda x: np.concatenate([x, x[..., :1]], -1))),
    Case("pictures of 16 bits", _put("pixels", lambda x: x.astype(np.uint16))),
    Case("pictures of floats", _put("pixels", lambda x: x.astype(np.float32))),
    Case("grey pictures", _put("pixels", lambda x: x[..., 0])),
    Case("pictures of five dimensions", _put("pixels", lambda x: x[:, None])),
    Case("fewer pictures", _put("pixels", lambda x: x[:-5])),
    Case("fewer actions", _put("action", lambda x: x[:-5])),
    Case("more proprio", _put("proprio", lambda x: np.concatenate([x, x]))),
    Case("action of texts", _put("action", lambda x: [b"left"] * len(x))),
    Case("action of references", _put("action", lambda x: np.array([b"a"] * len(x), h5py.string_dtype()))),
    Case("action of complex numbers", _put("action", lambda x: x.astype(np.complex64))),
    Case("action of records", _put("action", lambda x: np.zeros(len(x), [("a", "f4"), ("b", "i4")]))),
    Case("action one number", _put("action", lambda x: 0.5)),
    Case("action empty", _put("action", lambda x: h5py.Empty("f4"))),
    Case("action of three dimensions", _put("action", lambda x: x[:, None])),
    Case("action of no numbers", _put("action", lambda x: x[:, :0])),
    Case("NaN action", _at("action", np.nan)),
    Case("infinite proprio", _at("proprio", np.inf)),
    Case("NaN state", _at("state", np.nan)),
    Case("an outlier of 1e30", _at("proprio", 1e30)),
    Case("an action of 3e38", _at("action", 3e38)),
    Case("a state of 1e300", _at("state", 1e300)),
    Case("lengths of floats", _put("ep_len", lambda x: x + 0.5)),
    Case("lengths of texts", _put("ep_len", lambda x: [b"30"] * len(x))),
    Case("a negative length", _put("ep_len", lambda x: np.array([30, 54, -1, 27]))),
    Case("lengths beyond int64", _put("ep_len", lambda x: np.array([_LAST, _LAST, 1, 1]))),
    Case("lengths of uint64", _put("ep_len", lambda x: np.array([2**64 - 1, 2, 3, 4], np.uint64))),
    Case("no episodes", _put("ep_len", lambda x: x[:0])),
    Case("all of no length", _put("ep_len", lambda x: 0 * x)),
    Case("lengths of two dimensions", _put("ep_len", lambda x: x[:, None])),
    Case("offsets that do not fit", _put("ep_offset", lambda x: x + 1)),
    Case("offsets of texts", _put("ep_offset", lambda x: [b"0"] * len(x)), True),
    Case("episodes of one step", _put("ep_len", lambda x: np.ones(110, np.int64))),
    Case("another environment", _attribute("environment", "pusht"), True),
    Case("an environment of bytes", _attribute("environment", np.bytes_(b"\xff\xfe")), True),
    Case("an environment of numbers", _attribute("environment", np.arange(9)), True),
    Case("an environment that is a path", _attribute("environment", "../../../etc/cron.d/x"), True),
    Case("an environment that is code", _attribute("environment", "os:system"), True),
    Case("a rate of NaN", _attribute("fps", np.nan), True),
    Case("a negative rate", _attribute("fps", -5.0), True),
    Case("a rate of text", _attribute("fps", "often"), True),
    Case("a rate of many numbers", _attribute("fps", np.ones(5)), True),
    Case("bounds of NaN", _attribute("action_low", np.full(2, np.nan)), True),
    Case("bounds of texts", _attribute("action_low", [b"a", b"b"]), True),
    Case("a frameskip of 0", _attribute("frameskip", 0), True),
    Case("a frameskip of 1e18", _attribute("frameskip", 10**18), True),
    Case("a frameskip of text", _attribute("frameskip", "many"), True),
    Case("names of numbers", _attribute("action_names", np.arange(2)), True),
    Case("names that are no UTF-8", _attribute("action_names", np.array([b"\xff", b"\xfe"])), True),
    Case("names that are paths", _attribute("action_names", ["../a", "/etc/b"]), True),
    Case("an attribute of 60 kB", _attribute("policy", "x" * 60000), True),
    Case("an empty attribute", _attribute("policy", h5py.Empty("f4")), True),
    Case("an attribute called like a flag", _attribute("--output", "x"), True),
    Case("3000 groups beside", _edit(_many_columns), True),
    Case("400 groups in each other", _edit(_deep), True),
    Case("a column called ../../x", _edit(lambda file: file.create_dataset("pixels...x", data=[1])), True),
]
"""What can be wrong inside a dataset file of ours."""


# Checkpoints ----------------------------------------------------------------------------------------------


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def apply(path: Path, rng: np.random.Generator) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")

    return apply


def _first(value: float, name: str = "predictor") -> Damage:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in tensors if key.startswith(name))
        tensors[key].view(-1)[0] = value

    return _weights(change)


def _header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Another header before the same weights."""

    def apply(path: Path, rng: np.random.Generator) -> None:
        file = path / "model.safetensors"
        data = file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        content = json.dumps(change(header) or header).encode()
        file.write_bytes(struct.pack("<Q", len(content)) + content + data[8 + size :])

    return apply


def _head_size(size: int) -> Damage:
    def apply(path: Path, rng: np.random.Generator) -> None:
        file = path / "model.safetensors"
        file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])

    return apply


def _yaml(change: Callable[[dict[str, Any]], Any], name: str = "config.yaml") -> Damage:
    def apply(path: Path, rng: np.random.Generator) -> None:
        content = yaml.safe_load((path / name).read_text())
        content = change(content) or content
        (path / name).write_text(yaml.safe_dump(content))

    return apply


def _set(name: str, value: Any) -> Damage:
    return _yaml(lambda content: content.update({name: value}))


def _text(name: str, text: str) -> Damage:
    return lambda path, rng: (path / name).write_text(text) and None


def _json(change: Callable[[dict[str, Any]], Any], name: str = "metadata.json") -> Damage:
    def apply(path: Path, rng: np.random.Generator) -> None:
        content = json.loads((path / name).read_text())
        content = change(content) or content
        (path / name).write_text(json.dumps(content))

    return apply


def _key(header: dict[str, Any]) -> str:
    return next(key for key in header if key != "__metadata__")


def _overlapping(header: dict[str, Any]) -> None:
    keys = [key for key in header if key != "__metadata__"]
    header[keys[1]]["data_offsets"] = header[keys[0]]["data_offsets"]


LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    + ["width: *a11"]
)
RUNS = f'!!python/object/apply:os.system ["touch {CANARY}"]'
DEEP = 50_000

SIZES: dict[str, list[Any]] = {
    "width": [0, -8, 10**9, 10**7, 1.5, "wide", None, [24], 10**400, float("nan"), True],
    "depth": [-1, 10**9, 200_000, "deep", float("inf")],
    "heads": [0, 7, 10**9],
    "mlp": [0, 10**10, -3],
    "history": [0, -1, 10**9],
    "grid": [[0, 0], [-8, 8], [10**6, 10**6], "8x8", [8], [8, 8, 8], [2.5, 3]],
    "token_dim": [0, 10**9, -1],
    "action_dim": [0, 10**9],
    "proprio_dim": [10**9, -1],
    "no_such_setting": [1],
    "distance": [{"width": 10**9}, {"width": "x"}, 3, {"evil": 1}],
    "decoder": [{"width": 10**9}, {"side": 0}, [1]],
    "space": [{"features": 10**9}, 3],
}
"""What settings of a network may be."""


def _entry(part: str, name: str, value: Any) -> Damage:
    """Another entry in a part of the metadata."""
    return _json(lambda content: content[part].update({name: value}))


def _without_folder(make: Callable[[Path], Any] | None = None) -> Damage:
    def apply(path: Path, rng: np.random.Generator) -> None:
        shutil.rmtree(path)
        if make is not None:
            make(path)

    return apply


CHECKPOINT = [
    Case("NaN among the weights", _first(float("nan"))),
    Case("infinity among the weights", _first(float("inf"))),
    Case("NaN among the statistics", _first(float("nan"), "standardizer")),
    Case("a tensor missing", _weights(lambda tensors: tensors.pop(next(iter(tensors))))),
    Case("a tensor more", _weights(lambda tensors: tensors.update(extra=torch.zeros(3)))),
    Case("no tensors", _weights(dict.clear)),
    Case(
        "a tensor of another shape",
        _weights(lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(3, 3)})),
    ),
    Case("a header of 2^60 bytes", _head_size(1 << 60)),
    Case("a header of 2^64 - 1 bytes", _head_size((1 << 64) - 1)),
    Case("a header of 50 MB", _head_size(50_000_000)),
    Case("tensors in the same place", _header(_overlapping)),
    Case(
        "a tensor beyond the end",
        _header(lambda header: header[_key(header)].update(data_offsets=[0, 1 << 50])),
    ),
    Case(
        "a tensor of 1e18 numbers", _header(lambda header: header[_key(header)].update(shape=[10**9, 10**9]))
    ),
    Case("a tensor of unknown type", _header(lambda header: header[_key(header)].update(dtype="PICKLE"))),
    Case("settings that run", _text("config.yaml", f"width: {RUNS}")),
    Case("settings that are an object", _text("config.yaml", "!!python/object/new:os.system [ls]")),
    Case("settings that name each other a billion times", _text("config.yaml", LAUGHS)),
    Case("settings in each other", _text("config.yaml", "[" * DEEP)),
    Case("settings in each other, closed", _text("config.yaml", "[" * DEEP + "]" * DEEP)),
    Case("settings that are a list", _text("config.yaml", "- 1\n- 2\n")),
    Case("settings that are nothing", _text("config.yaml", "")),
    Case("settings that contain themselves", _text("config.yaml", "&a [*a]")),
    *(
        Case(f"{name} of {value!r:.40}", _set(name, value))
        for name, values in SIZES.items()
        for value in values
    ),
    Case("metadata in each other", _text("metadata.json", '{"a":' * DEEP)),
    Case("metadata of NaN", _text("metadata.json", '{"encoder": NaN, "environment": "wall"}')),
    Case("metadata that is a list", _text("metadata.json", "[]")),
    Case("metadata that is a number of 10,000 digits", _text("metadata.json", "1" * 10_000)),
    Case("no environment", _json(lambda content: content.pop("environment"))),
    Case("an environment that is a path", _json(lambda c: c.update(environment="../../etc"))),
    Case("an environment of numbers", _json(lambda c: c.update(environment=[1, 2]))),
    Case("a frameskip of 0", _json(lambda c: c.update(frameskip=0))),
    Case("a frameskip of 1e18", _json(lambda c: c.update(frameskip=10**18))),
    Case("a frameskip of NaN", _json(lambda c: c.update(frameskip=float("nan")))),
    Case("a frameskip of text", _json(lambda c: c.update(frameskip="five"))),
    Case("an encoder that is code", _json(lambda c: c["encoder"].update(name="subprocess:getoutput"))),
    Case("an encoder that is unknown", _json(lambda c: c["encoder"].update(name="embeded"))),
    Case("an encoder that is a path", _json(lambda c: c["encoder"].update(name="../../x"))),
    Case("an encoder of numbers", _json(lambda c: c["encoder"].update(name=[3]))),
    Case("an encoder that is text", _json(lambda c: c.update(encoder="random"))),
    Case("another hash of the encoder", _json(lambda c: c["encoder"].update(hash="0" * 64))),
    *(
        Case(f"pictures of {value!r}", _entry("encoder", "resolution", value))
        for value in ([10**6, 10**6], [0, 0], [-112, 112], "112", [112], [1e300, 3], [112.5, float("nan")])
    ),
    *(
        Case(f"{name} of {value!r}", _entry("interface", name, value))
        for name, value in {
            "action_low": "x",
            "action_high": [float("nan"), 1],
            "picture": [0, 0],
            "action_names": 3,
            "frameskip": -1,
            "fps": "often",
            "evil": 1,
        }.items()
    ),
    Case("an interface that is a list", _json(lambda c: c.update(interface=[1]))),
    Case("bounds the wrong way round", _json(lambda c: c["interface"].update(action_low=[5, 5]))),
    Case("no files", _without_folder(Path.mkdir)),
    Case("a file in place of the folder", _without_folder(Path.touch)),
    Case("a folder that links to itself", _without_folder(lambda path: path.symlink_to(path.name))),
]
"""What can be wrong inside a checkpoint."""


# Settings, tables, folders --------------------------------------------------------------------------------

SETTINGS = [
    Case("it runs", lambda path, rng: path.write_text(f"env: {RUNS}")),
    Case("an object", lambda path, rng: path.write_text("env: !!python/name:os.system")),
    Case("a tag of one's own", lambda path, rng: path.write_text("env: !evil x")),
    Case("a billion laughs", lambda path, rng: path.write_text(LAUGHS)),
    Case("lists in each other", lambda path, rng: path.write_text("[" * DEEP)),
    Case("mappings in each other", lambda path, rng: path.write_text("{a: " * DEEP)),
    Case("a list", lambda path, rng: path.write_text("- 1")),
    Case("a number", lambda path, rng: path.write_text("3")),
    Case("two documents", lambda path, rng: path.write_text("env: wall\n---\nenv: pusht\n")),
    Case("a key of a list", lambda path, rng: path.write_text("? [a, b]\n: 3\n")),
    Case("a key of a number", lambda path, rng: path.write_text("3: 4\n")),
    Case("a key of nothing", lambda path, rng: path.write_text("~: 4\n")),
    Case("an unknown key", lambda path, rng: path.write_text("evil: 1\n")),
    Case("a section of text", lambda path, rng: path.write_text("run: fast\noptim: fast\n")),
    Case("a date", lambda path, rng: path.write_text("env: 2026-01-01\noptim: 2026-01-01\n")),
    Case("bytes", lambda path, rng: path.write_text("env: !!binary aGVsbG8=\noptim: !!binary aGVsbG8=\n")),
    Case("NUL", lambda path, rng: path.write_bytes(b"env: wa\0ll\n")),
    Case("itself", lambda path, rng: path.write_text("env: &a {env: *a}\noptim: &b {lr: *b}\n")),
    Case("tabs", lambda path, rng: path.write_text("env:\n\twall\n")),
    Case("100 MB", lambda path, rng: path.write_text("#" * 100_000_000)),
]
"""What can be wrong inside a YAML file of settings."""

TABLES = [
    Case("no columns", lambda path, rng: path.write_text("\n")),
    Case("other columns", lambda path, rng: path.write_text("x,y\n1,2\n")),
    Case("a row too few", lambda path, rng: path.write_text("\n".join(path.read_text().split("\n")[:-4]))),
    Case("rows of other sizes", lambda path, rng: path.write_text(path.read_text() + "1,2,3\n")),
    Case("texts for numbers", lambda path, rng: path.write_text(path.read_text().replace("0.", "a."))),
    Case("NaN", lambda path, rng: path.write_text(_first_number(path.read_text(), "nan"))),
    Case("1e30", lambda path, rng: path.write_text(_first_number(path.read_text(), "1e30"))),
    Case("a video elsewhere", lambda path, rng: path.write_text(path.read_text().replace("run_1", "/etc/x"))),
    Case("frames with a gap", lambda path, rng: path.write_text(path.read_text().replace(",8,", ",80,"))),
    Case("columns of one name", lambda path, rng: path.write_text(path.read_text().replace('"a1"', '"a0"'))),
    Case(
        "no text of UTF-8",
        lambda path, rng: path.write_bytes(path.read_bytes().replace(b"run_1", b"run\xff1")),
    ),
    Case("dates", lambda path, rng: path.write_text(_first_number(path.read_text(), "2026-01-01"))),
    Case("a file of numbers", lambda path, rng: path.write_text(path.read_text().replace("run_1.mp4", "1"))),
    Case("one line of 50 MB", lambda path, rng: path.write_text("a" * 50_000_000)),
]
"""What can be wrong inside the table of a folder of videos."""


def _first_number(text: str, value: str) -> str:
    lines = text.split("\n")
    cells = lines[3].split(",")
    lines[3] = ",".join([*cells[:2], value, *cells[3:]])
    return "\n".join(lines)


def json_values() -> Iterator[tuple[str, Any]]:
    """Values that stand where others are expected."""
    yield from (
        ("nothing", None),
        ("NaN", float("nan")),
        ("-1", -1),
        ("1e18", 10**18),
        ("text", "../../etc/passwd"),
        ("a list", [[]]),
        ("a mapping", {"a": {"b": 1}}),
        ("1e400", 10**400),
    )


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of nested JSON are."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*path, key)
            yield from leaves(value, (*path, key))
    elif isinstance(content, list) and content:
        yield from leaves(content[0], (*path, 0))


def json_cases(path: Path, rng: np.random.Generator, most: int) -> list[Case]:
    """Values of a JSON file replaced by others, chosen at random; readers need not mind all of them."""
    places = list(leaves(json.loads(path.read_text())))
    values = list(json_values())
    cases = []
    for i in range(most):
        place, (name, value) = places[int(rng.integers(len(places)))], values[i % len(values)]

        def apply(path: Path, _: Any, place: tuple[Any, ...] = place, value: Any = value) -> None:
            content = json.loads(path.read_text())
            part = content
            for key in place[:-1]:
                part = part[key]
            part[place[-1]] = value
            path.write_text(json.dumps(content))

        cases.append(Case(f"{'.'.join(map(str, place))[-40:]} is {name}", apply, True))
    return cases
