"""Windows trained on per second, ours and by the published recipe in plain torch, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sparsewm.data import Windows
from sparsewm.evaluation.bench.operations import parameters, recipe_step_operations, step_operations
from sparsewm.evaluation.bench.recipe import BATCH, PlainPredictor, PlainTraining, RecipeConfig
from sparsewm.evaluation.bench.timing import Contestant, interleave, matmul_peaks
from sparsewm.evaluation.machine import machine
from sparsewm.model import WorldModel
from sparsewm.training.config import OptimConfig
from sparsewm.training.trainer import Trainer, standardized


class RandomWindows:
    """Recorded windows as training reads them, of numbers that nobody recorded.

    Args:
        model: its sizes. frames: of a window. count: windows there are.
    """

    def __init__(self, model: WorldModel, frames: int, seed: int, count: int = 64) -> None:
        config, rng = model.config, np.random.default_rng(seed)
        self.frames = frames

        def numbers(*shape: int) -> np.ndarray:
            return rng.standard_normal((count, *shape), np.float32)

        self.tokens = numbers(frames, model.patches, config.token_dim).astype(np.float16)
        self.proprio = numbers(frames, config.proprio_dim)
        self.action = numbers(frames - 1, config.action_dim).clip(-1, 1)

    def sample(self, rng: np.random.Generator, batch_size: int) -> dict[str, Tensor]:
        """As `Windows.sample`."""
        chosen = rng.integers(len(self.tokens), size=batch_size)
        parts = {"tokens": self.tokens, "proprio": self.proprio, "action": self.action}
        return {name: torch.from_numpy(values[chosen]) for name, values in parts.items()}


@dataclass(frozen=True)
class Step:
    """A kind of training step.

    Attributes:
        recipe: "sparsewm", or "plain" for the published one. kind: "group" or "all tokens".
        dtype: what it multiplies in. windows: of its batch. tokens: of a frame that are computed.
        frames: of a window, the first one included. operations: products and attention, backward included.
    """

    recipe: str
    kind: str
    dtype: str
    windows: int
    tokens: int
    frames: int
    operations: float

    def row(self, spread: dict[str, float], peaks: dict[str, float]) -> dict[str, Any]:
        """What is said of it, given the seconds it took."""
        rate = self.operations / spread["median"]
        measured = {"seconds": spread, "windows_per_second": self.windows / spread["median"], "flops": rate}
        return asdict(self) | measured | {"peak_fraction": rate / peaks[self.dtype]}


def measure_training(
    model: WorldModel,
    config: OptimConfig,
    dtype: torch.dtype,
    repeats: int,
    seed: int = 0,
    baseline: int = 0,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Seconds of whole training steps (loss, backward, optimiser, average) on windows that are loaded.

    Training mixes two kinds: a group of the tokens, here of mean size, and all of them together in fewer
    windows. Beside them stands the published recipe (`PlainTraining`), in float32 and in bfloat16 autocast.

    Args:
        model: float32, every weight filled; it is trained. config: its training. dtype: of its live weights.
        baseline: repeats of the published recipe, spread over ours; 0 leaves it out.

    Returns:
        the `machine`, `matmul_peak_flops`, `sizes`, `rows` and `loading_seconds` of `train.json`. A row of
        kind "as trained" is the mixture of ours; loading is reading and standardising a batch, from memory.
    """
    device, frames = model.device, model.history + config.horizon
    windows, rng = RandomWindows(model, frames, seed), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        given = cast(Windows, windows)
        trainer = Trainer(model, given, given, folder, config, dtype, seed)
    work: dict[Step, Callable[[], object]] = {}
    for step in our_steps(model, config, dtype):
        batch = standardized(model, windows.sample(rng, step.windows))
        work[step] = partial(_advance, trainer, batch, _groups(step, config, model))
    recipe = RecipeConfig.like(model)
    ours, theirs = list(work), []
    for precision in ("float32", "bfloat16") if baseline else ():
        training = PlainTraining(recipe, device, seed, autocast=precision == "bfloat16")
        operations = recipe_step_operations(recipe, model.patches, BATCH)
        sizes = BATCH, model.patches, recipe.history + 1
        theirs.append(Step("plain", "all tokens", precision, *sizes, operations))
        batch = standardized(model, windows.sample(rng, BATCH))
        inputs = _recipe_inputs(model, batch, recipe.history)
        work[theirs[-1]] = partial(training.step, *inputs)
    timed = {step: Contestant(one, repeats if step in ours else baseline) for step, one in work.items()}
    loading = Contestant(lambda: standardized(model, windows.sample(rng, config.batch)), repeats)
    interleave([*timed.values(), loading], device, progress)
    peaks = matmul_peaks(device)
    spreads = {step: one.spread for step, one in timed.items()}
    rows = [step.row(spreads[step], peaks) for step in ours]
    if len(ours) > 1:
        rows.append(_mixture(rows, config.full_every, peaks))
    rows += [step.row(spreads[step], peaks) for step in theirs]
    for row in rows:
        for other in theirs:
            rate = other.windows / spreads[other]["median"]
            row[f"speedup_over_plain_{other.dtype}"] = row["windows_per_second"] / rate
    with torch.device("meta"):
        published = parameters(PlainPredictor(recipe))
    return {
        "machine": machine(device),
        "matmul_peak_flops": peaks,
        "sizes": {"model": asdict(model.config), "parameters": parameters(model.predictor)}
        | {"plain": asdict(recipe), "plain_parameters": published},
        "rows": rows,
        "loading_seconds": loading.spread,
    }


