"""The roles lens: what does each head look at, over many inputs: the token before, an earlier copy, all alike?"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.errors import ConfigError, UnknownNameError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.data import seeded
from algoscope.lenses.heads.head_panels import MOST_ROWS, head_axes, head_name, numbers
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.inputs.repeated_tokens import Batches, repeated_blocks
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject

POINTED = ("previous-token", "self", "first-token", "offset", "same-token", "induction")  # positions before contents
ROLES = (*POINTED, "uniform", "sparse")
SAME = 0.01  # scores this close are a tie
RARE = 20  # a role that fewer than one input in this many can show is not judged
FARTHEST = 64  # the largest offset that is looked for
FEWEST_KEYS = 3  # a query with fewer visible keys says nothing about uniform or sparse
PORTION = 2**24  # numbers of attention kept at once

ABOUT = (
    "Each head is scored, over many inputs, for patterns of attention that are known by name. A role that points at "
    "certain keys (the previous token, the first token, an earlier copy of the token, the token after that copy) "
    "scores 0 where those keys get as much attention as uniform attention would give them, and 1 where they get all of "
    "it; `uniform` is 1 where all visible keys get the same, `sparse` where a single key gets everything. A head is "
    "named after the pointed role of highest score, if that reaches its threshold; else uniform, else sparse; a head "
    "whose scores all stay below their thresholds is unclear."
)


def roles(
    subject: str | Run | Subject,
    inputs: Sequence[str] = (),
    *,
    n_inputs: int = 256,
    queries: str = "all",
    threshold: float = 0.4,
    uniform_threshold: float = 0.8,
    sparse_threshold: float = 0.5,
    seed: int = 0,
    runs_dir: str | None = None,
) -> Finding:
    """Score every head of every layer for each role in `ROLES`, and name the role that fits, over many inputs.

    Roles that point, each a set of keys for a query (`role_scores` says exactly which): `previous-token`, `self`,
    `first-token`, `offset` (the best single distance of 2 or more, the same for all queries), `same-token` (other
    places of the query's own token), `induction` (the places right after them). Their score is 0 where they get as
    much attention as uniform attention gives, 1 where they get all, negative where they get less. `uniform`: 1 = all
    visible keys alike; `sparse`: 1 = always a single key, whichever.

    A head's role is the pointed one of highest score, if that reaches `threshold`: 0.4 is the bound that the field uses
    on attention itself, and stricter here, where chance is taken off. Of roles within 0.01 the first in the order above
    is named: one that holds by position explains the others, while one that goes by content holds for some queries
    only. Else `uniform` from `uniform_threshold` (0.8: a fifth of the attention would have to move), else `sparse` from
    `sparse_threshold` (0.5: as if spread over the square root of the keys), else `unclear`.

    The inputs: of a task, `n_inputs` random ones with their right answers, or `inputs` with the model's own; of free
    text, `inputs`, or `n_inputs` of random tokens in blocks that come twice, of up to 16 lengths between 8 and 24
    tokens, so that induction and offset are told apart. `queries` is `all`, or `answer` for a task's answer positions.

    Panel `scores` [layer head role], means over the inputs; a role that fewer than one input in twenty can show is
    NaN. Facts: `heads` {layer, head, name, role, score, offset, also (the other pointed roles that reach the
    threshold), scores, spread (standard deviations over the inputs)}, `thresholds`, `inputs`.

    Raises UnknownNameError for other queries, ConfigError for a number of inputs below 1, TaskMismatchError for
    `answer` without a task, VocabularyError for a text that the subject cannot read, SubjectError for a context that
    holds no repeated block.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    batches, said = _inputs(subject, inputs, n_inputs, seed)
    read = _read(subject, queries)
    offsets = offsets_of(min(batch.shape[1] for batch in batches), subject.cfg.causal)
    scores = _summed_up(_each_input(subject, batches, offsets, read), offsets)
    bounds = {"pointed": threshold, "uniform": uniform_threshold, "sparse": sparse_threshold}
    heads = [
        _head(scores, layer, head, bounds)
        for layer in range(subject.cfg.n_layers)
        for head in range(subject.cfg.n_heads)
    ]
    return subject.finding(
        "roles",
        _claim(heads, said["meaning"]),
        {"heads": heads, "thresholds": bounds, "inputs": {**said, "queries": queries}},
        [_panel(subject, scores)],
        about=ABOUT,
        tables=[_table(heads)],
        seed=seed,
    )


# ---------------------------------------------------------------------- scores


def role_scores(
    pattern: Float[Tensor, "batch head query key"],
    tokens: Int[Tensor, "batch key"],
    causal: bool,
    *,
    offsets: Sequence[int] = (),
    read: slice = slice(None),
) -> dict[str, Float[Tensor, "batch head"]]:
    """Every role's score of every head on each input, from its attention; NaN where no query can show the role.

    A query q sees the keys 0 to q, or all where the model is not causal. The keys that a role points to:

        previous-token  q - 1          same-token  k != q with token[k] = token[q]
        self            q              induction   k >= 1 with token[k - 1] = token[q] and k - 1 != q
        first-token     0              offset d    q - d, for each d of `offsets` (negative: ahead)

    Of the visible keys a role has m of n. Its score is sum(share - m/n) / sum(1 - m/n) over the queries with
    0 < m < n: the mean of (share - chance) / (1 - chance), each query weighted by 1 - chance, the room it leaves, so
    that queries which can hardly look elsewhere count for little. 0 = as uniform attention, 1 = all attention there.

    `uniform` is the mean of sum_k min(a_k, 1/n), which is 1 - total variation distance from uniform attention;
    `sparse` that of 1 - entropy / ln n, times the sum of the attention where a head may rest; both over queries with
    n >= 3. `read` limits the queries.
    """
    n = tokens.shape[1]
    back = _back(n, tokens.device)
    visible = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
    n_visible = visible.sum(dim=-1).to(pattern.dtype)
    chosen = torch.zeros(n, dtype=torch.bool, device=tokens.device)
    chosen[read] = True
    scores = {}
    for role, target in _targets(tokens, offsets):
        there = target & visible
        share = einsum(pattern, there.expand(len(tokens), -1, -1).to(pattern.dtype), "b h q k, b q k -> b h q")
        chance = (there.sum(dim=-1) / n_visible)[:, None]  # [batch head query], one head for all
        counted = chosen & (chance > 0) & (chance < 1)
        gain, room = ((value * counted).sum(dim=-1) for value in (share - chance, 1 - chance))
        scores[role] = (gain / room).expand(len(tokens), -1)
    wide = chosen & (n_visible >= FEWEST_KEYS)
    scores["uniform"] = torch.minimum(pattern, 1 / n_visible[:, None]).sum(dim=-1)[..., wide].mean(dim=-1)
    total = pattern.sum(dim=-1)  # below 1 where softmax_plus_one lets a head rest
    entropy = torch.special.entr(pattern).sum(dim=-1) - torch.special.entr(total)
    scores["sparse"] = (total - entropy / n_visible.log())[..., wide].mean(dim=-1)
    return scores


def _targets(
    tokens: Int[Tensor, "batch key"], offsets: Sequence[int]
) -> Iterator[tuple[str, Bool[Tensor, "#batch query key"]]]:
    """The keys that each role points to, whether they are visible or not."""
    back = _back(tokens.shape[1], tokens.device)
    yield "previous-token", (back == 1)[None]
    yield "self", (back == 0)[None]
    yield "first-token", (torch.arange(len(back), device=back.device) == 0).expand_as(back)[None]
    for offset in offsets:
        yield f"offset {offset}", (back == offset)[None]
    same = tokens[:, :, None] == tokens[:, None, :]
    yield "same-token", same & (back != 0)
    yield "induction", F.pad(same[:, :, :-1], (1, 0)) & (back != -1)


def _back(n: int, device: torch.device) -> Int[Tensor, "query key"]:
    """How far each key lies before each query."""
    place = torch.arange(n, device=device)
    return place[:, None] - place


def offsets_of(shortest: int, causal: bool) -> tuple[int, ...]:
    """The offsets to look for in inputs of at least `shortest` tokens: at least half the positions can show them."""
    back = tuple(range(2, min(shortest // 2, FARTHEST) + 1))
    return back if causal else (*back, *(-offset for offset in (1, *back)))


def role_of(scores: Mapping[str, float | None], bounds: Mapping[str, float]) -> str:
    """The class of a head, as `roles` describes it; a score of None is that of a role that these inputs cannot show."""
    pointed = {role: score for role in POINTED if (score := scores[role]) is not None}
    best = max(pointed.values(), default=-1.0)
    if best >= bounds["pointed"]:
        return next(role for role, score in pointed.items() if score >= best - SAME)
    for shape in ("uniform", "sparse"):
        if (scores[shape] or 0.0) >= bounds[shape]:
            return shape
    return "unclear"


# ---------------------------------------------------------------------- over inputs


@dataclass(frozen=True)
class _Scores:
    """Means over the inputs, their standard deviations, and the best offset of each head (0: none was looked for)."""

    mean: Float[np.ndarray, "layer head role"]
    spread: Float[np.ndarray, "layer head role"]
    offset: Int[np.ndarray, "layer head"]


def _each_input(
    subject: Subject, batches: Batches, offsets: Sequence[int], read: slice
) -> dict[str, Float[np.ndarray, "input layer head"]]:
    layers, found = range(subject.cfg.n_layers), dict[str, list[np.ndarray]]()
    for batch in batches:
        numbers = len(layers) * subject.cfg.n_heads * batch.shape[1] ** 2
        for tokens in batch.split(max(1, PORTION // numbers)):
            _, cache = subject.run(tokens, record=[("pattern", layer) for layer in layers], at=slice(0, 0))
            each = [
                role_scores(cache["pattern", layer], tokens, subject.cfg.causal, offsets=offsets, read=read)
                for layer in layers
            ]
            for role in each[0]:
                value = torch.stack([scores[role] for scores in each], dim=1)
                found.setdefault(role, []).append(value.cpu().double().numpy())
    return {role: np.concatenate(values) for role, values in found.items()}


def _summed_up(each: Mapping[str, Float[np.ndarray, "input layer head"]], offsets: Sequence[int]) -> _Scores:
    shape = each["self"].shape[1:]
    best = np.zeros(shape, dtype=int)
    by_role = dict(each)
    if offsets:
        every = np.stack([each[f"offset {offset}"] for offset in offsets])
        which = every.mean(axis=1).argmax(axis=0)
        best = np.array(offsets)[which]
        by_role["offset"] = np.take_along_axis(every, which[None, None], axis=0)[0]
    pairs = [_mean_and_spread(by_role[role]) if role in by_role else np.full((2, *shape), np.nan) for role in ROLES]
    mean, spread = np.stack(pairs, axis=-1)
    return _Scores(mean, spread, best)


def _mean_and_spread(values: Float[np.ndarray, "input layer head"]) -> Float[np.ndarray, "2 layer head"]:
    able = ~np.isnan(values[:, 0, 0])  # the tokens alone decide whether an input can show a role
    if able.sum() * RARE < max(1, len(values)):
        return np.full((2, *values.shape[1:]), np.nan)
    return np.stack([values[able].mean(axis=0), values[able].std(axis=0)])


# ---------------------------------------------------------------------- inputs


def _inputs(subject: Subject, inputs: Sequence[str], n_inputs: int, seed: int) -> tuple[Batches, dict[str, Any]]:
    """What the subject reads, in batches of one length, and what is said about it."""
    if inputs:
        batches, meaning = [subject.lay_out(text).tokens for text in inputs], "given inputs"
    elif n_inputs < 1:
        raise ConfigError(f"roles over {n_inputs} inputs say nothing: ask for 1 or more")
    elif subject.has_task:
        batches = [subject.task.sample(n_inputs, seeded(subject.device, seed))[:, :-1]]
        meaning = f"random inputs of {subject.task.kind}"
    else:
        batches, meaning = repeated_blocks(subject, n_inputs, seed), "rows of random tokens, each block twice"
    lengths = [batch.shape[1] for batch in batches]
    n = sum(map(len, batches))
    said = {"n": n, "meaning": f"{n:,} {meaning}", "tokens": [min(lengths), max(lengths)], "seed": seed}
    return batches, said | ({"texts": list(inputs)} if inputs else {})


def _read(subject: Subject, queries: str) -> slice:
    if queries not in ("all", "answer"):
        raise UnknownNameError("choice of queries", queries, ("all", "answer"))
    return subject.task.answer_slice if queries == "answer" else slice(None)


# ---------------------------------------------------------------------- what is said


def _head(scores: _Scores, layer: int, head: int, bounds: Mapping[str, float]) -> dict[str, Any]:
    mean, spread = (
        {
            role: None if np.isnan(value) else float(value)
            for role, value in zip(ROLES, values[layer, head], strict=True)
        }
        for values in (scores.mean, scores.spread)
    )
    role = role_of(mean, bounds)
    others = [other for other in POINTED if other != role and (mean[other] or 0.0) >= bounds["pointed"]]
    return {
        "layer": layer,
        "head": head,
        "name": head_name(layer, head),
        "role": role,
        "score": mean.get(role),
        "offset": int(scores.offset[layer, head]) or None,
        "also": others,
        "scores": mean,
        "spread": spread,
    }


def _panel(subject: Subject, scores: _Scores) -> Panel:
    return Panel(
        name="scores",
        title="roles of the heads",
        axes=(*head_axes(subject.cfg), Axis("role", ROLES)),
        values=scores.mean,
        unit="score",
        zero="no more attention there than uniform attention gives (uniform: none alike; sparse: all keys alike)",
        one="all attention there (uniform: all visible keys alike; sparse: a single key)",
        view="heatmap",
        scale="signed",
        beside="roles",
        site="pattern",
        words=numbers(scores.mean),
        caption="How well each role fits each head. One figure a layer: rows are heads, columns are roles; means over "
        "the inputs. For roles that point at certain keys, 0 = as much attention there as uniform attention gives, 1 = "
        "all of it, negative = less than uniform. Uniform: 1 = all visible keys alike. Sparse: 1 = always a single "
        "key. An empty cell is a role that these inputs cannot show.",
    )


def _table(heads: Sequence[Mapping[str, Any]]) -> ResultTable:
    """All heads where they are few; of many those with the highest score of a role that points."""
    if len(heads) > MOST_ROWS:
        heads = sorted(heads, key=lambda head: (head["role"] not in POINTED, -(head["score"] or 0.0)))[:MOST_ROWS]
    rows = []
    for head in heads:
        score = None if head["score"] is None else round(head["score"], 3)
        offset = head["offset"] if head["role"] == "offset" else None
        rows.append((head["name"], head["role"], score, offset, ", ".join(head["also"])))
    return ResultTable(
        "Roles of the heads",
        ("head", "role", "score", "offset", "also"),
        tuple(rows),
        "The role that fits each head best, its score, for an offset its distance (keys that far before the query), "
        "and the other roles whose score reaches the threshold.",
    )


def _claim(heads: Sequence[Mapping[str, Any]], inputs: str) -> str:
    count = Counter(head["role"] for head in heads)
    said = []
    for role in (*ROLES, "unclear"):
        if role not in count:
            continue
        best = max((head for head in heads if head["role"] == role), key=lambda head: head["score"] or 0.0)
        distance = f" {best['offset']}" if role == "offset" else ""
        shown = f" ({best['name']}{distance} {best['score']:.2f})" if role in POINTED else ""
        said.append(f"{count[role]} {role}{shown}")
    return f"roles of {len(heads)} heads over {inputs}: {', '.join(said)}"


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """What a report asks: 64 inputs."""
    return {"n_inputs": 64}
