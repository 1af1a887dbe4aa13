r"""What sparse imagination owes to its parts, and what cheaper searches are worth.

    redraw: the mask redrawn at every optimiser iteration, at every re-plan, and never in an episode.
    groups: models trained without randomly grouped attention, and with 2, 3, 4 and 8 groups.
    search: more or fewer candidates and tokens.
    proposals: candidates from a VLA (the policy alone, the best of 32 at all and half of the tokens, searched
        on) against noise, for goals far ahead.
    sources: candidates of a VLA, of inverse dynamics and of world-action models, each alone and as the best
        of 32 at all and half of the tokens, against searches by noise that take about as long.
    denoising: steps of a world-action model's future and actions, and its own future as the judge.
    execution: how much of a chunk is executed before the source is asked again.
    grids: VLAs that see few tokens of a picture, each alone.

Of search, proposals, sources and denoising success is shown over the time of a decision: all of them are
timed in turns, at the end; let nothing else run then.

Example, after training models that differ by their groups alone:

    for groups in 1 2 3 4 8; do
        sparsewm train --env rope --groups $groups --optim.trained-groups 0 \
            --output runs/groups/$groups/rope
    done
    python -m scripts.experiments.ablate --studies groups redraw --environments rope --drops 0 0.5 0.9 \
        --runs runs/groups/1 runs/groups/2 runs/groups/3 runs/groups/4 runs/groups/8 \
        --tasks test --episodes 200

Finished cells are kept, so an interrupted run continues. Of every study it writes JSON, a table and a plot.
Rows of one environment and drop ratio are compared with the first of them, on the same tasks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib.pyplot as plt
import numpy as np

from scripts.common import launch, typed_command
from sparsewm.config import NO_PROPOSALS, PlanConfig, Resample, TaskSet
from sparsewm.errors import UserError
from sparsewm.evaluation.cells import Cell, cell_path, read_cell, time_cells
from sparsewm.evaluation.comparison import compared
from sparsewm.evaluation.table import percent, points, seconds
from sparsewm.files import atomic_path, read_json, write_json
from sparsewm.proposals.latent import ABOUT
from sparsewm.report.plots import save_figure

Study = Literal["redraw", "groups", "search", "proposals", "sources", "denoising", "execution", "grids"]
TIMED: tuple[Study, ...] = ("search", "proposals", "sources", "denoising")
"""Studies that ask what success costs."""

SEARCHES: dict[str, dict[str, Any]] = {
    "64 candidates": {},
    "32 candidates": {"candidates": 32},
    "128 candidates": {"candidates": 128},
    "drop 30%": {"drop": 0.3},
    "drop 70%": {"drop": 0.7},
}
"""Searches by name, as they differ from 64 candidates at half of the tokens and the usual settings."""

SHORT = {"candidates": 32, "iterations": 2}
"""A search that takes about as long as a policy needs to propose and a world model to score its proposals."""

BEST = {"proposals": {"mode": "replace", "samples": 32}}

_OWN = {"proposals": {"source": NO_PROPOSALS}} | SHORT
NOISE: dict[str, dict[str, Any]] = {
    "noise, short search": _OWN,
    "noise, one iteration": _OWN | {"iterations": 1},
    "noise, 24 candidates": _OWN | {"candidates": 24},
    "noise, 40 candidates": _OWN | {"candidates": 40},
    "noise, 54 candidates": _OWN | {"candidates": 54},
}
"""Searches by the planner's own candidates that take about as long as a policy's proposals."""

PROPOSALS: dict[str, dict[str, Any]] = {
    "VLA alone": {"actor": "policy"},
    "VLA, best of 32, all tokens": BEST | {"drop": 0.0},
    "VLA, best of 32": BEST,
    "VLA, seed of a short search": {"proposals": {"mode": "seed"}} | SHORT,
    "VLA, prior of a short search": {"proposals": {"mode": "prior"}} | SHORT,
    **NOISE,
}
"""What is done with a VLA's candidates, and the planner's own; half of the tokens but where it says so."""

SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "inverse": ("inverse", {}),
    "WAM": ("wam", {"future_steps": 1}),
    "WAM, future left out": ("wam", {"future_steps": 0}),
    "flow": ("flow", {}),
}
"""Policies that read a world model's tokens: their folder, and how noise becomes actions. flow is a
world-action model that was trained without a future."""

DENOISING: dict[str, dict[str, Any]] = {
    "8 steps, future 8": {"action_steps": 8, "future_steps": 8},
    "4 steps, future 8": {"action_steps": 4, "future_steps": 8},
    "4 steps, future 4": {"action_steps": 4, "future_steps": 4},
    "4 steps, future 2": {"action_steps": 4, "future_steps": 2},
    "4 steps, future 1": {"action_steps": 4, "future_steps": 1},
    "4 steps, future 0": {"action_steps": 4, "future_steps": 0},
    "2 steps, future 1": {"action_steps": 2, "future_steps": 1},
    "1 step, future 1": {"action_steps": 1, "future_steps": 1},
    "4 steps, future 1, best of 8 by it": {"action_steps": 4, "future_steps": 1, "ranked": 8},
}
"""Steps of a world-action model; the last row's candidates are the best of eight by their own futures."""

