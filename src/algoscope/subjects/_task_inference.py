"""Which format of a task a model has learned, inferred from its sizes and from its answers to the first inputs.

Every format that fits the sizes is a candidate. Each answers a few inputs, those that do well a thousand. One is
inferred where at least nine answers in ten are right, and no other that asks for something else comes near.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.errors import AlgoscopeError, TaskMismatchError
from algoscope.data import all_or_sample
from algoscope.networks.logits_only import LogitsOnly
from algoscope.networks.shared_prefixes import plain_logits
from algoscope.networks.transformer import Transformer
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.digits.column_arithmetic import ColumnArithmetic
from algoscope.tasks.groups.modular import Modular
from algoscope.tasks.table import TASKS

FIRST, ANSWERED = 12, 1_000  # inputs that every candidate answers, and those that the best answer
FEW, ENOUGH, AHEAD = 0.5, 0.9, 0.1  # share of right answers to go on, to be inferred, and above the next candidate
MOST, FEWEST = 4_000, 8  # candidates, about; orders of tokens for each format
WIDEST = 12  # digits that are tried where the context does not tell them
ZEROS = 12  # longest separator of zeros that is tried
SMALL = 16  # largest vocabulary in which every order of tokens is tried
PORTION = 4_096  # rows of a forward pass

Answers = Callable[[Tokens, slice], Float[Tensor, "batch read d_vocab"]]  # logits at some positions of the tokens


@dataclass(frozen=True, eq=False)
class Candidate:
    """A task, the model's id of each of its tokens, and the first inputs in these ids."""

    task: Task
    ids: tuple[int, ...]
    first: Tokens

    def rows(self, n: int) -> Tokens:
        return torch.tensor(self.ids)[_inputs(self.task, n)]

    @property
    def n_answer(self) -> int:
        return self.task.n_ctx - self.task.prompt_length

    @property
    def n_digits(self) -> int:
        """Digits of its operands and answers together."""
        task = self.task
        return sum(task.widths) + self.n_answer if isinstance(task, ColumnArithmetic) else self.n_answer


@dataclass(frozen=True)
class Sizes:
    """The model's tokens, and the longest sequence that it reads; None: any."""

    d_vocab: int
    n_ctx: int | None

    def fit(self, task: Task) -> bool:
        return task.d_vocab <= self.d_vocab and (self.n_ctx is None or task.n_ctx - 1 <= self.n_ctx)

    def __str__(self) -> str:
        return f"{self.d_vocab} tokens" + ("" if self.n_ctx is None else f" and {self.n_ctx} positions")


@torch.no_grad()
def infer_task(
    answers: Answers, d_vocab: int, n_ctx: int | None, kind: str, given: Mapping[str, Any]
) -> tuple[Task, str]:
    """The task that a model was trained on, and a line on how it is known; empty where the usual format fits.

    Args:
        answers: the model's logits at some positions of token ids [batch pos].
        d_vocab: the model's tokens.
        n_ctx: the longest sequence that it reads; None: any.
        kind: the name of the task, as in `TASKS`.
        given: fields of the task that are known; only the others are inferred.
    Raises:
        TaskMismatchError: where no format that fits the sizes gives right answers, and the usual one does not fit.
    """
    make, sizes = TASKS.load(kind), Sizes(d_vocab, n_ctx)
    usual = make(**given)
    share = _share_right(answers, usual, _inputs(usual, ANSWERED)) if sizes.fit(usual) else 0.0
    tiers = _tiers(make, sizes, given)
    if share >= ENOUGH or not tiers:
        return usual, ""
    n_tried, shares = 0, dict[Candidate, float]()
    for tier in tiers:
        candidates = _distinct(tier)
        n_tried += len(candidates)
        for candidate in _promising(answers, candidates):
            shares[candidate] = _share_right(answers, candidate.task, candidate.rows(ANSWERED))
        if max(shares.values(), default=0.0) >= ENOUGH:
            break
    else:
        return _usual(usual, sizes, n_tried, share, max(shares.values(), default=0.0))
    winner, next_share = _winner(shares, sizes)
    task = _named(answers, winner, sizes)
    share = _share_right(answers, task, _inputs(task, ANSWERED))
    return task, (
        f"{kind} with {_described(task) or 'its usual fields'}, inferred from {sizes} and {ANSWERED:,} answers: "
        f"{share:.1%} are right; of the {n_tried} formats tried the next has {next_share:.1%}"
    )


