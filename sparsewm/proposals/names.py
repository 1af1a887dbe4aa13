"""What a policy's cameras, states and actions are called, and what they are in an environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sparsewm.data.cameras import CAMERA, GOAL, LUMINANCE
from sparsewm.errors import UserError
from sparsewm.files import parse_yaml

HUGE = 1e12
"""Scales and offsets are smaller."""

SEEN = ("pixels", "goal", "both")
"""What a camera may see."""


@dataclass(frozen=True)
class Names:
    """A policy's names in an environment; what is left out is as `sparsewm convert` has it.

    Attributes:
        cameras: what each of the policy's cameras sees: "pixels", "goal", "both" in one picture
            (`sparsewm.data.cameras.overlay`), or None, which leaves it out.
        grey: weights of red, green and blue in "both", in 256ths.
        state: the environment's proprioception by name, in the policy's order; None stands for 0.
        action: which of the policy's action numbers are the environment's, in its order.
        scale, offset: environment action = scale * policy action + offset.
        statistics: of a feature of the policy, the name that its processors keep them under.
    """

    cameras: dict[str, str | None] = field(default_factory=lambda: {CAMERA: "pixels", GOAL: "goal"})
    grey: Sequence[int] = LUMINANCE
    state: list[str | None] | None = None
    action: list[int] | None = None
    scale: float = 1.0
    offset: float = 0.0
    statistics: dict[str, str] = field(default_factory=dict)


def read_names(path: Path) -> dict[str, Any]:
    """The content of a file of names, checked.

    Raises:
        UserError: no such file, no YAML, or an entry of the wrong kind.
    """
    try:
        content = parse_yaml(path)
    except (OSError, ValueError) as error:
        raise UserError(f"names {path} is not readable YAML ({error}): see docs/howto/policy.md") from None
    known = [entry.name for entry in fields(Names)]
    if not isinstance(content, dict) or not set(content) <= set(known):
        raise UserError(f"names {path} must hold some of {', '.join(known)}: see docs/howto/policy.md")
    cameras: Any = content.get("cameras")
    state, action = content.get("state"), content.get("action")
    named = isinstance(cameras, dict) and all(isinstance(name, str) for name in cameras)
    if "cameras" in content and not (named and all(seen in (*SEEN, None) for seen in cameras.values())):
        raise UserError(
            f"cameras of names {path} must each be {', '.join(SEEN)} or null, by the camera's name"
        )
    if "grey" in content:
        check_weights(content["grey"], f"grey of names {path}")
    if state is not None and not (
        isinstance(state, list) and all(isinstance(name, str | None) for name in state)
    ):
        raise UserError(f"state of names {path} must be a list of names, null for zero")
    whole = isinstance(action, list) and all(type(number) is int and number >= 0 for number in action)
    if action is not None and not (whole and len(set(action)) == len(action)):
        raise UserError(f"action of names {path} must be a list of whole numbers from 0, each once")
    statistics = content.get("statistics", {})
    if not isinstance(statistics, dict) or not all(isinstance(name, str) for name in statistics.values()):
        raise UserError(f"statistics of names {path} must be names by feature")
    for key in ("scale", "offset"):
        value = content.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -HUGE < value < HUGE:
            raise UserError(f"{key} of names {path} must be a number")
    if content.get("scale") == 0:
        raise UserError(
            f"scale of names {path} is 0, so all actions would be the offset: give another number"
        )
    return content


def check_weights(weights: Any, what: str) -> None:
    """Refuse weights of a grey picture that are not whole 256ths of red, green and blue.

    Raises:
        UserError: naming `what`.
    """
    whole = isinstance(weights, list | tuple) and all(type(part) is int and part >= 0 for part in weights)
    if not whole or len(weights) != 3 or sum(weights) != 256:
        raise UserError(f"{what} must be three whole numbers from 0, 256 in all: of red, green and blue")
