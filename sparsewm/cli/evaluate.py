"""`sparsewm eval`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

import sparsewm
from sparsewm import envs
from sparsewm.cli.common import about, command_line, output_folder, parse_plan, progress_bar, taken
from sparsewm.config import NO_PROPOSALS, PlanConfig
from sparsewm.errors import UserError
from sparsewm.evaluation.cells import (
    Cell,
    cell_path,
    made_on,
    read_cell,
    retime,
    run_cells,
    time_cells,
    told_apart,
)
from sparsewm.evaluation.comparison import against_all_tokens, over_random, within
from sparsewm.evaluation.machine import machine
from sparsewm.evaluation.run import dress
from sparsewm.evaluation.table import cell_row, markdown, paired_markdown
from sparsewm.files import disk_errors, only_one, write_json, write_text
from sparsewm.model.checkpoint import PRETRAINED, encoder_folder
from sparsewm.planners import ProposalMode
from sparsewm.precision import choose_device
from sparsewm.proposals import reads_tokens
from sparsewm.report.plots import plot_success
from sparsewm.settings import make_env
from sparsewm.trees import at_least, not_empty, one_of, read_yaml

YARDSTICKS = ("nothing", "random_actions", "oracle", "cls", "proprio", "policy")
OF_ROWS = {
    "--env": "envs",
    "--drop": "drops",
    "--tokens.drop": "drops",
    "--tokens.selection": "yardsticks",
    "--run.actor": "yardsticks",
}
"""Flags of a plan in which rows of the table differ, and what says here which of them there are."""
INSTEAD = {
    "--encoder": "encoders",
    "--run.encoder": "encoders",
    "--checkpoint": "checkpoints",
    "--run.checkpoint": "checkpoints",
    "--proposals.mode": "policies",
}
"""Flags of a plan that hold for all rows unless these say otherwise."""
OF_MODELS = ("cls", "proprio")
"""Those that plan in a world model, and so differ from one encoder to another."""
PROPRIO_IS_STATE = ("wall", "pointmaze", "pointmaze-large", "swm/tworoom", "dmc/reacher")
"""Where vision alone (no weight of proprioception) is a column of its own."""

USUAL = {"run": {"episodes": 60, "video": False, "imagine": False}}
"""What differs from a plan's defaults."""


