"""Does judging offline order world models as their success in the closed loop does?

Example, on checkpoints of one environment after trainings of different length:

    python -m scripts.experiments.offline_against_closed_loop --env wall --dataset data/wall-judge.h5 \\
        --checkpoints runs/wall-10 runs/wall-100 wall

Each is judged by `sparsewm evaluate` on recorded episodes and planned with by `sparsewm plan`, both by one
cost and at one drop ratio. Reported are the correlations over checkpoints of what both say. Finished ones
are kept in --work, and the same command continues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from scripts.common import launch, typed_command
from sparsewm.cli.judge import Evaluate
from sparsewm.config import PlanConfig
from sparsewm.errors import UserError
from sparsewm.evaluation.machine import code_hash
from sparsewm.evaluation.run import prepare, results, run
from sparsewm.evaluation.statistics import pearson, spearman
from sparsewm.files import read_json, write_json
from sparsewm.model.checkpoint import checkpoint_hash, is_shipped, pretrained_path
from sparsewm.model.hub import checkpoint_folder
from sparsewm.report.plots import save_figure

MEASURES = {
    "mean_reciprocal_rank": "mean reciprocal rank",
    "top1": "ranked first",
    "percentile": "others beaten",
    "error_ratio": "token error / copying",
}
"""What is said offline; all but the last should grow with success."""


@dataclass
class Arguments:
    """Offline judgement against closed-loop success."""

    env: str
    """Environment."""
    dataset: str
    """Episodes to judge by, recorded there; none of the checkpoints should have been trained on them."""
    checkpoints: tuple[str, ...]
    """Folders of checkpoints or runs, or the environment's name for the shipped one; three at least."""
    episodes: int = 40
    """Of the closed loop, per checkpoint."""
    windows: int = 192
    """Recorded moments judged."""
    candidates: int = 32
    """Action sequences ranked."""
    drop: float = 0.5
    """Fraction of the tokens dropped, in both."""
    objective: str = "mse"
    """Cost of both."""
    seed: int = 0
    """Seed of both."""
    work: Path = Path("runs/offline")
    """Folder of what is measured of each checkpoint."""
    output: Path = Path("results/offline")
    """Folder of ENV.json and ENV.png."""


def judge(arguments: Arguments, config: PlanConfig, name: str, folder: Path) -> dict[str, Any]:
    """What is said offline of a checkpoint, ranking by the frame at the planning horizon."""
    ranked = config.search.horizon
    Evaluate(
        arguments.dataset,
        name,
        episodes="all",
        drops=(arguments.drop,),
        horizon=max(5, ranked),
        ranked=ranked,
        candidates=arguments.candidates,
        windows=arguments.windows,
        objective=arguments.objective,
        seed=arguments.seed,
        output=folder,
    ).run()
    found = read_json(folder / "evaluate.json")
    ranking, errors = (
        found["ranking"][f"drop_{arguments.drop:g}"],
        found["errors"][f"drop_{arguments.drop:g}"],
    )
    measures = {key: ranking["all"][key] for key in MEASURES if key in ranking["all"]}
    ratios = errors["tokens_ratio"]
    return {
        **measures,
        "moving": {key: ranking["moving"][key] for key in measures},
        "error_ratio": {"value": float(np.mean(ratios)), "ci95": None},
        "error_ratios": ratios,
        "chance": found["chance"],
        "trained_on_it": found["trained_on_it"],
    }


def closed_loop(config: PlanConfig) -> dict[str, Any]:
    """Success of a configuration, and how much of the first distance is left at the end."""
    ready = prepare(config)
    found = results(ready, run(ready))
    ends = [(one["distance"], one["initial_distance"]) for one in found["per_episode"] if "distance" in one]
    left = {
        key: sum(end[key] for end, _ in ends) / sum(start[key] for _, start in ends) for key in ends[0][0]
    }
    return {
        "success_rate": found["success_rate"],
        "success_ci95": found["success_ci95"],
        "distance_left": left,
        "successes": [one["success"] for one in found["per_episode"]],
    }


