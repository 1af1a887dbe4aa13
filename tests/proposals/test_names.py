"""What a policy's cameras, states and actions are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsewm.errors import UserError
from sparsewm.proposals.names import check_weights, read_names


def test_weights_of_a_grey_picture_are_checked() -> None:
    with pytest.raises(UserError, match="--grey must be three whole numbers from 0, 256 in all"):
        check_weights((100, 100, 100), "--grey")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cameras:", "cameras of names .* must each be pixels, goal, both or null, by"),
        ("cameras: {1: pixels}", "cameras of names .* must each be"),
        ("scale: true", "scale of names .* must be a number"),
        ("offset: false", "offset of names .* must be a number"),
        ("scale: 0", "scale of names .* is 0, so all actions would be the offset"),
        ("action: [0, 0]", "action of names .* must be a list of whole numbers from 0, each once"),
    ],
)
def test_entries_that_say_nothing_are_refused(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text(line)
    with pytest.raises(UserError, match=said):
        read_names(tmp_path / "names.yaml")


def test_entries_that_are_well(tmp_path: Path) -> None:
    content = {"state": None, "action": [1, 0], "scale": -2, "offset": 0, "statistics": {"action": "a"}}
    (tmp_path / "names.yaml").write_text(str(content).replace("None", "null"))
    assert read_names(tmp_path / "names.yaml") == content
