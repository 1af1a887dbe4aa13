"""Plots of results, written atomically as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler

from sparsewm.data import Dataset
from sparsewm.envs import GoalEnv, SimulatedGoalEnv
from sparsewm.evaluation.episodes import Episode, small
from sparsewm.evaluation.landscape import Landscape
from sparsewm.evaluation.table import candidates, policy_labels, vision_only
from sparsewm.files import atomic_path
from sparsewm.report.video import dim_dropped

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b7791f")
"""Of lines, in order: readable on light and on dark."""

SHOWN = 4
"""Episodes that the picture of a plan shows, the first ones."""

styled = matplotlib.rc_context(
    {
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "figure.facecolor": "white",  # on a dark page, too
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "legend.frameon": False,
    }
)
"""Decorates a function that draws: one look for all plots, without a change of anybody else's."""


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight", format="png")
    plt.close(figure)


@styled
def plot_plan(
    path: str | Path, episodes: Sequence[Episode], grid: tuple[int, int] | None, title: str
) -> None:
    """First episodes as start, kept patches, end and goal; beside them the distance to the goal over time."""
    shown = list(episodes[:SHOWN])
    imagining = any(decision.imagined is not None for one in shown for decision in one.decisions)
    columns = 6 if imagining else 5
    figure, axes = plt.subplots(len(shown), columns, figsize=(2.6 * columns, 2.6 * len(shown)), squeeze=False)
    for row, one in zip(axes, shown, strict=True):
        start, end, goal = one.frames[0], one.frames[-1], small(one.goal["pixels"])
        kept = one.decisions[0].kept if one.decisions else None
        seen = start if kept is None or grid is None else dim_dropped(start, kept, grid)
        label = "all tokens" if kept is None else f"{len(kept)} tokens kept"
        panels = [(start, "start"), (seen, "" if grid is None else label)]
        there = one.success and one.steps in (one.success_step, one.strict_step)
        came = "reached" if there else "left again" if one.success else "missed"
        panels += [(end, f"end: {came}"), (goal, "goal")]
        if imagining:
            last = one.decisions[-1].imagined if one.decisions else None
            panels.insert(2, (np.full_like(start, 255) if last is None else last[-1], "last plan imagines"))
        for axis, (picture, name) in zip(row, panels, strict=False):
            axis.imshow(picture)
            axis.set_title(name, fontsize=9)
            axis.set_axis_off()
        row[-1].plot(one.remaining, color="#2b6cb0")
        for decision in one.decisions:
            row[-1].axvline(decision.step, color="#999999", linewidth=0.6)
        row[-1].set_ylim(bottom=0)
        row[-1].set_title("distance to goal by step" if one.remaining else "no distance known", fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


@styled
def plot_dataset(path: str | Path, env: GoalEnv, dataset: Dataset) -> None:
    """First episodes as strips of frames, if it has any; where the first two numbers of state or
    proprioception were."""
    count = min(4, dataset.episodes)
    figure, axes = plt.subplots(1, 2, figsize=(13, 1.2 + 1.5 * count), width_ratios=(3, 1))
    strips = []
    for episode in range(count):
        offset, length = dataset.offsets[episode], dataset.lengths[episode]
        rows = offset + np.linspace(0, length - 1, 8).astype(int)
        strips.append(np.concatenate([dataset.pixels[row] for row in rows], 1))
    if dataset.has_pictures:
        axes[0].imshow(np.concatenate(strips))
    axes[0].set_axis_off()
    step = max(1, dataset.rows // 5000)
    places: np.ndarray
    places, names, state = dataset.proprio[::step], tuple(env.proprio_names) or ("", ""), False
    if dataset.state is not None and isinstance(env, SimulatedGoalEnv):
        places, names, state = dataset.state[::step], env.state_names, True
    axes[1].plot(places[:, 0], places[:, min(1, places.shape[1] - 1)], ".", markersize=1, color="#2b6cb0")
    axes[1].set(xlabel=names[0], ylabel=names[min(1, len(names) - 1)], aspect="equal" if state else "auto")
    axes[1].invert_yaxis()
    figure.suptitle(f"{env.name}: {dataset.episodes} episodes, {dataset.rows} frames", fontsize=10)
    save_figure(figure, path)


@styled
def plot_bench(path: str | Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Seconds per planner iteration over the share of tokens kept, with quartiles and a proportional line."""
    figure, axis = plt.subplots(figsize=(6, 4))
    ways = list(dict.fromkeys((row["rollout"], row["dtype"]) for row in rows))
    for way in ways:
        points = sorted(
            (1 - row["drop"], row["seconds_per_iteration"])
            for row in rows
            if (row["rollout"], row["dtype"]) == way
        )
        share = [x for x, _ in points]
        median = np.array([s["median"] for _, s in points])
        spread = [median - [s["p25"] for _, s in points], [s["p75"] for _, s in points] - median]
        axis.errorbar(share, median, yerr=spread, marker="o", capsize=3, label=", ".join(way))
    ours = [row for row in rows if row["rollout"] == "sparse"]
    full = max(ours, key=lambda row: row["tokens"])["seconds_per_iteration"]["median"]
    line = np.linspace(0.02, 1, 50)
    axis.plot(line, full * line, "--", color="#999999", label="sparse, proportional to tokens")
    both = len(ours) < len(rows)  # the baseline takes many times as long
    axis.set(
        xlabel="share of tokens kept",
        ylabel="seconds per planner iteration",
        title=title,
        xlim=(0, 1.05),
        yscale="log" if both else "linear",
    )
    if not both:
        axis.set_ylim(0)
    axis.legend()
    save_figure(figure, path)


@styled
def plot_rates(
    path: str | Path, bars: Sequence[tuple[str, dict[str, Any]]], rate: str, label: str, title: str
) -> None:
    """A rate of several ways as bars, with quartiles, and the share of the matmul peak written beside.

    Args:
        bars: name and row, which has `seconds`, `peak_fraction` and the `rate`. label: of the axis.
    """
    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.4 * len(bars)))
    for place, (_, row) in enumerate(bars):
        value, spread = row[rate], row["seconds"]
        low, high = (value * spread["median"] / spread[name] for name in ("p75", "p25"))
        ours = row.get("encoder", row.get("recipe")) == "sparsewm"
        error = [[value - low], [high - value]]
        axis.barh(place, value, xerr=error, capsize=3, color="#2b6cb0" if ours else "#999999")
        axis.annotate(f" {value:.3g}, {100 * row['peak_fraction']:.0f}% of peak", (high, place), va="center")
    axis.set_yticks(range(len(bars)), [name for name, _ in bars])
    axis.invert_yaxis()
    axis.set(xlabel=label, title=title)
    axis.margins(x=0.4)
    save_figure(figure, path)


@styled
def plot_policy(path: str | Path, metrics: Sequence[dict[str, Any]], title: str) -> None:
    """What a policy's proposals miss of recorded actions and what else it tells, over training."""
    figure, axis = plt.subplots(figsize=(6, 4))
    names = {
        "error": "mean of 16 proposals",
        "best": "nearest of them",
        "other_goals": "mean, with others' goals",
        "future": "imagined future (share of copying the present)",
    }
    for name, label in names.items():
        if name in metrics[-1]["validation"]:
            curve = [entry["validation"][name] for entry in metrics]
            axis.plot([entry["step"] for entry in metrics], curve, marker=".", label=label)
    axis.set(xlabel="step", ylabel="error, share of the actions' mean square", title=title, ylim=0)
    axis.legend(fontsize=8)
    save_figure(figure, path)


@styled
def plot_training(path: str | Path, metrics: Sequence[dict[str, Any]], title: str) -> None:
    """Rollout error as a share of copying the last frame, over training and over the horizon."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for drop, style in (("drop_0", "-"), ("drop_0.5", "--")):
        for name, colour in (("tokens", "#2b6cb0"), ("proprio", "#c05621")):
            curve = [np.mean(m["validation"][drop][f"{name}_ratio"]) for m in metrics]
            left.plot(
                [m["step"] for m in metrics],
                curve,
                style,
                color=colour,
                label=f"{name}, {drop.replace('_', ' ')}",
            )
            last = metrics[-1]["validation"][drop][f"{name}_ratio"]
            right.plot(range(1, len(last) + 1), last, style, color=colour, marker="o")
    left.set(xlabel="step", ylabel="error / copy-last-frame error", title=title, ylim=0)
    right.set(xlabel="horizon (model steps)", title="last validation", ylim=0)
    left.legend()
    save_figure(figure, path)


@styled
def plot_imagination(path: str | Path, real: np.ndarray, imagined: np.ndarray, title: str) -> np.ndarray:
    """Real frames (K, T, R, R, 3), below each its imagined counterpart; returns the picture (H, W, 3)."""
    rows = []
    for above, below in zip(real, imagined, strict=True):
        side = below.shape[1]
        frames = [cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in above]
        rows += [np.concatenate(frames, 1), np.concatenate(list(below), 1)]
    picture = np.concatenate(rows)
    figure, axis = plt.subplots(figsize=(8, 8 * picture.shape[0] / picture.shape[1]))
    axis.imshow(picture)
    axis.set_axis_off()
    axis.set_title(f"{title}: real above, imagined below; the first frame is given", fontsize=9)
    save_figure(figure, path)
    return picture


@styled
def plot_success(path: str | Path, rows: Sequence[dict[str, Any]], over: str, title: str) -> None:
    """Success rates with 95% intervals, one panel per environment, yardsticks as dashed lines.

    Args:
        rows: of eval.json. over: "drop", or "seconds" for the time per planner iteration; rows without times
            are left out.
    """
    names = list(dict.fromkeys(row["environment"] for row in rows))
    several = len({row["encoder"] for row in rows if row["encoder"] is not None}) > 1
    policies = policy_labels(rows)
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    colours = {"oracle": "#2f855a", "cls": "#805ad5", "proprio": "#b7791f"}
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns, 3.4 * lines), squeeze=False)
    for axis in axes.ravel()[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.ravel(), names, strict=False):
        curves: dict[str, list[dict[str, Any]]] = {}
        yardsticks: list[tuple[float, str]] = []
        for row in (row for row in rows if row["environment"] == name):
            if row["selection"] == "random":
                label = (f"{row['encoder']}, " if several else "") + row["cost"] + vision_only(row)
                if row["proposals"] != "none":
                    label += f", {candidates(row, policies)}"
                if over == "drop" or row["seconds_per_iteration"] is not None:  # else nothing was planned
                    curves.setdefault(label, []).append(row)
            else:
                percent, label = 100 * row["success_rate"], row["selection"].replace("_", " ")
                if row["selection"] == "cls":
                    label += vision_only(row)
                if row["selection"] == "policy":
                    label += f" {policies[row['proposals']]}"
                if several and row["encoder"] is not None:
                    label += f", {row['encoder']}"
                yardsticks.append((percent, label))
                colour = colours.get(row["selection"], "#999999")
                axis.axhline(percent, linestyle="--", linewidth=0.8, color=colour)
        labels: dict[float, list[str]] = {}
        for percent, label in sorted(yardsticks, reverse=True):
            place = next((height for height in labels if height - percent < 4), percent)
            labels.setdefault(place, []).append(label)  # neighbours share a line of text
        for height, shared in labels.items():
            axis.annotate(
                "; ".join(shared),
                (0.01, height + 1),
                xycoords=("axes fraction", "data"),
                fontsize=6,
                color="#555555",
            )
        for label, points in curves.items():
            points = sorted(points, key=lambda row: row["drop"])
            rate = np.array([100 * row["success_rate"] for row in points])
            bounds = 100 * np.array([row["success_ci95"] for row in points]).T
            x = [row["drop"] if over == "drop" else row["seconds_per_iteration"]["median"] for row in points]
            axis.errorbar(
                x, rate, yerr=np.abs(bounds - rate), marker="o", markersize=4, capsize=2, label=label
            )
        axis.set(title=name, ylim=(-3, 107), ylabel="success, %")
        axis.set_xlabel("tokens dropped" if over == "drop" else "seconds per planner iteration")
        if over == "seconds":
            axis.set_xlim(left=0)
        if curves:
            axis.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 0.2))  # yardsticks lie below
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path)


@styled
def plot_errors(path: str | Path, errors: dict[str, Any], title: str) -> None:
    """Errors of imagined frames over the horizon, per drop ratio, beside those of copying the present one."""
    names = [("tokens", "tokens"), ("proprio", "proprioception")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, (name, label) in zip(axes, names, strict=True):
        for i, (drop, part) in enumerate(errors.items()):
            steps = range(1, len(part[name]) + 1)
            words, colour = drop.replace("_", " "), f"C{i}"
            axis.plot(steps, part[name], "o-", color=colour, markersize=4, label=f"imagined, {words}")
            axis.plot(steps, part[f"{name}_copy"], "--", color=colour, label=f"copied, {words}")
        axis.set(xlabel="model steps ahead", ylabel=f"squared error of {label}, standardised")
        axis.set_xticks(list(steps))
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


@styled
def plot_cases(path: str | Path, rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]]) -> None:
    """Cases as rows of pictures: their name, then pictures uint8 (H, W, 3) and what each shows."""
    columns = max(len(panels) for _, panels in rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(2.5 * columns, 2.75 * len(rows)), squeeze=False)
    for line, (name, panels) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, (picture, label) in zip(line, panels, strict=False):
            axis.imshow(picture)
            axis.set_title(label, fontsize=8)
        line[0].text(0, -0.08, name, transform=line[0].transAxes, fontsize=8, va="top")
    figure.tight_layout()
    save_figure(figure, path)


@styled
def plot_landscape(path: str | Path, found: Landscape, title: str) -> None:
    """Scene and goal; beside them each cost over two numbers of an action, its lowest place marked."""
    content = found.content()["rank_correlation_with_truth"]
    columns = 2 + len(found.costs)
    figure, axes = plt.subplots(1, columns, figsize=(2.9 * columns, 3.1), layout="constrained")
    for axis, (picture, name) in zip(axes, ((found.scene, "now"), (found.goal, "goal")), strict=False):
        axis.imshow(picture)
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    (left, right), (bottom, top) = found.values[:, [0, -1]]
    for axis, (name, cost) in zip(axes[2:], found.costs.items(), strict=True):
        axis.imshow(cost, origin="lower", extent=(left, right, bottom, top), aspect="auto", cmap="viridis")
        axis.contour(*found.values, cost, levels=10, colors="white", linewidths=0.4, alpha=0.6)
        row, column = np.unravel_index(cost.argmin(), cost.shape)
        axis.plot(found.values[0, column], found.values[1, row], "x", color=COLOURS[1], markersize=9, mew=2.5)
        like = f", rank correlation {content[name]:.2f}" if name in content else ""
        axis.set_title(f"{name}{like}", fontsize=9)
        axis.set(xlabel=found.names[0], ylabel=found.names[1])
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
