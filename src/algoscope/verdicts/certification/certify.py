"""Exact accuracy of a model: one teacher-forced forward pass per input decides its greedy answer.

Why one pass is enough: greedy decoding feeds back its own tokens. As long as they are right, its inputs equal those of
the teacher-forced pass, so the first wrong token is the same in both. So the decoded answer is right if and only if
every answer position is right given the right prefix.
"""

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.ambient import settled
from algoscope.core.arguments import Count, Folder, Range, checked_arguments
from algoscope.core.errors import SubjectError
from algoscope.core.finding import Finding
from algoscope.core.numbers import percent
from algoscope.core.progress import Bar, Watcher
from algoscope.core.threads import free_cores, in_order, threads
from algoscope.networks.evaluation import margins, tokens_right
from algoscope.subjects.opening import AnyModel, AnyTask, open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.groups.binary import Binary
from algoscope.tasks.groups.group_tables import LARGEST
from algoscope.verdicts.certification._verdict_tables import BINS, class_panel, margin_panel, result_tables
from algoscope.verdicts.certification._where import where_it_fails
from algoscope.verdicts.certification.domain import Domain, domain_of

ROWS = 25_000  # inputs in one batch of a worker
ROWS_OF_STRATA = 2_500  # random draws rarely share a prefix: smaller batches stay in the CPU cache
OFTEN = 0.5  # share of wrong answers above which another reading of the task is tried
LONGEST = 1_000  # characters of settings in a sentence
AGAIN = 2048  # inputs of smallest margin, and as many others, recomputed in float64
EDGE = "edge"  # row of the edge cases, which a stratified verdict checks in addition to its draws
ABOUT = (
    "Greedy decoding gives the right answer exactly when every answer token is right given the right tokens before "
    "it, so one teacher-forced forward pass decides each input. The margin of an input is the smallest, over its "
    "answer tokens, of the right token's logit minus the largest other one. The float error is the "
    "largest difference of a logit from its value in float64, over the inputs of smallest margin and an even spread of "
    "others; where the smallest margin exceeds twice that error, rounding can change no answer."
)
COVERS = {
    "exhaustive": "Every one of the {size:,} inputs was checked: this is a count, not an estimate.",
    "sampled": "The inputs checked are independent uniform draws from the {size:,} there are; the 95 % interval of the "
    "accuracy over all of them is that of Clopper and Pearson.",
    "drawn": "The inputs checked are independent draws by the task, which does not list its inputs, so this is the "
    "share of draws that are right; its 95 % interval is that of Clopper and Pearson.",
    "stratified": "Inputs were drawn from every class of the {size:,} inputs, as a uniform sample would miss rare "
    "classes, and each class is weighted by its exact size. The task's edge cases are checked as well, but are not "
    "part of the estimate. The 95 % interval holds for the accuracy over all inputs.",
}


