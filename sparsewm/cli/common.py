"""What commands and scripts share."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Annotated, Any, Protocol, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sparsewm.config import PlanConfig
from sparsewm.envs import canonical
from sparsewm.errors import UserError, machine_fault
from sparsewm.files import output_folder as output_folder
from sparsewm.trees import merged, read_yaml

_here: tuple[str, list[str]] | None = None  # the command that runs, and its arguments


class Command(Protocol):
    """One command of the command line: made from its arguments, then run."""

    def run(self) -> int | None:
        """Do it; the exit code, None for 0."""


def exit_code(command: type, name: str, arguments: list[str]) -> int:
    """Run a command: what it returns, or 0; 2 and one sentence where its user can put something right.

    Args:
        command: a dataclass whose fields are flags; or with a class method `parse` that makes it. One that
            runs in several processes says by `speaks()` which of them prints.
    """
    global _here
    _here = name, arguments
    speaks: Callable[[], bool] = getattr(command, "speaks", lambda: True)
    try:
        parse = getattr(command, "parse", None)
        if parse is None:  # these have one help, the long one
            arguments = ["--help" if word in ("-H", "--help-verbose") else word for word in arguments]
        made: Command = (
            tyro.cli(command, prog=f"sparsewm {name}", args=arguments, description=about(command))
            if parse is None
            else parse(arguments)
        )
        with ends_politely():
            return made.run() or 0
    except UserError as error:
        if not speaks():
            time.sleep(2)  # a launcher ends all processes when one ends: the one that speaks goes first
            return 2
        return said(error, getattr(command, "tree", command), getattr(command, "passed_on", None))
    except KeyboardInterrupt as stop:
        sentence = getattr(command, "interrupted", "interrupted; nothing is kept of what was not finished")
        if speaks():
            Console(stderr=True).print(sentence)
        return stopped_code(stop)
    except (MemoryError, OSError, RuntimeError) as error:
        if (fault := machine_fault(error)) is None:
            raise
        return said(fault)


class Terminated(KeyboardInterrupt):
    """A polite request to end (SIGTERM): what is finished is kept, as after Ctrl-C."""


def stopped_code(stop: KeyboardInterrupt) -> int:
    """The exit code after an interruption, as a shell says that a program ended by a signal."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextmanager
def ends_politely() -> Iterator[None]:
    """Let SIGTERM interrupt as Ctrl-C does; only in the main thread, as Python has it."""

    def end(number: int, frame: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def script_exit_code(run: Callable[[], int | None]) -> int:
    """The same of a script of this project."""
    try:
        with ends_politely():
            return run() or 0
    except UserError as error:
        return said(error)
    except KeyboardInterrupt as stop:
        return stopped_code(stop)
    except (MemoryError, OSError, RuntimeError) as error:
        if (fault := machine_fault(error)) is None:
            raise
        return said(fault)


def said(error: UserError, command: type | None = None, passed_on: type | None = None) -> int:
    """Print an error in the words of the command line, where arguments are flags; 2.

    Args:
        command: dataclass of the flags. passed_on: of those that it takes for another one.
    """
    sentence = escape(spelt(error, command, passed_on))
    Console(stderr=True).print(f"[bold red]error:[/] {sentence}", soft_wrap=True, highlight=False)
    return 2


def spelt(error: UserError, command: type | None = None, passed_on: type | None = None) -> str:
    """What an error says, in one line; its arguments as flags of a command."""
    known, others = (flags_of(tree) if tree is not None else {} for tree in (command, passed_on))
    text = " ".join(str(error).split())  # what libraries say may run over several lines

    def as_flag(found: re.Match[str]) -> str:
        name = found[1] if found[1] in known else f"{found[1]}s"  # of several, each is refused by itself
        return known.get(name) or others.get(found[1], found[0])

    return re.sub(r"`([a-z][a-z_]*)`", as_flag, text)


def flag(name: str) -> str:
    """An argument's name as a flag."""
    return "--" + name.replace("_", "-")


def flags_of(command: type, prefix: str = "") -> dict[str, str]:
    """The flag of every field of a dataclass, and of those below it: the short one where there is one.

    Short ones are known by their own names, too.
    """
    found: dict[str, str] = {}
    if not is_dataclass(command):
        return found
    for name, kind in get_type_hints(command, include_extras=True).items():
        bare, *notes = get_args(kind) if get_origin(kind) is Annotated else (kind,)
        if isinstance(bare, type) and is_dataclass(bare):
            for leaf, text in flags_of(bare, f"{prefix}{name}.").items():
                found.setdefault(leaf, text)
        else:
            short = [alias for note in notes for alias in getattr(note, "aliases", None) or ()]
            found[name] = short[0] if short else flag(f"{prefix}{name}")
            found |= {alias.lstrip("-").replace("-", "_"): alias for alias in short}
    return found


def about(command: type) -> str | None:
    """Its docstring; from its source where Python throws docstrings away (-OO)."""
    if sys.flags.optimize < 2:
        return inspect.getdoc(command)
    tree = ast.parse(inspect.getsource(command)).body[0]
    return ast.get_docstring(tree) if isinstance(tree, ast.ClassDef) else None


def taken(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of a flag among arguments, None without it, and the arguments without both."""
    rest, value = [], None
    words = iter(arguments)
    for word in words:
        if word == name:
            value = next(words, None)
            if value is None:
                raise UserError(f"{name} needs a value")
        elif word.startswith(f"{name}="):
            value = word[len(name) + 1 :]
        else:
            rest.append(word)
    return value, rest


def parse_plan(
    arguments: list[str], prog: str, usual: Mapping[str, Mapping[str, Any]] | None = None
) -> PlanConfig:
    """Settings of a plan: the tree's own, under the environment's, `usual`, a file's (--config), the flags.

    Raises:
        UserError: the file cannot be read, or holds what is no setting.
    """
    file, arguments = taken(arguments, "--config")
    content = {} if file is None else read_yaml(file)
    given, arguments = taken(arguments, "--env")
    env = canonical(str(given or content.get("env") or PlanConfig.env))
    config = merged(PlanConfig.of(env, None, **(usual or {})), content | {"env": env}, str(file))
    text, mark, example = (about(PlanConfig) or "").partition("\n\nExample:")
    text += f" --config FILE reads any of these from YAML; flags go first.{mark}{example}"
    return tyro.cli(
        PlanConfig,
        prog=prog,
        args=["--env", env, *arguments],
        default=config,
        description=text,
        compact_help=True,
    )


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[..., None]]:
    """A bar with an estimate, on standard error: the value is called with (done, total, text)."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(label, total=None, text="")

        def update(done: float, total: float, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield update
        if bar.tasks[0].total is None:  # there was nothing to do
            bar.update(task, visible=False)


def command_line(name: str | None = None) -> str:
    """The running command as it was typed."""
    if _here is None:
        return shlex.join(sys.argv if name is None else ["sparsewm", name])
    return shlex.join(["sparsewm", _here[0], *_here[1]])
