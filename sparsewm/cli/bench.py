"""`sparsewm bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import sparsewm
from sparsewm.cli.common import command_line, output_folder, progress_bar
from sparsewm.evaluation.bench import bench_model, measure, measure_plans, paper_model
from sparsewm.files import write_json
from sparsewm.model import kept_patches
from sparsewm.precision import choose_device, choose_dtype
from sparsewm.report.plots import plot_bench
from sparsewm.settings import make_env
from sparsewm.tasks import check_seed
from sparsewm.training.config import preset
from sparsewm.trees import at_least


def profile_table(profile: dict[str, list[dict[str, Any]]]) -> Table:
    """Milliseconds of an iteration by kind of work (rows) and drop ratio (columns)."""
    spent = {drop: {row["part"]: row for row in rows} for drop, rows in profile.items()}
    parts = dict.fromkeys(row["part"] for rows in profile.values() for row in rows)
    table = Table("milliseconds, with the profiler on", *(f"drop {drop}" for drop in spent))
    for part in parts:
        cells = [rows.get(part) for rows in spent.values()]
        table.add_row(
            part, *(f"{1e3 * c['seconds']:.3g} ({100 * c['share']:.0f}%)" if c else "" for c in cells)
        )
    return table


@dataclass
class Bench:
    """Time a planner iteration at several drop ratios, in one run on the same weights.

    Beside our rollout stands DINO-WM's: a three-frame window computed anew at every step, masked attention
    with its score matrix in memory; in float32 as published and, where the device is fast in it, in bfloat16.
    That it also encodes the start image once per candidate is timed apart. Both imagine from the first frame
    of an episode, without past ones; --plans times whole re-plans, with the frames seen before.

    Example: sparsewm bench --env pusht --drops 0 0.3 0.5 0.8
    """

    env: str = "pusht"
    """Environment whose shipped model is timed."""
    drops: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.8)
    """Drop ratios."""
    preset: str = "default"
    """default: the shipped model; paper: the paper's sizes with random weights."""
    checkpoint: Path | None = None
    """Checkpoint folder to time instead."""
    encoder_weights: Path | None = None
    """Local weights file of its encoder."""
    hub_repo: Path | None = None
    """Local clone of its encoder's torch.hub repository."""
    candidates: int = 100
    """Candidates per iteration."""
    horizon: int = 5
    """Model steps imagined."""
    repeats: int = 15
    """Timed iterations per drop ratio; they are interleaved, so that drifts of the machine cancel."""
    baseline: int = 3
    """Timed iterations of the DINO-WM rollout per drop ratio; 0 leaves it out."""
    plans: int = 0
    """Also time so many whole re-plans per drop ratio in a closed loop, encoding included; 0: none."""
    iterations: int = 10
    """Iterations of such a plan."""
    profile: bool = False
    """Also print where an iteration's time goes, and save traces (trace_drop0.5.json) for chrome://tracing or
    Perfetto."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    dtype: str = "auto"
    """Precision: auto (bfloat16 or float32, whichever is faster), bfloat16, float32, or int8 (products of the
    rollout's layers, where the processor has them)."""
    seed: int = 0
    """Seed of weights, observations and masks."""
    output: Path = Path("runs/bench")
    """Folder for bench.json, bench.png and the traces."""

    def run(self) -> int:
        env = make_env(self.env)
        preset(self.preset)
        at_least(0, baseline=self.baseline, plans=self.plans)
        at_least(1, iterations=self.iterations)
        at_least(1, candidates=self.candidates, horizon=self.horizon, repeats=self.repeats)
        check_seed(self.seed)
        for drop in self.drops:
            kept_patches(1, drop)
        device = choose_device(self.device)
        dtype = choose_dtype(self.dtype, device, planning=True)
        if self.preset != "default" and self.checkpoint is None:
            model = paper_model(env, device, dtype, self.seed, self.preset)
        else:
            files = {"encoder_weights": self.encoder_weights, "hub_repo": self.hub_repo}
            model = bench_model(env, self.checkpoint, device, dtype, **files)
        folder = output_folder(self.output)
        for old in folder.glob("trace_drop*.json"):  # of an earlier run
            old.unlink()
        with progress_bar("timing") as progress:
            report = measure(
                model,
                env,
                self.drops,
                self.candidates,
                self.horizon,
                self.repeats,
                self.seed,
                self.baseline,
                progress,
                folder if self.profile else None,
            )
        if self.plans:
            with progress_bar("planning") as progress:
                sizes = (self.candidates, self.horizon, self.iterations, self.plans)
                report["plans"] = measure_plans(model, env, self.drops, *sizes, self.seed, progress)
        report |= {"environment": env.name, "preset": self.preset, "seed": self.seed}
        report |= {"version": sparsewm.__version__, "command": command_line()}
        write_json(folder / "bench.json", report)
        title = f"{self.candidates} candidates, horizon {self.horizon}, {model.patches} tokens"
        plot_bench(folder / "bench.png", report["rows"], title)
        columns = (
            "rollout",
            "in",
            "drop",
            "tokens",
            "seconds (quartiles)",
            "of full",
            "times DINO-WM",
            "memory",
        )
        table = Table(*columns)
        for row in report["rows"]:
            memory = row["iteration_memory_bytes"]
            table.add_row(
                row["rollout"].removesuffix("_bfloat16"),
                row["dtype"],
                f"{row['drop']:g}",
                str(row["tokens"]),
                f"{row['seconds_per_iteration']['median']:.3g}",
                f"{1 / row['speedup_over_full']:.3f}",
                f"{row['speedup_over_dino_wm']:.1f}" if row["speedup_over_dino_wm"] else "",
                "" if memory is None else f"{memory / 1e6:.0f} MB",
            )
        Console().print(table)
        if encoding := report["rows"][-1].get("encoding_seconds_per_iteration"):
            print(
                f"DINO-WM also encodes the start image per candidate: {encoding['median']:.2f} s an iteration"
            )
        for row in report.get("plans", []):
            print(
                f"a plan at drop {row['drop']:g}, encoding included: "
                f"{1e3 * row['seconds_per_plan']['median']:.0f} ms, {row['plans_per_second']:.2g} a second; "
                f"{row['actions_per_second']:.0f} actions planned a second"
            )
        if self.profile:
            Console().print(profile_table(report["profile"]))
        print(f"results in {folder}/")
        return 0