@checked_arguments
@settled()
def certify(
    subject: AnyModel,
    *,
    task: AnyTask = None,
    by: str | None = None,
    sample: Count | None = None,
    per_class: Count | None = None,
    limit_counterexamples: Annotated[int, Range(0)] = 20,
    n_threads: Count | None = None,
    runs_dir: Folder = None,
    progress: bool = False,
) -> Finding:
    """Count the inputs that the subject answers wrongly: every one of at most 10^8, else among draws.

    Args:
        subject: a model, by name or opened; or one in memory: a module of PyTorch, a function from tokens to logits.
        task: what it is asked, as a value or by name, `FILE.py:CLASS` for one of your own; None: the task that it was
            trained on.
        by: the scheme that sorts inputs into classes; by default the task's first.
        sample: check this many uniform draws instead of every input.
        per_class: check this many uniform draws of every class, or the whole class if it has no more.
        limit_counterexamples: how many wrong inputs are reported, from every class where there are any.
        n_threads: batches processed in parallel; by default the number of idle cores.
        runs_dir: where the runs are; by default `$ALGOSCOPE_RUNS`, else `./runs`.
        progress: show a bar on standard error.
    Returns:
        A finding with the facts of `certify --json`. `wrong` is counted over `domain.checked` of `domain.size` inputs,
        and `by_class` by the scheme, each class with its exact `weight` in the domain where that is known.
        `wrong_share` is the `share` of the domain that is wrong, with its `interval_95` where not all was checked.
        `where` says in which classes: `words`, the `sets` of classes with significantly more errors, and the `others`
        (see `where_it_fails`). `domain.method` is `exhaustive`; `sampled`; or `stratified`, where the domain is
        too large and the task counts its classes, or `per_class` is given. Each class then has its exact `size`, the
        row `edge` holds the task's edge cases, checked as well, and `accuracy` is estimated with the exact weights of
        the classes. `interval_95` is the 95 % interval of the accuracy where not all was checked: by Clopper and
        Pearson, of a stratified verdict by `stratified_bounds`. `by_position` counts, for each token of the answer,
        the inputs for which it is `wrong` given the right tokens before it, and those for which it is the
        `first_wrong`. `min_margin` is the smallest margin (logit of the right token minus the largest other one),
        negative where the model is wrong; `float_error` the largest difference to float64 logits, over the 2,048 inputs
        of smallest margin and as many spread evenly, or None for a black box that does not compute in float64, and
        `float_error_unknown` says why; `robust`: nothing is wrong and the smallest margin exceeds twice
        that error. `counterexamples` show the input, the right answer and what greedy decoding gives. `better_fit`: for
        an operation on two elements that is wrong as often as right or more, other `settings` of the task (the order of
        a group's elements, another operation) with which at least half of all answers are `right`, or None. Panels
        `accuracy` [class] (share of inputs right; 0 none, 1 all) and `margins` [margin] (inputs, by their smallest
        margin in logits).
    Raises:
        UnknownNameError: for a scheme that the task does not have.
        ConfigError: for an empty sample, for `sample` with `per_class`, and for `per_class` where the task does not
            count its classes.
        SubjectError: if a logit is not finite, and for an unknown model.

    Example:
        >>> import algoscope as ag
        >>> verdict = ag.certify("planted:reversal", sample=500)
        >>> verdict["wrong"], verdict["domain"]["method"], verdict["robust"]
        (0, 'sampled', True)
    """
    subject = open_subject(subject, task=task, runs_dir=runs_dir)
    by = subject.task.class_schemes[0] if by is None else by
    domain = domain_of(subject.task, sample, by=by, per_class=per_class)
    edge_cases = domain.edge_cases(subject.device)
    names = dict(subject.task.class_names(by))
    if len(edge_cases):
        names[EDGE] = "the task's edge cases, in addition to the draws; each is also in a class above"
    n_workers, of_torch = _threads_for(subject, n_threads)
    count = _Count(subject.task, len(names), limit_counterexamples, spread=max(1, domain.checked // AGAIN))
    began = time.perf_counter()
    with torch.no_grad(), threads(of_torch), Bar(f"certify {subject.name}", "inputs") if progress else Watcher() as bar:
        chunks = domain.chunks(ROWS_OF_STRATA if domain.method == "stratified" else ROWS, subject.device)
        for tokens, margin, wrong_at in in_order(lambda chunk: judged(subject, chunk), chunks, n_workers):
            count.add(tokens, margin, wrong_at, subject.task.class_of(tokens, by))
            bar.advance(count.checked, domain.checked, f"{count.wrong:,} wrong")
        if len(edge_cases):
            count.add(*judged(subject, edge_cases), torch.full((len(edge_cases),), len(names) - 1))
        errors = float_error(subject, torch.cat([count.hardest, *count.others]))
        counterexamples = [_shown(subject, row[None]) for row in count.counterexamples]
        fit = better_fit(subject) if count.wrong >= OFTEN * count.checked else None
    seconds = time.perf_counter() - began
    return _finding(subject, domain, by, names, count, errors, counterexamples, fit, seconds)


def _threads_for(subject: Subject, n_threads: int | None) -> tuple[int, int]:
    """How many batches are processed in parallel, and PyTorch's threads for each. A function of the user's is called by
    one thread, as it may not bear several.
    """
    if subject.is_black_box:
        return 1, torch.get_num_threads()
    return (n_threads or free_cores()) if subject.device.type == "cpu" else 1, 1


def judged(subject: Subject, tokens: Tokens) -> tuple[Tokens, Float[Tensor, "batch"], Bool[Tensor, "batch read"]]:
    """Full sequences, the margin of each, and which tokens of its answer are wrong given the right tokens before them;
    all on the CPU. The greedy answer is wrong where any of them is.

    Raises SubjectError where a margin is not a number: the answer is then not defined.
    """
    logits, targets = subject.answer_logits(tokens), tokens[:, subject.task.prompt_length :]
    token_margins = margins(logits, targets)
    margin = token_margins.amin(-1)
    if not margin.isfinite().all():
        first = int((~margin.isfinite()).nonzero()[0, 0])
        shown = subject.to_string(tokens[first, : subject.task.prompt_length])
        raise SubjectError(f"{subject.name} gives a logit that is not finite for {shown}: its answer is not defined")
    wrong_at = token_margins < 0
    tied = (token_margins == 0).any(-1).nonzero()[:, 0]  # a tie is decided as greedy decoding decides it
    wrong_at[tied] = ~tokens_right(logits[tied], targets[tied])
    return tokens.cpu(), margin.cpu(), wrong_at.cpu()


def better_fit(subject: Subject) -> dict[str, Any] | None:
    """Other fields of an operation on two elements with which at least half of the subject's answers to all pairs are
    right, such as another order of the elements of a group; None for other tasks, and where there are none.
    """
    task = subject.task
    if not isinstance(task, Binary) or task.order > LARGEST:
        return None
    chunks = torch.arange(task.domain_size, device=subject.device).split(ROWS)
    got = torch.cat([subject.answer_logits(task.at(index))[:, 0].argmax(dim=-1).cpu() for index in chunks])
    answers = torch.where(got < task.order, got, -1).reshape(task.order, task.order).numpy()
    fit = task.better_fit(answers)
    if fit is None or all(getattr(task, name, None) == value for name, value in fit.settings.items()):
        return None
    texts = {name: json.dumps(value, separators=(",", ":")).strip('"') for name, value in fit.settings.items()}
    options = " ".join(
        f"--task {text}" if name == "task" else f"--set '{name}={text}'"
        for name, text in texts.items()
        if text != "null"
    )
    if len(options) > LONGEST:
        options = f"the settings are in the fact better_fit of --json ({', '.join(texts)})"
    words = f"{fit.words} it is right on {fit.n_right:,} of {task.domain_size:,}: {options}"
    return {"words": words, "settings": dict(fit.settings), "right": fit.n_right, "checked": task.domain_size}


def float_error(subject: Subject, tokens: Tokens) -> dict[str, Any]:
    """The largest difference between the subject's answer logits and those of its float64 copy, in logits; None, and
    why, for a black box that cannot be asked in float64.
    """
    try:
        exact = subject.to_dtype(torch.float64).answer_logits(tokens)
    except SubjectError as error:
        if not subject.is_black_box:
            raise
        return {"float_error": None, "float_error_unknown": str(error)}
    return {"float_error": float((subject.answer_logits(tokens).double() - exact).abs().max())}


class _Count:
    """Running counts of a certification."""

    def __init__(self, task: Task, n_classes: int, limit: int, spread: int) -> None:
        self.limit, self.spread = limit, spread
        self.checked = self.wrong = 0
        self.min_margin = float("inf")
        self.size_of, self.wrong_of = torch.zeros(2, n_classes, dtype=torch.long)
        self.wrong_at, self.first_wrong_at = torch.zeros(2, len(task.answer_names), dtype=torch.long)
        self.histogram = np.zeros(len(BINS) - 1, dtype=int)
        self.hardest, self.hardest_margins = torch.zeros(0, task.n_ctx, dtype=torch.long), torch.zeros(0)
        self.others: list[Tokens] = []
        self.wrong_rows: list[Tokens] = []  # the first of all, and the first of each class
        self.wrong_order: list[tuple[int, int]] = []  # of each row: its number in its class, its class
        self.of_class = -(-limit // n_classes)

    def add(
        self,
        tokens: Tokens,
        margin: Float[Tensor, "batch"],
        wrong_at: Bool[Tensor, "batch read"],
        kinds: Int[Tensor, "batch"],
    ) -> None:
        wrong = wrong_at.any(dim=1)
        self.size_of += torch.bincount(kinds, minlength=len(self.size_of))
        self.histogram += np.histogram(margin.numpy().clip(BINS[0], BINS[-1]), BINS)[0]
        pool, pool_margins = torch.cat([self.hardest, tokens]), torch.cat([self.hardest_margins, margin])
        keep = pool_margins.topk(min(AGAIN, len(pool)), largest=False, sorted=False).indices
        self.hardest, self.hardest_margins = pool[keep], pool_margins[keep]
        self.others.append(tokens[-self.checked % self.spread :: self.spread].clone())  # a view would keep them all
        self.min_margin = min(self.min_margin, float(margin.min()))
        self.checked += len(tokens)
        n_wrong = int(wrong.sum())
        if n_wrong:
            self.wrong_at += wrong_at.sum(dim=0)
            first = wrong_at[wrong].long().argmax(dim=1)
            self.first_wrong_at += torch.bincount(first, minlength=len(self.first_wrong_at))
            self._keep_wrong(tokens[wrong], kinds[wrong])
            self.wrong_of += torch.bincount(kinds[wrong], minlength=len(self.wrong_of))
            self.wrong += n_wrong

    def _keep_wrong(self, tokens: Tokens, kinds: Int[Tensor, "batch"]) -> None:
        order = kinds.argsort(stable=True)
        in_order, number = kinds[order], torch.empty_like(kinds)
        number[order] = torch.arange(len(kinds)) - torch.searchsorted(in_order, in_order) + self.wrong_of[in_order]
        first = torch.arange(len(kinds)) < self.limit - self.wrong
        varied = number < self.of_class
        keep = first | (varied & (varied.cumsum(0) <= 3 * self.limit - len(self.wrong_order)))
        self.wrong_rows.append(tokens[keep])
        self.wrong_order += zip(number[keep].tolist(), kinds[keep].tolist(), strict=True)

    @property
    def counterexamples(self) -> Tokens:
        """At most `limit` wrong inputs: the first of each class, then the second ones, and so on."""
        rows = torch.cat([self.hardest[:0], *self.wrong_rows])
        order = sorted(range(len(rows)), key=self.wrong_order.__getitem__)
        return rows[order[: self.limit]]


def _shown(subject: Subject, row: Tokens) -> dict[str, str]:
    """One wrong input as text, with the right answer and the model's greedy answer."""
    prompt, answer = row[:, : subject.task.prompt_length], row[0, subject.task.prompt_length :]
    got = subject.generate_tokens(prompt.to(subject.device), len(answer))[0]
    return {
        "input": subject.task.decode(prompt[0].tolist()),
        "expected": subject.task.decode(answer.tolist()),
        "got": subject.task.decode(got.tolist()),
    }


def _finding(
    subject: Subject,
    domain: Domain,
    by: str,
    names: Mapping[str, str],
    count: _Count,
    errors: Mapping[str, Any],
    counterexamples: list[dict[str, str]],
    fit: dict[str, Any] | None,
    seconds: float,
) -> Finding:
    checked_of, wrong_of = count.size_of.tolist(), count.wrong_of.tolist()
    n_edge_cases = checked_of[-1] if EDGE in names else 0
    n_classes = len(names) - (EDGE in names)
    in_class = wrong_of[:n_classes]
    sizes = [*domain.sizes(checked_of[:n_classes]), None]
    weights = [None if size is None or domain.size is None else size / domain.size for size in sizes]
    intervals = [*domain.class_intervals(checked_of[:n_classes], in_class), None]
    columns = names, names.values(), sizes, weights, checked_of, wrong_of, intervals
    fields = ("class", "meaning", "size", "weight", "checked", "wrong", "interval_95")
    by_class = [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=False)]
    n_checked, error = domain.checked + n_edge_cases, errors["float_error"]
    facts: dict[str, Any] = {
        "task": subject.task.kind,
        "weights_sha256": subject.weights_sha256,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "domain": {"size": domain.size, "method": domain.method, "checked": n_checked},
        "wrong": count.wrong,
        "accuracy": domain.accuracy(in_class),
        "interval_95": domain.interval(in_class),
        "wrong_share": {"share": domain.wrong_share(in_class), "interval_95": domain.wrong_interval(in_class)},
        "where": where_it_fails(subject.task, by, by_class[:n_classes], domain.method),
        "by_class": by_class,
        "by_position": _by_position(subject.task, count),
        "min_margin": count.min_margin,
        **errors,
        "robust": count.wrong == 0 and error is not None and count.min_margin > 2 * error,
        "counterexamples": counterexamples,
        "better_fit": fit,
        "seconds": seconds,
    }
    if subject.note:
        facts["note"] = subject.note
    covers = COVERS["drawn" if domain.size is None else domain.method]
    return subject.finding(
        "certify",
        _claim(facts),
        facts,
        (class_panel(facts), margin_panel(count.histogram)),
        about=f"{covers.format(size=domain.size)} {ABOUT}",
        tables=result_tables(facts),
        seconds=seconds,
        task=subject.task.model_dump(mode="json"),
    )


def _claim(facts: Mapping[str, Any]) -> str:
    """How many or how much is wrong, and where."""
    domain, wrong, where = facts["domain"], facts["wrong"], facts["where"]["words"]
    if facts["better_fit"]:
        where += f"; {facts['better_fit']['words']}"
    scope = {"exhaustive": "all", "sampled": "a sample", "stratified": "draws from every class"}[domain["method"]]
    of = f"{scope} of the {domain['size']:,} there are" if domain["size"] is not None else "draws by the task"
    counted = f"{wrong:,} wrong of {domain['checked']:,} inputs ({of})"
    if not wrong or domain["method"] == "exhaustive":
        return f"{counted}: {where}" if wrong else counted
    share, (low, high) = facts["wrong_share"]["share"], facts["wrong_share"]["interval_95"]
    interval = f"95 % interval: {percent(low)} to {percent(high)}"
    if domain["method"] == "sampled":
        return f"{counted}, {percent(share)} ({interval}): {where}"
    edge = facts["by_class"][-1]
    if edge["class"] == EDGE and edge["wrong"]:
        cases = f"{edge['wrong']:,} of the task's {edge['checked']:,} edge cases wrong"
        where = f"{where}; {cases}" if where else f"no error in the draws, but {cases}"
    scope = f"draws from every class of the {domain['size']:,} inputs"
    return f"wrong on {percent(share)} of the domain ({interval}; {scope}): {where}"


def _by_position(task: Task, count: _Count) -> list[dict[str, Any]]:
    counts = zip(task.answer_names, count.wrong_at.tolist(), count.first_wrong_at.tolist(), strict=True)
    return [
        {"position": task.prompt_length + i, "meaning": name, "wrong": wrong, "first_wrong": first}
        for i, (name, wrong, first) in enumerate(counts)
    ]
