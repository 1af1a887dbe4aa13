"""Doors of the house: what can be named on the command line and comes from a package of its own."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from sparsewm.errors import UserError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name: built in, registered, installed as a plugin, or `module:attribute`.

    A plugin is a package with an entry point in the group, e.g. in its pyproject.toml
    ``[project.entry-points."sparsewm.encoders"]`` ``mine = "my_package.encoder:MyEncoder"``.

    Args:
        kind: what the things are, for messages, e.g. "encoder".
        group: entry-point group, e.g. "sparsewm.encoders".
        builtin: names known from the start, each with the thing or with its place `module:attribute`, which
            is imported when it is first asked for.
        families: places of functions that make the thing `FAMILY/MEMBER` of a member's name, by family.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        builtin: dict[str, T | str] | None = None,
        families: dict[str, str] | None = None,
    ) -> None:
        self.kind, self.group = kind, group
        self._known: dict[str, T | str] = dict(builtin or {})
        self._builtin = dict(self._known)
        self._families = dict(families or {})

    def register(self, name: str, thing: T | str) -> None:
        """Add a thing, or its place `module:attribute`, under a name; a later one replaces an earlier."""
        self._known[name] = thing

    def names(self) -> list[str]:
        """Known names: built in, registered, plugins."""
        return list(dict.fromkeys([*self._known, *(found.name for found in self._plugins())]))

    def __contains__(self, name: str) -> bool:
        return name in self.names() or self._member(name) is not None

    @property
    def families(self) -> list[str]:
        """Families whose members are known by `FAMILY/MEMBER`."""
        return list(self._families)

    def _member(self, name: str) -> tuple[str, str] | None:
        """Place of the family's function and the member's name."""
        family, slash, member = name.partition("/")
        return (self._families[family], member) if slash and member and family in self._families else None

    def get(self, name: str) -> T:
        """The thing called `name`, or at the place `module:attribute`.

        Raises:
            UserError: unknown name (the nearest is suggested), or a place that cannot be imported.
        """
        if name in self._known:
            thing = self._known[name]
            return self._at(thing) if isinstance(thing, str) else thing
        for found in self._plugins():
            if found.name == name:
                try:
                    loaded: T = found.load()
                except Exception as error:  # whatever a stranger's package does when it is imported
                    raise UserError(
                        f"the plugin of {self.kind} '{name}' ({found.value}) does not load ({error}): "
                        "install it again"
                    ) from None
                return loaded
        if (member := self._member(name)) is not None:
            place, task = member
            return cast(T, partial(cast(Any, self._at(place)), task))
        if ":" in name:
            return self._at(name)
        known = self.names()
        raise UserError(
            f"unknown {self.kind} '{name}'.{suggest(name, known)} Known: {', '.join(known)}, or "
            "module:name of your own"
        )

    def foreign(self, name: str) -> T | None:
        """The thing called `name` as `get` has it; None where it is built in, or a family's.

        Raises:
            UserError: unknown name, or it cannot be imported.
        """
        if name in self._builtin and self._known[name] is self._builtin[name]:
            return None
        return None if self._member(name) is not None and name not in self.names() else self.get(name)

    def _at(self, place: str) -> T:
        module, _, attribute = place.partition(":")
        try:
            thing: T = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # see `get`
            raise UserError(
                f"no {self.kind} at '{place}' ({error}): give module:name of something importable, with its "
                "folder in PYTHONPATH"
            ) from None
        return thing

    def _plugins(self) -> Iterator[EntryPoint]:
        return iter(entry_points(group=self.group))
