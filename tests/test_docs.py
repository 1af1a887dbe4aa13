"""What the documentation shows runs as it stands there: programs, command lines, flags, links, tables."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from scripts import settings_table
from sparsewm.cli import COMMANDS
from sparsewm.model.choices import CHOICES
from tests.cli.commands import call

ROOT = Path(__file__).parents[1]
HOWTO = ROOT / "docs" / "howto"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HISTORY = {"results.md"}  # commands as they were typed with version 0.1

RUN_BY = {
    "cost.md": "tests/test_docs.py",
    "data.md": "tests/data/test_howto.py",
    "encoder.md": "tests/encoders/test_doors.py",
    "environment.md": "tests/envs/test_howto.py",
    "formats.md": "tests/data/test_formats_page.py",
    "hub.md": "tests/integrations/test_pages.py",
    "judge_offline.md": "tests/evaluation/test_offline.py",
    "lerobot_policy.md": "tests/integrations/test_pages.py",
    "planner.md": "tests/planners/test_howto.py",
    "proposals.md": "tests/proposals/test_samplers.py",
    "python.md": "tests/test_docs.py",
    "robot.md": "tests/integrations/test_pages.py",
    "several_devices.md": "tests/training/test_parallel.py",
    "stable_worldmodel.md": "tests/integrations/test_pages.py",
    "tokens.md": "tests/test_docs.py",
    "train_own_data.md": "tests/training/test_page.py",
}
"""Which test runs the programs of a page."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def programs(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run(place: Path, program: str) -> str:
    """What a program in a folder prints."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(place)
        patch.syspath_prepend(place)
        runpy.run_path(program, run_name="__main__")
    return out.getvalue()


# Programs -------------------------------------------------------------------------------------------------


def test_programs_of_all_pages_are_run() -> None:
    """Python stands in the README and the how-to pages alone, and each page names the test that runs it."""
    shown = {page for page in PAGES if programs(page)}
    assert shown - {ROOT / "README.md"} == {HOWTO / name for name in RUN_BY}
    for name, test in RUN_BY.items():
        assert f'"{name}"' in (ROOT / test).read_text(encoding="utf-8"), f"{test} does not read {name}"


CHECKS = """
import math
assert info["is_success"] and 0 < steps < 100  # Wall's model never fails here
assert actions.ndim == 2 and actions.shape[1] == env.action_dim and len(actions) % env.frameskip == 0
assert actions.dtype == "float32" and all(map(math.isfinite, actions.flat)) and actions.std() > 0
assert (abs(actions) <= env.action_space.high).all()
"""


@pytest.mark.slow
def test_the_readme(tmp_path: Path) -> None:
    (program,) = programs(ROOT / "README.md")
    (tmp_path / "readme.py").write_text(program + CHECKS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"reached after \d+ steps\n", done.stdout)


@pytest.mark.slow
def test_the_agent_in_python(tmp_path: Path) -> None:
    checks = """
assert len(first) == 3 and len(second) == 2 and all(part.shape[1] == 2 for part in [*first, *second])
assert (first[0] != first[2][: len(first[0])]).any()  # other goals, other actions
assert decision.kept.shape == (32,) and plan.actions.shape == (1, 5, 2) and actions.shape == (25, 2)
assert agent.config.search.candidates == 32 and agent.config.run.seed == 1
"""
    program = "\n".join(programs(HOWTO / "python.md"))
    (tmp_path / "agent.py").write_text(program + checks)
    reached, decision, plan = run(tmp_path, "agent.py").splitlines()
    assert re.fullmatch(r"reached after \d+ steps", reached)
    assert re.fullmatch(r"cost \d+\.\d+, 32 patches, \d+ ms", decision)
    assert plan.startswith("(1, 5, 2) (25, 2) at cost ")


@pytest.mark.slow
def test_a_cost_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = HOWTO / "cost.md"
    (program,) = programs(page)
    (tmp_path / "my_cost.py").write_text(program)
    assert re.fullmatch(r"\(25, 2\) at cost \d+\.\d+\n", run(tmp_path, "my_cost.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (command,) = [words for words in commands(page) if words[0] == "plan"]
    code, out, err = call(shlex.join(command), "--max-steps 25 --run.no-video --iterations 1")
    assert code == 0 and "wall, random goals" in out, err


@pytest.mark.slow
def test_a_choice_of_tokens_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = HOWTO / "tokens.md"
    (program,) = programs(page)
    (tmp_path / "my_choice.py").write_text(program)
    kept = [int(word) for word in run(tmp_path, "my_choice.py").removeprefix("kept ").split()]
    assert len(set(kept)) == 19 and kept == sorted(kept)  # three tenths of 64
    *_, command = [words for words in commands(page) if words[0] == "plan"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code, out, err = call(shlex.join(command), "--max-steps 25 --run.no-video --iterations 1")
    assert code == 0 and "wall, random goals" in out, err


def test_every_choice_of_tokens_is_told_of() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (HOWTO / "tokens.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == CHOICES.names()


@pytest.mark.slow
def test_examples_are_typed(tmp_path: Path) -> None:
    """What programs of the pages call of the package is there, and is called with what it takes."""
    head = "# mypy: check-untyped-defs, allow-untyped-defs, no-strict-optional, "
    head += 'disable-error-code="var-annotated"'
    files = []
    for page in PAGES:
        if found := programs(page):
            files.append(tmp_path / f"page_{page.stem.lower()}.py")
            files[-1].write_text("\n\n".join([head, *found]))
    usual, large = (ROOT / "pyproject.toml").read_text(), 'module = ["cv2.*"'
    assert large in usual
    settings = tmp_path / "pyproject.toml"  # types of torch would take most of the time
    settings.write_text(usual.replace(large, f'{large}, "torch.*"'))
    command = [sys.executable, "-m", "mypy", "--config-file", settings, "--follow-imports", "silent", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Command lines and flags ----------------------------------------------------------------------------------


def code(page: Path) -> Iterator[str]:
    """Lines of code of a page, commands of several lines joined, and code inside sentences."""
    text = re.sub(r"```python\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    text = re.sub(r"```\w*\n.*?```", "", text, flags=re.DOTALL)
    yield from re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", text):
        yield " ".join(span.split())


def commands(page: Path) -> list[list[str]]:
    """Words of every `sparsewm ...` command of a page, from the command's name on."""
    typed = re.compile(r"^(?:\w+=\S* |.* && )*sparsewm ([a-z].*)$")
    lines = [found[1] for line in code(page) if (found := typed.match(line))]
    return [shlex.split(line, comments=True) for line in lines]


