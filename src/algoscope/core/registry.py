"""The one place where things load late: a table of names, each pointing at `module:attribute`.

Tables live with the layer that owns them (`tasks`, `recipes`, `lenses`, the command line), so that
listing names and summaries loads neither torch nor Plotly. The layer test reads these targets as
imports.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from algoscope.core.errors import UnknownNameError
from algoscope.core.renaming import warn_renamed


@dataclass(frozen=True)
class Entry:
    """One row: where the thing is, and what it is in one line."""

    target: str
    summary: str

    def load(self, beside: str | None = None) -> Any:
        """The thing itself, or what is called `beside` in its module."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), beside or attribute)


EntryT = TypeVar("EntryT", bound=Entry)


class Table(Mapping[str, EntryT]):
    """Named entries of one kind; an unknown name is an error that lists the known ones.

    `renamed` maps a former name to the present one: it still works, warns, and is not listed.
    """

    def __init__(self, kind: str, entries: Mapping[str, EntryT], renamed: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self.renamed = dict(renamed or {})

    def __getitem__(self, name: str) -> EntryT:
        return self._entries[self.current(name)]

    def current(self, name: str) -> str:
        """The present name of an entry. Warns of a former one; raises UnknownNameError for one that never was."""
        if name in self.renamed:
            warn_renamed(self.kind, name, self.renamed[name])
            return self.renamed[name]
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return name

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self.renamed

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, name: str) -> Any:
        return self[name].load()
