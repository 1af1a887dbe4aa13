"""AdamW and Muon for networks kept in bfloat16, with float32 master weights.

On a CPU with bfloat16 matrix instructions this is more than twice as fast as autocast, which converts
every weight at every step; the float32 master keeps updates that bfloat16 would round away. Networks kept in
float32, where bfloat16 is slow, have masters, too.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsewm.kernels.training import training_kernels

# torch's optimisers import it when the first one is made. By then MuJoCo may have loaded Mesa with an LLVM of
# its own, and the process can die; the other way round both live.
with contextlib.suppress(ImportError):
    importlib.import_module("triton")

FACTORS = 3.4445, -4.7750, 2.0315
"""Of Newton-Schulz iterations (Jordan et al. 2024): they lift small singular values fast."""


class MasterAdamW:
    """AdamW on float32 copies of a module's parameters.

    Args:
        module: its trainable parameters, in any floating dtype, are updated in place.
        lr: peak learning rate.
        steps: length of the schedule, in steps.
        warmup: steps of linear warm-up; a cosine to `final_lr_ratio` * lr follows.
        weight_decay: decoupled decay, on matrices only.
        clip: largest global gradient norm.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        steps: int,
        warmup: int = 100,
        weight_decay: float = 0.05,
        clip: float = 1.0,
        final_lr_ratio: float = 0.02,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        self.lr, self.steps, self.warmup, self.clip, self.final = lr, steps, warmup, clip, final_lr_ratio
        self.live: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.masters = [p.detach().float().clone() for p in self.live]
        adaptive = self._adaptive(module)
        decay = [m for m in adaptive if m.ndim >= 2]
        plain = [m for m in adaptive if m.ndim < 2]
        self.adamw = torch.optim.AdamW(
            [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=lr,
            betas=betas,
            fused=all(master.device.type in ("cpu", "cuda") for master in self.masters),
        )

    def _adaptive(self, module: nn.Module) -> list[Tensor]:
        """The masters that AdamW moves."""
        return self.masters

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress)))

    def zero_grad(self) -> None:
        for parameter in self.live:
            parameter.grad = None

    def step(self, step: int, share: Callable[[list[Tensor]], None] | None = None) -> Tensor:
        """Update the parameters from their gradients; returns the gradient norm before clipping.

        Args:
            share: called with the float32 gradients, to change them in place before they are clipped.
        """
        for master, live in zip(self.masters, self.live, strict=True):
            master.grad = torch.zeros_like(master) if live.grad is None else live.grad.float()
        if share is not None:
            share([master.grad for master in self.masters if master.grad is not None])
        norm = nn.utils.clip_grad_norm_(self.masters, self.clip)
        rate = self.learning_rate(step)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self._others(rate)
        with torch.no_grad():
            torch._foreach_copy_(self.live, self.masters)
        return norm

    def _others(self, rate: float) -> None:
        """Move the masters that AdamW does not."""

    @torch.no_grad()
    def ema_update(self, targets: list[Tensor], decay: float) -> None:
        """Move float32 `targets` (same order as the parameters) towards the masters."""
        torch._foreach_lerp_(targets, self.masters, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"masters": self.masters, "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.copy_(saved)
        self.adamw.load_state_dict(state["adamw"])
        with torch.no_grad():
            torch._foreach_copy_(self.live, self.masters)


class MasterMuon(MasterAdamW):
    """AdamW, but the matrices between a network's input and its output move by Muon.

    Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest orthogonal one, so that all
    directions of a layer learn at one pace. Scaled as by Liu et al. (2025): entries of an update are 0.2 on
    average, about what AdamW's are.

    Args:
        module, lr, steps: as for `MasterAdamW`, like further keywords.
        hidden: names of the matrices to move, and how many layers' matrices each one stacks.
        muon: their learning rate, in units of `lr`.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        steps: int,
        *,
        hidden: Mapping[str, int],
        muon: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
        **keywords: Any,
    ) -> None:
        self.hidden, self.muon, self.momentum = dict(hidden), muon, momentum
        super().__init__(module, lr, steps, weight_decay=weight_decay, **keywords)
        self.weight_decay = weight_decay
        self.momenta = [torch.zeros_like(master) for master in self.moved]

    def _adaptive(self, module: nn.Module) -> list[Tensor]:
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        masters = dict(zip(names, self.masters, strict=True))
        self.moved = [masters[name] for name in self.hidden]
        return [master for name, master in masters.items() if name not in self.hidden]

    @torch.no_grad()
    def _others(self, rate: float) -> None:
        if not self.moved:
            return
        rate *= self.muon
        gradients = [master.grad for master in self.moved if master.grad is not None]
        torch._foreach_lerp_(self.momenta, gradients, 1 - self.momentum)
        looked_ahead = torch._foreach_lerp(gradients, self.momenta, self.momentum)
        parts = self._layers(looked_ahead)
        updates: dict[int, Tensor] = {}
        for shape in {part.shape for part in parts}:  # all matrices of one shape in one batch
            same = [i for i, part in enumerate(parts) if part.shape == shape]
            stacked = torch.stack([parts[i] for i in same]).to(self.live[0].dtype)
            batch = orthogonalized(stacked) * (0.2 * math.sqrt(max(shape)))
            updates |= dict(zip(same, batch.float(), strict=True))
        torch._foreach_mul_(self.moved, 1 - rate * self.weight_decay)
        torch._foreach_add_(self._layers(self.moved), [updates[i] for i in range(len(parts))], alpha=-rate)

    def _layers(self, stacked: Sequence[Tensor]) -> list[Tensor]:
        """Views of each layer's own matrix in tensors like `moved`."""
        counts = self.hidden.values()
        return [part for all_, count in zip(stacked, counts, strict=True) for part in all_.chunk(count)]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"momenta": self.momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)
        super().load_state_dict(state)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Roughly the nearest orthogonal matrices to (K, R, C), in their precision, of which bfloat16 is enough.

    Singular values end between 0.7 and 1.2, by Newton-Schulz iterations.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    here = x.device.type == "cpu" and x.dtype == torch.bfloat16
    kernels = training_kernels() if here and all(size % 32 == 0 for size in x.shape[1:]) else "other sizes"
    if not isinstance(kernels, str):
        x = x.contiguous()
        kernels.orthogonalize(x, FACTORS, steps)
        return x.mT if tall else x
    a, b, c = FACTORS
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
