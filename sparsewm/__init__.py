"""sparsewm: model-predictive control from pixels in a sparse world model of patch tokens.

>>> import sparsewm
>>> from sparsewm import envs
>>> env = envs.make("pusht")
>>> observation, info = env.reset(seed=0)
>>> agent = sparsewm.Agent.from_pretrained("pusht", drop=0.5)
>>> agent.reset(env.render_state(env.goal))
>>> actions = agent.act(observation)  # (n, 2), to be executed by env.step one after the other

Names are imported when they are first used, so that `sparsewm.planners` and `sparsewm.envs` need nothing but
their own libraries.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsewm.agent import Agent as Agent
    from sparsewm.config import PlanConfig as PlanConfig
    from sparsewm.encoders import load_encoder as load_encoder
    from sparsewm.errors import UserError as UserError
    from sparsewm.memory import keep_freed_memory as keep_freed_memory
    from sparsewm.model import WorldModel as WorldModel
    from sparsewm.model import load as load
    from sparsewm.model import load_pretrained as load_pretrained
    from sparsewm.model import save as save
    from sparsewm.model.publish import push_to_hub as push_to_hub

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    # Threads of OpenMP wait for work in a busy loop, for so long that beside any other program every core is
    # taken by waiting. Read when torch is imported.
    os.environ["GOMP_SPINCOUNT"] = "1000"

try:
    __version__ = version("sparsewm")
except PackageNotFoundError:  # imported from a folder that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "Agent": "sparsewm.agent",
    "PlanConfig": "sparsewm.config",
    "UserError": "sparsewm.errors",
    "WorldModel": "sparsewm.model",
    "keep_freed_memory": "sparsewm.memory",
    "load": "sparsewm.model",
    "load_encoder": "sparsewm.encoders",
    "load_pretrained": "sparsewm.model",
    "push_to_hub": "sparsewm.model.publish",
    "save": "sparsewm.model",
}
"""Where each public name lives."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sparsewm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
