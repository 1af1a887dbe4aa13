"""Which precision a device multiplies fastest in, in training and in planning."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import torch

from sparsewm.errors import UserError, suggest
from sparsewm.kernels import LAYOUTS, layers_library, layout_of


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrices multiply faster than float32 ones (CUDA; AMX or AVX512-BF16 on a CPU)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device is fast in it, else float32."""
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


def no_integers(device: torch.device) -> str | None:
    """Why a device does not plan in 8-bit integers, in one phrase; None: it does."""
    if device.type != "cpu":
        return "on a CPU alone"
    if layout_of(torch.int8) is not None:
        return None
    return str(layers_library(next(x for x in LAYOUTS[::-1] if x.weights == torch.int8)))


def choose_device(name: str | torch.device) -> torch.device:
    """The torch device of that name, tried with a small product; "auto" takes a GPU if there is one.

    Raises:
        UserError: torch cannot use it.
    """
    if not isinstance(name, str | torch.device):
        raise UserError(f"`device` is a name or a torch.device, got {name!r}: give cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        (torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = textwrap.shorten(re.split(r"\.\s|\n", str(error).strip())[0], 160, placeholder=" ...")
        raise UserError(f"`device` {name} does not work here ({reason}): give cpu or auto") from None
    return device


def choose_dtype(name: str | torch.dtype, device: torch.device, planning: bool = False) -> torch.dtype:
    """The precision of that name, or as torch has it: auto, bfloat16 or float32; of `planning` also int8,
    which is never auto.

    Raises:
        UserError: no such precision.
    """
    known = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if planning:
        known["int8"] = torch.int8
    if name == "auto":
        return fastest_dtype(device)
    if name in known.values():
        return next(dtype for dtype in known.values() if dtype == name)
    if name not in known:
        every = ["auto", *known]
        near = suggest(name, every) if isinstance(name, str) else ""
        raise UserError(f"unknown `dtype` '{name}'.{near} Known: {', '.join(every)}")
    return known[name]
