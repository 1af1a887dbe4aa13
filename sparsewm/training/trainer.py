"""Training of the predictor: rollouts under randomly grouped attention, validated by what planning needs.

Every random choice of step i (windows, groups, number of recorded frames) is a function of (seed, i), so a
resumed run continues bit for bit from its last checkpoint without any stored random state.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsewm.data import Windows, loaded_ahead
from sparsewm.errors import UserError
from sparsewm.files import write_json
from sparsewm.interrupts import finished_first
from sparsewm.kernels import flushed
from sparsewm.model.checkpoint import save
from sparsewm.model.latent import random_groups
from sparsewm.model.world_model import WorldModel
from sparsewm.training.config import OptimConfig
from sparsewm.training.draws import Draw, draw_step
from sparsewm.training.optim import MasterMuon
from sparsewm.training.parallel import Processes
from sparsewm.training.state import STATE_FILE, adam_state, adam_tensors, read_state, write_state
from sparsewm.training.validation import placed, standardized, validate

READ_EVERY = 20
"""Steps on a GPU between two looks at the losses: each one waits for all that was asked of it."""

_LOSSES = ("loss", "tokens", "proprio")


def check_groups(config: OptimConfig, patches: int) -> None:
    """Raise a `UserError` where the groups do not fit into the patches."""
    if config.groups > 1 and config.groups * config.smallest_group > patches:
        raise UserError(
            f"{config.groups} groups of at least {config.smallest_group} patches do not fit into "
            f"{patches} patches: lower `groups`"
        )


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
        processes: those that share every batch; all of them make and call a trainer alike.
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
        processes: Processes | None = None,
    ) -> None:
        self.model, self.train, self.validation = model, train, validation
        self.folder, self.config, self.dtype, self.seed = Path(folder), config, dtype, seed
        self.processes = processes or Processes()
        check_groups(config, model.patches)
        if self.processes.main:
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
        self.load: Callable[[int], dict[str, Tensor]] = self.batch
        self.step, self.seconds = 0, 0.0
        self.metrics: list[dict[str, Any]] = []
        self._unread: list[Tensor] = []  # losses and gradient norms of the last steps
        self._failure: UserError | None = None  # of this process, which the others do not know yet

    def losses(self, step: int) -> dict[str, Tensor]:
        """Loss of a step, every random choice taken from (seed, step); of this process's part."""
        config, model = self.config, self.model
        draw = self.draw(step)
        batch = standardized(model, self.load(step))
        groups = random_groups(
            len(draw.windows),
            model.patches,
            1 if draw.whole else config.groups,
            config.smallest_group,
            draw.generator,
        )
        if config.trained_groups and not draw.whole:
            groups = [groups[i] for i in draw.rng.permutation(len(groups))[: config.trained_groups]]
        part = self.processes.part(len(draw.windows))
        return model.loss(batch, draw.real, [placed(group[part], model.device) for group in groups])

    def draw(self, step: int) -> Draw:
        """What is drawn for a step of all processes, from (seed, step)."""
        return draw_step(self.config, self.seed, step, self.train, self.model.history)

    def batch(self, step: int) -> dict[str, Tensor]:
        """This process's windows of a step, raw."""
        draw = self.draw(step)
        return self.train.batch(draw.windows[self.processes.part(len(draw.windows))], draw.frames)

    def share(self, step: int) -> float:
        """This process's part of the windows of a step."""
        count = len(self.draw(step).windows)
        part = self.processes.part(count)
        return (part.stop - part.start) / count

    @flushed()
    def run(
        self, on_step: Callable[[Trainer, dict[str, float]], None] | None = None, until: int | None = None
    ) -> None:
        """Train to the last step (or to `until`), validating and saving on the way.

        Args:
            on_step: called with the losses of a step: of every one on a CPU, of some on a GPU.

        Raises:
            UserError: training diverges, or the disk is full; of several processes all raise it.
        """
        stop = min(until or self.config.steps, self.config.steps)
        self._align()
        ahead = loaded_ahead(self.batch, stop) if self.train.tokens.ahead else nullcontext(self.batch)
        try:
            with ahead as self.load:
                self._steps(stop, on_step)
        finally:
            self.load = self.batch

    def _steps(self, stop: int, on_step: Callable[[Trainer, dict[str, float]], None] | None) -> None:
        config = self.config
        read_every = READ_EVERY if self.model.device.type == "cuda" else 1
        alone = self.processes.count == 1  # several cannot stop at one step
        while self.step < stop:
            with finished_first() if alone else nullcontext(lambda: False) as asked:
                started = time.perf_counter()
                self._unread.append(self._advance())
                self.step += 1
                last = self.step == config.steps
                validates = self.step % config.validate_every == 0 or last
                saves = self.step % config.checkpoint_every == 0 or last
                reads = validates or saves or self.step == stop or self.step % read_every == 0
                values = self._read() if reads else {}
                self.seconds += time.perf_counter() - started
                if validates or saves:
                    self.processes.by_main(partial(self._keep, values, validates, saves))
                if on_step is not None and values:
                    on_step(self, values | {"lr": self.optimizer.learning_rate(self.step - 1)})
                if asked() and not saves:
                    if not reads:
                        self._read()  # nothing that diverged is kept
                    self.save()

    def _align(self) -> None:
        """Start all processes from one state of one run."""
        buffers = list(self.model.standardizer.state_dict().values())
        description = [self.settings(), self.identity(), self.step]
        self.processes.align([*self.optimizer.masters, *self.average, *buffers], description)
        with torch.no_grad():
            torch._foreach_copy_(self.optimizer.live, self.optimizer.masters)

    def _advance(self) -> Tensor:
        """Take one step, as all processes do; its losses and the norm of its gradient."""
        share = self.share(self.step)
        values = torch.zeros(len(_LOSSES), device=self.model.device)
        self.optimizer.zero_grad()
        if share > 0:
            try:
                losses = self.losses(self.step)
                losses["loss"].backward()
                values = torch.stack([losses[name].detach().float() for name in _LOSSES])
            except UserError as error:
                if self.processes.count == 1:
                    raise
                self._failure = self._failure or error
                values.fill_(math.nan)  # so all processes notice when they read it
        norm = self.optimizer.step(
            self.step, lambda gradients: self.processes.add([*gradients, values], share)
        )
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        self.optimizer.ema_update(self.average, decay)
        return torch.cat([values, norm.reshape(1)])

    def _read(self) -> dict[str, float]:
        """Losses of the last step, after a look whether any since the last look was not finite."""
        rows = torch.stack(self._unread).tolist()
        self._unread.clear()
        for step, (loss, *_, norm) in enumerate(rows, self.step - len(rows)):
            if not math.isfinite(loss) or not math.isfinite(norm):
                self.processes.agree(self._raise_failure)
                raise UserError(
                    f"training diverged at step {step} (loss {loss:g}, gradient {norm:g}): "
                    "train anew with a lower `lr` and another `output`"
                )
        return dict(zip((*_LOSSES, "gradient_norm"), rows[-1], strict=True))

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _keep(self, values: dict[str, float], validates: bool, saves: bool) -> None:
        """Validate, save, or both."""
        if validates:
            self.evaluate({name: values[name] for name in _LOSSES})
        if saves:
            self.save()

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
            "encoder": f"{encoder.name} {encoder.key}"
            + (" int8" if self.train.tokens.kind == "int8" else ""),
            "dtype": str(self.dtype).removeprefix("torch."),
            "frameskip": model.frameskip,
            "aligned": self.train.dataset.stride > 1,
            "model": asdict(model.config),
            "space": None if model.space is None else asdict(model.space),
            "start": model.metadata.get("start"),
        }
        found: dict[str, Any] = json.loads(json.dumps(parts))
        return found

    def save(self) -> None:
        """Checkpoint of the averaged weights, and the state to resume from; each atomic.

        The state comes last: a run that ends between them does its last steps again, instead of finding
        itself finished beside an older checkpoint.
        """
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
        tensors = {f"master.{i}": m for i, m in enumerate(self.optimizer.masters)}
        tensors |= {f"average.{i}": a for i, a in enumerate(self.average)}
        tensors |= {f"momentum.{i}": m for i, m in enumerate(self.optimizer.momenta)}
        tensors |= adam_tensors(self.optimizer.adamw)
        tensors |= {f"standardizer.{k}": v for k, v in self.model.standardizer.state_dict().items()}
        information = {
            "step": self.step,
            "seconds": self.seconds,
            "config": self.settings(),
            "identity": self.identity(),
            "metrics": self.metrics,
        }
        write_state(self.folder, tensors, information)

    def resume(self) -> bool:
        """Continue from the folder's last state; False when there is none.

        Raises:
            UserError: the state is damaged, or of a run with other settings.
        """
        found = read_state(self.folder)
        if found is None:
            return False
        information, tensors = found
        self._check_same(information)
        count = len(self.average)
        try:
            self.optimizer.load_state_dict(
                {
                    "masters": [tensors[f"master.{i}"] for i in range(count)],
                    "adamw": adam_state(self.optimizer.adamw, tensors),
                    "momenta": [tensors[f"momentum.{i}"] for i in range(len(self.optimizer.momenta))],
                }
            )
            with torch.no_grad():
                for i, average in enumerate(self.average):
                    average.copy_(tensors[f"average.{i}"])
                for name, buffer in self.model.standardizer.state_dict().items():
                    buffer.copy_(tensors[f"standardizer.{name}"])
        except (KeyError, RuntimeError, ValueError) as error:
            path = self.folder / STATE_FILE
            raise UserError(
                f"{path} does not fit this model ({error}): delete it to start this run anew"
            ) from None
        self.step, self.seconds = information["step"], information["seconds"]
        self.metrics = information["metrics"]
        return True

    def _check_same(self, information: dict[str, Any]) -> None:
        """Raise a `UserError` that names what this run has otherwise than a saved one."""
        before = {"aligned": False} | information.get("identity", {})  # which states of before did not say
        now = self.identity()
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
