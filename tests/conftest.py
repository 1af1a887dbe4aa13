"""Settings of the whole suite: its parallel workers share the machine, and nothing is drawn on a screen."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), "sparsewm-tests"))  # nor kept at home

import pytest
import torch

torch.set_num_threads(1)
sys.modules["wandb"] = None  # type: ignore[assignment]  # timm would import it, which takes seconds
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # a GPU's kernels run anywhere; read by its first import


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which kernels this machine could not run as they are, where tests of kernels ran."""
    reports = [one for some in terminalreporter.stats.values() for one in some]
    if any("tests/kernels/" in getattr(one, "nodeid", "") for one in reports):
        from scripts.trust.platforms import not_exercised

        for name, reason in not_exercised().items():
            terminalreporter.write_line(f"kernels not exercised here: {name} ({reason})")


@pytest.fixture(params=["training_tiles", "training"])
def kernels(request: pytest.FixtureRequest) -> Any:
    """The compiled functions of a training step, with products of a matrix unit and without."""
    from scripts.trust import emulation
    from tests.kernels.stand_ins import training_of

    found = training_of(request.param)
    if isinstance(found, str) and not emulation.possible():
        pytest.skip(found)  # no Linux, no GCC or no AVX2; anywhere else what does not compile is a failure
    assert not isinstance(found, str), found
    return found