EXECUTED = (1, 2, 3, 5)
"""Model steps that are executed before a source is asked again."""

FAR: dict[str, dict[str, Any]] = {
    "pusht": {"goal": {"offset": 75, "max_steps": 150}},
    "blockpush": {"goal": {"source": "random"}},  # its own targets
}
"""Goals of the study of proposals, where an environment's usual ones are near."""

WARM_UP = 10
"""Plans that are not timed."""


@dataclass
class Arguments:
    """Success of what is varied."""

    studies: tuple[Study, ...] = ("redraw",)
    """What is varied: redraw, groups, search, proposals, sources, denoising, execution, grids."""
    environments: tuple[str, ...] = ("pusht", "rope")
    """Environments."""
    drops: tuple[float, ...] = (0.0, 0.5)
    """Drop ratios at which models with and without groups are compared, and masks redrawn where tokens are
    dropped; the other studies take the last one."""
    runs: tuple[Path, ...] = ()
    """Folders of runs by environment (ENV/checkpoint), each trained with other --groups; of the study groups,
    which compares with the first."""
    checkpoints: Path | None = None
    """Folder of such runs for the other studies; the shipped models when left out."""
    encoder: str | None = None
    """Encoder of the world models."""
    tasks: TaskSet = "drawn"
    """Tasks: drawn, or a frozen set, validation or test."""
    vla: str = "vla"
    """Policy of proposals, sources and execution: vla, the shipped one, or the folder of one."""
    policies: Path = Path("runs/policies")
    """Folder of the policies of sources, denoising and execution, ENV/inverse, ENV/wam and ENV/flow, as
    sparsewm train-policy writes them with --output FOLDER/ENV/NAME; those that are not there are left out."""
    grids: Path = Path("runs/grids")
    """Folder of the policies of the study of grids, NAME/ENV/policy as sparsewm train-policy writes them with
    --output FOLDER/NAME/ENV."""
    run_missing: bool = True
    """Run cells that are not there; otherwise they are left out."""
    episodes: int = 60
    """Episodes per cell."""
    seed: int = 0
    """Seed of tasks, candidates and masks."""
    repeats: int = 15
    """Timed plans of each search."""
    output: Path = Path("results/ablations")
    """Folder of the results; the same one continues."""


