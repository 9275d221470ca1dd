"""Exact accuracy of a model: one teacher-forced forward pass per input decides its greedy answer.

Why one pass is enough: greedy decoding feeds back its own tokens. As long as they are right, its inputs equal those of
the teacher-forced pass, so the first wrong token is the same in both. So the decoded answer is right if and only if
every answer position is right given the right prefix.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.arguments import Count, Folder, Range, checked_arguments
from algoscope.core.errors import SubjectError
from algoscope.core.finding import Cell, Finding, ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.core.progress import Bar, Watcher
from algoscope.core.threads import free_cores, in_order, threads
from algoscope.networks.evaluation import margins, tokens_right
from algoscope.subjects.opening import AnyModel, open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task, Tokens
from algoscope.verdicts.certification.domain import Domain, domain_of

ROWS = 25_000  # inputs in one batch of a worker
ROWS_OF_STRATA = 2_500  # random draws rarely share a prefix: smaller batches stay in the CPU cache
AGAIN = 2048  # inputs of smallest margin, and as many others, recomputed in float64
EDGE = "edge"  # row of the edge cases, which a stratified verdict checks in addition to its draws
SHOWN = 100  # classes in a panel or a table; of more, those of lowest accuracy
BINS = np.arange(-20.0, 60.5, 0.5)  # of the margins, in logits; the outer bins include all values beyond
ENDS = ("low", "high")
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
    "stratified": "Inputs were drawn from every class of the {size:,} inputs, as a uniform sample would miss rare "
    "classes, and each class is weighted by its exact size. The task's edge cases are checked as well, but are not "
    "part of the estimate. The 95 % interval holds for the accuracy over all inputs.",
}


@checked_arguments
def certify(
    subject: AnyModel,
    *,
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
        subject: a model with a task, by name or opened.
        by: the scheme that sorts inputs into classes; by default the task's first.
        sample: check this many uniform draws instead of every input.
        per_class: check this many uniform draws of every class, or the whole class if it has no more.
        limit_counterexamples: how many wrong inputs are reported.
        n_threads: batches processed in parallel; by default the number of idle cores.
        runs_dir: where the runs are; by default `$ALGOSCOPE_RUNS`, else `./runs`.
        progress: show a bar on standard error.
    Returns:
        A finding with the facts of `certify --json`. `wrong` is counted over `domain.checked` of `domain.size` inputs,
        and `by_class` by the scheme. `domain.method` is `exhaustive`; `sampled`; or `stratified`, where the domain is
        too large and the task counts its classes, or `per_class` is given. Each class then has its exact `size`, the
        row `edge` holds the task's edge cases, checked as well, and `accuracy` is estimated with the exact weights of
        the classes. `interval_95` is the 95 % interval of the accuracy where not all was checked: by Clopper and
        Pearson, of a stratified verdict by `stratified_interval`. `by_position` counts, for each token of the answer,
        the inputs for which it is `wrong` given the right tokens before it, and those for which it is the
        `first_wrong`. `min_margin` is the smallest margin (logit of the right token minus the largest other one),
        negative where the model is wrong; `float_error` the largest difference to float64 logits, over the 2,048 inputs
        of smallest margin and as many spread evenly; `robust`: nothing is wrong and the smallest margin exceeds twice
        that error. `counterexamples` show the input, the right answer and what greedy decoding gives. Panels `accuracy`
        [class] (share of inputs right; 0 none, 1 all) and `margins` [margin] (inputs, by their smallest margin in
        logits).
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
    subject = open_subject(subject, runs_dir=runs_dir)
    by = subject.task.class_schemes[0] if by is None else by
    domain = domain_of(subject.task, sample, by=by, per_class=per_class)
    edge_cases = domain.edge_cases(subject.device)
    names = dict(subject.task.class_names(by))
    if len(edge_cases):
        names[EDGE] = "the task's edge cases, in addition to the draws; each is also in a class above"
    n_workers = (n_threads or free_cores()) if subject.device.type == "cpu" else 1
    count = _Count(subject.task, len(names), limit_counterexamples, spread=max(1, domain.checked // AGAIN))
    began = time.perf_counter()
    with torch.no_grad(), threads(1), Bar(f"certify {subject.name}", "inputs") if progress else Watcher() as bar:
        chunks = domain.chunks(ROWS_OF_STRATA if domain.method == "stratified" else ROWS, subject.device)
        for tokens, margin, wrong_at in in_order(lambda chunk: judged(subject, chunk), chunks, n_workers):
            count.add(tokens, margin, wrong_at, subject.task.classes(tokens, by))
            bar.advance(count.checked, domain.checked, f"{count.wrong:,} wrong")
        if len(edge_cases):
            count.add(*judged(subject, edge_cases), torch.full((len(edge_cases),), len(names) - 1))
        error = float_error(subject, torch.cat([count.hardest, *count.others]))
        counterexamples = [_shown(subject, row[None]) for row in torch.cat(count.wrong_rows)]
    seconds = time.perf_counter() - began
    return _finding(subject, domain, names, count, error, counterexamples, seconds)


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


def float_error(subject: Subject, tokens: Tokens) -> float:
    """The largest difference between the subject's answer logits and those of its float64 copy, in logits."""
    exact = subject.to_dtype(torch.float64).answer_logits(tokens)
    return float((subject.answer_logits(tokens).double() - exact).abs().max())


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
        self.wrong_rows: list[Tokens] = [self.hardest]

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
            self.wrong_of += torch.bincount(kinds[wrong], minlength=len(self.wrong_of))
            room = max(0, self.limit - self.wrong)
            self.wrong_rows.append(tokens[wrong.nonzero()[:room, 0]])
            self.wrong += n_wrong


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
    names: Mapping[str, str],
    count: _Count,
    error: float,
    counterexamples: list[dict[str, str]],
    seconds: float,
) -> Finding:
    checked_of, wrong_of = count.size_of.tolist(), count.wrong_of.tolist()
    n_edge_cases = checked_of[-1] if EDGE in names else 0
    n_classes = len(names) - (EDGE in names)
    in_class = wrong_of[:n_classes]
    sizes = [*domain.sizes(checked_of[:n_classes]), None]
    intervals = [*domain.class_intervals(checked_of[:n_classes], in_class), None]
    by_class = [
        {"class": name, "meaning": meaning, "size": size, "checked": checked, "wrong": wrong, "interval_95": interval}
        for (name, meaning), size, checked, wrong, interval in zip(
            names.items(), sizes, checked_of, wrong_of, intervals, strict=False
        )
    ]
    n_checked = domain.checked + n_edge_cases
    facts: dict[str, Any] = {
        "task": subject.task.kind,
        "weights_sha256": subject.weights_sha256,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "domain": {"size": domain.size, "method": domain.method, "checked": n_checked},
        "wrong": count.wrong,
        "accuracy": domain.accuracy(in_class),
        "interval_95": domain.interval(in_class),
        "by_class": by_class,
        "by_position": _by_position(subject.task, count),
        "min_margin": count.min_margin,
        "float_error": error,
        "robust": count.wrong == 0 and count.min_margin > 2 * error,
        "counterexamples": counterexamples,
        "seconds": seconds,
    }
    if subject.note:
        facts["note"] = subject.note
    scope = {"exhaustive": "all", "sampled": "a sample", "stratified": "draws from every class"}[domain.method]
    return subject.finding(
        "certify",
        f"{count.wrong:,} wrong of {n_checked:,} inputs ({scope} of the {domain.size:,} there are)",
        facts,
        (_class_panel(facts), _margin_panel(count)),
        about=f"{COVERS[domain.method].format(size=domain.size)} {ABOUT}",
        tables=result_tables(facts),
        seconds=seconds,
    )


