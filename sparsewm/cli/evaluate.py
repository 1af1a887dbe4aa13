"""`sparsewm eval`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import MISSING, asdict, dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsewm
from sparsewm import envs
from sparsewm.cli.common import command_line, output_folder, progress_bar
from sparsewm.cli.plan import WITHOUT_MODEL, Plan
from sparsewm.errors import UserError
from sparsewm.evaluation.bench import machine
from sparsewm.evaluation.closed_loop import Policy, Trace
from sparsewm.evaluation.statistics import quartiles
from sparsewm.evaluation.table import cell_row, markdown
from sparsewm.files import write_json
from sparsewm.model.checkpoint import PRETRAINED, checkpoint_hash, pretrained_path
from sparsewm.planners import ProposalMode
from sparsewm.proposals import GAUSSIAN, check_proposals
from sparsewm.report.plots import plot_success
from sparsewm.settings import PlanSettings, at_least, choose_device, environment_settings, make_env, one_of

YARDSTICKS = ("none", "random_actions", "oracle", "cls", "proprio", "policy")
PROPRIO_IS_STATE = ("wall", "pointmaze", "pointmaze-large")
"""Where vision alone (alpha 0) is a column of its own."""


@dataclass
class Eval:
    """Success and time over environments and drop ratios, with yardsticks: the tables of the papers.

    Writes eval.json, eval.md, success against drop ratio and against time as plots. Every finished cell is
    kept under cells/ and not run again, so an interrupted evaluation continues.

    Example: sparsewm eval --envs all --drops 0 0.1 0.3 0.5 0.7 0.9 --episodes 60
    """

    envs: tuple[str, ...] = ("all",)
    """Environments; all: every one that has a world model."""
    drops: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.9)
    """Fractions of the patch tokens dropped."""
    yardsticks: tuple[str, ...] = YARDSTICKS
    """Rows beside them: none (does nothing), random_actions, oracle (true simulator and distance), cls (a
    world model of the image token alone, see --cls-checkpoints), proprio (no token error), policy (executes
    the first candidate of each of --proposals)."""
    mse: bool = True
    """Also plan by squared error where an environment's own cost is another."""
    vision_only: bool = True
    """Also plan without proprioception (alpha 0) where that is the whole state, Wall and PointMaze: by patch
    tokens and by the image token."""
    variant_drops: tuple[float, ...] = (0.0, 0.5)
    """Those of --drops at which --mse and --vision-only add rows."""
    episodes: int = 60
    """Episodes per cell."""
    planner: str = "cem"
    """Planner: cem, icem, mppi or gd."""
    proposals: tuple[str, ...] = ("gaussian",)
    """Where candidate action sequences come from, each with rows of its own: gaussian, vla, or the folder or
    hub name of a LeRobot policy."""
    proposal_modes: tuple[ProposalMode, ...] = ("replace",)
    """What is done with those of a policy: replace, seed, prior, each with rows of its own."""
    candidates: int | None = None
    """Proposals per decision; this and the next as in sparsewm plan."""
    instruction: str | None = None
    """What a language-conditioned policy is told."""
    names: Path | None = None
    """YAML file that maps a policy's cameras, states and actions to the environment's."""
    goal_source: str | None = None
    """random, or trajectory: the state some steps ahead in a held-out trajectory."""
    goal_offset: int | None = None
    """Environment steps between start and goal of a trajectory goal."""
    horizon: int | None = None
    """Model steps imagined."""
    execute: int | None = None
    """Model steps executed before planning again."""
    samples: int | None = None
    """Candidates per iteration; this and the next three as the environment has them when left out."""
    elites: int | None = None
    """Candidates the distribution is refitted to (cem, icem)."""
    iterations: int | None = None
    """Planner iterations per plan."""
    budget: int | None = None
    """Environment steps an episode may take."""
    checkpoints: Path | None = None
    """Folder of training runs named by environment (ENV/checkpoint); the shipped ones when left out."""
    cls_checkpoints: Path | None = None
    """Folder of training runs on the image token (sparsewm train --encoder embedded:cls); without it the
    cls rows are left out."""
    batch: int = 1
    """Episodes planned at once."""
    timed: int = 5
    """Decisions of every cell timed at the end, of all cells in turns by this process alone, so that times of
    rows compare whenever and beside whatever the cells ran; 0: the times of each cell's own run."""
    run_missing: bool = True
    """Run what is not finished; otherwise table and plots are of the finished cells alone."""
    workers: int = 1
    """Processes that share the cells and the cores."""
    ray_address: str | None = None
    """Spread the cells over Ray: the address of a cluster, or local."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    dtype: str = "auto"
    """Precision of the predictor: auto, int8 (products of the rollout's layers, where the processor has
    them), bfloat16 or float32."""
    seed: int = 0
    """Seed of tasks, candidates and drop masks."""
    output: Path = Path("runs/eval")
    """Folder of the results; the same one continues."""

    def run(self) -> int:
        at_least(1, workers=self.workers, episodes=self.episodes)
        at_least(0, timed=self.timed)
        cells = list(self.cells())
        requests = {cell.name: cell.request() for cell in cells}  # refuses what cannot run
        waiting = [cell for cell in cells if read_cell(self.output, cell.name, requests[cell.name]) is None]
        if not self.run_missing:
            cells, waiting = [cell for cell in cells if cell not in waiting], []
            if not cells:
                raise UserError(
                    f"{self.output} holds no finished cell of this table: leave --no-run-missing out"
                )
        folder = output_folder(self.output)
        (folder / "cells").mkdir(exist_ok=True)
        with progress_bar("evaluating") as progress:
            finished = [cell.name for cell in cells if cell not in waiting]

            def on_share(share: float) -> None:
                progress(len(finished) + share, len(cells))

            on_share(0.0)
            for name, result in self.results(waiting, on_share):
                write_json(cell_path(folder, name), {"request": requests[name], **result})
                finished.append(name)
                progress(len(finished), len(cells), f"{name}: {100 * result['success_rate']:.0f}%")
        rows = []
        for cell in cells:
            kept = read_cell(folder, cell.name, requests[cell.name])
            assert kept is not None
            rows.append(cell_row(cell.selection, kept))
        if self.timed:
            with progress_bar("timing") as progress:
                for row, times in zip(rows, time_cells(cells, self.timed, progress), strict=True):
                    retime(row, times)
        title = f"{self.episodes} episodes a cell, seed {self.seed}, {self.planner}"
        report = {"rows": rows, "command": command_line(), "version": sparsewm.__version__, "seed": self.seed}
        report |= {"timed": self.timed, "machine": machine(choose_device(self.device.split(",")[0]))}
        write_json(folder / "eval.json", report)
        (folder / "eval.md").write_text(markdown(rows, title))
        plot_success(folder / "success_by_drop.png", rows, "drop", title)
        plot_success(folder / "success_by_time.png", rows, "seconds", title)
        print(markdown(rows, title))
        print(f"results in {folder}/")
        return 0

    def cells(self) -> Iterator[Cell]:
        """Every cell, in the order of the table."""
        for name in self.yardsticks:
            one_of("yardsticks", name, YARDSTICKS)
        for name in self.environments():
            usual = environment_settings(name).plan
            plan = Plan(
                name,
                planner=self.planner,
                episodes=self.episodes,
                checkpoint=self.checkpoint(self.checkpoints, name),
                samples=self.samples,
                elites=self.elites,
                iterations=self.iterations,
                budget=self.budget,
                goal_source=self.goal_source,
                goal_offset=self.goal_offset,
                horizon=self.horizon,
                execute=self.execute,
                batch=self.batch,
                video=False,
                imagine=False,
                device=self.device,
                dtype=self.dtype,
                seed=self.seed,
            )
            blind = self.vision_only and name in PROPRIO_IS_STATE
            policies = [replace(plan, **self.policy(name)) for name in self.proposals if name != GAUSSIAN]
            for selection in self.yardsticks:
                if selection == "policy":
                    for policy in policies:
                        yield Cell(selection, replace(policy, drop=0.0, selection=selection, checkpoint=None))
                elif selection == "cls":
                    checkpoint = self.checkpoint(self.cls_checkpoints, name)
                    if checkpoint is not None and (self.run_missing or checkpoint.is_dir()):
                        row = replace(plan, drop=0.0, checkpoint=checkpoint)
                        yield Cell(selection, row)
                        if blind:
                            yield Cell(selection, replace(row, alpha=0.0))
                elif selection == "proprio":
                    alpha = None if usual.alpha > 0 else 1.0  # else nothing would be left of the cost
                    yield Cell(selection, replace(plan, drop=0.5, selection=selection, alpha=alpha))
                else:
                    yield Cell(selection, replace(plan, drop=0.0, selection=selection, checkpoint=None))
            planned = [plan] if GAUSSIAN in self.proposals else []
            planned += [replace(p, proposal_mode=mode) for p in policies for mode in self.proposal_modes]
            variants: list[Plan] = []
            if blind:
                variants += [replace(plan, alpha=0.0) for plan in planned]
            if self.mse and usual.cost != "mse":
                variants += [replace(plan, cost="mse") for plan in planned]
            few = [drop for drop in self.drops if drop in self.variant_drops]
            for rows, drops in ((planned, self.drops), (variants, few)):
                for row in rows:
                    for drop in drops:
                        yield Cell("random", replace(row, drop=drop))

    def policy(self, name: str) -> dict[str, Any]:
        """Flags of `plan` for the candidates of a policy."""
        return {
            "proposals": name,
            "candidates": self.candidates,
            "instruction": self.instruction,
            "names": self.names,
        }

    def environments(self) -> list[str]:
        """Canonical names of the environments asked for; "all" are those that have a world model."""
        if "all" not in self.envs:
            return [make_env(name).name for name in self.envs]
        known = {name: self.checkpoint(self.checkpoints, name) or PRETRAINED / name for name in envs.names()}
        found = [name for name, path in known.items() if path.is_dir()]
        if not found:
            raise UserError(f"--checkpoints {self.checkpoints} holds no run: train one with sparsewm train")
        missing = sorted(set(known) - set(found))
        if missing:
            print(f"no world model yet, left out: {', '.join(missing)}", file=sys.stderr)
        return found

    def checkpoint(self, folder: Path | None, name: str) -> Path | None:
        """Checkpoint of an environment in a folder of runs."""
        if folder is None:
            return None
        path = folder / name / "checkpoint"
        return path if path.is_dir() else folder / name

    def results(self, cells: list[Cell], on_share: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and result of every cell, as they finish."""
        if self.ray_address is not None:
            yield from self.results_by_ray(cells)
        elif self.workers == 1:
            for cell in cells:
                yield cell.name, cell.run(on_share)
        else:
            threads = max(1, (os.cpu_count() or 1) // self.workers)
            context = get_context("spawn")
            pool = ProcessPoolExecutor(self.workers, context, torch.set_num_threads, (threads,))
            try:
                jobs = {pool.submit(cell.run): cell.name for cell in cells}
                for job in as_completed(jobs):
                    yield jobs[job], job.result()
            except BrokenProcessPool:
                raise UserError(
                    "an evaluation process died, perhaps for lack of memory: the same command continues, "
                    "with fewer --workers if need be"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)

    def results_by_ray(self, cells: list[Cell]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The same over Ray: one core per worker."""
        try:
            import ray
        except ImportError:
            raise UserError("--ray-address needs Ray: pip install 'sparsewm[ray]'") from None
        try:
            if self.ray_address == "local":
                ray.init(num_cpus=self.workers, include_dashboard=False, log_to_driver=False)
            else:
                ray.init(address=self.ray_address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--ray-address {self.ray_address}: no Ray there ({error}); try local") from None
        try:
            remote = ray.remote(num_cpus=1)(Cell.run)
            waiting = {remote.remote(cell): cell.name for cell in cells}
            while waiting:
                (finished,), _ = ray.wait(list(waiting))
                yield waiting.pop(finished), ray.get(finished)
        finally:
            ray.shutdown()


@dataclass
class Cell:
    """One cell: what the table calls its selection, and the `Plan` behind it."""

    selection: str
    plan: Plan

    @property
    def name(self) -> str:
        """File name."""
        parts: list[object] = [self.plan.env, self.selection]
        if self.selection in ("random", "proprio"):
            parts.append(f"drop{self.plan.start_drop:g}")
        if self.plan.alpha is not None:
            parts.append(f"alpha{self.plan.alpha:g}")
        if self.plan.cost is not None:
            parts.append(self.plan.cost)
        if self.plan.proposals != GAUSSIAN:
            parts += [self.plan.proposals.strip("./").replace("/", "-"), self.plan.proposal_mode or ""]
        return "-".join(str(part) for part in parts if part)

    def request(self) -> dict[str, Any]:
        """What the result depends on: settings, seed, weights.

        Raises:
            UserError: the cell cannot run.
        """
        plan = self.plan
        settings = plan.settings(make_env(plan.env))
        weights = None
        if plan.selection not in WITHOUT_MODEL:
            weights = checkpoint_hash(plan.checkpoint or pretrained_path(plan.env))
        return {
            **asdict(settings),
            "drop": plan.drop,
            "planner": plan.planner,
            "selection": plan.selection,
            "episodes": plan.episodes,
            "seed": plan.seed,
            "weights": weights,
            **({"drop_highest": plan.drop_highest} if plan.drop == "auto" else {}),
            **check_proposals(plan.proposals, plan.env, plan.instruction, plan.names),
        }

    def run(self, on_share: Any = None) -> dict[str, Any]:
        """Run the episodes."""
        plan = self.plan

        def on_plan(episode: int, decision: int, share: float) -> None:
            if on_share is not None:
                on_share((episode + 0.99 * share) / plan.episodes)

        _, results = plan.evaluate(plan.prepare(), on_plan)
        return results | {"command": self.command(), "threads": torch.get_num_threads()}

    def command(self) -> str:
        """`sparsewm plan` with the flags that give this cell."""
        default = Plan(self.plan.env)
        words = ["sparsewm", "plan", "--env", self.plan.env]
        for field in fields(Plan)[1:]:
            value = getattr(self.plan, field.name)
            if field.name in ("drop", "episodes", "seed") or value != getattr(default, field.name):
                flag = field.name.replace("_", "-")
                words += [f"--no-{flag}"] if value is False else [f"--{flag}", str(value)]
        return shlex.join(words)


WARM_UP = 2
"""Decisions of a cell that are not timed."""


def time_cells(
    cells: Sequence[Cell],
    repeats: int,
    progress: Callable[[float, float], None] | None = None,
    warm_up: int = WARM_UP,
) -> list[dict[str, dict[str, float] | None] | None]:
    """How long cells take to decide, on an otherwise idle machine.

    Each decides for its first task, again and again, all of them in turns: what disturbs the machine disturbs
    all alike.

    Args:
        progress: called with what is done and the whole.
        warm_up: decisions before the timed ones.

    Returns:
        quartiles of ``seconds_per_iteration`` and ``seconds_per_plan`` per cell; None where nothing is
        planned, and for the oracle, which spends its time in the simulator.
    """
    runs: list[tuple[Policy, Trace] | None] = []
    for cell in cells:
        if cell.plan.selection in ("none", "random_actions", "oracle"):
            runs.append(None)
            continue
        ready = replace(cell.plan, episodes=1).prepare()
        policy = cell.plan.policy(ready.env, ready.model, ready.settings, ready.proposals)
        trace = Trace(ready.tasks[0], [ready.tasks[0].start])
        policy.begin([trace])
        runs.append((policy, trace))
    rounds = warm_up + repeats
    for turn in range(rounds):
        for policy, trace in filter(None, runs):
            if turn == warm_up:
                trace.seconds_per_iteration.clear()
                trace.seconds_per_plan.clear()
            trace.latents.pop(trace.steps, None)  # the present is new, as in an episode; the goal is not
            policy.act(np.array([0]))
        if progress is not None:
            progress(turn + 1, rounds)
    return [
        None
        if run is None
        else {
            "seconds_per_iteration": quartiles(run[1].seconds_per_iteration),
            "seconds_per_plan": quartiles(run[1].seconds_per_plan),
        }
        for run in runs
    ]


def retime(row: dict[str, Any], times: dict[str, dict[str, float] | None] | None) -> None:
    """Put times of `time_cells` into a row; an episode has as many decisions as in the cell's own run."""
    if times is None:
        return
    before, now = row["seconds_per_plan"], times["seconds_per_plan"]
    row |= times
    if row["seconds_per_episode"] and before and now:
        factor = now["median"] / before["median"]
        row["seconds_per_episode"] = {
            name: factor * value for name, value in row["seconds_per_episode"].items()
        }


def cell_path(folder: Path, name: str) -> Path:
    """Where a cell's result is kept."""
    return folder / "cells" / f"{name}.json"


def read_cell(folder: Path, name: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """A kept result of the same request, None when there is none.

    A setting that it does not name is newer than the result, and its default is how things were before.
    """
    defaults = {field.name: field.default for field in fields(PlanSettings) if field.default is not MISSING}
    try:
        result = json.loads(cell_path(folder, name).read_text())
        return result if defaults | result["request"] == request else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{cell_path(folder, name)} is damaged ({error}): delete it, and that cell is run again"
        ) from None
