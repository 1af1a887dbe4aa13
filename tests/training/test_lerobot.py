"""A LeRobotDataset that LeRobot recorded with two cameras and one that we wrote train alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsewm.cli.convert import Convert
from sparsewm.training import TrainConfig, train
from tests.data import test_format_lerobot as format_lerobot


@pytest.mark.slow
def test_what_lerobot_recorded_and_what_we_wrote_train_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format_lerobot, "LENGTHS", (30, 24, 28, 26))
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    format_lerobot.record(theirs, videos=False)
    assert Convert(str(theirs), ours, format="lerobot", cameras=("front", "wrist")).run() == 0
    found = []
    for source in (theirs, ours):
        config = TrainConfig.of(
            content={
                "dataset": str(source),
                "cameras": ["front", "wrist"],
                "frameskip": 2,
                "encoder": {"name": "random"},
                "model": {"width": 24, "depth": 1, "heads": 2, "mlp": 48},
                "optim": {"steps": 3, "batch": 2, "horizon": 2, "groups": 2},
                "heads": {"distance": {"steps": 0}, "decoder": {"steps": 0}},
                "run": {"device": "cpu", "dtype": "float32", "output": str(tmp_path / f"run-{source.name}")},
            }
        )
        found.append(train(config).model)
    interface, other = (model.interface for model in found)
    assert (
        interface is not None and interface.picture == (48, 112) and interface.cameras == ("front", "wrist")
    )
    assert other is not None and other.proprio_names == interface.proprio_names
    for name, weights in found[0].state_dict().items():
        torch.testing.assert_close(weights, found[1].state_dict()[name], rtol=0, atol=0)
