"""The site builds without a warning, the tutorial runs, and numbers of the docs are those of their files."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsewm.model.checkpoint import shipped
from tests.test_docs import PAGES, ROOT, name_of

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
Success = tuple[int, ...]  # per cent, and its interval

needs_docs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="pip install 'sparsewm[docs]'",
)

# The site -------------------------------------------------------------------------------------------------


def navigated(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from navigated(one)


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    shown = set(navigated(yaml.safe_load(text)))
    made = {"index.md", "tutorial.md", "reference/commands.md"}
    docs = ROOT / "docs"
    assert shown == {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} | made


def test_the_gallery_shows_every_environment() -> None:
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    pictures = [ROOT / "docs" / "images" / f"{name}.webp" for name in shipped()]
    assert all(f"(images/{picture.name})" in text for picture in pictures)
    assert sum(picture.stat().st_size for picture in pictures) < 2.5e6


@pytest.mark.slow
@needs_docs
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    home = (site / "index.html").read_text(encoding="utf-8")
    assert "sparse imagination" in home and "fonts.googleapis" not in home
    commands = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    assert "--search.iterations" in commands and "usage: sparsewm doctor" in commands
    api = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert "sparsewm.agent.Agent.act" in api and "sparsewm.envs.base.GoalEnv.goal_observation" in api
    assert (site / "images" / "tutorial-7.png").is_file()
    assert (site / "repository" / "results" / "eval" / "eval.json").is_file()


# The tutorial ---------------------------------------------------------------------------------------------


def test_the_tutorial_shows_what_it_made() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 6
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 5 and all((NOTEBOOK.parent / link).exists() for link in links)


CHECKS = """
assert len(half.kept) == 32 and len(every.kept) == 64 and error.shape == (8, 8)
assert error.max() > 10 * np.median(error)  # a few patches differ: where the dot is, and where it shall be
goes = {name: int(np.argmax((end[..., 0].astype(int) - end[..., 1]).max(0))) for name, end in ends.items()}
assert reached and goes["temporal"] > 60 > goes["mse"], goes  # round the wall, and up to it
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute where nothing else runs
def test_the_tutorial_runs(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    program = "\n\n".join(sources).replace(
        "OBJECTIVES.register", 'reached = info["is_success"]\nOBJECTIVES.register'
    )
    (tmp_path / "tutorial.py").write_text(program + CHECKS)
    done = subprocess.run(
        [sys.executable, "tutorial.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# Numbers --------------------------------------------------------------------------------------------------


def successes(content: Any) -> Iterator[Success]:
    """Every success rate of a JSON file, with its interval, as the docs write them."""
    if isinstance(content, dict) and content.get("success_ci95"):
        yield tuple(round(100 * value) for value in (content["success_rate"], *content["success_ci95"]))
    for part in (
        content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    ):
        yield from successes(part)


def files_named(text: str) -> set[Path]:
    """JSON files that a text names, and those of the folders it names."""
    names = (name.removesuffix("/*.json").rstrip(".") for name in re.findall(r"results/[\w./*-]+", text))
    places = [ROOT / name for name in names]
    files = {place for place in places if place.suffix == ".json" and place.is_file()}
    return files.union(*(place.glob("*.json") for place in places if place.is_dir()))


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of a text's tables."""
    lines = (line.strip() for line in text.splitlines() if line.strip().startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def sections() -> list[object]:
    """Sections with success rates in a table."""
    found = []
    for page in PAGES:
        for text in re.split(r"^(?=#)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if any(SUCCESS.search(cell) for row in rows(text) for cell in row):
                title = text.splitlines()[0].lstrip("# ")
                found.append(pytest.param(text, id=f"{name_of(page)}: {title}"))
    return found


SUCCESS = re.compile(r"(\d+)% \((\d+)-(\d+)\)")
WITHIN_50 = "the same episodes, within 50 steps"


@pytest.mark.parametrize("text", sections())
def test_success_rates_of_tables_are_in_the_files_their_section_names(text: str) -> None:
    files = files_named(text)
    assert files, "name the JSON file that a table of success rates is from"
    known = {rate for file in files for rate in successes(json.loads(file.read_text(encoding="utf-8")))}
    for name, *cells in rows(text):
        if name != WITHIN_50:  # below
            for cell in cells:
                for rate in SUCCESS.findall(cell):
                    assert tuple(map(int, rate)) in known, f"{name}: {cell}"


ALL_TOKENS = "the same tasks, all tokens"
COLUMNS = {
    "included encoder": "random-drop0.5",
    "DINOv2": "random-drop0.5-dinov2_vits14",
    "random actions": "random_actions",
}


def test_the_table_of_the_readme_is_that_of_its_cells() -> None:
    (head, _, *body) = [
        row for row in rows((ROOT / "README.md").read_text(encoding="utf-8")) if len(row) == 4
    ]
    assert head[1:] == list(COLUMNS) and len(body) == 7
    env = ""
    for name, *cells in body:
        within, every = name == WITHIN_50, name == ALL_TOKENS
        env = env if within or every else name.partition(",")[0].replace(" ", "").lower()
        for column, cell in zip(COLUMNS.values(), cells, strict=True):
            if cell == "" and (within or every):
                continue
            used = column.replace("drop0.5", "drop0") if every else column
            path = ROOT / f"results/test/cells/{env}-{used}.json"
            if cell == "no model yet":
                assert not path.exists()
                continue
            content = json.loads(path.read_text())
            (wanted,) = SUCCESS.findall(cell)
            if within:
                reached = [one["success"] and one["steps"] <= 50 for one in content["per_episode"]]
                assert int(wanted[0]) == round(100 * sum(reached) / len(reached))
            else:
                assert tuple(map(int, wanted)) == next(successes(content)), f"{name}, {column}"


LINK = re.compile(r"\[(?:(\d+)% \((\d+)-(\d+)\)|(\d+) of (\d+))\]\(([^)]+\.json)\)")


def test_a_number_that_leads_to_a_file_is_the_files() -> None:
    found = 0
    for page in PAGES:
        for *rate, reached, total, link in LINK.findall(page.read_text(encoding="utf-8")):
            content = json.loads((page.parent / link).read_text(encoding="utf-8"))
            found += 1
            if total:
                assert int(total) == content["episodes"], link
                assert round(content["success_rate"] * int(total), 6) == int(reached), link
            else:
                assert tuple(map(int, rate)) == next(successes(content)), link
    assert found > 40


def test_times_of_an_iteration_are_those_of_the_file() -> None:
    bench = json.loads((ROOT / "results/bench_paper_zen4/bench.json").read_text())["rows"]
    seconds = {
        (row["tokens"], row["rollout"], row["dtype"]): row["seconds_per_iteration"]["median"] for row in bench
    }
    page = (ROOT / "docs/explanation/speed.md").read_text(encoding="utf-8")
    ways = [("sparse", "bfloat16"), ("dino_wm", "bfloat16"), ("dino_wm", "float32")]
    body = [row for row in rows(page) if row[0].isdigit()]
    assert len(body) == 3
    for tokens, *cells in body:
        assert [int(cell) for cell in cells] == [round(1000 * seconds[(int(tokens), *way)]) for way in ways]
    sentence = (ROOT / "README.md").read_text(encoding="utf-8")
    ours, bfloat16, float32 = (seconds[(98, *way)] for way in ways)
    assert f"{ours:.1f} s in bfloat16" in sentence
    assert f"{bfloat16:.1f} s in bfloat16 and {float32:.0f} s in float32" in sentence


@pytest.mark.parametrize("name", ["Wall", "Rope"])
def test_judging_offline_orders_models_as_its_file_says(name: str) -> None:
    found = json.loads((ROOT / f"results/offline/{name.lower()}.json").read_text(encoding="utf-8"))
    of_rows = {
        "success": [row["closed_loop"]["success_rate"] for row in found["rows"]],
        "rank": [row["offline"]["mean_reciprocal_rank"]["value"] for row in found["rows"]],
        "error": [row["offline"]["error_ratio"]["value"] for row in found["rows"]],
    }
    ends = {key: (min(values), max(values)) for key, values in of_rows.items()}
    with_success = found["correlations_with_success"]
    rank, error = (
        "{spearman:.2f}, {pearson:.2f}".format(**with_success[key])
        for key in ("mean_reciprocal_rank", "error_ratio")
    )
    page = (ROOT / "docs/howto/judge_offline.md").read_text(encoding="utf-8")
    (cells,) = [row[1:] for row in rows(page) if row[0] == name]
    assert cells == [
        str(len(found["rows"])),
        f"{100 * ends['success'][0]:.0f} to {100 * ends['success'][1]:.0f}%",
        "{:.2f} to {:.2f}".format(*ends["rank"]),
        rank,
        "{1:.2f} to {0:.2f}".format(*ends["error"]),
        error,
    ]
