"""Findings, the results of lenses and verdicts: a claim, numbers, tables, panels, and provenance."""

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from algoscope.core.arguments import checked_arguments
from algoscope.core.errors import ArgumentError, UnknownNameError
from algoscope.core.files import output_path, write_atomically
from algoscope.core.panel import Label, Panel
from algoscope.core.registry import Entry, Table
from algoscope.core.visible import one_line

RENDERERS = Table(
    "renderer",
    {
        "figure": Entry("algoscope.core.draw:compose", "one Plotly figure with every facet"),
        "html": Entry("algoscope.core.draw:to_html", "an interactive page that works offline"),
        "image": Entry("algoscope.core.draw:to_image", "PNG or SVG"),
    },
)
SUFFIXES = (".html", ".png", ".svg", ".json", ".csv")
_RESERVED = ("finding", "claim", "about", "tables", "panels", "provenance")
_NUMBER = re.compile(r"[-+<>\u2212]?[\d.,]+(e[-+]?\d+)?( ?%| ± [\d.,]+)?")
Cell = str | int | float | bool | None


@checked_arguments
@dataclass(frozen=True)
class ResultTable:
    """A result as a table: a title, named columns, rows, and a caption as panels have. None: no value."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ArgumentError(f"table {self.title!r}: a row differs in length from the columns")

    def texts(self) -> list[list[str]]:
        """The rows as text: integers with thousands separators, floats with four significant digits, yes or no, "" for
        no value.
        """
        return [[_read(cell) for cell in row] for row in self.rows]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column whether every value is a number (sign, % or ± allowed). Such columns are right-aligned."""
        columns = zip(*self.texts(), strict=True) if self.rows else [()] * len(self.columns)
        return tuple(any(column) and all(_NUMBER.fullmatch(text) for text in column if text) for column in columns)

    def to_dict(self) -> dict[str, Any]:
        return {"title": self.title, "columns": self.columns, "rows": self.rows, "caption": self.caption}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "ResultTable":
        return cls(plain["title"], tuple(plain["columns"]), tuple(map(tuple, plain["rows"])), plain["caption"])


def _read(cell: Cell) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else one_line(cell or "")


@checked_arguments
@dataclass(frozen=True)
class Finding:
    """A result that can be printed, plotted, and written to and read from JSON.

    Args:
        kind: what made it: the name of a lens, "certify" or "study".
        claim: what came out for this model, in a sentence.
        facts: the main numbers by name, as JSON values.
        panels: labelled arrays.
        provenance: what it was computed from: subject, hash of the weights, versions, inputs, seconds.
        about: what was measured and how to read it, in a paragraph that holds for any model.
        tables: the main result as tables.

    Example:
        >>> import algoscope as ag
        >>> finding = ag.Finding("count", "3 of 4 are right", {"right": 3})
        >>> finding["right"], str(finding)
        (3, '3 of 4 are right')
    """

    kind: str
    claim: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    panels: tuple[Panel, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    tables: tuple[ResultTable, ...] = ()

    def __post_init__(self) -> None:
        if reserved := sorted(set(self.facts) & set(_RESERVED)):
            raise ArgumentError(f"a fact cannot be called {reserved[0]!r}: {', '.join(_RESERVED)} have other meanings")

    def __getitem__(self, name: str) -> Any:
        """A fact or a panel by name. Raises UnknownNameError for an unknown name."""
        known = {panel.name: panel for panel in self.panels} | dict(self.facts)
        if not isinstance(name, str) or name not in known:
            raise UnknownNameError(f"fact or panel of the {self.kind} finding", name, tuple(known))
        return known[name]

    def __str__(self) -> str:
        return self.claim

    def top(self, n: int = 5) -> list[tuple[str, tuple[Label, ...], float]]:
        """The cells of largest magnitude over all panels.

        Args:
            n: number of cells.
        Returns:
            For each (name of the panel, labels along its axes, value), largest first.
        """
        cells = [(panel.name, labels, value) for panel in self.panels for labels, value in panel.cells()]
        return sorted(cells, key=lambda cell: -abs(cell[2]))[:n]

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON values.

        Returns:
            `finding` (its kind), `claim`, `about`, the facts by their names, `tables`, `panels` and `provenance`.
        """
        return {
            "finding": self.kind,
            "claim": self.claim,
            "about": self.about,
            **self.facts,
            "tables": [table.to_dict() for table in self.tables],
            "panels": [panel.to_dict() for panel in self.panels],
            "provenance": dict(self.provenance),
        }

    def to_json(self) -> str:
        """One JSON document, with the facts at its top level.

        Returns:
            The text that `from_json` reads.
        """
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Finding":
        """The finding that `to_json` wrote.

        Args:
            text: a JSON document.
        Returns:
            An equal finding.
        Raises:
            ArgumentError: for another or a damaged document.
        """
        try:
            plain = json.loads(text)
            return cls(
                kind=plain["finding"],
                claim=plain["claim"],
                facts={key: value for key, value in plain.items() if key not in _RESERVED},
                panels=tuple(Panel.from_dict(panel) for panel in plain["panels"]),
                provenance=plain["provenance"],
                about=plain.get("about", ""),  # absent from findings of earlier versions
                tables=tuple(ResultTable.from_dict(table) for table in plain.get("tables", ())),
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ArgumentError(f"no finding that `to_json` wrote: {type(error).__name__}: {error}") from error

    def to_csv(self) -> str:
        """Every cell of every panel as CSV, one row per cell.

        Returns:
            CSV with the columns `panel`, `unit`, one per axis name, and `value`.
        """
        names = list(dict.fromkeys(axis.name for panel in self.panels for axis in panel.axes))
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(["panel", "unit", *names, "value"])
        for panel in self.panels:
            for labels, value in panel.cells():
                at = dict(zip((axis.name for axis in panel.axes), labels, strict=True))
                writer.writerow([panel.name, panel.unit, *(at.get(name, "") for name in names), repr(value)])
        return out.getvalue()

    def plot(self) -> Any:
        """Draw every panel and facet, with captions.

        Returns:
            One Plotly figure, which a notebook displays.
        Raises:
            DrawingError: where the finding has no panels.
        """
        return RENDERERS.load("figure")(self)

    def save(self, path: str | Path) -> Path:
        """Write the finding to a file.

        Args:
            path: ending in `.html` (interactive, offline), `.png`, `.svg`, `.json` or `.csv`.
        Returns:
            The path.
        Raises:
            DrawingError: for another ending, for a figure too large to be drawn, and where an image needs a browser
                that is not installed.
            RunFolderError: for a file that cannot be written.
        """
        path = output_path(path, SUFFIXES)
        kind = path.suffix.lower()
        if kind == ".json":
            write_atomically(path, self.to_json())
        elif kind == ".csv":
            write_atomically(path, self.to_csv())
        elif kind == ".html":
            write_atomically(path, RENDERERS.load("html")(self))
        else:
            write_atomically(path, RENDERERS.load("image")(self, kind[1:]))
        return path

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Notebook output: the claim, and the figure where there are panels."""
        bundle: dict[str, Any] = {"text/plain": str(self)}
        if self.panels:
            bundle.update(self.plot()._repr_mimebundle_(include, exclude))
        return bundle
