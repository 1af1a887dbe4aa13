"""Trees of settings: nested dataclasses, filled from YAML, compared, and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sparsewm.errors import UserError, suggest

Tree = TypeVar("Tree")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: no such file, or no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not readable YAML ({error}): give another file") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold settings by name, not {type(content).__name__}")
    return content


def merged(tree: Tree, content: Mapping[str, Any], source: str) -> Tree:
    """A tree of dataclasses with the values of nested mappings in place of its own.

    Raises:
        UserError: `source` names a setting that does not exist, or gives one a value of another kind.
    """
    changes: dict[str, Any] = {}
    known = {part.name: getattr(tree, part.name) for part in fields(tree)}  # type: ignore[arg-type]
    for name, value in content.items():
        if name not in known:
            raise UserError(f"{source}: there is no setting `{name}`.{suggest(str(name), known)}")
        present = known[name]
        if is_dataclass(present):
            if not isinstance(value, Mapping):
                raise UserError(f"{source}: `{name}` holds settings by name, not {value!r}")
            changes[name] = merged(present, value, source)
        else:
            changes[name] = _fitting(name, present, value, source)
    return replace(tree, **changes)  # type: ignore[type-var]


def _fitting(name: str, present: Any, value: Any, source: str) -> Any:
    """A value of the kind that a setting has now."""
    if present is None or value is None or isinstance(value, Path):
        return value
    if isinstance(present, Path):
        return Path(value)
    kind = type(present)
    whole = isinstance(value, int) and not isinstance(value, bool)
    good = (kind is float and (whole or isinstance(value, float))) or (kind is int and whole)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if good or (kind not in (int, float) and isinstance(value, kind)):
        return kind(value)
    raise UserError(f"{source}: `{name}` must be {kind.__name__}, not {value!r}")


def leaf_sections(tree: Any) -> dict[str, str]:
    """The section of every leaf of a two-level tree, by the leaf's name where that is unique."""
    found: dict[str, list[str]] = {}
    for section in fields(tree):
        part = getattr(tree, section.name)
        if is_dataclass(part):
            for leaf in fields(part):
                found.setdefault(leaf.name, []).append(section.name)
    return {name: sections[0] for name, sections in found.items() if len(sections) == 1}


def plain(value: Any) -> Any:
    """Nested values as JSON takes them."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def differences(tree: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of what a tree has otherwise than another one."""
    for part in fields(tree):
        mine, theirs = getattr(tree, part.name), getattr(other, part.name)
        if is_dataclass(mine):
            yield from differences(mine, theirs, f"{prefix}{part.name}.")
        elif mine != theirs:
            yield f"{prefix}{part.name}", mine


def one_of(argument: str, name: str, known: Iterable[str]) -> None:
    """Raise a `UserError`, with the nearest known name, unless `name` is known."""
    known = list(known)
    if name not in known:
        raise UserError(f"unknown `{argument}` '{name}'.{suggest(name, known)} Known: {', '.join(known)}")


def at_least(smallest: float, **arguments: float | None) -> None:
    """Raise a `UserError` unless every argument is left out (None) or a finite number from `smallest` up."""
    for name, value in arguments.items():
        if value is not None and not smallest <= value < math.inf:
            raise UserError(f"`{name}` must be at least {smallest:g}, got {value:g}")
