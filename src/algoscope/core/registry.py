"""Tables of names with lazy imports: each entry points at `module:attribute`. Nothing else is imported lazily.

Each table is in the layer that owns it (`tasks`, `recipes`, `lenses`, the command line). Listing names and summaries
loads neither torch nor Plotly. The layer test counts these targets as imports.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from algoscope.core.errors import UnknownNameError
from algoscope.core.renaming import warn_renamed


@dataclass(frozen=True)
class Entry:
    """One row: the import path of an object, and a summary of one line."""

    target: str
    summary: str

    def load(self, beside: str | None = None) -> Any:
        """Import the object, or the attribute `beside` of its module."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), beside or attribute)


EntryT = TypeVar("EntryT", bound=Entry)


class Table(Mapping[str, EntryT]):
    """Named entries of one kind; an unknown name raises an error that lists the known ones.

    `renamed` maps former names to current ones: a former name still works, warns, and is not listed.
    """

    def __init__(self, kind: str, entries: Mapping[str, EntryT], renamed: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self.renamed = dict(renamed or {})

    def __getitem__(self, name: str) -> EntryT:
        return self._entries[self.current(name)]

    def current(self, name: str) -> str:
        """The current name of an entry. Warns of a former name; raises UnknownNameError for an unknown one."""
        if name not in self:
            raise UnknownNameError(self.kind, name, self._entries)
        if name in self.renamed:
            warn_renamed(self.kind, name, self.renamed[name])
            return self.renamed[name]
        return name

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._entries or name in self.renamed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, name: str) -> Any:
        return self[name].load()
