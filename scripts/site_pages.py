"""Pages of the site that are made when it is built; MkDocs calls this file (`hooks` in mkdocs.yml).

They are the README as its home, the tutorial's notebook, every command's help, and whatever pages link to
outside of docs/. Links stay as GitHub follows them; here they are turned into those of the site.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "tutorial.ipynb"

_LINK = re.compile(r"\]\(([^)\s#]+)((?:#[^)\s]*)?)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_origins: dict[str, Path] = {}  # which file of the repository a page of the site is


def place_of(path: Path) -> str:
    """Where a file of the repository lies on the site, below its root."""
    if path == ROOT / "README.md":
        return "index.md"
    if path == NOTEBOOK:
        return "tutorial.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix()}"


def prose(text: str) -> list[str]:
    """A page in turns of prose and fenced code, prose first."""
    return _FENCE.split(text)


def linked(text: str, page: Path) -> list[Path]:
    """Files of the repository that a page links to."""
    targets = [
        (page.parent / link).resolve()
        for part in prose(text)[::2]
        for link, _ in _LINK.findall(part)
        if ":" not in link
    ]
    return [path for path in targets if path.is_file() and path.is_relative_to(ROOT)]


def notebook_page(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the pictures it shows by their names."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"tutorial-{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![what this shows](images/{name})")
            elif text := "".join(output.get("text", data.get("text/plain", []))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def commands_page() -> str:
    """Every command with its help, as the command line prints it."""
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    from sparsewm.cli import COMMANDS, main

    parts = [
        "# Commands",
        "`sparsewm COMMAND --help`, as it is printed. `-H` explains the settings of `plan`, `train` and "
        "`eval`, and so does [their page](../configuration.md).",
    ]
    for name, (_, summary) in COMMANDS.items():
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([name, "--help"])
        text = "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())
        parts.append(f"## {name}\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and what pages link to outside of docs/."""
    pages = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    known = set(pages)
    while pages:
        page = pages.pop()
        name = place_of(page)
        _origins[name] = page
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(page)))
        for target in linked(page.read_text(encoding="utf-8"), page):
            if target.is_relative_to(DOCS) or target in known:
                continue
            known.add(target)
            if target.suffix == ".md":
                pages.append(target)
            else:
                files.append(File.generated(config, place_of(target), abs_src_path=str(target)))
    text, pictures = notebook_page(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    _origins["tutorial.md"] = NOTEBOOK
    files.append(File.generated(config, "tutorial.md", content=text))
    for name, picture in pictures.items():
        files.append(File.generated(config, f"images/{name}", content=picture))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A page whose links lead to where files lie on the site."""
    origin = _origins.get(page.file.src_uri)
    if origin is None:
        return markdown

    def moved(found: re.Match[str]) -> str:
        target = (origin.parent / found[1]).resolve()
        if ":" in found[1] or not target.is_file() or not target.is_relative_to(ROOT):
            return found[0]
        folder = os.path.dirname(page.file.src_uri) or "."
        return f"]({os.path.relpath(place_of(target), folder)}{found[2]})"

    parts = prose(markdown)
    parts[::2] = [_LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)
