"""Steps, validation and state of a policy's training.

Every random choice of step i is a function of (seed, i), so a resumed run continues bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsewm.config import ProposalConfig
from sparsewm.data import Tokens
from sparsewm.encoders import weights_hash
from sparsewm.errors import UserError
from sparsewm.files import write_json
from sparsewm.interrupts import finished_first
from sparsewm.kernels import flushed
from sparsewm.model.latent import Latent
from sparsewm.model.world_model import WorldModel
from sparsewm.proposals.flow import frames_of
from sparsewm.proposals.latent import save_policy, token_space_hash
from sparsewm.proposals.wam import WorldActionModel
from sparsewm.report.plots import plot_policy
from sparsewm.training.draws import generators
from sparsewm.training.optim import MasterAdamW
from sparsewm.training.policy_config import PolicyTrainConfig, changed, recorded
from sparsewm.training.state import STATE_FILE, adam_state, adam_tensors, read_state, write_state
from sparsewm.training.stretches import Drawn, Stretches
from sparsewm.training.trainer import device_name

VALIDATED = 256
"""Held-out stretches, always the same."""
OFFERED = 16
"""Candidates of which the nearest to what was recorded is told."""

_EMA = 0.998


class PolicyTrainer:
    """One training run in one folder.

    Args:
        policy: float32, on the model's device. model: whose tokens it reads.
        train, validation: what is drawn from. tokens: of the dataset.
    """

    def __init__(
        self,
        policy: nn.Module,
        model: WorldModel,
        train: Stretches,
        validation: Stretches,
        tokens: Tokens,
        folder: Path,
        config: PolicyTrainConfig,
        dtype: torch.dtype,
    ) -> None:
        self.policy, self.model, self.train, self.validation = policy, model, train, validation
        self.tokens, self.folder, self.config, self.dtype = tokens, folder, config, dtype
        policy.train().requires_grad_(True)
        for part in getattr(policy, "learned", ()):  # it stays as it is
            part.requires_grad_(False)
        self._live: list[Tensor] = [p for p in policy.parameters() if p.requires_grad]
        self.average = [p.detach().float().clone() for p in self._live]
        policy.to(dtype)
        warmup = min(100, config.steps // 10 + 1)
        self.optimizer = MasterAdamW(policy, config.lr, config.steps, warmup, weight_decay=0.01)
        self.step, self.seconds = 0, 0.0
        self.metrics: list[dict[str, Any]] = []

    @flushed()
    def run(self, on_step: Callable[[int, float], None] | None = None, until: int | None = None) -> None:
        """Train to the last step, or to `until`, validating and saving on the way.

        Raises:
            UserError: training diverges, or the disk is full.
        """
        config = self.config
        while self.step < min(until or config.steps, config.steps):
            with finished_first() as asked:
                losses = self._advance()
                saves = self.step % config.save_every == 0 or self.step == config.steps
                if saves:
                    self._with_average(partial(self._keep, losses))
                if on_step is not None:
                    on_step(self.step, losses["loss"])
                if asked() and not saves:
                    self._with_average(self._save)

    def _advance(self) -> dict[str, float]:
        """Take one step; its losses."""
        config, started = self.config, time.perf_counter()
        rng, generator = generators(config.seed, 3, self.step)
        drawn = self.train.draw(rng, config.batch)
        frames = self.tokens if self.policy.reads_tokens else None
        batch = self.train.batch(drawn, frames, self.model)
        losses = self.policy.loss(batch, generator)  # type: ignore[operator]
        self.optimizer.zero_grad()
        losses["loss"].backward()
        norm = float(self.optimizer.step(self.step))
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(values["loss"]) or not math.isfinite(norm):
            raise UserError(
                f"training diverged at step {self.step} (loss {values['loss']:g}, gradient {norm:g}): train "
                "anew with a lower `lr` and another `output`"
            )
        self.optimizer.ema_update(self.average, min(_EMA, (1 + self.step) / (10 + self.step)))
        self.step += 1
        self.seconds += time.perf_counter() - started
        return values

    def _with_average(self, work: Callable[[], Any]) -> None:
        """Call `work` while the policy holds the averaged weights."""
        with torch.no_grad():
            torch._foreach_copy_(self._live, self.average)
        self.policy.eval()
        try:
            work()
        finally:
            self.policy.train()
            with torch.no_grad():
                torch._foreach_copy_(self._live, self.optimizer.masters)

    def _keep(self, losses: dict[str, float]) -> None:
        """Validate and save."""
        found = validate_policy(self.policy, self.model, self.validation, self.tokens)
        seconds = round(self.seconds, 1)
        self.metrics.append({"step": self.step, "seconds": seconds, "train": losses, "validation": found})
        self._save()

    def _save(self) -> None:
        """The policy, and the state to resume from."""
        found = self.metrics[-1]["validation"] if self.metrics else None
        training = recorded(self.config) | {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "device": device_name(self.model.device),
            "dataset": self.train.dataset.hash,
            "recorded": self._recorded(),
        }
        save_policy(self.policy, self.model, self.folder, training | {"validation": found})
        write_json(self.folder / "metrics.json", {"metrics": self.metrics, "training": training})
        if self.metrics:
            title = f"{self.model.environment}, {self.config.kind}"
            plot_policy(self.folder / "training.png", self.metrics, title)
        tensors = {f"master.{i}": m for i, m in enumerate(self.optimizer.masters)}
        tensors |= {f"average.{i}": a for i, a in enumerate(self.average)}
        tensors |= adam_tensors(self.optimizer.adamw)
        about = {"config": recorded(self.config), "identity": self.identity(), "step": self.step}
        about |= {"seconds": self.seconds, "metrics": self.metrics}
        write_state(self.folder, tensors, about)

    def _recorded(self) -> dict[str, Any]:
        """What the dataset is, for the card."""
        data = self.train.dataset
        policy = str(data.attributes.get("policy", "recorded"))
        counts = {"episodes": data.episodes, "rows": data.rows}
        return counts | {"policy": policy, "pictures": data.has_pictures}

    def identity(self) -> dict[str, str]:
        """What else a run depends on, and what it must find again to be resumed."""
        space, data = token_space_hash(self.model), self.train.dataset.hash
        found = {"world model": space, "dataset": data, "dtype": str(self.dtype)}
        if self.config.kind == WorldActionModel.kind and self.config.wam.told:  # it was copied from beside
            found["inverse dynamics"] = weights_hash(self.policy.bodies)  # type: ignore[arg-type]
        return found

    def resume(self) -> bool:
        """Continue from the folder's last state; False when there is none.

        Raises:
            UserError: the state is damaged, or of a run with other settings.
        """
        found = read_state(self.folder)
        if found is None:
            return False
        about, tensors = found
        try:
            other = changed(recorded(self.config), about["config"])
            other += [name for name, value in self.identity().items() if about["identity"].get(name) != value]
            if other:
                raise UserError(
                    f"{self.folder} holds a run with another {', '.join(other)}: give the same to resume it, "
                    "or another `output`"
                )
            masters = [tensors[f"master.{i}"] for i in range(len(self.average))]
            adam = adam_state(self.optimizer.adamw, tensors)
            self.optimizer.load_state_dict({"masters": masters, "adamw": adam})
            with torch.no_grad():
                for i, average in enumerate(self.average):
                    average.copy_(tensors[f"average.{i}"])
            self.step, self.seconds, self.metrics = about["step"], about["seconds"], about["metrics"]
            if self.step >= self.config.steps and [m["step"] for m in self.metrics[-1:]] != [self.step]:
                raise UserError(
                    f"{self.folder} holds a run of {self.step} steps, not validated yet: give more `steps`"
                )
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            path = self.folder / STATE_FILE
            raise UserError(f"{path} is damaged ({error}): delete it to start this run anew") from None
        return True


@torch.no_grad()
def validate_policy(
    policy: Any, model: WorldModel, stretches: Stretches, tokens: Tokens, count: int = VALIDATED
) -> dict[str, float]:
    """What proposals miss of recorded actions, as a share of these' mean square, in held-out stretches.

    Returns:
        `error` of the mean of several proposals, `best` of the nearest of them, `other_goals` of the mean for
        the goal of another stretch (a policy that does not look at goals errs no more); and what the policy
        itself tells.
    """
    _, generator = generators(0)
    batch = stretches.batch(validation_draw(stretches, count), tokens, model)
    action, weight = batch["action"], batch["weight"]
    present, wanted = frames_of(batch)
    size = (weight * action.square()).sum().clamp(min=1e-9)

    def offered(goal: Latent) -> Tensor:
        chunks: Tensor = policy.propose(present, goal, OFFERED, [generator], ProposalConfig())
        return chunks

    def missed(chunks: Tensor) -> Tensor:
        return (weight[:, None] * (chunks - action[:, None]).square()).flatten(2).sum(2)  # (B, samples)

    others = torch.arange(len(action), device=action.device).roll(1)
    own, other = offered(wanted), offered(wanted[others])
    found = {"error": missed(own.mean(1, keepdim=True)).sum(), "best": missed(own).amin(1).sum()}
    found["other_goals"] = missed(other.mean(1, keepdim=True)).sum()
    shares = {name: float(value / size) for name, value in found.items()}
    tell = getattr(policy, "tell", None)
    return shares if tell is None else shares | tell(batch, generator)


def validation_draw(stretches: Stretches, count: int = VALIDATED) -> Drawn:
    """The stretches that are validated on."""
    return stretches.draw(np.random.default_rng(0), count)
