"""Episodes of one `Plan` shared by several devices, with a process for each."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING

import torch

from sparsewm.errors import UserError
from sparsewm.evaluation.closed_loop import Trace

if TYPE_CHECKING:
    from sparsewm.cli.plan import Plan, Prepared

_state: tuple[Plan, Prepared] | None = None  # of this process


def _begin(plan: Plan, devices: Queue[str], threads: int) -> None:
    global _state
    torch.set_num_threads(threads)
    plan = replace(plan, device=devices.get())
    _state = plan, plan.prepare()


def _run(episodes: list[int]) -> list[Trace]:
    assert _state is not None
    plan, ready = _state
    return plan.traces(replace(ready, tasks=[ready.tasks[episode] for episode in episodes]))


def run_on(
    devices: list[str], plan: Plan, on_episode: Callable[[int, Trace], None] | None = None
) -> list[Trace]:
    """Run the episodes of a checked plan, `plan.batch` at a time on whichever device is free.

    Every batch begins with the plan's seed, so that what is planned does not depend on which device was free.

    Raises:
        UserError: a process died, or an episode could not be planned.
    """
    context = get_context("spawn")
    queue = context.Queue()
    for device in devices:
        queue.put(device)
    threads = max(1, (os.cpu_count() or 1) // len(devices))
    batches = [
        list(range(first, min(first + plan.batch, plan.episodes)))
        for first in range(0, plan.episodes, plan.batch)
    ]
    pool = ProcessPoolExecutor(len(devices), context, _begin, (plan, queue, threads))
    traces: dict[int, Trace] = {}
    try:
        jobs = {pool.submit(_run, batch): batch for batch in batches}
        for job in as_completed(jobs):
            for episode, trace in zip(jobs[job], job.result(), strict=True):
                traces[episode] = trace
                if on_episode is not None:
                    on_episode(episode, trace)
    except BrokenProcessPool:
        raise UserError(
            "a planning process died, perhaps for lack of memory: try fewer devices, or a smaller --batch"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return [traces[episode] for episode in range(plan.episodes)]
