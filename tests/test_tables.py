"""Tables of times, ranks and distances in the docs say what their files say."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sparsewm.evaluation.table import percent, points
from tests.test_site import ROOT, SUCCESS, rows

Rows = list[list[str]]


def table(page: str, start: str) -> Rows:
    """The rows below the head of the one table of a page in which a line starts so."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (found,) = [part for part in re.split(r"\n\s*\n", text) if f"\n{start}" in f"\n{part}"]
    return rows(found)[2:]


def content(path: str) -> Any:
    return json.loads((ROOT / "results" / path).read_text(encoding="utf-8"))


def of(found: dict[str, Any]) -> float:
    return found["seconds_per_iteration"]["median"]


def share(value: float) -> str:
    return f"{100 * value:.0f}%"


@pytest.mark.parametrize(
    ("start", "path"),
    [
        ("| 64 | 393", "bench_zen4"),
        ("| 196 | 3,570", "bench_paper_zen4"),
        ("| 64 | 244", "bench_amx"),
        ("| 196 | 2,299", "bench_paper_amx"),
    ],
)
def test_planning(start: str, path: str) -> None:
    by = {(row["tokens"], row["rollout"], row["dtype"]): row for row in content(f"{path}/bench.json")["rows"]}
    for tokens, *cells in table("laboratory/performance.md", start):
        ours = by[int(tokens), "sparse", "bfloat16"]
        expected = [
            f"{1000 * of(ours):,.0f}",
            f"{1 / ours['speedup_over_full']:.2f}",
            share(ours["peak_fraction"]),
        ]
        for dtype in ("float32", "bfloat16"):
            baseline = by[int(tokens), "dino_wm", dtype]
            expected += [f"{1000 * of(baseline):,.0f}", f"{ours[f'speedup_over_dino_wm_{dtype}']:.1f}"]
        assert cells == expected


def test_planning_of_version_0_1() -> None:
    for drop, *cells in table("laboratory/performance.md", "| 0% | 0.125"):
        expected = []
        for path in ("bench_avx512", "bench_paper_avx512"):
            found = [row for row in content(f"{path}/bench.json")["rows"] if share(row["drop"]) == drop]
            if not found:
                expected += [""] * 5
                continue
            ours, baseline = found
            assert (ours["rollout"], baseline["rollout"]) == ("sparse", "dino_wm")
            expected += [
                f"{of(ours):.3g}",
                f"{1 / ours['speedup_over_full']:.2f}",
                share(ours["peak_fraction"]),
            ]
            expected += [f"{of(baseline):.3g}", f"{ours['speedup_over_dino_wm']:.1f}"]
        assert cells == expected


def test_planning_on_a_gpu() -> None:
    found, torch = content("bench_paper_gpu/bench.json"), content("bench_paper_gpu_torch/bench.json")
    ours = [row for row in found["rows"] if row["rollout"] == "sparse"]
    baseline = [row for row in found["rows"] if row["rollout"] == "dino_wm"]
    for cells, *parts in zip(
        table("laboratory/performance.md", "| 0% | 11.2"),
        ours,
        baseline,
        torch["rows"],
        found["plans"],
        strict=True,
    ):
        row, theirs, plain, plan = parts
        assert len({part["drop"] for part in parts}) == 1
        assert cells == [
            share(row["drop"]),
            f"{1000 * of(row):.3g}",
            f"{1 / row['speedup_over_full']:.2f}",
            share(row["peak_fraction"]),
            f"{1000 * of(plain):.3g}",
            f"{1000 * of(theirs):.3g}",
            f"{row['speedup_over_dino_wm']:.1f}",
            f"{1000 * plan['seconds_per_plan']['median']:.0f}",
        ]


@pytest.mark.parametrize(("first", "path"), [("1259", "speed"), ("1023", "speed_avx512")])
def test_steps_of_planning(first: str, path: str) -> None:
    name = "DINO-WM: float32, window recomputed"
    steps = content(f"{path}/speed.json")["steps"]
    for step, *cells in table("laboratory/performance.md", f"| {name} | {first}"):
        expected = []
        for preset in ("default", "paper"):
            start, now = (steps[preset][key]["median"] for key in (name, step))
            expected += [f"{1000 * now:.0f}", f"{start / now:.1f}"]
        assert cells == expected


@pytest.mark.parametrize(
    ("start", "unit"), [("| embedded, 64 tokens |", ""), ("| embedded, 64 tokens, AMX |", "_amx")]
)
def test_encoding(start: str, unit: str) -> None:
    body = table("laboratory/performance.md", start)
    for (_, *cells), path in zip(body, ("", "_dinov2_112", "_dinov2"), strict=True):
        found = content(f"bench_encode{path}{unit}/encode.json")["rows"]
        by = {(row["encoder"], row["dtype"]): row for row in found if row["batch"] == 32}
        ours = by["sparsewm", "bfloat16"]
        speeds = [f"{row['pictures_per_second']:.0f}" for row in by.values()]
        ours32, torch32, torch16 = speeds[1:]
        assert list(by)[1:] == [("sparsewm", "float32"), ("torch", "float32"), ("torch", "bfloat16")]
        factor = f"{ours['speedup_over_torch_float32']:.1f}"
        assert cells == [speeds[0], share(ours["peak_fraction"]), ours32, torch16, torch32, factor]