def our_steps(model: WorldModel, config: OptimConfig, dtype: torch.dtype) -> list[Step]:
    """The kinds of step that a training takes."""
    trained = min(config.trained_groups, config.groups) or config.groups
    shapes = [("group", config.batch, model.patches // config.groups, trained)]
    if config.full_every > 0 and config.groups > 1:
        shapes.append(("all tokens", max(1, config.batch * trained // config.groups), model.patches, 1))
    frames = model.history + config.horizon
    name = str(dtype).removeprefix("torch.")
    return [
        Step(
            "sparsewm",
            kind,
            name,
            count,
            kept * groups,
            frames,
            groups * step_operations(model.config, kept, frames - 1, count),
        )
        for kind, count, kept, groups in shapes
    ]


def _groups(step: Step, config: OptimConfig, model: WorldModel) -> list[Tensor]:
    """Patches (B, M) of every group of a step."""
    order = torch.randperm(model.patches, generator=torch.Generator().manual_seed(0))[: step.tokens]
    size = step.tokens if step.kind == "all tokens" else model.patches // config.groups
    return [part.expand(step.windows, -1).to(model.device) for part in order.split(size)]


def _advance(trainer: Trainer, batch: dict[str, Tensor], groups: list[Tensor]) -> object:
    """A step as `Trainer.run` takes it; always the first of the schedule, whose rate hardly moves weights."""
    loss = trainer.model.loss(batch, min(2, trainer.model.history), groups)["loss"]
    trainer.optimizer.zero_grad()
    loss.backward()
    norm = trainer.optimizer.step(0)
    trainer.optimizer.ema_update(trainer.average, trainer.config.ema)
    return norm


def _recipe_inputs(
    model: WorldModel, batch: dict[str, Tensor], history: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, proprioception and standardised actions as `PlainTraining.step` takes them."""
    actions = model.standardizer.actions(batch["action"])
    shown = history + 1
    return batch["tokens"][:, :shown], batch["proprio"][:, :shown], actions[:, :history]


def _mixture(rows: list[dict[str, Any]], every: int, peaks: dict[str, float]) -> dict[str, Any]:
    """Steps on a group but for one in `every`, from the rows of both kinds."""
    shares = {"group": (every - 1) / every, "all tokens": 1 / every}

    def mean(read: Callable[[dict[str, Any]], float]) -> float:
        return sum(shares[row["kind"]] * read(row) for row in rows)

    def seconds_of(name: str) -> float:
        return mean(lambda row: row["seconds"][name])

    seconds = seconds_of("median")
    rate = mean(lambda row: row["operations"]) / seconds
    return rows[0] | {
        "kind": "as trained",
        "windows": mean(lambda row: row["windows"]),
        "tokens": None,
        "operations": rate * seconds,
        "seconds": {name: seconds_of(name) for name in ("median", "p25", "p75")},
        "windows_per_second": mean(lambda row: row["windows"]) / seconds,
        "flops": rate,
        "peak_fraction": rate / peaks[rows[0]["dtype"]],
    }
