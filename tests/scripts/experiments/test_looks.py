"""The table of another look: its cells, its lines and its plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.experiments.looks import Arguments, cells, markdown, pictures, plot, ranks_markdown, row_of
from sparsewm.errors import UserError
from sparsewm.model.checkpoint import shipped

ASKED = Arguments(
    environments=("wall", "pusht"), encoders=("embedded", "dinov2_vits14"), looks=("light:0.1",)
)


def result(successes: list[bool]) -> dict[str, Any]:
    rate = {"success_rate": sum(successes) / len(successes), "success_ci95": [0.1, 0.9]}
    found = {"environment": "wall", "episodes": len(successes), "strict": rate, "dtype": "float32", "seed": 0}
    found |= {
        "command": "sparsewm plan",
        "encoder": {"name": "embedded"},
        "machine": {"code": "c", "kind": "k"},
    }
    return found | rate | {"per_episode": [{"success": success} for success in successes]}


def test_every_look_is_a_cell_as_it_is_and_adapted_beside_the_usual_one() -> None:
    found = [
        (cell.config.env, cell.config.run.encoder, cell.config.run.look, cell.config.run.adapt)
        for cell in cells(ASKED)
    ]
    looks = [("", False), ("light:0.1", False), ("light:0.1", True)]
    models = [(name, encoder) for name in ("wall", "pusht") for encoder in (None, "dinov2_vits14")]
    models = [(name, encoder) for name, encoder in models if name in shipped(encoder)]
    assert found == [(*model, *look) for model in models for look in looks]
    with pytest.raises(UserError, match="KIND:DEGREE"):
        cells(Arguments(looks=("light",)))


def test_lines_compare_with_the_usual_look_on_the_same_tasks(tmp_path: Path) -> None:
    usual, dark, adapted = (
        result([True] * 4),
        result([True, False, False, False]),
        result([True, True, True, False]),
    )
    rows = [
        row_of(cell, found, usual) for cell, found in zip(cells(ASKED), (usual, dark, adapted), strict=False)
    ]
    assert [row["against_usual"]["difference"] for row in rows] == [0, -0.75, -0.25]
    line = next(line for line in markdown(rows, "title").splitlines() if "light" in line)
    assert "| light 0.1 | 25%" in line and "-75" in line and "75%" in line and "-25" in line
    plot(tmp_path / "looks.png", rows, "title")
    assert (tmp_path / "looks.png").stat().st_size > 5000
    ranked = [row | {"look": "light:0.1", "mean": 0.5 + row["adapt"] / 4} for row in rows[1:]]
    assert "| wall | embedded | 0.50, 0.75 |" in ranks_markdown(ranked, "title")


def test_pictures_are_put_back_and_usual_ones_left_alone() -> None:
    usual, shown = pictures(cells(Arguments(environments=("wall",), looks=("background:1",), episodes=2)))
    assert (usual["look"], usual["as_it_is"], usual["adapted"]) == ("usual", 0, 0)
    assert shown["look"] == "background:1" and shown["starts"] == 2
    assert shown["as_it_is"] > 20 > 2 > shown["adapted"]
