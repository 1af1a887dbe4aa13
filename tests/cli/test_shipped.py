"""What a stranger does first, with the weights the repository ships and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

import sparsewm
from sparsewm import envs
from sparsewm.evaluation.statistics import spearman
from sparsewm.kernels import layout_of
from sparsewm.model.checkpoint import shipped
from sparsewm.precision import fastest_dtype
from sparsewm.proposals import VLAS, shipped_vlas
from tests.cli.commands import call, shell


@pytest.mark.slow
def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    started = time.perf_counter()
    done = shell(tmp_path, "plan --env pusht --drop 0.5")
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 240  # two minutes on two cores; here the other tests run beside it
    content = json.loads((tmp_path / "runs" / "plan" / "results.json").read_text())
    assert content["environment"] == "pusht" and content["drop"] == 0.5
    assert content["tokens"]["kept"] == content["tokens"]["total"] // 2
    assert content["encoder"]["name"] == "embedded"
    assert len(content["per_episode"]) == 1
    assert (tmp_path / "runs" / "plan" / "episode-000.mp4").stat().st_size > 0
    assert (tmp_path / "runs" / "plan" / "plan.png").stat().st_size > 0


@pytest.mark.slow
def test_doctor_finds_nothing_wrong(tmp_path: Path) -> None:
    done = shell(tmp_path, "doctor --device cpu")
    assert done.returncode == 0, done.stdout
    assert "sparsewm plan --env pusht --drop 0.5" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [*shipped(), "dmc/reacher"])
def test_python_plans_with_the_shipped_model(name: str) -> None:
    env = envs.make(name)
    search = {"candidates": 16, "elites": 4, "iterations": 2}
    agent = sparsewm.Agent.from_pretrained(name, drop=0.5, search=search)
    assert (agent.model.environment, agent.model.frameskip) == (name, env.frameskip)
    observation, _ = env.reset(seed=0)
    agent.reset(env.goal_observation())
    actions = agent.act(observation)
    assert actions.shape[1] == env.action_space.shape[0] and len(actions) % env.frameskip == 0
    assert env.action_space.contains(actions[0])


@pytest.mark.parametrize("name", ["swm/tworoom", "dmc/reacher", "swm/cube"])
def test_a_benchmarks_model_loads_without_the_benchmark(name: str) -> None:
    model = sparsewm.load_pretrained(name)
    assert (model.environment, model.frameskip, model.encoder.name) == (name, 5, "embedded")
    assert model.decoder is not None  # draws what is imagined
    agent = sparsewm.Agent.from_pretrained(name, drop=0.5)
    assert (agent.config.goal.offset, agent.config.goal.max_steps) == (25, 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pusht", "wall"])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_the_fastest_precision_ranks_candidates_as_float32_does(name: str, drop: float) -> None:
    env, generator = envs.make(name), torch.Generator().manual_seed(0)
    costs = []
    for dtype in ("auto", "float32"):
        agent = sparsewm.Agent.from_pretrained(
            name, device="cpu", dtype=dtype, drop=drop, objective="mse", frame="last", proprio_weight=1.0
        )
        observation, _ = env.reset(seed=0)
        agent.reset(env.goal_observation())
        problem = agent.problem(observation)
        shape = (1, 256, problem.horizon, problem.action_dim)
        if not costs:
            actions = torch.randn(*shape, generator=generator).clamp(-1, 1)
        costs.append(problem.cost(actions)[0].numpy())
    assert spearman(*costs) > 0.995


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_vlas())
def test_the_shipped_vla_proposes_and_the_world_model_chooses(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, benchmark, _ = name.partition("/")
    if benchmark:
        pytest.importorskip(family)
    folder = VLAS / name
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 8e6
    assert "Made by" in (folder / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    code, _, err = call(
        f"plan --env {name} --proposals vla --proposals.samples 4 --max-steps 60 --run.no-video"
    )
    assert code == 0, err
    content = json.loads(Path("runs/plan/results.json").read_text())
    assert (content["proposals"], content["settings"]["proposals"]["mode"]) == ("vla", "replace")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("wall", 0.75), ("rope", 0.75), ("granular", 0.6)])
def test_goals_are_reached_at_half_of_the_tokens(
    name: str, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many episodes 85% and more; doing nothing reaches none."""
    monkeypatch.chdir(tmp_path)
    flags = "--drop 0.5 --episodes 6 --run.batch 6 --run.no-video --run.no-imagine"
    code, _, err = call(f"plan --env {name}", flags)
    assert code == 0, err
    content = json.loads(Path("runs/plan/results.json").read_text())
    assert content["success_rate"] >= least and content["tokens"]["kept"] == 32


@pytest.mark.slow
def test_bench_times_the_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("bench --env wall --drops 0 0.8 --candidates 32 --repeats 3 --baseline 0 --profile")
    assert code == 0, err
    report = json.loads(Path("runs/bench/bench.json").read_text())
    full, sparse = report["rows"]
    assert sparse["tokens"] < full["tokens"] and sparse["speedup_over_full"] > 1.5
    spent = {}
    parts, name = ("softmax", "layer norm"), "aten::softmax"
    if layout_of(fastest_dtype(torch.device("cpu"))) is not None:
        parts, name = ("all layers of a frame",), "sparsewm::advance"
    for drop in ("0", "0.8"):
        rows = report["profile"][drop]
        assert sum(row["share"] for row in rows) == pytest.approx(1, abs=0.02)
        spent[drop] = {row["part"]: row["seconds"] for row in rows}
        assert {"linear layers", *parts} <= spent[drop].keys()
        trace = json.loads(Path(f"runs/bench/trace_drop{drop}.json").read_text())
        names = {event.get("name") for event in trace["traceEvents"]}
        assert {"rollout and cost", "new mask", name} <= names
    assert spent["0"][parts[0]] > 3 * spent["0.8"][parts[0]]  # it grows with the square of the tokens
    assert "linear layers" in out