def _by_position(task: Task, count: _Count) -> list[dict[str, Any]]:
    counts = zip(task.answer_names, count.wrong_at.tolist(), count.first_wrong_at.tolist(), strict=True)
    return [
        {"position": task.prompt_length + i, "meaning": name, "wrong": wrong, "first_wrong": first}
        for i, (name, wrong, first) in enumerate(counts)
    ]


# ---------------------------------------------------------------------- tables and panels


def result_tables(facts: Mapping[str, Any]) -> tuple[ResultTable, ...]:
    """The tables of a verdict: accuracy and margins, classes, positions, counterexamples."""
    positions = ResultTable(
        title="by token of the answer",
        columns=("position", "token", "wrong", "first wrong"),
        rows=tuple((row["position"], row["meaning"], row["wrong"], row["first_wrong"]) for row in facts["by_position"]),
        caption="Errors by answer token. `wrong` counts the inputs whose token is wrong given the right tokens before "
        "it (teacher forcing), `first wrong` those whose first error it is; these add up to all wrong inputs.",
    )
    tables = [_accuracy_table(facts), _class_table(facts), positions]
    if shown := facts["counterexamples"]:
        tables.append(
            ResultTable(
                title=f"{len(shown)} of {facts['wrong']:,} counterexamples",
                columns=("input", "right answer", "model's answer"),
                rows=tuple((row["input"], row["expected"], row["got"]) for row in shown),
                caption="Inputs whose greedy answer is wrong.",
            )
        )
    return tuple(tables)


