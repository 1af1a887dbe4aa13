"""What the package is made of: words that run code, the places of what is compiled, bounds of dependencies.

Example:

    python -m scripts.trust.supply

The source is read for calls that run what a file says (`eval`, `exec`, pickle, a shell). The folder of
compiled kernels must be the user's own. `uv` finds the oldest versions that `pyproject.toml` allows, for each
Python, without installing them; `pip check` and `pip-audit` look at what is installed. A tool that is not
there is named.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.common import launch
from scripts.trust.common import RESULTS, report
from sparsewm.errors import UserError

RUNS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "marshal.loads",
    "shelve.open",
}
"""Calls that run what they are given."""

ALLOWED = {
    "sparsewm/data/formats/dino_wm.py": "an unpickler that knows numbers alone",
    "sparsewm/kernels/build.py": "the C compiler, as a list of words",
}
"""Files that may come near to it, and why."""


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(root: Path) -> list[str]:
    """Calls in the source that run what they are given; `torch.load` counts unless it loads weights only."""
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, given = _name(node.func), {word.arg: word.value for word in node.keywords}
            shell = given.get("shell")
            safe = isinstance(flag := given.get("weights_only"), ast.Constant) and flag.value is True
            loads = name in ("np.load", "numpy.load") and "allow_pickle" in given
            if name in RUNS or shell is not None or loads or (name == "torch.load" and not safe):
                found.append(f"{path.relative_to(root.parent)}:{node.lineno}: {name}")
    return found


def cache() -> dict[str, Any]:
    """Who may write to the folder of compiled kernels; one that others may write to is closed again."""
    from sparsewm.kernels.build import cache_folder

    with tempfile.TemporaryDirectory() as text:
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = text
        try:
            folder = Path(text) / "sparsewm"
            folder.mkdir()
            folder.chmod(0o777)
            found = cache_folder()
            mode = folder.stat().st_mode & 0o777
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before
    return {"mode_after_0777": oct(mode), "good": isinstance(found, Path) and not mode & 0o022}


def _run(words: list[str], seconds: float = 500.0) -> tuple[int, str]:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, type(error).__name__
    return done.returncode, (done.stdout + done.stderr).strip()


def oldest(python: str, extras: str = "") -> dict[str, Any]:
    """The oldest versions that are allowed, if they go together; nothing is installed."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    words = [uv, "pip", "compile", "pyproject.toml", "--resolution", "lowest-direct", "--python-version"]
    words += [python, "--no-header", "--no-annotate", *(["--extra", extras] if extras else [])]
    code, said = _run(words)
    lines = [line for line in said.splitlines() if "==" in line]
    return {
        "resolves": code == 0,
        "packages": lines if code == 0 else [],
        "said": "" if code == 0 else said[-600:],
    }


@dataclass
class Arguments:
    """Read the source, and look at what is installed."""

    pythons: tuple[str, ...] = ("3.10", "3.11", "3.12", "3.13")
    """Versions for which the oldest dependencies are looked for."""
    extras: tuple[str, ...] = ("", "data", "encoders", "vla")
    """Extras, each beside what is always needed; an empty one for that alone."""
    audit: bool = True
    """Ask for known faults of what is installed (pip-audit)."""
    output: Path = RESULTS
    """Folder of supply.json."""


def main(arguments: Arguments) -> None:
    root = Path("sparsewm")
    if not root.is_dir():
        raise UserError("there is no sparsewm/ here: run this from the repository's root")
    every = [line for place in (root, Path("planners"), Path("envs")) for line in calls(place)]
    found: dict[str, Any] = {
        "calls_that_run": every,
        "allowed": ALLOWED,
        "unexplained": [line for line in every if line.partition(":")[0] not in ALLOWED],
        "kernel_cache": cache(),
        "pip_check": _run([sys.executable, "-m", "pip", "check"])[1].splitlines()[-5:],
        "oldest": {
            f"{python}{extra and ' ' + extra}": oldest(python, extra)
            for python in arguments.pythons
            for extra in arguments.extras
        },
    }
    if arguments.audit:
        code, said = _run(
            [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
        )
        found["audit"] = _faults(said) if code in (0, 1) else said[-300:]
    print(json.dumps(found, indent=2))
    report("supply", found, arguments.output)


def _faults(said: str) -> Any:
    """What pip-audit knows, a line for each package."""
    try:
        parts = json.loads(said[said.index("{") : said.rindex("}") + 1])["dependencies"]
    except (ValueError, KeyError):
        return said[-300:]
    return {
        f"{part['name']} {part['version']}": [fault["id"] for fault in part["vulns"]]
        for part in parts
        if part.get("vulns")
    }


if __name__ == "__main__":
    launch(main, Arguments)
