"""What a training resumes from: weights, moments of the optimiser and how far it is, in one file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sparsewm.errors import UserError
from sparsewm.files import write_tensors

STATE_FILE = "training_state.safetensors"

_CHECKSUM = "sha256"


def write_state(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a state atomically, with a checksum. `about` is anything that JSON holds."""
    kept, run = {k: v.cpu().contiguous() for k, v in tensors.items()}, json.dumps(about)
    write_tensors(folder / STATE_FILE, kept, {"run": run, _CHECKSUM: _checksum(kept, run)})


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What `write_state` was given, `about` first; None when there is no state.

    Raises:
        UserError: it is damaged.
    """
    path = folder / STATE_FILE
    if not os.path.lexists(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            written = file.metadata()
        tensors, about = load_file(path), json.loads(written["run"])
        if written.get(_CHECKSUM) != _checksum(tensors, written["run"]):
            raise ValueError("its checksum is another, or missing")
        return about, tensors
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it to start this run anew") from None


def _checksum(tensors: Mapping[str, Tensor], run: str) -> str:
    """SHA-256 of what a state holds."""
    found = hashlib.sha256(run.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def adam_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's moments, by names for a state."""
    entries = optimizer.state_dict()["state"].items()
    return {f"adam.{i}.{name}": torch.as_tensor(value) for i, e in entries for name, value in e.items()}


def adam_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Moments of a state, as the `load_state_dict` of the optimiser that they go on in takes them."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
