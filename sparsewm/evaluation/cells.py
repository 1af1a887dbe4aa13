"""Cells of an evaluation table: one configuration each, kept when finished and not run again."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsewm.config import NO_PROPOSALS, PlanConfig
from sparsewm.errors import UserError
from sparsewm.evaluation.episodes import Episode
from sparsewm.evaluation.foreign import foreign_code
from sparsewm.evaluation.machine import code_hash, machine_kind
from sparsewm.evaluation.run import check_checkpoint, prepare, results, run
from sparsewm.evaluation.statistics import quartiles
from sparsewm.files import parse_json, slug
from sparsewm.memory import PeakMemory
from sparsewm.model.checkpoint import checkpoint_hash, encoder_folder, pretrained_path
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.processes import processes
from sparsewm.proposals import check_proposals, reads_tokens
from sparsewm.tasks import tasks_hash
from sparsewm.trees import differences, plain

WARM_UP = 2
"""Decisions of a cell that are not timed."""


@dataclass
class Cell:
    """One cell: what the table calls its row, and the configuration behind it.

    Attributes:
        selection: "random" (a drop ratio), or a yardstick: nothing, random_actions, oracle, cls, proprio,
            policy.
        mark: at the end of the file's name, where without it another cell's would be the same (`told_apart`).
    """

    selection: str
    config: PlanConfig
    mark: str = ""

    @property
    def name(self) -> str:
        """File name."""
        config = self.config
        parts = [config.env.replace("/", "-").replace(":", "-"), self.selection]
        usual = PlanConfig.of(config.env)
        if self.selection in ("random", "proprio"):
            parts.append(f"drop{config.tokens.drop:g}")
        if config.cost.proprio_weight != usual.cost.proprio_weight:
            parts.append(f"proprio{config.cost.proprio_weight:g}")
        if config.cost.objective != usual.cost.objective:
            parts.append(config.cost.objective)
        for name in ("choose", "temperature", "cost", "cost_drop"):
            if (value := getattr(config.tokens, name)) != getattr(usual.tokens, name):
                parts.append(slug(f"{name}-{value}"))
        parts += [slug(config.run.look.replace(":-", "-minus"))] if config.run.look else []
        parts += ["adapt"] if config.run.adapt else []
        if config.proposals.source != NO_PROPOSALS:
            parts += [config.proposals.source.strip("./").replace("/", "-"), config.proposals.mode]
        parts += encoder_folder(config.run.encoder).parts
        return "-".join([*parts, self.mark] if self.mark else parts)

    def request(self) -> dict[str, Any]:
        """What the result depends on: settings, weights, tasks, precision, kind of machine and code, the
        user's own included.

        Raises:
            UserError: the cell cannot run.
        """
        config = self.config.checked()
        run = config.run
        device = choose_device(run.device.split(",")[0])
        weights = None
        source, checkpoint, encoder = config.proposals.source, None, None
        if run.actor == "planner" or reads_tokens(source):
            checkpoint = run.checkpoint or pretrained_path(config.env, run.encoder)
            weights = checkpoint_hash(checkpoint)
            encoder = check_checkpoint(config, checkpoint)
        settings = config.settings()
        for name in ("output", "video", "imagine", "landscape", "device", "dtype", "checkpoint", "encoder"):
            settings["run"].pop(name)
        names = config.proposals.names
        proposals = check_proposals(source, config.env, config.proposals.instruction, names, checkpoint)
        sampler = source if source != NO_PROPOSALS and "policy" not in proposals else None
        return plain(
            {
                **settings,
                "weights": weights,
                "dtype": str(choose_dtype(run.dtype, device, planning=True)).removeprefix("torch."),
                "machine": machine_kind(device),
                "code": code_hash(),
                "foreign": foreign_code(config, encoder, sampler),
                "tasks": tasks_hash(config.env, config.goal, run.episodes),
                "policy": proposals,
            }
        )

    def run(self, on_share: Callable[[float], None] | None = None) -> dict[str, Any]:
        """Run the episodes; `on_share` is called with the share that is done."""
        ready, total = prepare(self.config), self.config.run.episodes

        def on_plan(number: int, decision: int, episode: Episode) -> None:
            if on_share is not None:
                on_share((number + 0.99 * min(1.0, episode.steps / self.config.goal.max_steps)) / total)

        memory = PeakMemory(ready.device)
        found = results(ready, run(ready, on_plan))
        return found | {"peak_memory_bytes": memory.read(), "command": self.command()}

    def command(self) -> str:
        """`sparsewm plan` with the flags that give this cell."""
        words = ["sparsewm", "plan", "--env", self.config.env]
        for name, value in differences(self.config, PlanConfig.of(self.config.env)):
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                section, _, leaf = flag.rpartition(".")
                words.append(f"--{section}.{'' if value else 'no-'}{leaf}")
            else:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)


def told_apart(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, each once, with file names of their own: where names in them are alike but for their signs,
    a short hash of these is added.

    Raises:
        UserError: two cells differ in nothing that is in a name.
    """
    once: list[Cell] = []
    for cell in cells:
        if cell not in once:
            once.append(cell)
    counts = Counter(cell.name for cell in once)
    named = [replace(cell, mark=_mark(cell.config)) if counts[cell.name] > 1 else cell for cell in once]
    if double := [name for name, count in Counter(cell.name for cell in named).items() if count > 1]:
        raise UserError(f"two different rows would be kept as {double[0]}: give each an `output` of its own")
    return named


def _mark(config: PlanConfig) -> str:
    """Short hash of the names in a configuration, of which a file's name keeps no signs."""
    run, tokens = config.run, config.tokens
    names = (config.env, config.proposals.source, config.cost.objective, run.encoder, run.look)
    return hashlib.sha256(repr((*names, tokens.choose, tokens.cost)).encode()).hexdigest()[:8]


