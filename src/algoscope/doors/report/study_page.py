"""A study as one offline HTML page: its tables, its figures, and its predictions."""

from datetime import UTC, datetime
from pathlib import Path

from algoscope.core.draw import script
from algoscope.core.files import output_path, write_atomically
from algoscope.core.finding import Finding
from algoscope.doors.report.report import PAGE, Section, environment
from algoscope.version import __version__


def write_page(finding: Finding, path: str | Path) -> Path:
    """Write the finding of `study` as a page that needs no network, and return its path."""
    page = (
        environment()
        .get_template("study.html.j2")
        .render(
            facts=finding.facts,
            section=Section("results", "Results", finding),
            plotly=script(),
            version=__version__,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )
    path = output_path(path, PAGE)
    write_atomically(path, page)
    return path
