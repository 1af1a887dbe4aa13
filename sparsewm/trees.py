"""Trees of settings: nested dataclasses, filled from YAML, compared, and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import fields, is_dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sparsewm.errors import UserError, suggest
from sparsewm.files import parse_yaml

Tree = TypeVar("Tree")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: no such file, or no mapping.
    """
    try:
        content = parse_yaml(path)
    except (OSError, ValueError) as error:
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
    kinds = get_type_hints(type(tree))
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
            changes[name] = _fitting(name, kinds[name], value, source)
    return replace(tree, **changes)  # type: ignore[type-var]


def _fitting(name: str, kind: Any, value: Any, source: str) -> Any:
    """A value of the kind that a setting is declared with."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    bare = [type(get_args(one)[0]) if get_origin(one) is Literal else get_origin(one) or one for one in kinds]
    for one in bare:
        if one is bool or one is type(None):
            fits = isinstance(value, one)
        elif one in (int, float):
            fits = isinstance(value, Integral if one is int else Real) and not isinstance(value, bool)
        elif one in (str, Path):
            fits = isinstance(value, str | Path)
        else:
            fits = one is tuple and isinstance(value, list | tuple)
        if fits:
            return None if value is None else one(value)
    wanted = " or ".join("None" if one is type(None) else one.__name__ for one in bare)
    raise UserError(f"{source}: `{name}` must be {wanted}, not {value!r}")


def leaf_sections(tree: Any) -> dict[str, list[str]]:
    """The sections that have a leaf of each name, of a two-level tree."""
    found: dict[str, list[str]] = {}
    for section in fields(tree):
        part = getattr(tree, section.name)
        if is_dataclass(part):
            for leaf in fields(part):
                found.setdefault(leaf.name, []).append(section.name)
    return found


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


def not_empty(**arguments: Sized) -> None:
    """Raise a `UserError` where an argument of several values holds none."""
    for name, values in arguments.items():
        if not len(values):
            raise UserError(f"`{name}` is empty: give at least one")


def at_least(smallest: float, **arguments: float | None) -> None:
    """Raise a `UserError` unless every argument is left out (None) or a finite number from `smallest` up."""
    for name, value in arguments.items():
        if value is not None and not smallest <= value < math.inf:
            raise UserError(f"`{name}` must be at least {smallest:g}, got {value:g}")
