"""One offline HTML page about a model: training, verdict, and the findings of every lens that applies."""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from algoscope.core.ambient import settled
from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.draw import figure, figures_of, script
from algoscope.core.errors import SubjectError
from algoscope.core.files import output_path, write_atomically
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Panel
from algoscope.core.plots import NARROW, width_of
from algoscope.core.progress import Bar, Watcher
from algoscope.core.visible import visible
from algoscope.doors.params import params
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.table import LENSES
from algoscope.runs.learning_curves import read_curves
from algoscope.subjects.opening import AnyModel, AnyTask, open_subject
from algoscope.subjects.subject import Subject
from algoscope.verdicts.certification.kept import kept_or_certified
from algoscope.version import __version__

PAGE = (".html",)


@dataclass(frozen=True)
class Section:
    """A section of the page: its anchor, its heading, and its template, by default that of a finding."""

    name: str
    title: str
    finding: Finding | None = None
    template: str = "finding.j2"


@checked_arguments
@settled()
def report(
    subject: AnyModel,
    out: str | Path | None = None,
    *,
    task: AnyTask = None,
    clean: str | None = None,
    corrupt: str | None = None,
    runs_dir: Folder = None,
    progress: bool = False,
) -> Path:
    """Write the page and return its path.

    A model with a task is certified first; a verdict stored in the run folder for these weights is reused. Then every
    lens runs whose `for_report` returns options. Findings about a run are saved in its folder.

    Args:
        subject: a model, by name, opened or in memory. Of a black box, the sections of lenses that need more than
            logits say so.
        out: the file to write; by default `report.html` in the run folder, else in the current one.
        task: what the model is asked, as a value or by name; None: the task that it was trained on.
        clean: the prompt shown in figures of a single input; by default the task's first edge case. Required for a
            model of free text.
        corrupt: a prompt with another answer, for activation patching; by default the nearest neighbour of `clean` with
            another answer, and for free text none.
        runs_dir: where runs are; by default $ALGOSCOPE_RUNS, else `./runs`.
        progress: show a progress bar on standard error.
    Returns:
        The path of the page, which holds everything it needs and opens without a network.
    Raises:
        SubjectError: for a model of free text without a prompt.
        DrawingError: for a file that does not end in .html.
        RunFolderError: if the page cannot be written.

    Example:
        >>> import algoscope as ag
        >>> ag.report("planted:induction", clean="abcab").name
        'report.html'
    """
    if out is not None:
        out = output_path(out, PAGE)  # before the work, not after it
    subject = open_subject(subject, task=task, runs_dir=runs_dir)
    origin = subject.origin
    path = output_path((origin.path if origin else Path()) / "report.html", PAGE) if out is None else Path(out)
    in_folder = origin if out is None else None
    if in_folder:
        in_folder.refuse_if_training()
    questions = questions_of(subject, prompts_of(subject, clean, corrupt), progress)
    findings, refused = dict[str, Finding](), dict[str, Finding]()
    with Bar(f"report on {subject.name}", "sections") if progress else Watcher() as bar:
        for done, (name, question) in enumerate(questions.items()):
            bar.advance(done, len(questions), name)
            try:
                findings[name] = question()
            except SubjectError as error:  # such as a vocabulary too small for what a lens draws
                refused[name] = Finding(name, f"left out: {error}")
    if origin:
        for finding in findings.values():
            origin.keep(finding)
    with in_folder.lock() if in_folder else nullcontext():  # a run that was removed meanwhile is not made again
        write_atomically(path, render(subject, findings | refused))
    return path


def prompts_of(subject: Subject, clean: str | None = None, corrupt: str | None = None) -> Prompts:
    """The prompts that figures show; by default the task's edge cases. Raises SubjectError for a model without a task
    if no prompt is given.
    """
    if subject.has_task:
        task = subject.task
        edge, other = (task.decode(case[: task.prompt_length].tolist()) for case in task.edge_inputs()[:2])
        clean = clean or edge
        return Prompts(clean, corrupt or task.neighbour(clean), other)
    if not clean:
        raise SubjectError(f"{subject.name} reads free text: give a prompt, such as --clean 'The capital of France is'")
    return Prompts(clean, corrupt, corrupt)


