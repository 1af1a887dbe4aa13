"""Policies are put beside the world model whose tokens they read, with a card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scripts import make_pretrained
from sparsewm.model.checkpoint import PRETRAINED, load
from sparsewm.proposals.latent import ABOUT, WEIGHTS


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped world models with PushT's alone, and none of its policies."""
    place = tmp_path / "sparsewm" / "pretrained"
    shutil.copytree(PRETRAINED / "pusht", place / "pusht", ignore=shutil.ignore_patterns("inverse"))
    monkeypatch.setattr(make_pretrained, "PRETRAINED", place)
    return place


def test_a_policy_is_shipped_with_its_card(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = PRETRAINED / "pusht" / "inverse"
    make_pretrained.ship_policy(trained)
    target = shipped / "pusht" / "inverse"
    assert (target / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    about, card = json.loads((target / ABOUT).read_text()), (target / "README.md").read_text()
    found = about["training"]["validation"]
    assert about["training"]["output"] is None and f"misses {found['error']:.2f} of" in card
    assert card.startswith("# Inverse dynamics: pusht") and "../../../../docs/benchmarks/pusht.md" in card
    assert "3,000 steps of 256 frames to tell the state, 6,000 steps of 512" in card
    make_pretrained.drop_unfit(target, load(shipped / "pusht"))
    assert target.is_dir(), "it reads this world model's tokens"
    make_pretrained.drop_unfit(target, load(PRETRAINED / "rope"))
    assert not target.exists() and "removed" in capsys.readouterr().out
