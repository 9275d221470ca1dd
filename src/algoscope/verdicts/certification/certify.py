"""How often is the model right, exactly? One teacher-forced forward for each input decides its greedy answer.

Why one forward is enough: greedy decoding feeds back its own tokens. As long as they are right, it sees exactly what
the teacher-forced forward sees; its first wrong token is therefore the teacher-forced forward's first wrong one.
So the decoded answer is right if and only if every answer position is right given the right prefix.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.errors import SubjectError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Panel
from algoscope.core.progress import Bar, Watcher
from algoscope.core.threads import free_cores, in_order, threads
from algoscope.networks.evaluation import margins, tokens_right
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task, Tokens
from algoscope.verdicts.certification.domain import Domain, domain_of

ROWS = 25_000  # inputs that one worker takes at once
ROWS_OF_STRATA = 2_500  # draws begin alike too rarely to share work: fewer at once stay in the cache
AGAIN = 2048  # inputs of smallest margin, and as many others, whose logits are computed again in float64
EDGE = "edge"  # the row of the edge cases that a stratified verdict checks besides its draws
SHOWN = 100  # classes in a panel; of more, those of lowest accuracy
BINS = np.arange(-20.0, 60.5, 0.5)  # of the margins, in logits; the outer bins take what lies beyond


def certify(
    subject: str | Run | Subject,
    *,
    by: str | None = None,
    sample: int | None = None,
    per_class: int | None = None,
    limit_counterexamples: int = 20,
    n_threads: int | None = None,
    runs_dir: str | None = None,
    progress: bool = False,
) -> Finding:
    """Count the inputs that the subject answers wrongly: every one of at most 10^8, else among draws.

    The facts are those of `certify --json`. `wrong` is counted over `domain.checked` of `domain.size` inputs, and
    `by_class` by the scheme `by` (the task's first otherwise). `domain.method` is `exhaustive`; `sampled`: `sample`
    uniform draws; or `stratified`, where the domain is too large and the task counts its classes, or `per_class` is
    given: so many uniform draws within every class, all of a class that has no more. Each class then has its exact
    `size`, the row `edge` holds the task's edge cases, checked besides, and `accuracy` is estimated with the exact
    weights of the classes. `interval_95` bounds the accuracy where not all was checked, as Clopper and Pearson do, of a
    stratified one as `stratified_interval` says.

    `by_position` goes through the answer token by token: its `position` in the sequence, what it is (`meaning`), of how
    many inputs it is `wrong` when all before it is right, and of how many it is the `first_wrong`, which add up to
    `wrong`.

    `min_margin` is the smallest lead of a right token over its best rival at any answer position, in logits, negative
    where the model is wrong. `float_error` is the largest difference to float64 logits, over the 2,048 inputs of
    smallest margin and as many spread evenly. `robust`: nothing is wrong and the smallest margin exceeds twice that
    error, so that rounding decides no answer. `counterexamples` show the input, the right answer and what greedy
    decoding gives. `n_threads` portions are worked on at a time; None: as many as cores are free now.

    Raises UnknownNameError for a scheme that the task has not, ConfigError for an empty sample, for `sample` with
    `per_class`, and for `per_class` where the task does not count its classes; and what `open_subject` raises.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    by = subject.task.class_schemes[0] if by is None else by
    domain = domain_of(subject.task, sample, by=by, per_class=per_class)
    edge_cases = domain.edge_cases(subject.device)
    names = dict(subject.task.class_names(by))
    if len(edge_cases):
        names[EDGE] = "the task's edge cases, besides the draws; each is in a class above too"
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
    """Whole sequences, the margin of each, and which tokens of its answer go wrong after a right beginning; all on the
    CPU. The greedy answer is wrong where any of them is.

    Raises SubjectError where a margin is not a number: the answer is then not defined.
    """
    logits, targets = subject.answer_logits(tokens), tokens[:, subject.task.prompt_length :]
    leads = margins(logits, targets)
    margin = leads.amin(-1)
    if not margin.isfinite().all():
        first = int((~margin.isfinite()).nonzero()[0, 0])
        shown = subject.to_string(tokens[first, : subject.task.prompt_length])
        raise SubjectError(f"{subject.name} gives a logit that is not finite for {shown}: its answer is not defined")
    wrong_at = leads < 0
    tied = (leads == 0).any(-1).nonzero()[:, 0]  # a tie is decided as greedy decoding decides it
    wrong_at[tied] = ~tokens_right(logits[tied], targets[tied])
    return tokens.cpu(), margin.cpu(), wrong_at.cpu()


def float_error(subject: Subject, tokens: Tokens) -> float:
    """The largest difference between the subject's answer logits and those of its float64 copy, in logits."""
    exact = subject.to_dtype(torch.float64).answer_logits(tokens)
    return float((subject.answer_logits(tokens).double() - exact).abs().max())


class _Count:
    """What certification remembers while it goes through the domain."""

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
        self.others.append(tokens[-self.checked % self.spread :: self.spread])
        self.min_margin = min(self.min_margin, float(margin.min()))
        self.checked += len(tokens)
        n_wrong = int(wrong.sum())
        if n_wrong:
            self.wrong_at += wrong_at.sum(dim=0)
            first = wrong_at[wrong].long().argmax(dim=1)
            self.first_wrong_at += torch.bincount(first, minlength=len(self.first_wrong_at))
            self.wrong_of += torch.bincount(kinds[wrong], minlength=len(self.wrong_of))
            self.wrong_rows.append(tokens[wrong][: max(0, self.limit - min(self.wrong, self.limit))])
            self.wrong += n_wrong


def _shown(subject: Subject, row: Tokens) -> dict[str, str]:
    """One wrong input as text, with the right answer and what the model gives when it decodes greedily."""
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
        "subject": subject.name,
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
    return Finding(
        kind="certify",
        claim=f"{count.wrong:,} wrong of {n_checked:,} inputs ({scope} of the {domain.size:,} there are)",
        facts=facts,
        panels=(_class_panel(facts), _margin_panel(count)),
        provenance={"subject": subject.name, "weights_sha256": facts["weights_sha256"], "seconds": seconds},
    )


def _by_position(task: Task, count: _Count) -> list[dict[str, Any]]:
    counts = zip(task.answer_names, count.wrong_at.tolist(), count.first_wrong_at.tolist(), strict=True)
    return [
        {"position": task.prompt_length + i, "meaning": name, "wrong": wrong, "first_wrong": first}
        for i, (name, wrong, first) in enumerate(counts)
    ]


def _class_panel(facts: Mapping[str, Any]) -> Panel:
    seen = [row for row in facts["by_class"] if row["checked"]]
    title = "accuracy by class of input"
    if len(seen) > SHOWN:
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
    )


def _margin_panel(count: _Count) -> Panel:
    used = count.histogram.nonzero()[0]
    low, high = int(used[0]), int(used[-1]) + 1
    centres = (BINS[:-1] + 0.25)[low:high].tolist()
    return Panel(
        name="margins",
        title="smallest margin of each input",
        axes=(Axis("margin", tuple(centres), "lead of the right token over its best rival, in logits"),),
        values=count.histogram[low:high].astype(float),
        unit="inputs",
        zero="no input has this margin",
        view="bars",
    )
