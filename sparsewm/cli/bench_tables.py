"""Tables of `sparsewm bench`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table


def _median(spread: dict[str, float]) -> str:
    """Median of seconds, in milliseconds; quartiles are in the JSON file."""
    return f"{1e3 * spread['median']:.4g}"


def _both(row: dict[str, Any], name: str) -> str:
    """How many times as long the baseline takes, in float32 and in bfloat16."""
    found = [row.get(f"{name}{precision}") for precision in ("_float32", "_bfloat16")]
    return "" if None in found else " / ".join(f"{value:.1f}" for value in found)


def _rate(row: dict[str, Any]) -> str:
    return f"{row['flops'] / 1e9:.3g} ({100 * row['peak_fraction']:.0f}%)"


def plan_table(rows: Sequence[dict[str, Any]]) -> Table:
    """An iteration by rollout and drop ratio."""
    baseline = "DINO-WM takes times (float32 / bfloat16)"
    table = Table("rollout", "drop", "tokens", "ms", "of full", "of peak", baseline, "memory")
    for row in rows:
        memory, peak = row["iteration_memory_bytes"], row["peak_fraction"]
        table.add_row(
            f"{row['rollout']} {row['dtype']}",
            f"{row['drop']:g}",
            str(row["tokens"]),
            _median(row["seconds_per_iteration"]),
            f"{1 / row['speedup_over_full']:.3f}",
            "" if peak is None else f"{100 * peak:.0f}%",
            _both(row, "speedup_over_dino_wm"),
            "" if memory is None else f"{memory / 1e6:.0f} MB",
        )
    return table


def size_table(sizes: dict[str, dict[str, Any]]) -> Table:
    """Parameters, and operations per candidate by kept tokens, of every network."""
    table = Table("GFLOP a candidate", *sizes)
    table.add_row("million parameters", *(f"{found['parameters'] / 1e6:.2f}" for found in sizes.values()))
    for kept in next(iter(sizes.values()))["operations_per_candidate"]:
        counts = (found["operations_per_candidate"][kept] / 1e9 for found in sizes.values())
        table.add_row(f"{kept} tokens", *(f"{count:.3g}" for count in counts))
    return table


def encode_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Pictures per second by batch, way and precision."""
    baseline = "times torch, float32 / bfloat16"
    rate = "GFLOP/s (of peak)"
    table = Table("encoder", "batch", "ms", "pictures/s", rate, baseline, "error of tokens")
    for row in rows:
        error = "" if row["token_error"] is None else f"{100 * row['token_error']:.1f}%"
        table.add_row(
            f"{row['encoder']} {row['dtype']}",
            str(row["batch"]),
            _median(row["seconds"]),
            f"{row['pictures_per_second']:.4g}",
            _rate(row),
            _both(row, "speedup_over_torch"),
            error if row["accepted"] in (None, True) else f"{error}: refused",
        )
    return table


def train_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Windows per second by recipe, kind of step and precision."""
    baseline = "times plain, float32 / bfloat16"
    shape, rate = "windows x frames x tokens", "GFLOP/s (of peak)"
    table = Table("step", shape, "ms", "windows/s", rate, baseline)
    for row in rows:
        sizes = [f"{row[name]:g}" for name in ("windows", "frames", "tokens") if row[name] is not None]
        table.add_row(
            f"{row['recipe']} {row['dtype']}, {row['kind']}",
            " x ".join(sizes),
            _median(row["seconds"]),
            f"{row['windows_per_second']:.3g}",
            _rate(row),
            _both(row, "speedup_over_plain"),
        )
    return table


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
