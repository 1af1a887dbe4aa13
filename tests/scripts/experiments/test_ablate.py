"""Ablations: what is varied can be run, and finished cells are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from scripts.experiments import ablate
from sparsewm.config import PlanConfig
from sparsewm.errors import UserError
from sparsewm.files import write_json


def test_every_study_varies_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "few" / "pusht" / "policy").mkdir(parents=True)
    shown = {"image_tokens": 4, "choice": "random"}
    (tmp_path / "few" / "pusht" / "policy" / "config.json").write_text(json.dumps(shown))
    runs = tmp_path / "runs"
    for groups in (1, 3):
        for name in ("pusht", "blockpush"):
            write_json(
                runs / str(groups) / name / "checkpoint" / "metadata.json", {"training": {"groups": groups}}
            )
    for name in ("wam", "flow"):
        write_json(tmp_path / "policies" / "pusht" / name / "policy.json", {})
    arguments = ablate.Arguments(
        environments=("pusht", "blockpush"),
        drops=(0.0, 0.5),
        runs=(runs / "1", runs / "3"),
        grids=tmp_path,
        policies=tmp_path / "policies",
        tasks="validation",
    )
    for study in get_args(ablate.Study):
        found = list(ablate.cells(study, arguments))
        assert found
        for _, cell in found:
            assert cell.config.goal.tasks == "validation"
            assert cell.config.run.episodes == 60 and not cell.config.run.video
            cell.config.checked()
        same = [config for _, cell in found if (config := cell.config)]
        assert len({repr(config) for config in same}) == len(same)
    grouped = [label for label, cell in ablate.cells("groups", arguments) if cell.config.env == "pusht"]
    assert grouped == 2 * ["trained without groups"] + 2 * ["trained in 3 groups"]
    noise = dict(ablate.cells("proposals", arguments))["noise, 54 candidates"].config
    assert (noise.proposals.source, noise.search.candidates, noise.search.iterations) == ("none", 54, 2)
    assert noise.goal.source == "random"  # Block Push's own targets


def test_sources_are_those_that_are_there(tmp_path: Path) -> None:
    for name in ("wam", "flow"):
        write_json(tmp_path / "pusht" / name / "policy.json", {})
    (tmp_path / "pusht" / "inverse").mkdir()  # a training that has saved nothing yet
    arguments = ablate.Arguments(environments=("pusht",), policies=tmp_path)
    assert list(ablate.sources("pusht", arguments)) == ["VLA", "WAM", "WAM, future left out", "flow"]
    assert list(ablate.sources("blockpush", arguments)) == ["VLA"]
    found = dict(ablate.cells("sources", arguments))
    alone = found["WAM, future left out alone"]
    assert alone.name.startswith("pusht-policy") and alone.config.run.actor == "policy"
    assert alone.config.proposals.future_steps == 0 and alone.config.goal.offset == 75
    best = found["WAM, best of 32"].config
    assert (best.proposals.samples, best.proposals.mode, best.tokens.drop) == (32, "replace", 0.5)
    assert found["WAM, best of 32, all tokens"].config.tokens.drop == 0
    asked = [cell.config.search.execute for _, cell in ablate.cells("execution", arguments)]
    assert asked == 4 * list(ablate.EXECUTED)
    ranked = dict(ablate.cells("denoising", arguments))["4 steps, future 1, best of 8 by it"].config
    assert (ranked.proposals.ranked, ranked.proposals.samples) == (8, 32)
    arguments.environments = ("blockpush",)
    assert not list(ablate.cells("denoising", arguments))


@pytest.mark.slow
def test_finished_cells_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = PlanConfig.of("wall")
    quick = usual.updated(max_steps=5, candidates=8, iterations=2, elites=2)
    monkeypatch.setattr(ablate.PlanConfig, "of", lambda name: quick)
    arguments = ablate.Arguments(("redraw",), ("wall",), (0.5,), episodes=1, output=tmp_path)
    ablate.main(arguments)
    report = json.loads((tmp_path / "redraw.json").read_text())
    assert [row["varied"] for row in report["rows"]] == [
        "redrawn: iteration",
        "redrawn: plan",
        "redrawn: episode",
    ]
    against = [row["against_first"] for row in report["rows"]]
    assert against[0] is None and all(pair["ci95"][0] <= pair["difference"] for pair in against[1:])
    assert "redrawn: plan" in (tmp_path / "redraw.md").read_text() and (tmp_path / "redraw.png").is_file()
    monkeypatch.setattr(ablate.Cell, "run", lambda cell: pytest.fail("was run before"))
    ablate.main(arguments)
    with pytest.raises(UserError, match="no cell of redraw"):
        arguments.output = tmp_path / "elsewhere"
        arguments.run_missing = False
        ablate.main(arguments)
