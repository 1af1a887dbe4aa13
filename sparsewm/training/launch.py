"""Starts the processes of a training on this machine, by accelerate's launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

import torch

from sparsewm.errors import UserError, needs_extra


def launch(devices: int, device: str, arguments: Sequence[str]) -> int:
    """Run `sparsewm ARGUMENTS` in several processes, a GPU each or a share of the cores each.

    Args:
        devices: how many processes. device: auto, cpu, cuda.
        arguments: of the command line, the command's name first.

    Returns:
        their exit code: 0 if all of them succeeded, else that of the first that did not.

    Raises:
        UserError: accelerate is missing, there are fewer GPUs, or a process was killed.
    """
    with needs_extra("several devices", "parallel"):
        from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and devices > (here := torch.cuda.device_count()):
        raise UserError(f"`devices` {devices} are more than the GPUs of this machine, {here}")
    if device == "cpu" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they are all here
    threads = max(1, torch.get_num_threads() // devices)
    options = {
        "num_processes": devices,
        "num_machines": 1,
        "machine_rank": 0,
        "main_process_port": 0,  # any free one
        "gpu_ids": "all",
        "mixed_precision": "no",
        "dynamo_backend": "no",
        "num_cpu_threads_per_process": threads,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    # accelerate's name for torch's launcher, which starts processes without GPUs as well
    words += ["--multi_gpu", "--module", "sparsewm", *arguments]
    logging.disable()  # the processes speak for themselves
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        if first.exitcode >= 0:
            return int(first.exitcode)
        name = str(-first.exitcode)
        with contextlib.suppress(ValueError):
            name = signal.Signals(-first.exitcode).name
        raise UserError(
            f"a process of this training was ended by {name}; if memory is short lower `batch`, then give "
            "the same command with `resume`"
        ) from None
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        logging.disable(logging.NOTSET)
    return 0
