"""Success by task: what it reads, refuses and draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.experiments.by_task import Arguments, main, read
from sparsewm.errors import UserError
from sparsewm.evaluation.episodes import success_rate


def written(path: Path, tasks: str = "a", **reached: list[bool]) -> Path:
    """Results with these successes of each task."""
    every = [one for task in reached.values() for one in task]
    by_task = {name: {"episodes": len(one)} | success_rate(one) for name, one in reached.items()}
    content: dict[str, Any] = {"episodes": len(every)} | success_rate(every)
    content |= {"seed": 0, "goal": {"tasks_sha256": tasks}}
    path.write_text(json.dumps(content | ({"by_task": by_task} if by_task else {})))
    return path


def test_a_line_for_each_task_and_one_for_all(tmp_path: Path) -> None:
    half = written(tmp_path / "half.json", reach=[True, True], push=[True, False])
    alone = written(tmp_path / "alone.json", reach=[True, False], push=[False, False])
    main(Arguments((f"half={half}", f"the policy alone={alone}"), tmp_path / "out"))
    lines = (tmp_path / "out" / "by_task.md").read_text().splitlines()
    assert lines[0] == "| task | half | the policy alone |" and len(lines) == 5
    assert lines[2].startswith("| reach | 100%") and lines[4].startswith("| all | 75%")
    assert "| 25%" in lines[4]
    kept = json.loads((tmp_path / "out" / "by_task.json").read_text())["results"]
    assert kept["half"]["push"]["success_rate"] == 0.5 and kept["half"]["all"]["episodes"] == 4
    assert (tmp_path / "out" / "by_task.png").stat().st_size > 1000


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    half, other = written(tmp_path / "a.json", reach=[True]), written(tmp_path / "b.json", push=[True])
    one = written(tmp_path / "c.json")
    with pytest.raises(UserError, match="NAME=FILE"):
        read((str(half),))
    with pytest.raises(UserError, match="one task"):
        read((f"a={one}",))
    others = written(tmp_path / "d.json", "b", reach=[True])
    for file in (other, others):
        with pytest.raises(UserError, match="not of the same tasks"):
            read((f"a={half}", f"b={file}"))
    with pytest.raises(UserError, match="another name"):
        read((f"a={half}", f"a={half}"))
    with pytest.raises(UserError, match="give `results`"):
        read(())
