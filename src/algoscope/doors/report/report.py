"""One offline HTML page about a model: how it was trained, the verdict, and what it looks like inside."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import jinja2

from algoscope.core.draw import figure, rows_of_plots, script
from algoscope.core.errors import SubjectError
from algoscope.core.files import write_atomically
from algoscope.core.finding import Finding
from algoscope.core.panel import Panel
from algoscope.core.progress import Bar, Watcher
from algoscope.doors.params import params
from algoscope.lenses.heads.attention_by_part import attention_by_part as where_heads_look
from algoscope.lenses.heads.attention_maps import attention
from algoscope.lenses.heads.head_roles import roles
from algoscope.lenses.heads.source_attention import source_attention
from algoscope.lenses.induction_circuit.induction_heads import induction
from algoscope.lenses.induction_circuit.phase_change import induction_phase
from algoscope.lenses.interventions.ablation import ablate
from algoscope.lenses.interventions.activation_patching import patch
from algoscope.lenses.modular_arithmetic.clock_or_pizza import clock, is_addition
from algoscope.lenses.modular_arithmetic.fourier_lens import fourier
from algoscope.lenses.modular_arithmetic.operand_pairs import has_pairs
from algoscope.lenses.modular_arithmetic.progress_measures import progress_measures
from algoscope.lenses.over_training.timeline_lens import timeline
from algoscope.lenses.parameters.embedding_geometry import embeddings
from algoscope.lenses.parameters.weight_spectra import weights
from algoscope.lenses.reading.answers import answers
from algoscope.lenses.reading.logit_attribution import attribution
from algoscope.lenses.reading.logit_lens import logit
from algoscope.networks.parameters import count_parameters
from algoscope.runs.learning_curves import read_curves
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.groups.binary import Binary
from algoscope.tasks.strings.copying import Copying
from algoscope.verdicts.certification.certify import certify
from algoscope.verdicts.certification.domain import domain_of
from algoscope.version import __version__

TITLES = {  # the sections of a page in their order, each drawn from the finding of its name
    "trained": "What was trained",
    "imported": "Where it comes from",
    "curves": "Curves",
    "verdict": "Verdict",
    "answers": "Edge cases",
    "attention": "Attention",
    "looks": "Where the answer looks",
    "alignment": "Sources",
    "logit": "Layer by layer",
    "attribution": "Who says it",
    "patch": "What carries it",
    "roles": "Heads",
    "ablate": "What is needed",
    "embeddings": "Embeddings",
    "weights": "Weights",
    "fourier": "Frequencies",
    "clock": "Clock or pizza",
    "timeline": "What formed when",
    "progress": "How it formed",
    "induction": "Induction",
    "parameters": "Parameters",
}
CHECKPOINTS = 4  # fewer make no timeline
MANY_HEADS = 32  # above this, attention is shown for the heads that add most to the answer
LARGE = 10_000_000  # parameters from which on a page does without ablation, a run for every component, and spectra


def report(
    subject: str | Run | Subject,
    out: str | Path | None = None,
    *,
    clean: str = "",
    corrupt: str = "",
    runs_dir: str | Path | None = None,
    progress: bool = False,
) -> Path:
    """Write the page and return its path; by default `report.html` in the run folder, else in the current one.

    A model with a task is certified, asked its edge cases, and looked into. One prompt goes through attention, logit
    lens, attribution and patching: `clean`, compared with `corrupt`; by default the task's first edge case and its
    nearest neighbour with another answer. A model of free text needs `clean`, and `corrupt` for patching. A verdict
    that the run folder already holds for these weights is used again.

    Raises what `open_subject` and the lenses raise, SubjectError for a model of free text without a prompt, and
    RunFolderError where the page cannot be written.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    origin = subject.origin
    asked = _questions(subject, clean, corrupt, progress)
    looks: dict[str, Finding] = {}
    with Bar(f"look at {subject.name}", "lenses") if progress else Watcher() as bar:
        for done, (name, look) in enumerate(asked.items()):
            bar.advance(done, len(asked), name)
            looks[name] = look()
    if origin:
        for finding in looks.values():
            origin.keep(finding)
    path = Path(out or (origin.path if origin else Path()) / "report.html")
    write_atomically(path, render(subject, looks))
    return path


