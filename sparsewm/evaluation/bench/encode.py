"""Pictures encoded per second, ours and by the plain torch network, in one run."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsewm.data import fast_copy
from sparsewm.data.encoding import token_precision
from sparsewm.encoders import PatchEncoder, load_encoder
from sparsewm.encoders.dino import TimmDino
from sparsewm.encoders.hub import HUB_ENCODERS
from sparsewm.envs import GoalEnv
from sparsewm.errors import UserError
from sparsewm.evaluation.bench.models import fill
from sparsewm.evaluation.bench.operations import parameters
from sparsewm.evaluation.bench.timing import Contestant, interleave, matmul_peaks
from sparsewm.evaluation.machine import machine
from sparsewm.kernels import FrozenLinear
from sparsewm.precision import fast_bfloat16

TOLERANCE = 0.1
"""Share of the tokens' deviation that rounding may move them by, as for training (`fast_copy`)."""


def bench_encoder(
    name: str, seed: int, weights: Path | None = None, random: bool = False, **options: Any
) -> tuple[PatchEncoder, bool]:
    """An encoder by name, and whether its weights are random: asked for, or its own cannot be had here.

    Args:
        seed: of random weights. random: leave its own alone. weights, options: as `load_encoder` takes them.

    Raises:
        UserError: as `load_encoder` does, where the network cannot be built without its weights.
    """
    state = _untrained(name, seed) if random and weights is None else None
    if state is None:
        try:
            return load_encoder(name, weights, **options), False
        except UserError:
            state = _untrained(name, seed) if weights is None else None
            if state is None:
                raise
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
        return load_encoder(name, path, **options), True


def _untrained(name: str, seed: int) -> dict[str, Tensor] | None:
    """A network's tensors of random numbers, under the names that its files have; None where unknown."""
    try:
        import timm
    except ImportError:
        return None
    family, _, model = name.partition(":")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        if name in HUB_ENCODERS:
            network = TimmDino(name)
            return {key: value + 0.02 * torch.randn_like(value) for key, value in network.official.items()}
        if family == "timm" and timm.is_model(model.split(".")[0]):
            network = timm.create_model(model, num_classes=0)
            fill(network)
            found: dict[str, Tensor] = network.state_dict()
            return found
    return None


def real_frames(env: GoalEnv, count: int, seed: int) -> np.ndarray:
    """Pictures uint8 (count, H, W, 3) of random actions from a few starts."""
    rng, frames = np.random.default_rng(seed), []
    low, high = (np.asarray(bound, np.float64) for bound in (env.action_space.low, env.action_space.high))
    for start in range(-(-count // 8)):
        observation, _ = env.reset(seed=seed + start)
        for _ in range(8):
            frames.append(observation["pixels"])
            action = rng.uniform(low, high)
            observation, *_ = env.step(action.astype(np.float32))
    return np.stack(frames[:count])


def measure_encoding(
    encoder: PatchEncoder,
    frames: np.ndarray,
    batches: Sequence[int],
    repeats: int,
    baseline: int = 0,
    whitening: float = 0.0,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Pictures per second, from uint8 pictures to tokens, per batch and precision; repeats are interleaved.

    Ours is what training and planning encode by, in the precision that `fast_copy` accepts on these frames,
    and in float32. Where bfloat16 is fast but refused it is timed as well, and its row says so.

    Args:
        frames: uint8 (K, H, W, 3) real ones, over which precisions are compared. batches: pictures at once.
        baseline: repeats of the plain network in float32 and bfloat16; 0 leaves it out.
        whitening: of the tokens whose precision is judged.

    Returns:
        the `machine`, `matmul_peak_flops`, `encoder` and `rows` of `encode.json`.
    """
    device = next(encoder.parameters()).device
    ways: dict[tuple[str, str], Callable[[np.ndarray], object]] = {}
    precision = None
    if fast_bfloat16(device):
        rounded = fast_copy(encoder, frames, torch.bfloat16, whitening, math.inf)
        found = token_precision(encoder, rounded, frames, whitening)
        precision = found["error"] / max(found["deviation"], 1e-12)
        ways["sparsewm", "bfloat16"] = rounded.encode
    ways["sparsewm", "float32"] = encoder.encode
    if baseline:
        ways |= {
            ("torch", str(dtype).removeprefix("torch.")): PlainEncoder(encoder, dtype)
            for dtype in (torch.float32, torch.bfloat16)
        }
    operations = encoder_operations(encoder)
    pictures = {batch: np.resize(frames, (batch, *frames.shape[1:])) for batch in batches}
    contestants = {
        (*way, batch): Contestant(
            _without_gradients(encode, pictures[batch]), baseline if way[0] == "torch" else repeats
        )
        for batch in batches
        for way, encode in ways.items()
    }
    loading = {
        batch: Contestant(_without_gradients(encoder.preprocess, pictures[batch]), repeats)
        for batch in batches
    }
    interleave([*contestants.values(), *loading.values()], device, progress)
    peaks = matmul_peaks(device)
    rows = []
    for (name, dtype, batch), one in contestants.items():
        median = one.spread["median"]
        reference = (
            contestants.get(("torch", "float32", batch)),
            contestants.get(("torch", "bfloat16", batch)),
        )
        over = [None if other is None else other.spread["median"] / median for other in reference]
        judged = precision if (name, dtype) == ("sparsewm", "bfloat16") else None
        rows.append(
            {
                "encoder": name,
                "dtype": dtype,
                "batch": batch,
                "repeats": len(one.seconds),
                "seconds": one.spread,
                "preprocessing_seconds": loading[batch].spread["median"],
                "pictures_per_second": batch / median,
                "flops": batch * operations / median,
                "peak_fraction": batch * operations / median / peaks[dtype],
                "speedup_over_torch_float32": over[0],
                "speedup_over_torch_bfloat16": over[1],
                "token_error": judged,
                "accepted": None if judged is None else judged <= TOLERANCE,
            }
        )
    described = {
        "name": encoder.name,
        "resolution": list(encoder.resolution),
        "tokens": encoder.tokens,
        "features": encoder.dim,
        "parameters": parameters(encoder),
        "operations_per_picture": operations,
    }
    report = {"machine": machine(device), "matmul_peak_flops": peaks, "encoder": described, "rows": rows}
    return report


class PlainEncoder:
    """An encoder whose network torch computes as it is written, without packed weights or kernels of ours.

    Args:
        encoder: copied. dtype: what the copy computes in.
    """

    def __init__(self, encoder: PatchEncoder, dtype: torch.dtype) -> None:
        self.encoder = deepcopy(encoder).to(dtype)
        for part in self.encoder.modules():
            if isinstance(part, FrozenLinear):
                part.frozen = False
            if hasattr(part, "fast"):  # what runs a network through packed weights, where it can
                part.fast = lambda *_: None  # type: ignore[assignment]

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Tokens (B, N, D) of pictures uint8 (B, H, W, 3)."""
        return self.encoder.encode(pixels).patches


@torch.no_grad()
def encoder_operations(encoder: PatchEncoder) -> float:
    """Floating-point operations of a picture: products and attention of the plain network, counted."""
    plain = PlainEncoder(encoder, torch.float32)
    picture = np.zeros((1, *encoder.resolution, 3), np.uint8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        plain(picture)
    return float(counter.get_total_flops())


def _without_gradients(work: Callable[[np.ndarray], object], pictures: np.ndarray) -> Callable[[], object]:
    return torch.inference_mode()(partial(work, pictures))