def cells(study: Study, arguments: Arguments) -> Iterator[tuple[str, Cell]]:
    """What is varied, and the cell."""
    common: dict[str, Any] = {
        "episodes": arguments.episodes,
        "seed": arguments.seed,
        "video": False,
        "imagine": False,
        "tasks": arguments.tasks,
        "encoder": arguments.encoder,
    }
    for name in arguments.environments:
        config = PlanConfig.of(name).updated(drop=arguments.drops[-1], **common)
        if arguments.checkpoints is not None:
            config = config.updated(checkpoint=str(arguments.checkpoints / name / "checkpoint"))
        far = config.updated(**FAR.get(name, {}), proposals=arguments.vla)
        if study == "redraw":
            for drop in filter(None, arguments.drops):  # without a mask there is nothing to redraw
                for resample in get_args(Resample):
                    yield f"redrawn: {resample}", Cell("random", config.updated(drop=drop, resample=resample))
        elif study == "search":
            for label, varied in SEARCHES.items():
                yield label, Cell("random", config.updated(**{"candidates": 64} | varied))
        elif study == "proposals":
            for label, varied in PROPOSALS.items():
                changed = far.updated(**varied)
                yield label, Cell("random" if changed.run.actor == "planner" else "policy", changed)
        elif study == "sources":
            for label, source in sources(name, arguments).items():
                told = far.updated(proposals=source)
                yield f"{label} alone", Cell("policy", told.updated(actor="policy"))
                yield f"{label}, best of 32, all tokens", Cell("random", told.updated(**BEST, drop=0.0))
                yield f"{label}, best of 32", Cell("random", told.updated(**BEST))
            for label, varied in NOISE.items():
                yield label, Cell("random", far.updated(**varied))
        elif study == "denoising":
            wam = arguments.policies / name / "wam"
            for label, steps in DENOISING.items() if (wam / ABOUT).is_file() else ():
                told = far.updated(proposals={"source": str(wam)} | steps)
                yield f"{label}, alone", Cell("policy", told.updated(actor="policy"))
                yield label, Cell("random", told.updated(**BEST))
        elif study == "execution":
            for label, source in sources(name, arguments).items():
                for count in EXECUTED:
                    told = far.updated(proposals=source).updated(**BEST, execute=count)
                    yield f"{label}, {count} executed", Cell("random", told)
        elif study == "grids":
            for folder in sorted(arguments.grids.glob(f"*/{name}/policy")):
                alone = far.updated(proposals=str(folder), actor="policy")
                yield picture_tokens(folder), Cell("policy", alone)
        else:
            for runs in arguments.runs:
                checkpoint = runs / name / "checkpoint"
                for drop in arguments.drops:
                    trained = config.updated(drop=drop, checkpoint=str(checkpoint))
                    yield f"trained {trained_groups(checkpoint)}", Cell("random", trained)


def sources(name: str, arguments: Arguments) -> dict[str, dict[str, Any]]:
    """Settings of the sources of candidates that an environment has, the VLA's first."""
    found: dict[str, dict[str, Any]] = {"VLA": {"source": arguments.vla}}
    for label, (folder, steps) in SOURCES.items():
        path = arguments.policies / name / folder
        if (path / ABOUT).is_file():
            found[label] = {"source": str(path)} | steps
    return found


def trained_groups(checkpoint: Path) -> str:
    """How a world model's attention was grouped in training, as its checkpoint says."""
    groups = read_json(checkpoint / "metadata.json")["training"]["groups"]
    return "without groups" if groups == 1 else f"in {groups} groups"


def dropped(row: dict[str, Any]) -> str:
    """The share of tokens a world model drops; nothing where there is none."""
    return "" if row["drop"] is None else f"{100 * row['drop']:.0f}%"


def picture_tokens(policy: Path) -> str:
    """Which tokens of a picture a policy sees."""
    config = read_json(policy / "config.json")
    if "image_tokens" not in config:
        return "all tokens"
    return f"{config['image_tokens']}, {config['choice']}"


def run(study: Study, arguments: Arguments) -> list[dict[str, Any]]:
    """Rows of a study, one per cell; finished ones are read."""
    rows: list[dict[str, Any]] = []
    firsts: dict[tuple[str, float | None], dict[str, Any]] = {}
    for label, cell in cells(study, arguments):
        name = f"{cell.name}-{re.sub('[^a-z0-9.]+', '-', label)}"
        request, env = cell.request(), cell.config.env
        result = read_cell(arguments.output, name, request)
        if result is None and not arguments.run_missing:
            print(f"{env}, {label}: not there", flush=True)
            continue
        if result is None:
            result = {"request": request, **cell.run()}
            write_json(cell_path(arguments.output, name), result)
        kept = ("success_rate", "success_ci95", "strict", "moved", "seconds_per_plan", "command", "goal")
        drop = cell.config.tokens.drop if cell.config.run.actor == "planner" else None
        row: dict[str, Any] = {"environment": env, "varied": label, "drop": drop}
        row |= {name: request[name] for name in ("code", "dtype", "machine")}
        first = firsts.setdefault((env, drop), result)
        row["against_first"] = None if first is result else compared(first, result)
        rows.append(row | {key: result[key] for key in kept if key in result})
        print(f"{env}, {label}, drop {dropped(row)}: {percent(result)}", flush=True)
    return rows


