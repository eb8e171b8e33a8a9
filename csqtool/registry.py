"""Installed entry points: search methods, allocators, exporters, backends, activation quantizers."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from csqtool.errors import ConfigError, nearest


class Registry:
    """The classes that packages register under one entry point group.

    Args:
        group: the entry point group, such as ``csqtool.methods``.
        what: the word for one of them in messages, such as ``method``.
    """

    def __init__(self, group: str, what: str) -> None:
        self._group = group
        self._what = what

    def entries(self) -> dict[str, EntryPoint]:
        """Return the entry points by name, in alphabetical order; nothing is imported."""
        return {entry.name: entry for entry in sorted(entry_points(group=self._group))}

    def names(self) -> list[str]:
        """Return the installed names."""
        return list(self.entries())

    def load(self, name: str) -> Any:
        """Import and return what is registered as `name`.

        Raises:
            ConfigError: nothing of that name is installed; the message names the nearest.
        """
        entries = self.entries()
        if name not in entries:
            raise ConfigError(f"unknown {self._what} {name!r}; {nearest(name, entries)}")
        return entries[name].load()

    def descriptions(self) -> dict[str, str]:
        """Return each name with its class's `description`; all of them are imported."""
        return {name: entry.load().description for name, entry in self.entries().items()}