@dataclass
class Eval:
    """Success and time over environments and drop ratios, with yardsticks: the tables of the papers.

    Writes eval.json, eval.md, success against drop ratio and against time as plots. Every finished cell is
    kept under cells/ and not run again by the same code, yours included, in the same precision on the same
    kind of machine, so an interrupted evaluation continues, and no table mixes them.

    Any flag of sparsewm plan holds for all cells, on top of each environment's own settings, but for those in
    which rows differ: environment, actor, selection and drop.

    Example: sparsewm eval --envs all --drops 0 0.1 0.3 0.5 0.7 0.9 --goal.tasks test --episodes 200
    """

    envs: tuple[str, ...] = ("all",)
    """Environments; all: this package's own, those of them that have a world model."""
    encoders: tuple[str, ...] = ()
    """Encoders of the world models, each with rows of its own: embedded, dinov2_vits14, ...; the embedded
    one when left out."""
    drops: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.9)
    """Fractions of the patch tokens dropped."""
    yardsticks: tuple[str, ...] = YARDSTICKS
    """Rows beside them: nothing, random_actions, oracle (true simulator and distance), cls (a world model of
    the image token alone, see --cls-checkpoints), proprio (no token error), policy (executes the first of its
    proposals)."""
    mse: bool = True
    """Also plan by squared error where an environment's own objective is another."""
    vision_only: bool = True
    """Also plan without proprioception where that is the whole state: Wall, PointMaze, TwoRoom, Reacher."""
    variant_drops: tuple[float, ...] = (0.0, 0.5)
    """Those of --drops at which --mse and --vision-only add rows."""
    budgets: tuple[int, ...] = ()
    """Columns of success within so many environment steps, at most --max-steps: of the same episodes, for
    what is planned does not depend on the budget."""
    policies: tuple[str, ...] = ()
    """Policies whose proposals are scored, each with rows of its own: vla, folders or hub names."""
    modes: tuple[ProposalMode, ...] = ("replace",)
    """What is done with their proposals: replace, seed, prior, each with rows of its own."""
    noise: bool = True
    """Rows of the planner's own candidates, beside those of policies."""
    checkpoints: Path | None = None
    """Folder of training runs named by environment (ENV/checkpoint), those on other encoders than the
    embedded one in folders of theirs (ENCODER/ENV/checkpoint); the shipped ones when left out."""
    cls_checkpoints: Path | None = None
    """Folder of training runs on the image token (sparsewm train --encoder embedded:cls); without it the
    cls rows are left out."""
    timed: int = 5
    """Decisions of every cell timed at the end, the cells of an environment in turns by this process alone,
    so that times of rows compare; 0: the times of each cell's own run."""
    run_missing: bool = True
    """Run what is not finished; otherwise table and plots are of the finished cells alone."""
    workers: int = 1
    """Processes that share the cells and the cores."""
    ray_address: str | None = None
    """Spread the cells over Ray: the address of a cluster, or local."""
    output: Path = Path("runs/eval")
    """Folder of the results; the same one continues."""

    passed_on = PlanConfig
    interrupted = "interrupted; finished cells are kept: the same command continues"

    @classmethod
    def parse(cls, arguments: list[str]) -> Eval:
        made, rest = tyro.cli(
            cls, prog="sparsewm eval", args=arguments, description=about(cls), return_unknown_args=True
        )
        made.rest = rest
        made.check_passed_on()
        encoder = parse_plan(rest, "sparsewm eval", usual=USUAL).run.encoder  # says at once what is no flag
        made.encoders = made.encoders or (() if encoder is None else (encoder,))
        return made

    def __post_init__(self) -> None:
        self.rest: list[str] = []

    def check_passed_on(self) -> None:
        """Refuse what rows of the table differ in among settings that are to hold for all of them."""
        file, words = taken(self.rest, "--config")
        given = {word.partition("=")[0] for word in words}
        for name, value in ({} if file is None else read_yaml(file)).items():
            given |= {f"--{name}.{leaf}" for leaf in value} if isinstance(value, dict) else {f"--{name}"}
        for flag, ours in OF_ROWS.items():
            if flag in given:
                raise UserError(f"{flag} is what rows of this table differ in: give `{ours}` instead")
        for flag, ours in INSTEAD.items():
            if flag in given and getattr(self, ours):
                raise UserError(f"{flag} would hold for no row beside `{ours}`: leave one of them out")

    def run(self) -> int:
        at_least(1, workers=self.workers)
        at_least(0, timed=self.timed)
        at_least(1, budgets=min(self.budgets, default=1))
        not_empty(envs=self.envs)
        cells = told_apart(list(self.cells()))
        if not cells:
            raise UserError(
                "this table has no row: give `yardsticks`, or `drops` together with `noise` or `policies`"
            )
        longest = max(cell.config.goal.max_steps for cell in cells)
        if max(self.budgets, default=0) > longest:
            raise UserError(
                f"`budgets` {max(self.budgets)} is more than the {longest} steps of an episode: raise "
                "`max_steps`"
            )
        requests = {cell.name: cell.request() for cell in cells}  # refuses what cannot run
        waiting = [cell for cell in cells if read_cell(self.output, cell.name, requests[cell.name]) is None]
        if not self.run_missing:
            cells, waiting = [cell for cell in cells if cell not in waiting], []
            if not cells:
                raise UserError(
                    f"{self.output} holds no finished cell of this table: let `run_missing` be true"
                )
        with only_one(output_folder(self.output)):
            return self.run_here(self.output, cells, waiting, requests)

    def run_here(
        self, folder: Path, cells: list[Cell], waiting: list[Cell], requests: dict[str, dict[str, Any]]
    ) -> int:
        """Run the waiting cells and write the table."""
        with disk_errors(folder):
            (folder / "cells").mkdir(exist_ok=True)
        with progress_bar("evaluating") as progress:
            finished = [cell.name for cell in cells if cell not in waiting]

            def on_share(share: float) -> None:
                progress(len(finished) + share, len(cells))

            on_share(0.0)
            for name, result in run_cells(waiting, self.workers, self.ray_address, on_share):
                write_json(cell_path(folder, name), {"request": made_on(requests[name], result), **result})
                finished.append(name)
                progress(len(finished), len(cells), f"{name}: {100 * result['success_rate']:.0f}%")
        results = []
        for cell in cells:
            kept = read_cell(folder, cell.name, requests[cell.name])
            if kept is None:  # a worker elsewhere ran it
                raise UserError(
                    f"{cell_path(folder, cell.name)} was made by other code, in another precision or on "
                    "another kind of machine than this one, and a table is of one: start the evaluation on a "
                    "machine of the workers' kind"
                )
            results.append(kept)
        rows = self.rows(cells, results)
        if self.timed:
            with progress_bar("timing") as progress:
                for row, times in zip(rows, time_cells(cells, self.timed, progress), strict=True):
                    retime(row, times)
        self.report(folder, cells, rows)
        return 0

    def rows(self, cells: list[Cell], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the table, with what cells say of each other."""
        rows = [cell_row(cell.selection, result) for cell, result in zip(cells, results, strict=True)]
        pairs = zip(over_random(cells, results), against_all_tokens(cells, results), strict=True)
        for row, result, (random, full) in zip(rows, results, pairs, strict=True):
            row |= {"over_random": random, "against_all_tokens": full}
            row["within"] = [within(result, budget) for budget in self.budgets]
        return rows

    def report(self, folder: Path, cells: list[Cell], rows: list[dict[str, Any]]) -> None:
        """Write the table, its picture and its JSON."""
        run, goal = cells[0].config.run, cells[0].config.goal
        title = f"{run.episodes} {goal.tasks} tasks a cell, seed {run.seed}, {cells[0].config.search.planner}"
        precision = next((row["dtype"] for row in rows if row["dtype"] is not None), None)
        made = [f"code {rows[0]['code']}", *([] if precision is None else [precision]), rows[0]["machine"]]
        report = {
            "rows": rows,
            "command": command_line("eval"),
            "version": sparsewm.__version__,
            "seed": run.seed,
        }
        report |= {"timed": self.timed, "machine": machine(choose_device(run.device.split(",")[0]))}
        write_json(folder / "eval.json", report)
        tables = markdown(rows, f"{title}; {', '.join(made)}", self.budgets)
        if paired := paired_markdown(rows):
            tables += f"\n{paired}"
        write_text(folder / "eval.md", tables)
        plot_success(folder / "success_by_drop.png", rows, "drop", title)
        plot_success(folder / "success_by_time.png", rows, "seconds", title)
        print(tables)
        print(f"results in {folder}/")

    def cells(self) -> Iterator[Cell]:
        """Every cell, in the order of the table."""
        for name in self.yardsticks:
            one_of("yardsticks", name, YARDSTICKS)
        without_oracle = []
        for name, encoders in self.models().items():
            plans = [self.plan(name, encoder) for encoder in encoders]
            yardsticks = list(self.yardsticks)
            if "oracle" in yardsticks and not _has_oracle(plans[0]):
                yardsticks = [one for one in yardsticks if one != "oracle"]
                without_oracle.append(name)
            blind = self.vision_only and name in PROPRIO_IS_STATE
            for selection in yardsticks:
                for plan in plans if selection in (*OF_MODELS, "policy") else plans[:1]:
                    yield from self.yardstick(selection, plan, blind, plan is plans[0])
            planned = [*plans] if self.noise else []
            planned += [one.updated(mode=mode) for one in self.with_policies(plans) for mode in self.modes]
            variants: list[PlanConfig] = []
            if blind:
                variants += [one.updated(proprio_weight=0.0) for one in planned]
            if self.mse and plans[0].cost.objective != "mse":
                variants += [one.updated(objective="mse") for one in planned]
            few = [drop for drop in self.drops if drop in self.variant_drops]
            for rows, drops in ((planned, self.drops), (variants, few)):
                for row in rows:
                    for drop in drops:
                        yield Cell("random", row.updated(drop=drop))
        if without_oracle:
            print(
                f"no oracle, left out: {', '.join(without_oracle)} (it cannot descend gradients, and needs a "
                "simulator)",
                file=sys.stderr,
            )

    def plan(self, name: str, encoder: str | None) -> PlanConfig:
        """How is planned in an environment, in the world model on an encoder."""
        plan = parse_plan(["--env", name, *self.rest], "sparsewm eval", usual=USUAL)
        if plan.run.look:
            dress(make_env(name), plan.run.look)  # refuses what it cannot show
        checkpoint = self.checkpoint(self.checkpoints, name, encoder)
        if checkpoint is None:
            return plan.updated(encoder=encoder)
        _check_folder(checkpoint)
        return plan.updated(encoder=encoder, checkpoint=str(checkpoint))

    def with_policies(self, plans: list[PlanConfig]) -> list[PlanConfig]:
        """The same with the proposals of each policy; a folder is one, however its path is written."""
        sources: dict[str | Path, str] = {}
        for one in self.policies:
            sources.setdefault(Path(one).resolve() if Path(one).is_dir() else one, one)
        return [plan.updated(proposals=source) for plan in plans for source in sources.values()]

    def yardstick(self, selection: str, plan: PlanConfig, blind: bool, first: bool) -> Iterator[Cell]:
        """Cells of one kind of yardstick in one environment, `first` on its first encoder."""
        plain = plan.updated(drop=0.0, checkpoint=None, encoder=None)
        if selection == "policy":
            for policy in self.with_policies([plan.updated(drop=0.0, actor="policy", deadline_ms=None)]):
                if reads_tokens(policy.proposals.source):
                    yield Cell(selection, policy)
                elif first:
                    yield Cell(selection, policy.updated(checkpoint=None, encoder=None))
        elif selection == "cls":
            checkpoint = self.checkpoint(self.cls_checkpoints, plan.env, plan.run.encoder)
            if checkpoint is not None and (self.run_missing or checkpoint.is_dir()):
                _check_folder(checkpoint)
                encoder = plan.run.encoder and f"{plan.run.encoder}:cls"
                row = plan.updated(drop=0.0, checkpoint=str(checkpoint), encoder=encoder)
                yield Cell(selection, row)
                if blind:
                    yield Cell(selection, row.updated(proprio_weight=0.0))
        elif selection == "proprio":
            weight = plan.cost.proprio_weight or 1.0  # else nothing would be left of the cost
            tokens = replace(plan.tokens, drop=0.5, selection="none")
            cost = replace(plan.cost, objective="mse", proprio_weight=weight)
            yield Cell(selection, replace(plan, tokens=tokens, cost=cost))
        else:
            actor = {"nothing": "nothing", "random_actions": "random", "oracle": "oracle"}[selection]
            deadline = plan.search.deadline_ms if actor == "oracle" else None  # the others do not plan
            yield Cell(selection, plain.updated(actor=actor, proposals=NO_PROPOSALS, deadline_ms=deadline))

    def models(self) -> dict[str, list[str | None]]:
        """Encoders by canonical names of the environments asked for.

        "all" stands for our own, on the encoders that there is a world model on.
        """
        encoders: list[str | None] = [*{encoder_folder(one): one for one in self.encoders}.values()] or [None]
        wanted: dict[str, bool] = {}  # whether it was asked for by its own name
        for name in self.envs:
            if name != "all":
                wanted[make_env(name).name] = True
                continue
            for own in envs.names():
                wanted.setdefault(own, False)
        found: dict[str, list[str | None]] = {}
        missing = []
        for name, named in wanted.items():
            for encoder in encoders:
                shipped = PRETRAINED / encoder_folder(encoder) / name
                if named or (self.checkpoint(self.checkpoints, name, encoder) or shipped).is_dir():
                    found.setdefault(name, []).append(encoder)
                else:
                    missing.append(name if encoder is None else f"{name} on {encoder}")
        if not found:
            if self.checkpoints is None:
                raise UserError(
                    f"no world model on {', '.join(self.encoders)} is shipped: correct `encoders`"
                )
            raise UserError(f"`checkpoints` {self.checkpoints} holds no run: train one with sparsewm train")
        if missing:
            print(f"no world model yet, left out: {', '.join(sorted(missing))}", file=sys.stderr)
        return found

    def checkpoint(self, folder: Path | None, name: str, encoder: str | None) -> Path | None:
        """Checkpoint of an environment in a folder of runs."""
        if folder is None:
            return None
        place = folder / encoder_folder(encoder) / name
        return place / "checkpoint" if (place / "checkpoint").is_dir() else place


def _has_oracle(plan: PlanConfig) -> bool:
    """Whether an oracle can plan so."""
    ours = plan.env in envs.names()
    return plan.search.planner != "gd" and (ours or isinstance(make_env(plan.env), envs.SimulatedGoalEnv))


def _check_folder(checkpoint: Path) -> None:
    """Refuse what does not exist here: it is a place in a folder, no name to be looked up on the hub."""
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is no checkpoint folder: train one with sparsewm train, or correct the path"
        )