def questions_of(subject: Subject, prompts: Prompts, progress: bool = False) -> dict[str, Callable[[], Finding]]:
    """The findings of the page by section name, in the page's order."""
    questions: dict[str, Callable[[], Finding]] = {}
    if subject.origin and (rows := subject.origin.metrics()):
        questions["curves"] = partial(read_curves, rows, fixed=subject.origin.config.data.source == "fixed")
    if subject.has_task:
        questions["verdict"] = partial(kept_or_certified, subject, progress=progress)
    for name, lens in LENSES.items():
        try:
            options = lens.load("for_report")(subject, prompts) if lens.reported else None
        except SubjectError as error:  # of a black box
            questions[name] = partial(_refuse, error)
        else:
            if options is not None:
                questions[name] = partial(lens.load(), subject, **options)
    return questions


def _refuse(error: SubjectError) -> Finding:
    raise error


# ---------------------------------------------------------------------- the page


def render(subject: Subject, findings: Mapping[str, Finding]) -> str:
    """The page as text. Every figure is drawn from a finding; Plotly's script is embedded."""
    counts = None if subject.is_black_box else params(subject)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            subject=subject,
            findings=findings,
            sections=list(_sections(subject, findings, counts)),
            run=subject.origin,
            parameters=counts and counts["total"],
            plotly=script(),
            version=__version__,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def _sections(subject: Subject, findings: Mapping[str, Finding], counts: Mapping[str, Any] | None) -> list[Section]:
    """The sections in page order: origin of the model, verdict, lenses, parameters."""
    sections = []
    if subject.origin and subject.origin.is_whole and subject.origin.summary.imported:
        sections.append(Section("imported", "Origin of the weights", template="imported.j2"))
    elif subject.origin:
        sections.append(Section("trained", "Training setup", template="trained.j2"))
    if "curves" in findings:
        sections.append(Section("curves", "Learning curves", findings["curves"]))
    if "verdict" in findings:
        sections.append(Section("verdict", "Verdict", findings["verdict"]))
    sections += [Section(name, lens.title, findings[name]) for name, lens in LENSES.items() if name in findings]
    return sections if counts is None else [*sections, Section("parameters", "Parameters", _parameters(counts))]


def _parameters(counts: Mapping[str, Any]) -> Finding:
    """The parameter count as a finding."""
    total = counts["total"]
    parts = [(row["name"], row["parameters"], f"{row['parameters'] / total:.1%}") for row in counts["components"]]
    scale = [(row["name"], row["total"], f"{row['times']:,.4g}") for row in counts["scale"]]
    tables = (
        ResultTable("By component", ("component", "parameters", "share"), (*parts, ("total", total, "100.0%"))),
        ResultTable("Beside published models", ("model", "parameters", "times this model"), tuple(scale)),
    )
    return Finding("parameters", f"{total:,} parameters", tables=tables)


def environment() -> jinja2.Environment:
    """The page templates, with filters for sentences, captions and figures."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("algoscope.doors.report", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.finalize = _shown
    environment.filters.update(sentence=_sentence, first_apart=_first_apart, figures=_figures)
    return environment


def _shown(value: Any) -> Any:
    """What a template writes: characters that a page would obey or drop are made visible; HTML of ours stays."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def _sentence(finding: Finding) -> str:
    """The claim as a sentence: a capital first, unless it begins with an input, and a full stop last."""
    claim, inputs = finding.claim, (finding.facts.get(name, "") for name in ("input", "clean"))
    first = claim[:1] if any(text and claim.startswith(str(text)) for text in inputs) else claim[:1].upper()
    return first + claim[1:] + ("" if claim.endswith((".", "!", "?", ":")) else ".")


def _first_apart(text: str) -> tuple[str, str]:
    """The first sentence of a caption, and the rest."""
    first, *rest = re.split(r"(?<! al\.)(?<!e\.g\.)(?<!i\.e\.)(?<=\.)\s+", text, maxsplit=1)
    return first, "".join(rest)


def _figures(finding: Finding) -> list[tuple[str, list[list[str]]]]:
    """The figures of a finding as (caption, rows of plots as HTML). Narrow plots share a row, which wraps on narrow
    pages.
    """
    drawn = []
    for caption, rows in figures_of(finding.panels):
        shared: list[list[Panel]] = []
        for narrow, group in groupby(rows, key=lambda row: len(row) == 1 and width_of(row[0]) <= NARROW):
            together = list(group)
            shared += [[row[0] for row in together]] if narrow else together
        drawn.append((caption, [[plot_html(plot) for plot in row] for row in shared]))
    return drawn


def plot_html(plot: Panel) -> str:
    """An element that holds the plot's data; the script at the end of the page draws it."""
    data = (figure(plot).to_json() or "").replace("<", "\\u003c")
    return f'<div class="plot"><script type="application/json">{data}</script></div>'