def main(arguments: Arguments) -> None:
    if "groups" in arguments.studies and len(arguments.runs) < 2:
        raise UserError("the study groups compares trained models: say with --runs where they are")
    if "redraw" in arguments.studies and not any(arguments.drops):
        raise UserError("the study redraw needs tokens to be dropped: give --drops a ratio above 0")
    (arguments.output / "cells").mkdir(parents=True, exist_ok=True)
    for study in arguments.studies:
        rows = run(study, arguments)
        if not rows:
            raise UserError(f"no cell of {study} in {arguments.output}: leave --no-run-missing out")
        if study in TIMED:
            there = {(row["environment"], row["varied"]) for row in rows}
            searched = [cell for label, cell in cells(study, arguments) if (cell.config.env, label) in there]
            for row, times in zip(
                rows, time_cells(searched, arguments.repeats, warm_up=WARM_UP), strict=True
            ):
                assert times is not None
                row["seconds_per_plan"] = times["seconds_per_plan"]
        report = {"command": typed_command(), "episodes": arguments.episodes, "seed": arguments.seed}
        write_json(arguments.output / f"{study}.json", report | {"rows": rows})
        names = [
            "environment",
            "",
            "drop",
            "success (95%)",
            "against the first",
            "strict",
            "T moves",
            "a plan",
        ]
        lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        lines += [
            f"| {row['environment']} | {row['varied']} | {dropped(row)} | {percent(row)} "
            f"| {points(row['against_first'])} | {percent(row['strict'])} | {percent(row.get('moved'))} "
            f"| {seconds(row['seconds_per_plan'])} |"
            for row in rows
        ]
        with atomic_path(arguments.output / f"{study}.md") as temporary:
            temporary.write_text("\n".join(lines) + "\n")
        plot(arguments.output / f"{study}.png", rows, over_time=study in TIMED)


def plot(path: Path, rows: list[dict[str, Any]], over_time: bool) -> None:
    """Success with its interval: a bar for every row, or over the time of a plan, a panel per environment."""
    names = list(dict.fromkeys(row["environment"] for row in rows))
    labels = list(dict.fromkeys(row["varied"] for row in rows))
    height = 0.4 * len(rows) + 1
    figure, panels = plt.subplots(
        1,
        len(names) if over_time else 1,
        figsize=(6 * len(names), 4.5) if over_time else (8, height),
        layout="constrained",
        squeeze=False,
    )
    for axes, shown in zip(
        panels[0],
        [[row for row in rows if row["environment"] == name] for name in names] if over_time else [rows],
        strict=True,
    ):
        rates = np.array([row["success_rate"] for row in shown])
        low, high = np.array([row["success_ci95"] for row in shown]).T
        spread = [rates - low, high - rates]
        if over_time:
            times = [row["seconds_per_plan"]["median"] for row in shown]
            for row, x, y, *error in zip(shown, times, rates, *spread, strict=True):
                i = labels.index(row["varied"])
                axes.errorbar(
                    x,
                    y,
                    np.array(error)[:, None],
                    linestyle="none",
                    marker="osD^v"[i // 10 % 5],
                    color=f"C{i % 10}",
                    label=row["varied"],
                    capsize=2,
                )
            axes.set(title=shown[0]["environment"], xlabel="seconds of a plan, median", xlim=0)
            axes.set_ylabel("success, 95% interval")
        else:
            named = [
                f"{row['environment']}, {row['varied']}"
                + f", drop {dropped(row)}" * (row["drop"] is not None)
                for row in shown
            ]
            axes.barh(range(len(shown)), rates, xerr=spread, color="tab:blue", alpha=0.7)
            axes.set_yticks(range(len(shown)), named)
            axes.invert_yaxis()
            axes.set(xlabel="success, 95% interval", xlim=(0, 1))
    if over_time:
        drawn = [axes.get_legend_handles_labels() for axes in panels[0]]
        shown_once = {label: handle for pair in drawn for handle, label in zip(*pair, strict=True)}
        figure.legend([shown_once[label] for label in labels], labels, loc="outside right center")
    save_figure(figure, path)


if __name__ == "__main__":
    launch(main, Arguments)
