"""The roles lens: which known attention pattern does each head have, over many inputs?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.arguments import Count, Folder, Seed, checked_arguments
from algoscope.core.errors import ConfigError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.data import seeded
from algoscope.lenses.heads.attention_targets import (
    CURRENT_TOKEN,
    DUPLICATE_TOKEN,
    FIRST_TOKEN,
    INDUCTION,
    PREVIOUS_TOKEN,
    AttentionTarget,
    as_shares,
    in_portions,
    offset,
    visible,
)
from algoscope.lenses.heads.head_panels import MOST_ROWS, head_axes, head_name, numbers
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.inputs.repeated_tokens import Batches, repeated_blocks
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts, texts_of

Queries = Literal["all", "answer"]
BY_POSITION = (PREVIOUS_TOKEN, CURRENT_TOKEN, FIRST_TOKEN)
BY_CONTENT = (DUPLICATE_TOKEN, INDUCTION)
OFFSET = "offset"
POINTED = (*(target.name for target in BY_POSITION), OFFSET, *(target.name for target in BY_CONTENT))
SHAPES = ("uniform", "sparse")
ROLES = (*POINTED, *SHAPES)
TIE = 0.01  # scores this close are a tie
RARE = 20  # a role that fewer than one input in this many can test is not scored
FARTHEST = 64  # the largest offset that is scored
FEWEST_KEYS = 3  # queries with fewer visible keys do not count for uniform and sparse

ABOUT = (
    "Each head is scored, over many inputs, for patterns of attention that are known by name. A role that points at "
    "certain keys (the previous token, the first token, an earlier copy of the token, the token after that copy) "
    "scores 0 where those keys get as much attention as uniform attention would give them, and 1 where they get all of "
    "it; `uniform` is 1 where all visible keys get the same attention, `sparse` where a single key gets all. A head "
    "is named after the role of highest score among those with target keys, if that reaches its threshold; else "
    "uniform, else sparse; a head "
    "whose scores all stay below their thresholds is unclear."
)


@checked_arguments
@measurement
def roles(
    subject: AnyModel,
    inputs: Texts = None,
    *,
    n_inputs: Count = 256,
    queries: Queries = "all",
    targets: Sequence[AttentionTarget] = (),
    threshold: float = 0.4,
    uniform_threshold: float = 0.8,
    sparse_threshold: float = 0.5,
    seed: Seed = 0,
    runs_dir: Folder = None,
) -> Finding:
    """Score every head for each known attention pattern, and name the role that fits best.

    Roles with target keys, each an `AttentionTarget`: `previous-token`, `current-token`, `first-token`, `offset` (the
    best single distance of 2 or more, the same for all queries), `duplicate-token` (other positions of the query's
    token), `induction` (the positions right after those), and your own `targets`. Of roles within 0.01 the first in
    this order is named: a positional role explains the others, a role by content holds for some queries only. Without a
    role with target keys, a head is `uniform`, else `sparse`, else `unclear`.

    Args:
        subject: a model, by name or opened.
        inputs: one text or several, for a task with the model's own answers; by default random ones.
        n_inputs: how many random inputs. Of a task, with their right answers; of free text, random tokens in blocks
            that are repeated once, of up to 16 lengths between 8 and 24 tokens, so that induction and offset are
            distinguished.
        queries: all positions, or the answer positions of a task.
        targets: attention patterns of your own, scored and named like the others.
        threshold: the score from which a role with target keys is named. 0.4 is the field's usual bound on raw
            attention, and stricter here, as chance is subtracted.
        uniform_threshold: the score from which a head is uniform; 0.8: a fifth of its attention is away from uniform.
        sparse_threshold: the score from which a head is sparse; 0.5: entropy of uniform attention over the square root
            of the number of keys.
        seed: seed of the random inputs.
        runs_dir: where runs live.
    Returns:
        A finding with a panel `scores` [layer head role], means over the inputs (0 = as uniform attention, 1 = all
        attention there; NaN: fewer than one input in twenty can test it), and facts `heads` {layer, head, name, role,
        score, offset, also (other roles that reach the threshold), scores, spread (standard deviations)}, `thresholds`,
        `inputs`.
    Raises:
        UnknownNameError: for other queries.
        ConfigError: for fewer than 1 input, a target with the name of a role, or a mask that does not fit the inputs.
        TaskMismatchError: for `answer` without a task.
        VocabularyError: for a text that the subject cannot read.
        SubjectError: for a context too short for a repeated block.

    Example:
        >>> import algoscope as ag
        >>> ag.lenses.roles("planted:induction")["heads"][2]["role"]
        'induction'
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    batches, source = _inputs(subject, texts_of(inputs), n_inputs, seed)
    read = _read(subject, queries)
    names = _names(targets)
    offsets = offsets_of(min(batch.shape[1] for batch in batches), subject.cfg.causal)
    each = _each_input(subject, batches, _targets(offsets, targets), read)
    scores = _summarised(each, offsets, names)
    bounds = {"pointed": threshold, "uniform": uniform_threshold, "sparse": sparse_threshold}
    heads = [_head(scores, layer, head, bounds) for layer, head in np.ndindex(*scores.offset.shape)]
    return subject.finding(
        "roles",
        _claim(heads, names, source["meaning"]),
        {"heads": heads, "thresholds": bounds, "inputs": {**source, "queries": queries}},
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
    targets: Sequence[AttentionTarget],
    read: slice = slice(None),
) -> dict[str, Float[Tensor, "batch head"]]:
    """Every role's score of every head on each input, from its attention; NaN if no query can test the role.

    The score of a target is `AttentionTarget.above_chance`. `uniform` is the mean of sum_k min(a_k, 1/n) over n visible
    keys, which is 1 - total variation distance from uniform attention; `sparse` that of 1 - entropy / ln n, times the
    sum of the attention (below 1 with softmax_plus_one); both over queries with n >= 3. `read` limits the queries.
    """
    n = tokens.shape[1]
    scores = {target.name: target.on(tokens, read).above_chance(pattern, causal) for target in targets}
    n_visible = visible(n, causal, tokens.device).sum(dim=-1).to(pattern.dtype)
    wide = n_visible >= FEWEST_KEYS
    wide &= torch.isin(torch.arange(n, device=wide.device), torch.arange(n, device=wide.device)[read])
    scores["uniform"] = torch.minimum(pattern, 1 / n_visible[:, None]).sum(dim=-1)[..., wide].mean(dim=-1)
    total = pattern.sum(dim=-1)  # below 1 with softmax_plus_one
    entropy = torch.special.entr(pattern).sum(dim=-1) - torch.special.entr(total)
    scores["sparse"] = (total - entropy / n_visible.log())[..., wide].mean(dim=-1)
    return scores