def row(arguments: Arguments, name: str) -> dict[str, Any]:
    """Both measures of a checkpoint, from the output folder where they were measured before."""
    source = str(pretrained_path(name)) if is_shipped(name) else name
    config = PlanConfig.of(arguments.env, cost={"objective": arguments.objective}).updated(
        drop=arguments.drop,
        episodes=arguments.episodes,
        batch=min(8, arguments.episodes),
        seed=arguments.seed,
    )
    config = config.updated(checkpoint=source, video=False, imagine=False)
    weights = checkpoint_hash(checkpoint_folder(source)[0])
    asked: dict[str, Any] = {
        "settings": config.settings(),
        "weights": weights,
        "code": code_hash(),
        "dataset": arguments.dataset,
    }
    asked |= {"windows": arguments.windows, "candidates": arguments.candidates}
    asked["settings"]["run"].pop("checkpoint")
    folder = arguments.work / f"{arguments.env}-{weights[:12]}"
    kept = folder / "row.json"
    if kept.is_file() and (found := read_json(kept))["asked"] == asked:
        return dict(found["row"])
    measured: dict[str, Any] = {"checkpoint": name, "weights": weights}
    measured |= {"offline": judge(arguments, config, name, folder), "closed_loop": closed_loop(config)}
    write_json(kept, {"asked": asked, "row": measured})
    return measured


def correlations(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Spearman's and Pearson's correlation over checkpoints of each measure with success; None: undefined."""
    success = np.array([one["closed_loop"]["success_rate"] for one in rows])
    found = {}
    for key in MEASURES:
        values = np.array([one["offline"][key]["value"] for one in rows])
        both = {"spearman": spearman(values, success), "pearson": pearson(values, success)}
        found[key] = {name: None if math.isnan(value) else value for name, value in both.items()}
    return found


def plot(path: Path, rows: list[dict[str, Any]], found: dict[str, Any], title: str) -> None:
    """Success against each measure, with 95% intervals."""
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(3.6 * len(MEASURES), 3.6), sharey=True)
    rate = np.array([one["closed_loop"]["success_rate"] for one in rows])
    bounds = np.array([one["closed_loop"]["success_ci95"] for one in rows]).T
    for axis, (key, label) in zip(axes, MEASURES.items(), strict=True):
        x = np.array([one["offline"][key]["value"] for one in rows])
        ends = [one["offline"][key]["ci95"] or (v, v) for one, v in zip(rows, x, strict=True)]
        wide = np.abs(np.array(ends).T - x)
        axis.errorbar(x, 100 * rate, yerr=100 * np.abs(bounds - rate), xerr=wide, fmt="o", capsize=2)
        if key in rows[0]["offline"]["chance"]:
            axis.axvline(rows[0]["offline"]["chance"][key], linestyle="--", color="#999999", linewidth=0.8)
        values = ["-" if value is None else f"{value:.2f}" for value in found[key].values()]
        axis.set(xlabel=label, ylim=(-3, 103))
        axis.set_title(f"Spearman {values[0]}, Pearson {values[1]}", fontsize=9)
    axes[0].set_ylabel("success in the closed loop, %")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)


def main(arguments: Arguments) -> None:
    """Measure, correlate, write."""
    if len(arguments.checkpoints) < 3:
        raise UserError("`checkpoints` must be three at least: two points always lie on a line")
    rows = []
    for name in arguments.checkpoints:
        rows.append(row(arguments, name))
        offline, loop = rows[-1]["offline"], rows[-1]["closed_loop"]
        values = "  ".join(f"{key} {offline[key]['value']:.3f}" for key in MEASURES)
        print(f"{name}: success {loop['success_rate']:.2f}  {values}", flush=True)
    found = correlations(rows)
    for key, both in found.items():
        print(f"{key:21s}", "  ".join(f"{k} {'-' if v is None else f'{v:.2f}'}" for k, v in both.items()))
    plan = f"sparsewm plan --env {arguments.env} --drop {arguments.drop:g}"
    report = {
        "environment": arguments.env,
        "episodes": arguments.episodes,
        "windows": arguments.windows,
        "candidates": arguments.candidates,
        "drop": arguments.drop,
        "objective": arguments.objective,
        "seed": arguments.seed,
        "correlations_with_success": found,
        "rows": rows,
        "command": typed_command(),
        "closed_loop": f"{plan} --cost.objective {arguments.objective} --episodes {arguments.episodes}",
    }
    write_json(arguments.output / f"{arguments.env}.json", report)
    title = f"{arguments.env}: {len(rows)} checkpoints, {arguments.episodes} episodes each"
    plot(arguments.output / f"{arguments.env}.png", rows, found, title)


if __name__ == "__main__":
    launch(main, Arguments)
