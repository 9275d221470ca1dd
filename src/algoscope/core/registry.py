"""The one place where things load late: a table of names, each pointing at `module:attribute`.

Tables live with the layer that owns them (`tasks`, `training.recipes`, `lenses`, the command line), so
that listing names and summaries loads neither torch nor Plotly. The layer test reads these targets as
imports.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from algoscope.core.errors import UnknownNameError


@dataclass(frozen=True)
class Entry:
    """One row: where the thing is, and what it is in one line."""

    target: str
    summary: str

    def load(self) -> Any:
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


class Table(Mapping[str, Entry]):
    """Named entries of one kind; an unknown name is an error that lists the known ones."""

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, name: str) -> Any:
        return self[name].load()

    def add(self, name: str, entry: Entry) -> None:
        """A row from a layer above the table's own, which the table cannot name itself."""
        self._entries[name] = entry