def time_cells(
    cells: Sequence[Cell],
    repeats: int,
    progress: Callable[[float, float], None] | None = None,
    warm_up: int = WARM_UP,
) -> list[dict[str, dict[str, float] | None] | None]:
    """How long cells take to decide, on an otherwise idle machine.

    Each decides for its first task, again and again, with its past frames remembered. The cells of one
    environment take turns: what disturbs the machine disturbs all of them alike. Their models are in memory
    at once, those of one environment after those of another.

    Args:
        progress: called with what is done and the whole.
        warm_up: decisions before the timed ones.

    Returns:
        quartiles of ``seconds_per_iteration`` and ``seconds_per_plan`` per cell; None where nothing is
        planned, and for the oracle, which spends its time in the simulator.
    """
    found: list[dict[str, dict[str, float] | None] | None] = [None] * len(cells)
    timed = [i for i, cell in enumerate(cells) if cell.config.run.actor in ("planner", "policy")]
    for done, env in enumerate(envs := list(dict.fromkeys(cells[i].config.env for i in timed))):
        numbers = [i for i in timed if cells[i].config.env == env]
        ready = [_Timed(cells[i].config) for i in numbers]
        rounds = warm_up + repeats
        for turn in range(rounds):
            for one in ready:
                one.decide(turn >= warm_up)
            if progress is not None:
                progress(done + (turn + 1) / rounds, len(envs))
        for i, one in zip(numbers, ready, strict=True):
            found[i] = one.times()
    return found


class _Timed:
    """A cell's first task, decided for again and again from the middle of an episode."""

    def __init__(self, config: PlanConfig) -> None:
        config = replace(config, run=replace(config.run, episodes=1, batch=1, imagine=False))
        ready = prepare(config)
        self.actor, env = ready.actor(), ready.envs[0]
        task = ready.tasks[0]
        observation, info = env.reset(seed=task.seed, options=task.options)
        self.episode = Episode(env, task, env.goal_observation(), observation, info)
        self.actor.begin([self.episode])
        still = env.idle_action()
        history = 1 if ready.model is None else ready.model.history
        for _ in range((history - 1) * env.frameskip):  # what it sees before its first timed decision
            observation, _, _, _, info = env.step(still)
            self.episode.actions.append(still)
            self.episode.see(observation, info, False)
            self.actor.observe(0, self.episode)
        self.kept: list[Any] = []

    def decide(self, counts: bool) -> None:
        self.actor.act([self.episode], np.array([0]))
        decision = self.episode.decisions.pop()
        if counts:
            self.kept.append(decision)
        # it is decided for the same moment again: nothing of what was planned is executed
        agent = getattr(self.actor, "agent", None)
        if agent is not None:
            agent.forget_pending()

    def times(self) -> dict[str, dict[str, float] | None]:
        """Quartiles of what counts."""
        return {
            "seconds_per_iteration": quartiles([s for one in self.kept for s in one.seconds_per_iteration]),
            "seconds_per_plan": quartiles([one.seconds for one in self.kept]),
        }


def retime(row: dict[str, Any], times: dict[str, dict[str, float] | None] | None) -> None:
    """Put times of `time_cells` into a row; an episode's time is that of the cell's own run, and goes."""
    if times is not None:
        row |= times | {"seconds_per_episode": None}


def run_cells(
    cells: Sequence[Cell], workers: int, ray_address: str | None, on_share: Callable[[float], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and result of every cell, as they finish: in this process, in several, or over Ray.

    Raises:
        UserError: a process died, or there is no Ray.
    """
    if ray_address is not None:
        yield from _by_ray(cells, workers, ray_address)
    elif workers == 1:
        for cell in cells:
            yield cell.name, cell.run(on_share)
    else:
        threads = max(1, (os.cpu_count() or 1) // workers)
        try:
            with processes(workers, torch.set_num_threads, threads) as submit:
                jobs = {submit(cell.run): cell.name for cell in cells}
                for job in as_completed(jobs):
                    yield jobs[job], job.result()
        except BrokenProcessPool:
            raise UserError(
                "an evaluation process died, perhaps for lack of memory: the same command continues, with "
                "fewer `workers` if need be"
            ) from None


def _by_ray(cells: Sequence[Cell], workers: int, ray_address: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import ray
    except ImportError:
        raise UserError("`ray_address` needs Ray: pip install 'sparsewm[ray]'") from None
    try:
        if ray_address == "local":
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=ray_address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"`ray_address` {ray_address}: no Ray there ({error}); try local") from None
    gpus = float(bool(ray.cluster_resources().get("GPU")))  # without asking, Ray hides the GPUs
    try:
        remote = ray.remote(num_cpus=1, num_gpus=gpus)(Cell.run)
        waiting = {remote.remote(cell): cell.name for cell in cells}
        while waiting:
            (finished,), _ = ray.wait(list(waiting))
            yield waiting.pop(finished), ray.get(finished)
    finally:
        ray.shutdown()


def made_on(request: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The request that a result answers: with the code, precision and machine it says it was made on."""
    made = {"machine": result["machine"]["kind"], "code": result["machine"]["code"]}
    return request | made | ({} if result["dtype"] is None else {"dtype": result["dtype"]})


def cell_path(folder: Path, name: str) -> Path:
    """Where a cell's result is kept."""
    return folder / "cells" / f"{name}.json"


def read_cell(folder: Path, name: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """A kept result of the same request, None when there is none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        result: dict[str, Any] = parse_json(cell_path(folder, name))
        return result if result["request"] == request else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{cell_path(folder, name)} is damaged ({error}): delete it, and that cell is run again"
        ) from None