def _accuracy_table(facts: Mapping[str, Any]) -> ResultTable:
    bounds = zip(ENDS, facts["interval_95"] or (), strict=False)
    rows = (
        ("accuracy", f"{facts['accuracy']:.6%}"),
        *((f"95 % interval: {end}", f"{bound:.6%}") for end, bound in bounds),
        ("smallest margin (logits)", f"{facts['min_margin']:.4g}"),
        ("float error (logits)", f"{facts['float_error']:.2g}"),
        ("rounding", _rounding(facts)),
    )
    return ResultTable("accuracy and margins", ("quantity", "value"), rows)


def _rounding(facts: Mapping[str, Any]) -> str:
    """Whether rounding can change an answer, in words."""
    if facts["robust"]:
        return "rounding can change no answer"
    if facts["wrong"]:
        return "margin negative: some answers are wrong"
    return "margin within twice the float error: rounding could change an answer"


def _class_table(facts: Mapping[str, Any]) -> ResultTable:
    """The classes, with sizes and intervals where not all was checked; of very many, those with a wrong answer."""
    rows = [row for row in facts["by_class"] if row["checked"]]
    wrong = [row for row in rows if row["wrong"]]
    title, shown = "by class of input", rows
    if len(rows) > SHOWN:
        shown, least = wrong[:SHOWN], min(row["checked"] for row in rows)
        title = f"{len(rows):,} classes, at least {least:,} inputs of each; {len(wrong):,} with wrong answers"
    bounded = any(row["interval_95"] for row in rows)
    columns = ("class", "meaning", *(("inputs",) if bounded else ()), "checked", "wrong", "accuracy")
    cells: list[tuple[Cell, ...]] = []
    for row in shown:
        size, ends = ((row["size"],), row["interval_95"] or (None, None)) if bounded else ((), ())
        accuracy = f"{1 - row['wrong'] / row['checked']:.4%}"
        bounds = (None if end is None else f"{end:.4%}" for end in ends)
        cells.append((row["class"], row["meaning"], *size, row["checked"], row["wrong"], accuracy, *bounds))
    return ResultTable(
        title=title,
        columns=(*columns, *((f"95 % interval: {end}" for end in ENDS) if bounded else ())),
        rows=tuple(cells),
        caption="Wrong answers by class of input."
        + (" `inputs` is the exact size of a class; its interval bounds the accuracy over all of it." * bounded),
    )


def _class_panel(facts: Mapping[str, Any]) -> Panel:
    seen = [row for row in facts["by_class"] if row["checked"]]
    title, drawn = "accuracy by class of input", "The number after a class is the number of inputs checked."
    if len(seen) > SHOWN:
        drawn += f" Only the {SHOWN} classes of lowest accuracy, of {len(seen):,}, are drawn."
        seen = sorted(seen, key=lambda row: -row["wrong"] / row["checked"])[:SHOWN]
        title += f", the {SHOWN} lowest"
    return Panel(
        name="accuracy",
        title=title,
        axes=(Axis("class", tuple(f"{row['class']} ({row['checked']:,})" for row in seen), "class (inputs checked)"),),
        values=np.array([1 - row["wrong"] / row["checked"] for row in seen]),
        unit="share of inputs right",
        zero="every input of the class wrong",
        one="every input of the class right",
        view="bars",
        scale="unit",
        caption="Accuracy by class of input. Each bar is the share of the checked inputs of a class whose greedy "
        f"answer is right in every token. {drawn} The table explains the classes.",
    )


def _margin_panel(count: _Count) -> Panel:
    used = count.histogram.nonzero()[0]
    low, high = int(used[0]), int(used[-1]) + 1
    centres = (BINS[:-1] + 0.25)[low:high].tolist()
    return Panel(
        name="margins",
        title="distribution of the margin",
        axes=(Axis("margin", tuple(centres), "margin: right token minus the largest other (logits)"),),
        values=count.histogram[low:high].astype(float),
        unit="inputs",
        zero="no input has this margin",
        view="bars",
        caption="Distribution of the margin over the checked inputs. The margin of an input is the smallest over its "
        "answer tokens of the right token's logit minus the largest other one. Inputs right of 0 are answered "
        "correctly; at a margin of 1 the right token is e = 2.7 times as probable as the next. Values beyond "
        f"{BINS[0]:g} and {BINS[-1]:g} are counted in the outermost bars.",
    )