def examples() -> list[object]:
    return [
        pytest.param(words, id=f"{page.stem}: {shlex.join(words)}")
        for page in PAGES
        if page.name not in HISTORY
        for words in commands(page)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("words", examples())
def test_a_command_line_parses(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert words[0] in COMMANDS
    if words[1:] == []:  # a sentence names the command
        return
    monkeypatch.chdir(tmp_path)
    for flag, value in pairwise(words):
        if flag == "--config":
            Path(value).parent.mkdir(parents=True, exist_ok=True)
            Path(value).touch()
    module, _, attribute = COMMANDS[words[0]][0].partition(":")
    monkeypatch.setattr(getattr(importlib.import_module(module), attribute), "run", lambda self: 0)
    status, out, err = call(shlex.join(words))
    assert status == 0, out + err


@cache
def known_flags() -> frozenset[str]:
    """All flags there are, of commands and scripts."""
    found = {"--help", "--version", "--preset", "--config", "--show-config"}
    for name in COMMANDS:
        found |= set(re.findall(r"--[a-z][a-z0-9.-]*", call(name, "--help")[1]))
    sizes = ROOT / "sparsewm" / "training" / "smolvla" / "backbone.py"  # of a script's --sizes
    for script in (*(ROOT / "scripts").rglob("*.py"), sizes):
        fields = re.findall(r"^    ([a-z_]+): ", script.read_text(encoding="utf-8"), re.MULTILINE)
        names = [field.replace("_", "-") for field in fields]
        found |= {f"--{prefix}{name}" for name in names for prefix in ("", "no-", "sizes.")}
    return frozenset(found)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=name_of)
def test_flags_exist(page: Path) -> None:
    """Flags that a sentence names alone, as `--cost.frame min`."""
    text = page.read_text(encoding="utf-8").partition("## Old names")[0]
    named = {span.split()[0].split("=")[0] for span in re.findall(r"`(--[^`]+)`", text)}
    named = {flag for flag in named if not flag.startswith("--policy.")}  # of LeRobot's programs
    assert named <= known_flags()


def test_old_names_lead_to_flags_that_exist() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").partition("## Old names")[2]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|$", text.partition("In Python")[0], re.MULTILINE)
    assert len(rows) > 20
    new = {flag for _, now in rows for flag in re.findall(r"--[a-z.-]+", now)}
    assert new <= known_flags()


# Tables and links -----------------------------------------------------------------------------------------


def test_the_tables_of_settings_are_up_to_date() -> None:
    text = settings_table.PAGE.read_text(encoding="utf-8")
    assert settings_table.page(text) == text, "run python -m scripts.settings_table"
    for tree in settings_table.TREES.values():
        sections = [tree, *(type(getattr(tree(), part.name)) for part in dataclasses.fields(tree))]
        for section in filter(dataclasses.is_dataclass, sections):
            texts = settings_table.descriptions(section)
            leaves = [part.name for part in dataclasses.fields(section) if not is_section(part)]
            assert sorted(texts) == sorted(leaves), f"every setting of {section.__name__} says what it is"


def is_section(part: dataclasses.Field[object]) -> bool:
    return dataclasses.is_dataclass(part.default_factory)


def test_readme_names_every_command() -> None:
    shown = {words[0] for words in commands(ROOT / "README.md")}
    assert shown >= set(COMMANDS)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


CARDS = sorted((ROOT / "sparsewm" / "pretrained").rglob("README.md"))
OTHERS = [ROOT / "CHANGELOG.md", *sorted((ROOT / "scripts").rglob("README.md"))]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS, *CARDS], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix != ".json":  # there it names a number: tests/test_site.py
            assert anchor in anchors(target), link
