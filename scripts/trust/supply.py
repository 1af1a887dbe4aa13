"""What the package is made of: words that run code, the places of what is compiled, bounds of dependencies.

Example:

    python -m scripts.trust.supply

The source is read for calls that run what a file says (`eval`, `exec`, pickle, a shell). The folder of
compiled kernels must be the user's own. `uv` finds the oldest versions that `pyproject.toml` allows, for each
Python, and the newest wheels for other systems, without installing them; tests run in environments that have
the oldest and the newest, if you made them:

    uv pip compile pyproject.toml --resolution lowest-direct -o oldest.txt
    uv venv oldest && uv pip install --python oldest -r oldest.txt pytest pytest-timeout pytest-xdist
    uv venv newest && uv pip install --python newest -e . pytest pytest-timeout pytest-xdist
    python -m scripts.trust.supply --oldest-python oldest/bin/python --newest-python newest/bin/python

The wheel and the sdist are built and checked by twine; `pip check` and `pip-audit` look at what is installed.
A tool that is not there is named.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
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

TESTS = (
    "tests/test_config.py",
    "tests/test_files.py",
    "tests/planners/test_search.py",
    "tests/model/test_checkpoint.py",
    "tests/kernels/test_layers.py",
    "tests/data/test_hdf5.py",
    "tests/data/test_collect.py",
    "tests/envs/test_environments.py",
    "tests/cli/test_commands.py",
)
"""Tests that touch every package the core needs."""

SYSTEMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin", "windows")
"""Systems for which wheels of everything are looked for."""


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


def _tool(name: str) -> str:
    return shutil.which(name) or str(Path(sys.executable).with_name(name))


def wheels() -> dict[str, Any]:
    """Whether twine finds anything wrong with the wheel and the sdist."""
    with tempfile.TemporaryDirectory() as folder:
        code, said = _run([_tool("pyproject-build"), "--outdir", folder, "."])
        if code:
            return {"good": False, "said": said[-300:]}
        files = sorted(str(path) for path in Path(folder).iterdir())
        code, said = _run([_tool("twine"), "check", "--strict", *files])
        sizes = {Path(file).name: Path(file).stat().st_size for file in files}
        return {"good": code == 0, "files": sizes, "said": "" if code == 0 else said[-600:]}


def tested(python: Path, tests: tuple[str, ...]) -> dict[str, Any]:
    """How tests end in an environment, and what is installed there."""
    code, said = _run([_tool("uv"), "pip", "freeze", "--python", str(python)])
    found: dict[str, Any] = {"tests": {}}
    found["packages"] = [line for line in said.splitlines() if "==" in line] if code == 0 else said[-300:]
    words = [str(python), "-m", "pytest", "-n", "0", "-q", "--no-header", "-p", "no:cacheprovider"]
    for test in tests:
        code, said = _run([*words, "-m", "not slow", test], 3000.0)
        found["tests"][test] = said.splitlines()[-1] if said else f"exit code {code}"
        print(test, found["tests"][test], flush=True)
    return found


def resolved(python: str, *flags: str) -> dict[str, Any]:
    """Versions that are allowed and go together, if there are such; nothing is installed."""
    words = [_tool("uv"), "pip", "compile", "pyproject.toml", "--python-version", python]
    code, said = _run([*words, "--no-header", "--no-annotate", *flags])
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
    oldest_python: Path | None = None
    """A Python that has the oldest versions and pytest; tests run by it."""
    newest_python: Path | None = None
    """The same with the newest versions."""
    tests: tuple[str, ...] = TESTS
    """Those tests."""
    build: bool = True
    """Build the wheel and the sdist."""
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
            f"{python}{extra and ' ' + extra}": resolved(
                python, "--resolution", "lowest-direct", *(("--extra", extra) if extra else ())
            )
            for python in arguments.pythons
            for extra in arguments.extras
        },
        "newest_wheels": {
            f"{python} {system}": resolved(python, "--python-platform", system, "--only-binary", ":all:")
            for python in arguments.pythons
            for system in SYSTEMS
        },
    }
    if arguments.build:
        found["wheels"] = wheels()
    for name in ("oldest", "newest"):
        python = getattr(arguments, f"{name}_python")
        if python is not None:
            found[f"{name}_tested"] = tested(python, arguments.tests)
    if arguments.audit:
        place = sysconfig.get_path("purelib")
        words = [_tool("pip-audit"), "--path", place, "--format", "json", "--progress-spinner", "off"]
        code, said = _run(words)
        found["audit"] = _faults(said) if code in (0, 1) else said[-300:]
    print(json.dumps(found, indent=2))
    report("supply", found, arguments.output)


def _faults(said: str) -> Any:
    """What pip-audit knows: how many packages it could ask about, and faults of each."""
    try:
        parts = json.loads(said[said.index("{") : said.rindex("}") + 1])["dependencies"]
    except (ValueError, KeyError):
        return said[-300:]
    known = [part for part in parts if "skip_reason" not in part]
    faults = {
        f"{part['name']} {part['version']}": [fault["id"] for fault in part["vulns"]]
        for part in known
        if part.get("vulns")
    }
    return {"packages": len(parts), "the_service_knows": len(known), "faults": faults}


if __name__ == "__main__":
    launch(main, Arguments)
