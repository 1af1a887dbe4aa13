"""Which precision a device multiplies fastest in."""

from __future__ import annotations

from pathlib import Path

import torch


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
