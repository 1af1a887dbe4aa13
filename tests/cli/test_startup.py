"""Every command starts wherever Python does: without OpenGL, docstrings, or a terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each starts processes

NO_GL = {"MUJOCO_GL": "nonsense"}  # the import of MuJoCo itself fails
REPOSITORY = Path(__file__).parents[2]


def python(
    *arguments: str, place: Path | None = None, options: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *options, *arguments]
    own = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}  # set by sparsewm
    environment = own | {"PYTHONPATH": str(REPOSITORY)} | variables
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True)


def program(*lines: str, **variables: str) -> str:
    """What a program prints."""
    done = python("-c", "\n".join(lines), **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_command_line_imports_no_mujoco() -> None:
    assert program("import sys, sparsewm.cli", "print('mujoco' in sys.modules)", **NO_GL) == "False"


def test_training_in_one_process_imports_no_accelerate() -> None:
    line = "print([name for name in ('accelerate', 'torch.distributed.elastic') if name in sys.modules])"
    lines = ("import sys, sparsewm.cli.train", "from sparsewm.training import connect")
    assert program(*lines, "assert connect().count == 1", line) == "[]"


@pytest.mark.parametrize("environment", ["wall", "rope"])
def test_environments_that_draw_by_themselves_need_no_opengl(environment: str) -> None:
    lines = ("from sparsewm import envs", f"env = envs.make('{environment}')")
    lines = (*lines, "print(env.reset(seed=0)[0]['pixels'].sum())")
    with_gl, without = program(*lines), program(*lines, **NO_GL)
    assert with_gl == without


def test_planning_needs_no_opengl_but_where_it_draws(tmp_path: Path) -> None:
    plan = ("-m", "sparsewm", "plan", "--run.actor", "nothing", "--run.no-video", "--output", "o")
    assert python(*plan, "--env", "wall", place=tmp_path, **NO_GL).returncode == 0
    done = python(*plan, "--env", "pointmaze", place=tmp_path, **NO_GL)
    assert done.returncode == 2
    assert "found no OpenGL" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_doctor_does_not_blame_packages_for_a_missing_opengl() -> None:
    lines = ("from sparsewm.cli import doctor", "print(doctor.check_packages())", "doctor.check_rendering()")
    done = python("-c", "\n".join(lines), **NO_GL)
    assert "mujoco" in done.stdout and "Trouble: PointMaze gave no frame" in done.stderr


def test_a_way_to_draw_is_chosen_on_linux_alone() -> None:
    lines = (
        "import contextlib, os, sys, sparsewm.cli, sparsewm.cli.plan",
        "for sys.platform in ('darwin', 'linux'):",
        "    os.environ.pop('MUJOCO_GL', None)",
        "    with contextlib.suppress(SystemExit):",
        "        sparsewm.cli.main(['plan', '--env', 'nowhere'])",
        "    print(os.environ.get('MUJOCO_GL'))",
    )
    assert program(*lines).split() == ["None", "egl"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MuJoCo draws without a screen by itself")
def test_others_packages_draw_without_a_screen_in_python_too() -> None:
    """They import MuJoCo before anything of ours does."""
    pytest.importorskip("dm_control")
    lines = (
        "import os",
        "for name in ('MUJOCO_GL', 'DISPLAY', 'WAYLAND_DISPLAY'):",
        "    os.environ.pop(name, None)",
        "from sparsewm import envs",
        "observation, _ = envs.make('dmc/reacher').reset(seed=0)",
        "print(observation['pixels'].std() > 5)",
    )
    assert program(*lines).splitlines()[-1] == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="OpenGL of Linux")
def test_torchs_compiler_can_be_loaded_after_a_picture_was_drawn() -> None:
    """Triton comes before OpenGL: the other order ends the process where Triton is newer than 3.6."""
    pytest.importorskip("triton")
    lines = (
        "import sys",
        "from sparsewm import envs",
        "envs.make('pointmaze').reset(seed=0)",
        "print(list(sys.modules).index('triton') < list(sys.modules).index('mujoco'))",
        "import torch._dynamo",
    )
    assert program(*lines) == "True"


def test_threads_do_not_wait_in_a_busy_loop_unless_told_to() -> None:
    lines = (
        "import os, sparsewm",
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in __import__('sys').modules)",
    )
    assert program(*lines) == "1000 False"
    assert program(*lines, GOMP_SPINCOUNT="7") == "7 False"
    assert program(*lines, OMP_WAIT_POLICY="active") == "None False"


def test_help_is_the_same_without_docstrings() -> None:
    full, bare = (python("-m", "sparsewm", "--help", options=options) for options in ((), ("-OO",)))
    assert full.returncode == bare.returncode == 0
    assert full.stdout == bare.stdout and "Plan(" not in bare.stdout


def test_help_where_only_ascii_can_be_printed() -> None:
    done = python("-m", "sparsewm", "--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "Plan from pixels" in done.stdout, done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "sparsewm", "plan", "--help"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_installed_copy_is_complete_and_stands_beside_folders_of_the_same_names(tmp_path: Path) -> None:
    """Its parts are files of its own, not links; a user's `envs` is the user's."""
    lines = ("from setuptools import setup", "setup(name='sparsewm', script_args=['-q', 'egg_info',")
    lines = (
        *lines,
        f"'--egg-base', {str(tmp_path)!r}, 'build_py', '--build-lib', {str(tmp_path / 'lib')!r}])",
    )
    done = python("-c", "\n".join(lines), place=REPOSITORY)
    assert done.returncode == 0, done.stderr
    package = tmp_path / "lib" / "sparsewm"
    assert [path.name for path in (tmp_path / "lib").iterdir()] == ["sparsewm"]
    assert not any(path.is_symlink() for path in package.rglob("*"))
    for name in ("envs", "planners", "configs"):
        place = tmp_path / "user" / name
        place.mkdir(parents=True)
        (place / "__init__.py").touch()
    lines = ("import sparsewm.planners, sparsewm.envs, sparsewm.cli.doctor as doctor, envs",)
    lines = (*lines, "print(doctor.check_settings(), sparsewm.__file__, envs.__file__, sep='\\n')")
    path = os.pathsep.join([str(tmp_path / "user"), str(package.parent)])
    done = python("-c", "\n".join(lines), place=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    settings, installed, theirs = done.stdout.split("\n")[:3]
    assert "wall" in settings and Path(installed).parent == package
    assert Path(theirs) == tmp_path / "user" / "envs" / "__init__.py"


def test_the_device_message_has_a_bounded_length() -> None:
    done = python("-m", "sparsewm", "plan", "--env", "wall", "--device", "mps")
    if done.returncode == 2:  # on a Mac it works
        assert "--device mps does not work here" in done.stderr and len(done.stderr) < 300


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_and_their_flags(tmp_path: Path) -> None:
    done = python("-m", "sparsewm", "--completion", "bash")
    assert done.returncode == 0, done.stderr
    (tmp_path / "script").write_text(done.stdout)

    def completed(*words: str) -> list[str]:
        line = (
            f"source ./script; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _tyro_sparsewm; "
        )
        line += 'printf "%s\\n" "${COMPREPLY[@]}"'
        found = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        return found.stdout.split()

    assert completed("sparsewm", "pl") == ["plan"]
    assert completed("sparsewm", "plan", "--search.it") == ["--search.iterations"]
    refused = python("-m", "sparsewm", "--completion", "dos")
    assert refused.returncode == 2 and "bash, zsh, fish" in refused.stderr
