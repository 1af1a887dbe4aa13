"""Training of the predictor: rollouts under randomly grouped attention, validated by what planning needs.

Every random choice of step i (windows, groups, number of recorded frames) is a function of (seed, i), so a
resumed run continues bit for bit from its last checkpoint without any stored random state.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsewm.data import Windows
from sparsewm.errors import UserError
from sparsewm.files import atomic_path, write_json
from sparsewm.kernels import flushed
from sparsewm.model.checkpoint import save
from sparsewm.model.latent import gather_patches, random_groups, random_patches
from sparsewm.model.world_model import WorldModel
from sparsewm.training.config import OptimConfig
from sparsewm.training.optim import MasterMuon

STATE_FILE = "training_state.safetensors"


def check_groups(config: OptimConfig, patches: int) -> None:
    """Raise a `UserError` where the groups do not fit into the patches."""
    if config.groups > 1 and config.groups * config.smallest_group > patches:
        raise UserError(
            f"{config.groups} groups of at least {config.smallest_group} patches do not fit into "
            f"{patches} patches: lower `groups`"
        )


def rollout_length(config: OptimConfig, step: int) -> int:
    """Imagined frames at a step: grows linearly from 1 to `horizon` over the first `ramp` of training."""
    if config.ramp <= 0:
        return config.horizon
    return min(config.horizon, 1 + math.floor(step / (config.ramp * config.steps) * config.horizon))


@torch.inference_mode()
def validate(
    model: WorldModel,
    windows: Windows,
    horizon: int,
    drops: tuple[float, ...] = (0.0, 0.5),
    samples: int = 256,
) -> dict[str, Any]:
    """Rollout error from one recorded frame, against copying that frame, per horizon and drop ratio.

    Returns:
        per drop ratio ``{"drop_0.5": {"tokens": [...], "tokens_copy": [...], "tokens_ratio": [...],
        "proprio": ..., "ratio": mean over horizons}}``, lists over horizons 1..H.
    """
    generator = torch.Generator().manual_seed(0)
    total: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    batches = [standardized(model, windows.sample(rng, 64)) for _ in range(max(1, samples // 64))]
    for drop in drops:
        kept = max(1, round((1 - drop) * model.patches))
        sums = {name: torch.zeros(horizon) for name in ("tokens", "tokens_copy", "proprio", "proprio_copy")}
        for batch in batches:
            truth_tokens, truth_proprio = batch["tokens"][:, : horizon + 1], batch["proprio"]
            patches = random_patches(truth_tokens.shape[0], model.patches, kept, generator).to(model.device)
            truth = gather_patches(truth_tokens, patches)
            tokens, proprio = model.rollout(
                truth[:, 0], truth_proprio[:, 0], batch["action"][:, None, :horizon], patches
            )
            for t in range(horizon):
                sums["tokens"][t] += (tokens[:, 0, t] - truth[:, t + 1]).square().mean().cpu()
                sums["tokens_copy"][t] += (truth[:, 0] - truth[:, t + 1]).square().mean().cpu()
                sums["proprio"][t] += (proprio[:, 0, t] - truth_proprio[:, t + 1]).square().mean().cpu()
                sums["proprio_copy"][t] += (
                    (truth_proprio[:, 0] - truth_proprio[:, t + 1]).square().mean().cpu()
                )
        means = {name: (value / len(batches)).tolist() for name, value in sums.items()}
        for name in ("tokens", "proprio"):  # nothing may have moved
            means[f"{name}_ratio"] = [
                a / max(b, 1e-9) for a, b in zip(means[name], means[f"{name}_copy"], strict=True)
            ]
        total[f"drop_{drop:g}"] = means | {"ratio": float(np.mean(means["tokens_ratio"]))}
    return total


def standardized(model: WorldModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A raw window batch in the model's units, on its device (actions stay in the environment's)."""
    device = model.device
    return {
        "tokens": model.standardizer.tokens(batch["tokens"].to(device)),
        "proprio": model.standardizer.proprio(batch["proprio"].to(device)),
        "action": batch["action"].to(device),
    }


