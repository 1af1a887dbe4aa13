"""The command line: `sparsewm plan | train | eval | ...`; each command is imported when it is asked for."""

from __future__ import annotations

import importlib
import io
import os
import sys

from rich.console import Console
from rich.table import Table

COMMANDS = {
    "plan": ("sparsewm.cli.plan:Plan", "reach goals by planning in a world model"),
    "demo": ("sparsewm.cli.demo:Demo", "set a goal by hand and watch, in a browser"),
    "train": ("sparsewm.cli.train:Train", "train a world model on an offline dataset"),
    "train-policy": (
        "sparsewm.cli.train_policy:TrainPolicy",
        "train a policy that proposes candidates to the planner",
    ),
    "collect": ("sparsewm.cli.collect:Collect", "record exploratory data in an environment"),
    "eval": ("sparsewm.cli.evaluate:Eval", "success tables over environments, drop ratios and yardsticks"),
    "evaluate": (
        "sparsewm.cli.judge:Evaluate",
        "judge a world model by recorded data, without an environment",
    ),
    "bench": ("sparsewm.cli.bench:Bench", "time planning, encoding and training, beside plain torch"),
    "inspect": ("sparsewm.cli.inspect:Inspect", "what a dataset holds and what training would do with it"),
    "convert": ("sparsewm.cli.convert:Convert", "a dataset in another format"),
    "push": ("sparsewm.cli.push:Push", "publish a world model on the Hugging Face hub"),
    "doctor": ("sparsewm.cli.doctor:Doctor", "what works on this machine, and the remedy for what does not"),
}
"""Commands by name: where each is, and what it does."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits with 2 and one sentence when the user can put something right."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # help and tables hold more than ASCII
            stream.reconfigure(errors="replace")
    words, code = list(sys.argv[1:] if arguments is None else arguments), 0
    try:
        try:
            code = _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `sparsewm plan --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell says that a program ended by SIGPIPE
    except KeyboardInterrupt:  # while a command is imported
        sys.exit(130)
    except OSError as error:  # `sparsewm plan > file` on a full disk
        code = _unprintable(error, code)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # all is written: threads of libraries may abort a slow farewell
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _unprintable(error: OSError, code: int) -> int:
    """2, and one sentence where there is room for it, unless there was one: not all could be printed."""
    from sparsewm.cli.common import said
    from sparsewm.errors import machine_fault

    if (fault := machine_fault(error)) is None:
        raise error
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # and Python would try again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code or said(fault)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "-H", "help"):
        print_help()
        return 0 if words else 2
    if words[0] == "--version":
        import sparsewm

        print(f"sparsewm {sparsewm.__version__}")
        return 0
    from sparsewm.cli.common import exit_code, said
    from sparsewm.errors import UserError, suggest

    if words[0] == "--completion":
        from sparsewm.cli.completion import print_completion

        try:
            print_completion(words[1] if words[1:] else "bash", COMMANDS)
        except UserError as error:
            return said(error)
        return 0
    name, rest = words[0].lower(), words[1:]
    if name not in COMMANDS:
        return said(UserError(f"unknown command '{words[0]}'.{suggest(name, COMMANDS)} See sparsewm --help"))
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # module:name of one's own, behind all that is installed
    if sys.platform == "linux":  # elsewhere MuJoCo draws without a screen by itself
        os.environ.setdefault("MUJOCO_GL", "egl")
    from sparsewm.memory import keep_freed_memory

    keep_freed_memory()
    module, _, attribute = COMMANDS[name][0].partition(":")
    return exit_code(getattr(importlib.import_module(module), attribute), name, rest)


def print_help() -> None:
    """What commands there are."""
    console = Console()
    console.print("usage: sparsewm COMMAND [--help]\n", highlight=False)
    console.print("Plan from pixels in a sparse world model of patch tokens.", highlight=False)
    console.print("First: [bold]sparsewm plan --env pusht --drop 0.5[/]\n", highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, (_, summary) in COMMANDS.items():
        table.add_row(f"  [bold]{name}[/]", summary)
    console.print(table)
