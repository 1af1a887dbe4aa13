"""Samplers of one's own: by place, by plugin, as the page says."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsewm import envs
from sparsewm.config import ProposalConfig
from sparsewm.errors import UserError
from sparsewm.proposals import NONE, SAMPLERS, check_proposals, known_names, load_sampler, version
from sparsewm.proposals.version import BEFORE, FIRST, lerobot_imports
from tests.cli.commands import call

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def page() -> tuple[str, str]:
    """Name and text of the module on the page."""
    text = (ROOT / "docs" / "howto" / "proposals.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (name,) = set(re.findall(r"`(\w+)\.py`", text))
    return name, code


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of the page, importable."""
    name, code = page()
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def walk(sampler: Any) -> bool:
    """Whether the likeliest candidate leads to a goal in the same room of Wall."""
    env = envs.make("wall", resolution=32)
    env.reset(seed=0)
    env.set_state(np.array([6.0, 30.0]))
    goal = {"pixels": env.render_state(np.array([20.0, 40.0]))["pixels"][None], "proprio": None}
    goal["proprio"] = np.array([[20.0, 40.0]], np.float32)
    sources = [torch.Generator().manual_seed(0)]
    for _ in range(30):
        seen = {"pixels": env.render()[None], "proprio": env.proprio_of(env.state)[None]}
        actions = sampler.propose(seen, goal, None, 4, 5, sources)
        assert actions.shape == (1, 4, 5, 2) and actions.abs().max() <= 1
        env.step(actions[0, 0, 0].numpy())
        if env.is_success(env.state, np.array([20.0, 40.0])):
            return True
    return False


def test_the_page_of_samplers(module: str) -> None:
    """The module on the page, under the name that the page gives the command line."""
    text = (ROOT / "docs" / "howto" / "proposals.md").read_text()
    (name,) = set(re.findall(r"--proposals(?:\.source)? (\S+:\S+)", text))
    assert name.startswith(f"{module}:")
    assert check_proposals(name, "wall") == {"proposals": name}
    assert walk(load_sampler(name, envs.make("wall", resolution=32), CPU))


def test_the_page_on_the_command_line(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on the page, shortened."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "howto" / "proposals.md").read_text()
    (words,) = re.findall(r"PYTHONPATH=\. sparsewm (.*)", text)
    code, _, err = call(f"{words} --max-steps 10 --run.no-video --run.no-imagine --output out")
    assert code == 0, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["proposals"] == f"{module}:Straight"
    assert results["settings"]["search"]["action_repeat"] is False


def test_a_plugin_is_known_by_name(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = EntryPoint("straight", f"{module}:Straight", SAMPLERS.group)
    monkeypatch.setattr("sparsewm.registry.entry_points", lambda group: [plugin] * (group == plugin.group))
    assert SAMPLERS.group == "sparsewm.samplers" and "straight" in known_names()
    assert walk(load_sampler("straight", envs.make("wall", resolution=32), CPU))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Straight", "no sampler at 'nowhere:Straight'"),
        ("{module}:Strait", "no sampler at '.*:Strait'"),
        ("{module}:torch", "'.*:torch' is no callable"),
        ("builtins:list", "makes list, which has no method propose"),
        (NONE, "stands for the planner's own candidates"),
    ],
)
def test_what_is_no_sampler_is_said(name: str, message: str, module: str) -> None:
    env = envs.make("wall", resolution=32)
    interface = type("Interface", (), {"__iter__": lambda self: iter(()), "name": env.name})()
    with pytest.raises(UserError, match=message):
        load_sampler(name.format(module=module), interface, CPU)


@pytest.mark.parametrize("name", ["{module}:Straight", "vla", "someone/a-policy"])
def test_settings_that_proposals_do_not_read_are_refused(name: str, module: str) -> None:
    env, name = envs.make("wall", resolution=32), name.format(module=module)
    for how in (ProposalConfig(ranked=8), ProposalConfig(future_steps=3), ProposalConfig(action_steps=5)):
        with pytest.raises(UserError, match="of inverse and wam, which denoise: leave it out for proposals"):
            load_sampler(name, env, CPU, how=how)
    if ":" in name:
        with pytest.raises(UserError, match=f"`names` is of LeRobot's policies: leave it out for .*{name}"):
            load_sampler(name, env, CPU, names=Path("no-such.yaml"))


@pytest.mark.parametrize(
    "flags", ["names no-such.yaml", "mode seed", "samples 3", "ranked 8", "instruction go"]
)
def test_settings_of_proposals_without_any_are_refused(flags: str, tmp_path: Path) -> None:
    code, _, err = call(f"plan --env wall --proposals.{flags} --output {tmp_path / 'out'}")
    said = f"--proposals.{flags.split()[0]} is of a policy's proposals: say with --proposals where they"
    assert code == 2 and said in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("found", ["0.4.3", "0.5.0", "0.5", "1.0", "0.3.9"])
def test_another_version_of_lerobot_is_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "version", lambda name: found)
    with (
        pytest.raises(UserError, match=rf"need lerobot >=0\.4\.4,<0\.5, installed is {found}: pip install"),
        lerobot_imports(),
    ):
        raise AssertionError("is not reached")


@pytest.mark.parametrize("found", ["0.4.4", "0.4.5", "0.4.10", "0.4.4+local"])
def test_the_pinned_versions_pass(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "version", lambda name: found)
    with lerobot_imports():
        pass
    assert f"lerobot[smolvla]>={FIRST},<{BEFORE}" in (ROOT / "pyproject.toml").read_text()