def _targets(offsets: Sequence[int], targets: Sequence[AttentionTarget] = ()) -> tuple[AttentionTarget, ...]:
    """The built-in targets, with these offsets, and a user's own."""
    return (*BY_POSITION, *map(offset, offsets), *BY_CONTENT, *targets)


def _names(targets: Sequence[AttentionTarget]) -> tuple[str, ...]:
    """All roles in order of precedence in a tie. Raises ConfigError for a duplicate name."""
    names = (*POINTED, *(target.name for target in targets), *SHAPES)
    for name in (target.name for target in targets):
        if names.count(name) > 1 or name.startswith(OFFSET) or name == "unclear":
            raise ConfigError(f"a target may not be called {name!r}: that is the name of another role")
    return names


def offsets_of(shortest: int, causal: bool) -> tuple[int, ...]:
    """The offsets to score in inputs of at least `shortest` tokens: at least half the positions can test them."""
    back = tuple(range(2, min(shortest // 2, FARTHEST) + 1))
    return back if causal else (*back, *(-offset for offset in (1, *back)))


def role_of(scores: Mapping[str, float | None], bounds: Mapping[str, float]) -> str:
    """The class of a head, as `roles` describes it; a score of None is that of a role that these inputs cannot test."""
    pointed = {role: score for role, score in scores.items() if role not in SHAPES and score is not None}
    best = max(pointed.values(), default=-1.0)
    if best >= bounds["pointed"]:
        return next(role for role, score in pointed.items() if score >= best - TIE)
    for shape in SHAPES:
        if (scores[shape] or 0.0) >= bounds[shape]:
            return shape
    return "unclear"


# ---------------------------------------------------------------------- over inputs


@dataclass(frozen=True)
class _Scores:
    """Means over the inputs, their standard deviations, and the best offset of each head (0: none was scored)."""

    names: tuple[str, ...]
    mean: Float[np.ndarray, "layer head role"]
    spread: Float[np.ndarray, "layer head role"]
    offset: Int[np.ndarray, "layer head"]


def _each_input(
    subject: Subject, batches: Batches, targets: Sequence[AttentionTarget], read: slice
) -> dict[str, Float[np.ndarray, "input layer head"]]:
    layers, by_role = range(subject.cfg.n_layers), dict[str, list[np.ndarray]]()
    for batch in batches:
        for tokens in in_portions(batch, subject.cfg):
            _, cache = subject.run(tokens, record=[("pattern", layer) for layer in layers], at=slice(0, 0))
            each = [
                role_scores(pattern, tokens, subject.cfg.causal, targets=targets, read=read)
                for pattern in (as_shares(cache["pattern", layer], subject.cfg) for layer in layers)
            ]
            for role in each[0]:
                value = torch.stack([scores[role] for scores in each], dim=1)
                by_role.setdefault(role, []).append(value.cpu().double().numpy())
    return {role: np.concatenate(values) for role, values in by_role.items()}


def _summarised(
    each: Mapping[str, Float[np.ndarray, "input layer head"]], offsets: Sequence[int], names: tuple[str, ...]
) -> _Scores:
    shape = each[CURRENT_TOKEN.name].shape[1:]
    best = np.zeros(shape, dtype=int)
    by_role = dict(each)
    if offsets:
        every = np.stack([each[f"offset {offset}"] for offset in offsets])
        which = every.mean(axis=1).argmax(axis=0)
        best = np.array(offsets)[which]
        by_role[OFFSET] = np.take_along_axis(every, which[None, None], axis=0)[0]
    pairs = [_mean_and_spread(by_role[role]) if role in by_role else np.full((2, *shape), np.nan) for role in names]
    mean, spread = np.stack(pairs, axis=-1)
    return _Scores(names, mean, spread, best)


def _mean_and_spread(values: Float[np.ndarray, "input layer head"]) -> Float[np.ndarray, "2 layer head"]:
    able = ~np.isnan(values[:, 0, 0])  # whether an input can test a role depends on its tokens alone
    if able.sum() * RARE < max(1, len(values)):
        return np.full((2, *values.shape[1:]), np.nan)
    return np.stack([values[able].mean(axis=0), values[able].std(axis=0)])


# ---------------------------------------------------------------------- inputs


def _inputs(subject: Subject, inputs: tuple[str, ...], n_inputs: int, seed: int) -> tuple[Batches, dict[str, Any]]:
    """The inputs, in batches of one length, and their description for the finding."""
    if inputs:
        batches, meaning = [subject.lay_out(text).tokens for text in inputs], "given inputs"
    elif n_inputs < 1:
        raise ConfigError(f"roles over {n_inputs} inputs are too few: give 1 or more")
    elif subject.has_task:
        batches = [subject.task.sample(n_inputs, seeded(subject.device, seed))[:, :-1]]
        meaning = f"random inputs of {subject.task.kind}"
    else:
        batches, meaning = repeated_blocks(subject, n_inputs, seed), "rows of random tokens, each block twice"
    lengths = [batch.shape[1] for batch in batches]
    n = sum(map(len, batches))
    source = {"n": n, "meaning": f"{n:,} {meaning}", "tokens": [min(lengths), max(lengths)], "seed": seed}
    return batches, source | ({"texts": list(inputs)} if inputs else {})


def _read(subject: Subject, queries: Queries) -> slice:
    return subject.task.answer_slice if queries == "answer" else slice(None)


# ---------------------------------------------------------------------- the finding


def _head(scores: _Scores, layer: int, head: int, bounds: Mapping[str, float]) -> dict[str, Any]:
    mean, spread = (
        {
            role: None if np.isnan(value) else float(value)
            for role, value in zip(scores.names, values[layer, head], strict=True)
        }
        for values in (scores.mean, scores.spread)
    )
    role = role_of(mean, bounds)
    pointed = [other for other in scores.names if other not in SHAPES and other != role]
    return {
        "layer": layer,
        "head": head,
        "name": head_name(layer, head),
        "role": role,
        "score": mean.get(role),
        "offset": int(scores.offset[layer, head]) or None,
        "also": [other for other in pointed if (mean[other] or 0.0) >= bounds["pointed"]],
        "scores": mean,
        "spread": spread,
    }


def _panel(subject: Subject, scores: _Scores) -> Panel:
    return Panel(
        name="scores",
        title="roles of the heads",
        axes=(*head_axes(subject.cfg), Axis("role", scores.names)),
        values=scores.mean,
        unit="score",
        zero="as uniform attention (role uniform: all on one key; sparse: all keys equal)",
        one="all attention there (role uniform: all visible keys equal; sparse: a single key)",
        view="heatmap",
        scale="signed",
        beside="roles",
        site="pattern",
        words=numbers(scores.mean),
        caption="Score of each head for each role. One figure per layer: rows are heads, columns are roles; means over "
        "the inputs. For roles with target keys, 0 = as much attention there as uniform attention gives, 1 = "
        "all of it, negative = less than uniform. Uniform: 1 = all visible keys equal. Sparse: 1 = always a single "
        "key. An empty cell is a role that these inputs cannot test.",
    )


def _table(heads: Sequence[Mapping[str, Any]]) -> ResultTable:
    """All heads if they are few; else those with the highest score of a role with target keys."""
    if len(heads) > MOST_ROWS:
        heads = sorted(heads, key=lambda head: (head["role"] in (*SHAPES, "unclear"), -(head["score"] or 0.0)))[
            :MOST_ROWS
        ]
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


def _claim(heads: Sequence[Mapping[str, Any]], names: tuple[str, ...], inputs: str) -> str:
    count = Counter(head["role"] for head in heads)
    counts = []
    for role in (*names, "unclear"):
        if role not in count:
            continue
        best = max((head for head in heads if head["role"] == role), key=lambda head: head["score"] or 0.0)
        distance = f" {best['offset']}" if role == OFFSET else ""
        shown = f" ({best['name']}{distance} {best['score']:.2f})" if role not in (*SHAPES, "unclear") else ""
        counts.append(f"{count[role]} {role}{shown}")
    return f"roles of {len(heads)} heads over {inputs}: {', '.join(counts)}"


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: 64 inputs."""
    return {"n_inputs": 64}