def device_name(device: torch.device) -> str:
    """What a run took its time on."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU cores"
    )


class Trainer:
    """One training run in one folder.

    Args:
        model: float32, statistics filled in, on its device.
        train, validation: windows of `history + horizon` frames.
        folder: checkpoint folder `folder/checkpoint`, run state and `metrics.json` go here.
        dtype: precision of the live weights; masters and the average are float32.
        seed: of windows, groups and numbers of recorded frames.
    """

    def __init__(
        self,
        model: WorldModel,
        train: Windows,
        validation: Windows,
        folder: str | Path,
        config: OptimConfig,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
    ) -> None:
        self.model, self.train, self.validation = model, train, validation
        self.folder, self.config, self.dtype, self.seed = Path(folder), config, dtype, seed
        check_groups(config, model.patches)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.average = [p.detach().float().clone() for p in model.predictor.parameters()]
        model.predictor.to(dtype).train().requires_grad_(True)
        self.optimizer = MasterMuon(
            model.predictor,
            config.lr,
            config.steps,
            warmup=config.warmup,
            weight_decay=config.weight_decay,
            clip=config.clip,
            hidden=model.predictor.hidden_matrices() if config.muon else {},
            muon=config.muon,
        )
        self.step, self.seconds = 0, 0.0
        self.metrics: list[dict[str, Any]] = []

    def losses(self, step: int) -> dict[str, Tensor]:
        """Loss of a step, every random choice taken from (seed, step)."""
        config, model = self.config, self.model
        rng = np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        whole = config.full_every > 0 and step % config.full_every == 0
        trained = min(config.trained_groups, config.groups) or config.groups
        count = max(1, config.batch * trained // config.groups) if whole else config.batch
        batch = standardized(model, self.train.sample(rng, count))
        real = int(rng.integers(1, model.history + 1))
        frames = min(real + rollout_length(config, step), batch["action"].shape[1] + 1)
        batch = {
            "tokens": batch["tokens"][:, :frames],
            "proprio": batch["proprio"][:, :frames],
            "action": batch["action"][:, : frames - 1],
        }
        groups = random_groups(
            count, model.patches, 1 if whole else config.groups, config.smallest_group, generator
        )
        if config.trained_groups and not whole:
            groups = [groups[i] for i in rng.permutation(len(groups))[: config.trained_groups]]
        return model.loss(batch, real, [group.to(model.device) for group in groups])

    @flushed()
    def run(
        self, on_step: Callable[[Trainer, dict[str, float]], None] | None = None, until: int | None = None
    ) -> None:
        """Train to the last step (or to `until`), validating and saving on the way."""
        config = self.config
        stop = min(until or config.steps, config.steps)
        while self.step < stop:
            started = time.perf_counter()
            losses = self.losses(self.step)
            self.optimizer.zero_grad()
            losses["loss"].backward()
            norm = self.optimizer.step(self.step)
            decay = min(config.ema, (1 + self.step) / (10 + self.step))
            self.optimizer.ema_update(self.average, decay)
            values = {name: float(value.detach()) for name, value in losses.items()}
            if not math.isfinite(values["loss"]) or not math.isfinite(norm):
                raise UserError(
                    f"training diverged at step {self.step} (loss {values['loss']:g}, gradient {norm:g}): "
                    "train anew with a lower `lr` and another `output`"
                )
            self.step += 1
            self.seconds += time.perf_counter() - started
            last = self.step == config.steps
            if self.step % config.validate_every == 0 or last:
                self.evaluate(values)
            if self.step % config.checkpoint_every == 0 or last:
                self.save()
            if on_step is not None:
                on_step(
                    self, values | {"gradient_norm": norm, "lr": self.optimizer.learning_rate(self.step - 1)}
                )

    def with_average(self, work: Callable[[], Any]) -> Any:
        """Call `work` while the predictor holds the averaged weights."""
        live: list[Tensor] = list(self.model.predictor.parameters())
        with torch.no_grad():
            torch._foreach_copy_(live, self.average)
        self.model.eval()
        try:
            return work()
        finally:
            self.model.train()
            with torch.no_grad():
                torch._foreach_copy_(live, self.optimizer.masters)

    def evaluate(self, values: dict[str, float]) -> dict[str, Any]:
        """Validate the averaged weights; appended to `metrics`."""
        horizon = min(self.config.horizon, self.validation.frames - 1)
        result = self.with_average(lambda: validate(self.model, self.validation, horizon))
        self.metrics.append(
            {"step": self.step, "seconds": round(self.seconds, 1), "train": values, "validation": result}
        )
        return result

    def settings(self) -> dict[str, Any]:
        """The run's settings and seed."""
        return asdict(self.config) | {"seed": self.seed}

    def identity(self) -> dict[str, Any]:
        """What else a run depends on, and what it must find again to be resumed."""
        model, encoder = self.model, self.model.encoder
        parts = {
            "dataset": self.train.dataset.hash,
            "encoder": f"{encoder.name} {encoder.key}",
            "dtype": str(self.dtype).removeprefix("torch."),
            "frameskip": model.frameskip,
            "model": asdict(model.config),
            "start": model.metadata.get("start"),
        }
        found: dict[str, Any] = json.loads(json.dumps(parts))
        return found

    def save(self) -> None:
        """Checkpoint of the averaged weights, and the state to resume from; both atomic."""
        masters, adam = self.optimizer.masters, self.optimizer.adamw.state_dict()["state"]
        tensors = {f"master.{i}": m for i, m in enumerate(masters)}
        tensors |= {f"average.{i}": a for i, a in enumerate(self.average)}
        tensors |= {f"momentum.{i}": m for i, m in enumerate(self.optimizer.momenta)}
        for i, entry in adam.items():
            tensors |= {f"adam.{i}.{name}": torch.as_tensor(value) for name, value in entry.items()}
        tensors |= {f"standardizer.{k}": v for k, v in self.model.standardizer.state_dict().items()}
        information = {
            "step": self.step,
            "seconds": self.seconds,
            "config": self.settings(),
            "identity": self.identity(),
            "metrics": self.metrics,
        }
        with atomic_path(self.folder / STATE_FILE, self.folder / f".{STATE_FILE}") as temporary:
            save_file(
                {k: v.contiguous() for k, v in tensors.items()}, temporary, {"run": json.dumps(information)}
            )
        validation = self.metrics[-1]["validation"] if self.metrics else None
        done = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "device": device_name(self.model.device),
        }
        training = {"training": self.settings() | done}
        self.with_average(
            lambda: save(self.model, self.folder / "checkpoint", training | {"validation": validation})
        )
        write_json(self.folder / "metrics.json", {"metrics": self.metrics, **training})

    def resume(self) -> bool:
        """Continue from the folder's last state; False when there is none.

        Raises:
            UserError: the state is damaged, or of a run with other settings.
        """
        path = self.folder / STATE_FILE
        if not path.is_file():
            return False
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                information = json.loads(file.metadata()["run"])
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it to start this run anew") from None
        self._check_same(information)
        count = len(self.average)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        try:
            groups = self.optimizer.adamw.state_dict()["param_groups"]
            self.optimizer.load_state_dict(
                {
                    "masters": [tensors[f"master.{i}"] for i in range(count)],
                    "adamw": {"state": state, "param_groups": groups},
                    "momenta": [tensors[f"momentum.{i}"] for i in range(len(self.optimizer.momenta))],
                }
            )
            with torch.no_grad():
                for i, average in enumerate(self.average):
                    average.copy_(tensors[f"average.{i}"])
                for name, buffer in self.model.standardizer.state_dict().items():
                    buffer.copy_(tensors[f"standardizer.{name}"])
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{path} does not fit this model ({error}): delete it to start this run anew"
            ) from None
        self.step, self.seconds = information["step"], information["seconds"]
        self.metrics = information["metrics"]
        return True

    def _check_same(self, information: dict[str, Any]) -> None:
        """Raise a `UserError` that names what this run has otherwise than a saved one."""
        before, now = information.get("identity", {}), self.identity()
        changed = [k for k, v in self.settings().items() if information.get("config", {}).get(k) != v]
        other = []
        for name, value in now.items():
            if before.get(name) != value:
                short = isinstance(value, str | int) and name in before
                other.append(f"{name} {_short(before[name])}, not {_short(value)}" if short else name)
        if not changed and not other:
            return
        what = [f"settings ({', '.join(changed)})"] if changed else []
        what += other
        raise UserError(
            f"{self.folder} holds a run with other {'; '.join(what)}: give the same to resume it, or another "
            "`output`"
        )


def _short(value: Any) -> str:
    """A value; a hash by its first digits."""
    return str(value)[:12] if len(str(value)) == 64 else str(value)
