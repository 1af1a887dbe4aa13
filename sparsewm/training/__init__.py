"""Training: `train(TrainConfig(dataset="my_robot.h5"))` makes a checkpoint of recorded episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsewm.training.config import TrainConfig
    from sparsewm.training.parallel import Processes, connect
    from sparsewm.training.run import Trained, train

__all__ = ["Processes", "TrainConfig", "Trained", "connect", "train"]


def __getattr__(name: str) -> Any:
    """Imported when first asked for: settings are read where nothing is trained, too."""
    if name == "TrainConfig":
        from sparsewm.training.config import TrainConfig

        return TrainConfig
    if name in ("Processes", "connect"):
        from sparsewm.training import parallel

        return getattr(parallel, name)
    if name in __all__:
        from sparsewm.training import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
