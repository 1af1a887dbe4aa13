"""The settings of plan, train and train-policy as tables, in docs/configuration.md.

    python -m scripts.settings_table

writes them between the marks of that page; a test says when they are out of date.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from scripts.common import launch
from sparsewm.config import PlanConfig
from sparsewm.files import write_text
from sparsewm.training.config import TrainConfig
from sparsewm.training.policy_config import PolicyTrainConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
TREES = {"plan": PlanConfig, "train": TrainConfig, "train-policy": PolicyTrainConfig}


def descriptions(tree: type) -> dict[str, str]:
    """What stands in the source below each field of a dataclass."""
    (parsed,) = ast.parse(inspect.getsource(tree)).body
    assert isinstance(parsed, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(parsed.body, parsed.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def flags(name: str, kind: Any, value: Any) -> str:
    """How a setting is given on the command line: its short flags, then its full one."""
    notes = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    short = [alias for note in notes for alias in getattr(note, "aliases", None) or ()]
    section, dot, leaf = name.replace("_", "-").rpartition(".")
    full = [f"--{section}{dot}{leaf}", *([f"--{section}{dot}no-{leaf}"] if value is True else [])]
    return ", ".join(f"`{flag}`" for flag in dict.fromkeys([*short, *full]))


def shown(value: Any) -> str:
    """A default as YAML would have it."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return "" if value in (None, (), "") else f"`{value}`"


def rows(tree: Any, prefix: str = "") -> list[str]:
    """The rows of a section's own settings."""
    kinds, texts = get_type_hints(type(tree), include_extras=True), descriptions(type(tree))
    found = []
    for part in fields(tree):
        value, name = getattr(tree, part.name), f"{prefix}{part.name}"
        if not is_dataclass(value):
            text = texts[part.name].replace("|", "\\|")
            found.append(f"| {flags(name, kinds[part.name], value)} | {shown(value)} | {text} |")
    return found


def table(tree: Any, prefix: str = "") -> str:
    """All settings of a tree in Markdown: its own, then section by section."""
    found = rows(tree, prefix)
    lines = ["| flag | default | |", "|---|---|---|", *found] if found else []
    for part in fields(tree):
        value, name = getattr(tree, part.name), f"{prefix}{part.name}"
        if is_dataclass(value):
            about = " ".join((inspect.getdoc(type(value)) or "").split())
            lines += ["", f"**{name}**: {about}", "", table(value, f"{name}.")]
    return "\n".join(lines).strip()


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, tree in TREES.items():
        opening, closing = f"<!-- settings of {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(opening)
        _, _, after = rest.partition(closing)
        assert rest and after, f"the page lacks the marks of {name}"
        text = f"{before}{opening}\n{table(tree())}\n\n{closing}{after}"
    return text


@dataclass
class Arguments:
    """Write the tables of settings."""

    page: Path = PAGE
    """Page with marks between which they stand."""


def main(arguments: Arguments) -> None:
    write_text(arguments.page, page(arguments.page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    launch(main, Arguments)
