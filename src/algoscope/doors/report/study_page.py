"""A study as one offline HTML page: its tables, its figure, and what was expected of it."""

from datetime import UTC, datetime
from pathlib import Path

import jinja2

from algoscope.core.draw import rows_of_plots, script
from algoscope.core.files import write_atomically
from algoscope.core.finding import Finding
from algoscope.doors.report.report import plot_html
from algoscope.verdicts.studies.tables import WORDS, statements, tables
from algoscope.version import __version__


def write_page(found: Finding, path: str | Path) -> Path:
    """Write what `study` found as a page that needs no network, and return its path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("algoscope.doors.report", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    judged = [row["came_true"] for row in found["rows"] if row["came_true"] is not None]
    page = environment.get_template("study.html.j2").render(
        facts=found.facts,
        first=tables(found.facts)[0][1],
        statements=statements(found["rows"]),
        checked=max(row["checked"] or 0 for row in found["rows"]),
        not_numbers=WORDS,
        judged={"true": sum(judged), "all": len(judged)},
        figures=[plot_html(plot) for row in rows_of_plots(found.panels) for plot in row],
        plotly=script(),
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_atomically(Path(path), page)
    return Path(path)
