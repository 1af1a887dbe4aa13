"""What a result depends on outside of this package: the user's own code, and packages of environments."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from sparsewm.config import PlanConfig
from sparsewm.encoders import ENCODERS
from sparsewm.envs.registry import maker_of, packages_of
from sparsewm.evaluation.machine import package_version
from sparsewm.files import sha256_files
from sparsewm.model.choices import ALL, CHOICES
from sparsewm.model.objectives import OBJECTIVES
from sparsewm.planners import PLANNERS
from sparsewm.proposals import SAMPLERS
from sparsewm.registry import Registry


def foreign_code(
    config: PlanConfig, encoder: str | None = None, sampler: str | None = None
) -> dict[str, Any]:
    """What is not of this package among all that a configuration uses.

    Args:
        encoder: of the world model, where there is one. What it names is imported.
        sampler: that makes the proposals, where no policy does.

    Returns:
        ``source``: SHA-256 (hex) of source files by what they are for; what they import is not followed.
        ``packages``: versions by name of what an environment comes from.

    Raises:
        UserError: something cannot be imported.
    """
    actor, tokens = config.run.actor, config.tokens
    used: dict[str, tuple[Registry[Any], str]] = {}
    if actor in ("planner", "oracle"):
        used["planner"] = PLANNERS, config.search.planner
    if actor == "planner":
        used |= {"objective": (OBJECTIVES, config.cost.objective), "choose": (CHOICES, tokens.choose)}
        if tokens.cost != ALL:
            used["cost"] = CHOICES, tokens.cost
    if encoder is not None:
        name = encoder.removesuffix(":cls")
        family, colon, _ = name.partition(":")
        used["encoder"] = ENCODERS, family if colon and family in ENCODERS else name
    if sampler is not None:
        used["proposals"] = SAMPLERS, sampler
    source = {role: _hash(name, registry.foreign(name)) for role, (registry, name) in used.items()}
    packages = packages_of(config.env)
    if (maker := maker_of(config.env)) is not None:
        source["env"] = _hash(config.env, maker)
        packages += tuple(_distributions().get(maker.__module__.partition(".")[0], ()))
    return {
        "source": {role: found for role, found in source.items() if found is not None},
        "packages": {name: package_version(name) for name in packages},
    }


def _hash(name: str, thing: Any) -> str | None:
    """SHA-256 (hex) of the files of a thing's module, and of the one it was asked for in; None of ours."""
    if thing is None:
        return None
    names = {getattr(thing, "__module__", type(thing).__module__)}
    if ":" in name:
        names.add(name.partition(":")[0])
    others = [one for one in sorted(names) if one.partition(".")[0] != "sparsewm"]
    modules = [sys.modules[one] for one in others if one in sys.modules]
    files = [Path(file) for module in modules if (file := getattr(module, "__file__", None))]
    return sha256_files(files) if files else None


@cache
def _distributions() -> dict[str, list[str]]:
    """Names of installed packages by the modules they bring."""
    return {name: list(dict.fromkeys(found)) for name, found in packages_distributions().items()}