def _questions(subject: Subject, clean: str, corrupt: str, progress: bool) -> dict[str, Callable[[], Finding]]:
    """The findings that the page is made of, in the order in which they are asked for."""
    asked: dict[str, Callable[[], Finding]] = {}
    origin = subject.origin
    if subject.has_task:
        task = subject.task
        edge, other = (task.decode(case[: task.prompt_length].tolist()) for case in task.edge_cases()[:2])
        clean = clean or edge
        corrupt = corrupt or task.neighbour(clean)
        compared = [clean, other]
        asked["verdict"] = lambda: _verdict(subject, progress)
        asked["answers"] = lambda: answers(subject)
        asked["embeddings"] = lambda: embeddings(subject)
        if has_pairs(subject):
            asked["fourier"] = lambda: fourier(subject)
            if is_addition(task):
                asked["clock"] = lambda: clock(subject)
            if origin and len(origin.steps) > 1:
                asked["progress"] = lambda: progress_measures(subject)
        if origin and len(origin.steps) >= CHECKPOINTS:
            asked["timeline"] = lambda: timeline(subject, ["answers", "heads"], n_inputs=1000, per_class=100)
        if isinstance(task, Binary):
            asked["looks"] = lambda: where_heads_look(subject)
        if task.sources and subject.cfg.causal:
            asked["alignment"] = lambda: source_attention(subject)
        if isinstance(task, Copying) and subject.cfg.causal:
            asked["induction"] = lambda: induction(subject)
            if origin and len(origin.steps) > 1:
                asked["phase"] = lambda: induction_phase(subject)
    else:
        if not clean:
            raise SubjectError(
                f"{subject.name} reads free text: name what to look at, --clean 'The capital of France is'"
            )
        compared = [clean, corrupt] if corrupt else [clean]
        asked["embeddings"] = lambda: embeddings(subject, compared)
    attributed = cache(lambda: attribution(subject, [clean]))
    asked["attention"] = lambda: attention(subject, compared, _heads_to_show(subject, attributed))
    asked["logit"] = lambda: logit(subject, [clean])
    asked["attribution"] = attributed
    if corrupt and subject.cfg.causal:
        asked["patch"] = lambda: patch(subject, clean, corrupt)
    asked["roles"] = lambda: roles(subject, n_inputs=64)
    if sum(count_parameters(subject.cfg).values()) < LARGE:
        asked["ablate"] = lambda: ablate(subject)
        asked["weights"] = lambda: weights(subject)
    if origin and origin.metrics():
        asked["curves"] = lambda: read_curves(origin.metrics())
    return asked


def _heads_to_show(subject: Subject, attributed: Callable[[], Finding]) -> list[str]:
    """All heads of a small model (an empty list), of a large one the eight that add most to the answer."""
    if subject.cfg.n_layers * subject.cfg.n_heads <= MANY_HEADS:
        return []
    parts = [part for part in attributed()["parts"] if re.fullmatch(r"L\d+H\d+", part["component"])]
    largest = sorted(parts, key=lambda part: -abs(part["contribution"]))[:8]
    return [str(part["component"]) for part in largest]


def _verdict(subject: Subject, progress: bool) -> Finding:
    """What the run folder holds for these weights, unless that was a smaller sample, asked for by hand."""
    kept = subject.origin.finding("certify", subject.weights_sha256) if subject.origin else None
    wanted, held = domain_of(subject.task), kept.facts["domain"] if kept else {}
    if kept and held["method"] in (wanted.method, "exhaustive") and held["checked"] >= wanted.checked:
        return kept
    return certify(subject, progress=progress)


def render(subject: Subject, looks: Mapping[str, Finding]) -> str:
    """The page as text. Every figure is drawn from a finding; Plotly's script stands in the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("algoscope.doors.report", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["zip"] = zip
    shown = {"parameters", *looks}
    if subject.origin:
        shown.add("imported" if "imported" in subject.origin.summary else "trained")
    return environment.get_template("report.html.j2").render(
        subject=subject,
        looks=looks,
        sections=[name for name in TITLES if name in shown],
        titles=TITLES,
        run=subject.origin,
        table=params(subject),
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
        drawn.setdefault(key, []).append([plot_html(plot) for plot in row])
    return drawn


def plot_html(plot: Panel) -> str:
    """A place for the plot with its data inside, where the page's last script finds and draws it."""
    data = (figure(plot).to_json() or "").replace("<", "\\u003c")
    return f'<div class="plot"><script type="application/json">{data}</script></div>'
