"""One offline HTML page about a model: how it was trained, the verdict, and what it looks like inside."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import jinja2

from algoscope.core.draw import figure, rows_of_plots, script
from algoscope.core.files import write_atomically
from algoscope.core.finding import Finding
from algoscope.core.panel import Panel
from algoscope.core.progress import Bar, Watcher
from algoscope.doors.params import params
from algoscope.lenses.answer_digits import answers
from algoscope.lenses.attention_maps import attention
from algoscope.lenses.embedding_geometry import embeddings
from algoscope.subjects.base import Subject
from algoscope.subjects.opening import open_subject
from algoscope.training.curves import read_curves
from algoscope.training.runs import Run
from algoscope.verdicts.certify import certify
from algoscope.verdicts.domain import domain_of
from algoscope.version import __version__


def report(
    subject: str | Run | Subject,
    out: str | Path | None = None,
    *,
    runs_dir: str | Path | None = None,
    progress: bool = False,
) -> Path:
    """Write the page and return its path; by default `report.html` in the run folder, else in the current one.

    A verdict that the run folder already holds for these weights is used again. Raises what `open_subject` raises,
    and RunFolderError where the page cannot be written.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    origin, task = subject.origin, subject.task
    compared = [task.decode(case[: task.prompt_length].tolist()) for case in task.edge_cases()[:2]]
    kept = origin.finding("certify", subject.weights_sha256) if origin else None
    if kept and kept.facts["domain"]["checked"] < domain_of(task).checked:
        kept = None  # a smaller sample, asked for by hand
    looks = {"certify": kept or certify(subject, progress=progress)}
    lenses: dict[str, Callable[[], Finding]] = {
        "answers": lambda: answers(subject),
        "attention": lambda: attention(subject, compared),
        "embeddings": lambda: embeddings(subject),
    }
    if origin and origin.metrics():
        lenses["curves"] = lambda: read_curves(origin.metrics())
    with Bar(f"look at {subject.name}", "lenses") if progress else Watcher() as bar:
        for done, (name, look) in enumerate(lenses.items()):
            bar.advance(done, len(lenses), name)
            looks[name] = look()
    if origin:
        for finding in looks.values():
            origin.keep(finding)
    path = Path(out or (origin.path if origin else Path()) / "report.html")
    write_atomically(path, render(subject, looks))
    return path


def render(subject: Subject, looks: Mapping[str, Finding]) -> str:
    """The page as text. Every figure is drawn from a finding; Plotly's script stands in the page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["zip"] = zip
    template = environment.from_string(files("algoscope.doors").joinpath("report.html.j2").read_text())
    return template.render(
        subject=subject,
        facts=looks["certify"].facts,
        answers=looks["answers"].facts,
        looks=looks,
        run=subject.origin,
        table=params(subject.cfg),
        figures={name: _figures(finding) for name, finding in looks.items()},
        plotly=script(),
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _figures(finding: Finding) -> dict[str, list[list[str]]]:
    """The facets of each panel as HTML, in rows as a figure would have them; panels that stand together share a key."""
    drawn: dict[str, list[list[str]]] = {}
    for row in rows_of_plots(finding.panels):
        key = row[0].beside or row[0].name
        drawn.setdefault(key, []).append([_html(plot) for plot in row])
    return drawn


def _html(plot: Panel) -> str:
    """A place for the plot with its data inside, where the page's last script finds and draws it."""
    data = (figure(plot).to_json() or "").replace("<", "\\u003c")
    return f'<div class="plot"><script type="application/json">{data}</script></div>'