def task_of_model(model: Transformer | LogitsOnly, task: Task, n_ctx: int | None) -> tuple[Task, str]:
    """The task, or where it says nothing but its name, or does not fit, the format of it that the model knows. And a
    line on that, empty where it is the task itself.
    """
    if not isinstance(task, ColumnArithmetic | Modular):
        return task, ""
    sizes = Sizes(model.cfg.d_vocab, n_ctx)
    if sizes.fit(task) and task.model_fields_set - {"kind"}:
        return task, ""
    return infer_task(partial(plain_logits, model), sizes.d_vocab, n_ctx, task.kind, said_by(task))


def said_by(task: Task) -> dict[str, Any]:
    """The fields of a task that are not as usual."""
    fields = type(task).model_fields
    plain = task.model_dump(exclude={"kind"})
    return {name: value for name, value in plain.items() if value != fields[name].get_default()}


def _usual(usual: Task, sizes: Sizes, n_tried: int, share: float, best: float) -> tuple[Task, str]:
    """The usual format where none is right. Raises TaskMismatchError where it does not fit."""
    tally = f"none of {n_tried} formats of {usual.kind} that fit {sizes} has {ENOUGH:.0%} of {ANSWERED:,} answers right"
    if sizes.fit(usual):
        return usual, f"{tally}; {_described(usual) or 'the usual one'} has {share:.1%}"
    example = "n_digits=3 ends=false tokens=0123456789+=" if isinstance(usual, ColumnArithmetic) else "p=113 form=ab="
    raise TaskMismatchError(
        f"{tally} (the best {best:.1%}), and {_described(usual) or 'the usual one'} needs {usual.d_vocab} tokens and "
        f"{usual.n_ctx - 1} positions: give the task's fields, such as {example}"
    )


def _winner(shares: Mapping[Candidate, float], sizes: Sizes) -> tuple[Candidate, float]:
    """The candidate that asks for most, and the share of the next that asks for something else.

    Raises TaskMismatchError where two are right that ask for different things.
    """
    right = [candidate for candidate in shares if shares[candidate] >= ENOUGH]
    right.sort(key=lambda each: (-each.n_digits, -round(shares[each], 2), -len(each.ids)))
    winner, others = right[0], dict[Candidate, float]()
    for winner in right:
        others = {each: share for each, share in shares.items() if not _is_within(each, winner)}
        if max(others.values(), default=0.0) <= shares[winner] - AHEAD:
            return winner, max(others.values(), default=0.0)
    rival = max(others, key=others.__getitem__)
    raise TaskMismatchError(
        f"two formats of {rival.task.kind} fit {sizes}: {_described(winner.task)} has {shares[winner]:.1%} of the "
        f"answers right, {_described(rival.task)} {shares[rival]:.1%}: give the fields of one"
    )


def _is_within(candidate: Candidate, winner: Candidate) -> bool:
    """Whether the answers that a candidate asks for are among those that the winner asks for to the same digits: fewer
    digits of them, operands with zeros above them, or other tokens between them; or the same format at another width.
    """
    task, best = candidate.task, winner.task
    if not isinstance(task, ColumnArithmetic) or not isinstance(best, ColumnArithmetic):
        return candidate is winner
    if candidate.ids == winner.ids and task.of_width(best.n_digits) == best:
        return True
    rows = candidate.first
    if task.prompt_length < best.prompt_length or task.n_ctx > best.n_ctx:
        return False
    back = {token: number for number, token in enumerate(winner.ids[:10])}
    prompts = torch.tensor([[back.get(token, 0) for token in row] for row in rows[:, : best.prompt_length].tolist()])
    whole = torch.tensor(winner.ids)[best.completed(prompts)]
    asked = slice(task.prompt_length, task.n_ctx)
    return rows[:, asked].equal(whole[:, asked])


