"""Files of weights: read without pickle, compared with what a network wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsewm.errors import UserError


def read_weights(path: Path) -> Any:
    """What a .safetensors or .pth file holds, on the CPU and without unpickling objects.

    Raises:
        UserError: unreadable.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("a pipe or a device")
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # torch's reader of pickles has errors of all kinds for what is none
        raise UserError(f"{path} is not a readable weights file: fetch or copy it again") from None


def difference(state: Any, wanted: dict[str, Tensor]) -> str:
    """What is wrong with a loaded state, in a few words; empty when nothing is."""
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        return "it is no dictionary of tensors"
    for key, tensor in wanted.items():
        if key not in state:
            return f"{key} is missing"
        if state[key].shape != tensor.shape:
            return f"{key} is {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        if not state[key].isfinite().all():
            return f"{key} has NaN or infinite values"
    unknown = sorted(state.keys() - wanted.keys())
    return f"{unknown[0]} is not part of it" if unknown else ""
