"""Verdicts stored in run folders: which of two is stronger, and when one can be reused."""

from pathlib import Path

from algoscope.core.finding import Finding
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.verdicts.certification.certify import EDGE, certify
from algoscope.verdicts.certification.domain import domain_of

METHODS = ("sampled", "stratified", "exhaustive")  # from the weakest to the strongest


def kept_or_certified(
    subject: str | Run | Subject,
    *,
    by: str | None = None,
    runs_dir: str | Path | None = None,
    progress: bool = False,
) -> Finding:
    """The stored verdict about these weights, if it is as strong as that of `certify(subject, by=by)` and uses the
    scheme `by` (None: any scheme of the task); else a new one, which is stored.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    kept = _kept(subject)
    wanted = METHODS.index(domain_of(subject.task, by=by).method), True
    if kept is not None and by in (None, scheme_of(kept, subject.task)) and _strength(kept, subject.task) >= wanted:
        return kept
    verdict = certify(subject, by=by, progress=progress)
    keep_verdict(subject, verdict)
    return verdict


def keep_verdict(subject: Subject, verdict: Finding) -> bool:
    """Store a verdict in the subject's run folder, unless it holds a stronger one about the same weights; returns
    whether it was stored.

    Exhaustive is stronger than stratified, and stratified than a uniform sample. Within one method, a verdict that
    checked at least the default number of inputs of `certify` is stronger than one that did not; then, of two verdicts
    by the same class scheme, the one that checked more.
    """
    if subject.origin is None:
        return False
    kept = _kept(subject)
    if kept is not None and _is_stronger(kept, verdict, subject.task):
        return False
    subject.origin.keep(verdict)
    return True


def scheme_of(verdict: Finding, task: Task) -> str | None:
    """The class scheme of a verdict, recognised by its class names; None if no scheme of the task has them."""
    classes = [row["class"] for row in verdict["by_class"] if row["class"] != EDGE]
    return next((by for by in task.class_schemes if list(task.class_names(by)) == classes), None)


def _kept(subject: Subject) -> Finding | None:
    """The stored verdict about these weights and this task; one by an earlier version, with fewer facts, is ignored."""
    weights = subject.weights_sha256
    kept = subject.origin.finding("certify", weights) if subject.origin and weights else None
    if kept is None or not {"by_class", "by_position", "domain", "where", "better_fit"} <= set(kept.facts):
        return None
    task = subject.task.model_dump(mode="json")
    if kept.provenance.get("task", task) != task or kept["task"] != subject.task.kind:
        return None
    return kept if scheme_of(kept, subject.task) else None


def _strength(verdict: Finding, task: Task) -> tuple[int, bool]:
    """The rank of the method, and whether at least the default number of inputs was checked."""
    domain = verdict["domain"]
    enough = domain["checked"] >= domain_of(task, by=scheme_of(verdict, task)).checked
    return METHODS.index(domain["method"]), enough


def _is_stronger(kept: Finding, verdict: Finding, task: Task) -> bool:
    strengths = _strength(kept, task), _strength(verdict, task)
    if strengths[0] != strengths[1] or scheme_of(kept, task) != scheme_of(verdict, task):
        return strengths[0] > strengths[1]
    more: bool = kept["domain"]["checked"] > verdict["domain"]["checked"]
    return more
