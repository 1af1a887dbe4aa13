"""The tree of settings: whoever makes it, every value is of its kind, or one sentence says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsewm.config import PlanConfig
from sparsewm.errors import UserError
from sparsewm.training.config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectve": "mse"}, r"no setting `objectve`\. Did you mean 'objective'"),
        ({"frame": "lst"}, r"unknown `frame` 'lst'\. Did you mean 'last'"),
        ({"selection": "nne"}, r"unknown `selection` 'nne'\. Did you mean 'none'"),
        ({"resample": "never"}, "unknown `resample` 'never'"),
        ({"mode": "repl"}, r"unknown `mode` 'repl'\. Did you mean 'replace'"),
        ({"actor": "plannr"}, r"unknown `actor` 'plannr'\. Did you mean 'planner'"),
        ({"planner": "cme"}, r"unknown planner 'cme'\. Did you mean 'cem'"),
        ({"source": "random"}, r"`source` is a setting of goal and proposals: give goal=\{\"source\": ...\}"),
        ({"search": {"iteratons": 3}}, r"no setting `iteratons`\. Did you mean 'iterations'"),
        ({"search": 3}, "`search` holds settings by name, not 3"),
        ({"candidates": 2.5}, "`candidates` must be int, not 2.5"),
        ({"iterations": "5"}, "`iterations` must be int, not '5'"),
        ({"iterations": None}, "`iterations` must be int, not None"),
        ({"drop": True}, "`drop` must be float, not True"),
        ({"letterbox": "yes"}, "`letterbox` must be bool, not 'yes'"),
        ({"deadline_ms": "5"}, "`deadline_ms` must be float or None, not '5'"),
        ({"memory_gb": "1"}, "`memory_gb` must be float or None, not '1'"),
        ({"checkpoint": 3}, "`checkpoint` must be str or None, not 3"),
    ],
)
def test_what_is_no_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PlanConfig.of("wall").updated(**settings).checked()


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("search", "horizon", 2.5),
        ("search", "candidates", "64"),
        ("cost", "objective", None),
        ("tokens", "drop", "half"),
    ],
)
def test_trees_made_by_hand_are_checked(section: str, name: str, value: Any) -> None:
    config = PlanConfig.of("wall")
    config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    with pytest.raises(UserError, match=f"`{name}` must be"):
        config.checked()


def test_numbers_and_paths_of_other_libraries() -> None:
    config = PlanConfig().updated(candidates=np.int64(8), drop=np.float32(0.25), checkpoint=Path("runs/a"))
    assert (config.search.candidates, config.tokens.drop, config.run.checkpoint) == (8, 0.25, "runs/a")
    assert type(config.search.candidates) is int and type(config.tokens.drop) is float


@pytest.mark.parametrize("elites", [7, 8, 9, 10])
def test_elites_that_are_given_stay(elites: int) -> None:
    assert PlanConfig.of("wall").updated(candidates=10, elites=elites).checked().search.elites == elites


@pytest.mark.parametrize(("candidates", "elites"), [(64, 8), (16, 8), (10, 5), (2, 2)])
def test_elites_that_are_left_out_are_half_of_few_candidates(candidates: int, elites: int) -> None:
    assert PlanConfig.of("wall").updated(candidates=candidates).checked().search.elites == elites


def test_more_elites_than_candidates_are_refused() -> None:
    for elites in (8, 9):
        with pytest.raises(UserError, match=f"`elites` {elites} is more than `candidates` 7"):
            PlanConfig.of("wall").updated(candidates=7, elites=elites).checked()


@pytest.mark.parametrize("execute", [2, 3, 4, 5, 6])
def test_no_more_is_executed_than_the_horizon(execute: int) -> None:
    for name in ("wall", "pusht"):  # of which one usually executes 5, the other 2
        config = PlanConfig.of(name).updated(horizon=3, execute=execute).checked()
        assert config.search.execute == min(execute, 3)


def test_an_environment_in_any_spelling_has_its_own_settings() -> None:
    assert PlanConfig.of("Wall") == PlanConfig.of("sparsewm/Wall-v0") == PlanConfig.of("wall")


@pytest.mark.parametrize("section", ["run", "optim", "encoder"])
def test_a_section_of_training_settings_holds_settings_by_name(section: str) -> None:
    with pytest.raises(UserError, match=f"`{section}` holds settings by name, not 'fast'"):
        TrainConfig.of(content={section: "fast"})
