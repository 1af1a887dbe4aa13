"""The processes that train together, each on a device of its own or on a share of a CPU's cores.

accelerate starts them and carries what they tell each other. Without a launcher there is one, and nothing
here does anything.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparsewm.errors import UserError, needs_extra

Result = TypeVar("Result")

PATIENCE = timedelta(days=30)
"""How long processes wait for each other: as long as one encodes. One that ends is noticed at once."""

_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_PLACES = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")


class Processes:
    """The one process of an ordinary training, and what several of them have in common.

    Attributes:
        count: how many there are. index: which one this is; 0, the main one, writes and speaks.
        device: what this one computes on; None: what the run asks for.
    """

    count, index = 1, 0
    device: str | None = None

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.index == 0

    def part(self, size: int) -> slice:
        """This process's part of a batch; parts differ by one at most, and may be empty."""
        return slice(size * self.index // self.count, size * (self.index + 1) // self.count)

    def agree(self, work: Callable[[], Result]) -> Result:
        """Do what all processes do; a `UserError` of any of them is raised by all."""
        return work()

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """`agree`, but the others start when the main process has finished."""
        return work()

    def by_main(self, work: Callable[[], object]) -> None:
        """Do what the main process does alone, while the others wait; a `UserError` is raised by all."""
        work()

    def add(self, tensors: Sequence[Tensor], share: float) -> None:
        """Add float32 tensors up over all processes, in place, each times its process's `share`."""

    def align(self, tensors: Sequence[Tensor], description: object) -> None:
        """Give all processes the main one's tensors, in place.

        Args:
            description: of the run, in plain values.

        Raises:
            UserError: the processes do not describe the same run.
        """


class Several(Processes):
    """Processes that a launcher started. Every method is called by all of them, in the same order.

    Args:
        device: what the run computes on: cpu, or cuda for a GPU each.

    Raises:
        UserError: accelerate is missing, or the processes do not reach each other.
    """

    def __init__(self, device: str) -> None:
        with needs_extra("several processes", "parallel"):
            from accelerate import PartialState
            from accelerate.utils import broadcast, gather_object, reduce
        self._broadcast, self._gather, self._reduce = broadcast, gather_object, reduce
        first = not torch.distributed.is_initialized()
        with _connected(), _no_greeting():
            state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        if first and torch.distributed.is_initialized():
            atexit.register(torch.distributed.destroy_process_group)
        self.count, self.index = state.num_processes, state.process_index
        self.device = "cpu" if device == "cpu" else str(state.device)

    def agree(self, work: Callable[[], Result]) -> Result:
        done, failure = _attempt(work)
        self._raise_any(failure)
        return done  # type: ignore[return-value]  # there was no failure

    def in_turn(self, work: Callable[[], Result]) -> Result:
        done, failure = _attempt(work) if self.main else (None, None)
        self._raise_any(failure)
        if not self.main:
            done, failure = _attempt(work)
        self._raise_any(failure)
        return done  # type: ignore[return-value]

    def by_main(self, work: Callable[[], object]) -> None:
        self._raise_any(_attempt(work)[1] if self.main else None)

    def add(self, tensors: Sequence[Tensor], share: float) -> None:
        flat = torch.cat([tensor.flatten() for tensor in tensors]).mul_(share)
        with _connected():
            flat = self._reduce(flat, "sum")
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
        )

    def align(self, tensors: Sequence[Tensor], description: object) -> None:
        with _connected():
            described = self._gather([description])
        if any(other != described[0] for other in described):
            raise UserError(
                "the processes of this training found other settings, data or checkpoints than each other: "
                "start all by the same command, with `output` on a disk that all of them see"
            )
        with _connected():
            for tensor in tensors:
                self._broadcast(tensor)

    def _raise_any(self, failure: UserError | None) -> None:
        """Raise the first failure that any process had."""
        with _connected():
            failures = self._gather([None if failure is None else str(failure)])
        for said in failures:
            if said is not None:
                raise UserError(said)


def connect(device: str = "auto", say: Callable[[str], Any] = lambda _: None) -> Processes:
    """The processes of this training, as a launcher started them; one where there was none.

    Args:
        device: what the run asks for: auto, cpu, cuda, ...
        say: takes what is worth knowing.

    Raises:
        UserError: accelerate is missing, the processes do not reach each other, or one device is asked for
            by several.
    """
    if not launched():
        if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ:
            say(
                "warning: without MPI accelerate starts one process on a CPU, however many are asked for: "
                "give it --multi_gpu in place of --cpu, or use sparsewm train --devices"
            )
        return Processes()
    if ":" in device:
        raise UserError(
            f"`device` {device} cannot be shared by several processes: give {device.split(':')[0]}"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and (here := torch.cuda.device_count()) < (
        asked := int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    ):
        raise UserError(f"{asked} processes need as many GPUs and this machine has {here}: start fewer")
    return Several(device)


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return any(int(os.environ.get(name) or 1) > 1 for name in _COUNTS)


def first_here() -> bool:
    """Whether this process speaks: the first one on this machine, as far as a launcher said."""
    return not launched() or all(int(os.environ.get(name) or 0) == 0 for name in _PLACES)


def leads() -> bool:
    """Whether this process is the main one, as far as a launcher or accelerate said."""
    return not launched() or int(os.environ.get("RANK") or 0) == 0


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, UserError | None]:
    try:
        return work(), None
    except UserError as error:
        return None, error


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Turn a lost connection into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[[^]]*\] *", "", str(error).strip().splitlines()[0])  # a place in gloo's source
        raise UserError(
            f"this process lost the others of the training ({reason}): look for what they said, then give "
            "the same command with `resume`"
        ) from None


@contextlib.contextmanager
def _no_greeting() -> Iterator[None]:
    """Keep what gloo prints about its connections from standard output."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