def _described(task: Task) -> str:
    """The fields that differ from their defaults, as they are set."""
    return " ".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in said_by(task).items()
    )


# ---------------------------------------------------------------------- answers


def _inputs(task: Task, n: int) -> Tokens:
    return all_or_sample(task, n, torch.Generator().manual_seed(0))


def _right(answers: Answers, task: Task, rows: Tokens) -> Bool[Tensor, "batch"]:
    """Which rows a model answers right, each token read after the right ones before it."""
    try:
        best = [answers(part[:, :-1], task.answer_slice).argmax(dim=-1).cpu() for part in rows.split(PORTION)]
    except AlgoscopeError:  # it cannot read them
        return torch.zeros(len(rows), dtype=torch.bool)
    return (torch.cat(best) == rows[:, task.prompt_length :]).all(dim=1)


def _share_right(answers: Answers, task: Task, rows: Tokens) -> float:
    return float(_right(answers, task, rows).float().mean())


def _promising(answers: Answers, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those with enough right answers to the first inputs. Candidates of one length are answered together."""
    groups: dict[tuple[int, int], list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault((candidate.task.n_ctx, candidate.task.prompt_length), []).append(candidate)
    good = []
    for group in groups.values():
        right = _right(answers, group[0].task, torch.cat([candidate.first for candidate in group]))
        parts = right.split([len(candidate.first) for candidate in group])
        good += [candidate for candidate, part in zip(group, parts, strict=True) if part.float().mean() >= FEW]
    return good


# ---------------------------------------------------------------------- candidates


def _tiers(make: type[Task], sizes: Sizes, given: Mapping[str, Any]) -> tuple[Iterator[Candidate], ...]:
    """The candidates, those that fit the sizes exactly first."""
    if issubclass(make, Modular):
        return (_moduli(make, sizes, given),)
    if not issubclass(make, ColumnArithmetic):
        return ()
    tiers = [True, False] if sizes.n_ctx is not None else [False]
    return tuple(_number_formats(make, sizes, given, exactly) for exactly in tiers)


def _distinct(formats: Iterator[Candidate]) -> list[Candidate]:
    """One candidate, the first, of those whose first inputs are the same tokens, asked for the same answers."""
    distinct: dict[tuple[int, bytes], Candidate] = {}
    for candidate in formats:
        distinct.setdefault((candidate.task.prompt_length, candidate.first.numpy().tobytes()), candidate)
    return list(distinct.values())


def _moduli(make: type[Modular], sizes: Sizes, given: Mapping[str, Any]) -> Iterator[Candidate]:
    """Every operation and form, with the modulus that leaves no token over."""
    for form, operation in product(("a+b=", "ab=", "ab"), "+-*"):
        fields = {"form": form, "operation": operation, "p": sizes.d_vocab - {"a+b=": 2, "ab=": 1, "ab": 0}[form]}
        try:
            task = make(**{**fields, **given})
        except AlgoscopeError:  # too small
            continue
        if sizes.fit(task):
            yield Candidate(task, tuple(range(task.d_vocab)), _inputs(task, FIRST))


def _number_formats(
    make: type[ColumnArithmetic], sizes: Sizes, given: Mapping[str, Any], exactly: bool
) -> Iterator[Candidate]:
    """Formats of two numbers that fill the context, or those that leave some of it over. Whether the model writes an
    end is read off later.
    """
    tasks = list(_shapes(make, sizes, given, exactly))
    n_with_signs = max(1, sum(task.d_vocab > 10 for task in tasks))
    for task in tasks:
        usual = tuple(range(task.d_vocab))
        orders = [usual] if task.tokens is not None else _token_orders(task.d_vocab - 10, sizes.d_vocab)
        first = _inputs(task, FIRST)
        for ids in orders[: max(FEWEST, MOST // n_with_signs)]:
            yield Candidate(task, ids, torch.tensor(ids)[first])


def _shapes(
    make: type[ColumnArithmetic], sizes: Sizes, given: Mapping[str, Any], exactly: bool
) -> Iterator[ColumnArithmetic]:
    """Widths, signs and orders that fit the sizes, in the usual order of tokens."""
    signs = [*product(["", "<BOS>"], [None, ""], ["=", ""])]
    if exactly:
        signs += product(["", "0"], ["0" * n for n in range(1, ZEROS + 1)], ["", "0"])
    for (prefix, between, equals), is_modulo in product(signs, [False, True]):
        fields = {"prefix": prefix, "between": between, "equals": equals, "ends": False, "padding": False, **given}
        for task in _widths(make, fields, is_modulo, sizes, exactly):
            plain = task.model_dump(exclude={"kind"})
            for units_first, operands_reversed in product([True, False], [False, True]):
                yield make(**{**plain, "reversed": units_first, "operands_reversed": operands_reversed, **given})


def _widths(
    make: type[ColumnArithmetic], fields: Mapping[str, Any], is_modulo: bool, sizes: Sizes, exactly: bool
) -> Iterator[ColumnArithmetic]:
    """A format at each width at which it fills the context, or fits into it."""
    most = sizes.n_ctx if sizes.n_ctx is not None and exactly else WIDEST
    for n in [int(fields["n_digits"])] if "n_digits" in fields else range(1, most + 1):
        try:
            task = make(**{"n_digits": n, "answer_digits": n if is_modulo else None, **fields})
        except AlgoscopeError:  # a given field contradicts this format
            return
        if not sizes.fit(task):
            return
        fills = (
            sizes.n_ctx is not None and task.n_ctx >= sizes.n_ctx - 1
        )  # an end, and whether that is read, may differ
        if fills == exactly:
            yield task


def _token_orders(n_signs: int, d_vocab: int) -> list[tuple[int, ...]]:
    """The ids of ten digits in a row and of some signs: first signs with the lowest ids, then others. In large
    vocabularies the digits come first.
    """
    orders = []
    for start in range(d_vocab - 9) if d_vocab <= SMALL else [0]:
        digits = range(start, start + 10)
        signs = [token for token in range(min(d_vocab, SMALL)) if token not in digits]
        for number, ids in enumerate(permutations(signs, n_signs)):
            orders.append((sorted(ids) != signs[:n_signs], number, (*digits, *ids)))
    return [ids for _, _, ids in sorted(orders)]


def _named(answers: Answers, winner: Candidate, sizes: Sizes) -> Task:
    """The task of the winner with the end that the model writes, if any, and the model's order of tokens."""
    task = winner.task
    if not isinstance(task, ColumnArithmetic) or task.tokens is not None:
        return task
    names = dict(zip(winner.ids, task.vocabulary, strict=True))
    fields: dict[str, Any] = task.model_dump(exclude={"kind"})
    if not task.ends and (sizes.n_ctx is None or task.n_ctx <= sizes.n_ctx) and sizes.d_vocab > len(names):
        end, share = _most_common(answers(winner.rows(ANSWERED), slice(task.n_ctx - 1, task.n_ctx))[:, 0])
        if share >= ENOUGH and end not in names:
            names[end], fields["ends"] = "<EOS>", True
    for padding in (False, True):
        plain = type(task)(**{**fields, "padding": padding})
        if all(names.get(number, "<PAD>") == token for number, token in enumerate(plain.vocabulary)):
            return plain
    order = "".join(names.get(number, f"<{number}>") for number in range(sizes.d_vocab))
    return type(task)(**{**fields, "tokens": order})


def _most_common(logits: Float[Tensor, "batch d_vocab"]) -> tuple[int, float]:
    """The token that is answered most often, and to which share of the inputs."""
    tokens: Int[Tensor, "batch"] = logits.argmax(dim=-1)
    token = int(tokens.mode().values)
    return token, float((tokens == token).float().mean())