def test_training() -> None:
    both = [content(f"bench_train{size}/train.json")["rows"] for size in ("", "_paper")]
    body = table("laboratory/performance.md", "| ours, one group, bfloat16 |")
    for (name, *cells), *found in zip(body, *both, strict=True):
        assert name.endswith(found[0]["dtype"]) and ("plain" in name) == (found[0]["recipe"] == "plain")
        expected = [(f"{row['windows_per_second']:.3g}", share(row["peak_fraction"])) for row in found]
        assert cells == [cell for pair in expected for cell in pair]


def test_training_on_a_matrix_unit() -> None:
    found = content("bench_train_amx/train.json")["rows"]
    body = table("laboratory/performance.md", "| ours, one group, bfloat16, AMX |")
    for (name, *cells), row in zip(body, found, strict=True):
        assert row["dtype"] in name and ("plain" in name) == (row["recipe"] == "plain")
        factors = (row["speedup_over_plain_float32"], row["speedup_over_plain_bfloat16"])
        assert cells == [
            f"{row['windows_per_second']:.3g}",
            share(row["peak_fraction"]),
            *(f"{factor:.1f}" for factor in factors),
        ]


def test_less_work_for_the_same_plan() -> None:
    found = content("ablations/search.json")["rows"]
    body = table("laboratory/performance.md", "| 64 candidates | 87%")
    environments = [[row for row in found if row["environment"] == name] for name in ("granular", "rope")]
    for (_, *cells), *pair in zip(body, *environments, strict=True):
        assert pair[0]["varied"] == pair[1]["varied"]
        times = [f"{1000 * row['seconds_per_plan']['median']:.0f}" for row in pair]
        assert cells == [share(pair[0]["success_rate"]), times[0], share(pair[1]["success_rate"]), times[1]]


def test_candidates_from_a_policy() -> None:
    found = content("proposals/proposals.json")["rows"]
    body = table("laboratory/proposals.md", "| the VLA alone |")
    environments = ("pointmaze-large", "pusht", "blockpush")
    columns = [[row for row in found if row["environment"] == name] for name in environments]
    for (_, *cells), *row in zip(body, *columns, strict=True):
        for success, time, part in zip(cells[::2], cells[1::2], row, strict=True):
            assert SUCCESS.findall(success)[0][0] == f"{100 * part['success_rate']:.0f}"
            assert time == f"{1000 * part['seconds_per_plan']['median']:.0f} ms"


LOOKS = ("light:0.1", "light:-0.3", "background:1", "shift:1")


def name_of_environment(cell: str) -> str:
    return cell.replace(" ", "").lower()


def test_pictures_of_another_look() -> None:
    found = content("looks/pictures.json")["rows"]
    by = {(row["environment"], row["look"]): row for row in found}
    for name, *cells in table("howto/looks.md", "| Wall | 9.8"):
        look = [by[name_of_environment(name), one] for one in LOOKS]
        assert cells == [f"{row[key]:.1f}" for row in look for key in ("as_it_is", "adapted")]
    times = [row["processor_milliseconds"] for row in found]
    page = (ROOT / "docs/howto/looks.md").read_text(encoding="utf-8")
    assert f"takes {min(times):.0f} to {max(times):.0f} ms" in page


def test_what_a_judge_gains_on_the_first_proposal() -> None:
    summary = content("proposals/judged/judged.json")["summary"]
    by = {(row["part"], row["spread"]): row for row in summary if row["task"] == "all"}
    for name, *cells in table("benchmarks/mt10.md", "| hand | 10.2"):
        part, _, spread = name.partition(", spread ")
        row = by[part, float(spread or 1)]
        assert cells == [f"{1000 * value:.1f}" for value in (row["range"], *row["gain"].values())]


def test_success_in_another_look() -> None:
    """Adapted on test tasks, and after training with random looks."""
    rows = content("looks/test/looks.json")["rows"]
    by = {(row["environment"], row["look"]): row for row in rows}
    for name, *cells in table("howto/looks.md", "| Rope | 90%"):
        looks = [by.get((name_of_environment(name), look)) for look in ("", "background", "light", "object")]
        assert cells == [percent(row) for row in looks]
    rows = content("looks/trained/looks.json")["rows"]
    trained = {f"{row['look']} {row['degree']:g}" if row["look"] else "usual": row for row in rows}
    for name, reached, against in table("howto/looks.md", "| usual | 82%"):
        row = trained[name]
        assert reached == percent(row)
        assert against == ("" if name == "usual" else points(row["against_usual"]))


def test_ranks_in_another_look() -> None:
    by = {
        (row["environment"], row["look"], row["adapt"]): row["mean"]
        for row in content("looks/ranks.json")["rows"]
    }
    for name, *cells in table("howto/looks.md", "| Rope | 0.13"):
        for look, cell in zip(("background:1", "light:0.1", "shift:1", "object:1"), cells, strict=True):
            expected = [f"{by[name_of_environment(name), look, adapt]:.2f}" for adapt in (False, True)]
            assert cell.replace("*", "").split(", ") == expected
