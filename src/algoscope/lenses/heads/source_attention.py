"""Source attention: do heads attend to the source of the answer, by position alone, and carry the answer?

`share`: of every head at every answer position, the attention on the source, mean over the inputs, each followed by its
right answer; `chance` is that of uniform attention over the visible keys, `lowest` the lowest over the inputs of the
mean over the positions. Over pairs of inputs, contents exchanged and positions kept:

- `change`: queries, keys, or both are those of the other input. The total variation distance between a head's attention
  with and without it: 0 = it stays, 1 = all of it goes elsewhere.
- `score_parts`: queries and keys are each their mean at their position plus the rest, their content; the score is the
  sum of four products. The share of each in the variation of the score over the visible keys; they add up to 1.
  `share_by_position` is the share on the source with the first product alone. Not for models that normalise queries
  and keys or cap scores.
- `kept`, `follows`: at each answer position all heads that are aligned there (where none is, those clearly above
  chance) give the output that they have in the other input. Of the pairs whose right tokens differ there, the share
  still right (1 = these heads are not needed) and the share that gives the other input's right token (1 = the answer is
  what they carry).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.arguments import Count, Folder, Seed, checked_arguments
from algoscope.core.errors import ConfigError, SubjectError, TaskMismatchError, UnknownNameError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.core.renaming import renamed_options
from algoscope.data import seeded
from algoscope.lenses.heads.attention_by_part import inputs_of
from algoscope.lenses.heads.attention_targets import in_portions
from algoscope.lenses.heads.head_panels import ATTENTION, INPUTS, head_axes, head_name, head_names, numbers
from algoscope.lenses.heads.position_or_content import (
    PARTS,
    SIDES,
    AnswerSources,
    candidates,
    interchange,
    pattern_change,
    patterns,
    score_parts,
)
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.networks.evaluation import tokens_right
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Tokens

MOSTLY = 0.9  # least share of inputs that counts as nearly all

ABOUT = (
    "The source of an answer is the position from which its next token can be read. A head is aligned at an answer "
    "position where it puts more than half of its attention (or another threshold) on the source. Two experiments "
    "over pairs of inputs test cause and effect. Contents exchanged and positions kept: if the attention stays, it "
    "depends on position alone. The output of the aligned heads replaced by their output on the other input: if the "
    "answer "
    "becomes the other input's, these heads carry it."
)


@renamed_options(at_most="n_inputs")
@checked_arguments
@measurement
def source_attention(
    subject: AnyModel,
    *,
    what: str | None = None,
    n_inputs: Count = 50_000,
    n_pairs: Count = 2_000,
    threshold: float = 0.5,
    same: float = 0.1,
    seed: Seed = 0,
    runs_dir: Folder = None,
) -> Finding:
    """Test whether heads attend to the sources of the answer, by position or content, and whether they carry the
    answer.

    A head is aligned at an answer position where its share of attention on the source is at least `threshold`. The
    verdict is `not aligned` unless some head is aligned at every answer position, or heads with less attention than
    that carry the answer together; `by position alone` where at most
    `same` of the aligned heads' attention goes elsewhere when the contents of queries and keys are another input's;
    else `by content too`. The causal verdict is `carried` where at least 0.9 of the answers follow the output of the
    aligned heads on another input at every position; `needed` where at most 0.1 stay right of 0.9 that were; else
    `neither`: a head can attend to the source and carry something else.

    Args:
        subject: a causal model of a task with `Task.sources`, by name or opened.
        what: which of the task's sources; by default the first.
        n_inputs: the most inputs to measure over, 2 at least; of a larger task so many random ones.
        n_pairs: pairs of inputs to exchange contents between, 2 at least.
        threshold: the share from which a head is aligned; above 0.5 it is more than on all other keys together.
        same: the largest change of attention that counts as position alone.
        seed: seed of the random inputs.
        runs_dir: where runs live.
    Returns:
        A finding with panels `pattern` [layer head query key] (mean over the inputs; a dot at the source), `share`
        [head position], `change` [head side], `swapped` [measure position] and `score parts` [head part]; facts
        `heads`, `positions`, `chance`, `verdict` and `causal`. Shares: 0 = none, 1 = all.
    Raises:
        TaskMismatchError: for a model of free text, or a task that names no sources.
        UnknownNameError: for a source that the task does not name.
        SubjectError: for a model that is not causal and so sees the answer.
        ConfigError: for fewer than two inputs or pairs.

    Example:
        >>> import algoscope as ag
        >>> finding = ag.lenses.source_attention("planted:reversal", n_inputs=200, n_pairs=50)
        >>> finding["verdict"], finding["causal"]
        ('by position alone', 'carried')
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    sources = _sources(subject, what)
    if n_pairs < 2:
        raise ConfigError(f"n_pairs is {n_pairs}: exchanging contents needs at least 2 inputs")
    tokens, covered = inputs_of(subject, n_inputs, seed)
    mean = _mean_attention(subject, tokens, sources)
    order = torch.randperm(len(tokens), generator=seeded(torch.device("cpu"), seed, 1))[:n_pairs]
    pairs = tokens[order.to(tokens.device)]
    change = pattern_change(subject, pairs, sources.queries)
    parts, by_position = score_parts(subject, pairs, sources)
    positions = _positions(subject, pairs, sources, mean, change[0], threshold)
    facts = {
        "what": sources.what,
        "covered": covered | {"pairs": len(pairs)},
        "chance": float(sources.chance.mean()),
        "heads": _heads(mean, change, parts, by_position),
        "positions": positions,
        "verdict": _verdict(positions, same),
        "causal": _causal(positions),
        "thresholds": {"aligned": threshold, "same": same, "mostly": MOSTLY},
    }
    panels, tables = _panels(subject, sources, mean, change, parts, facts), [_table(subject, positions)]
    return subject.finding("source_attention", _claim(facts), facts, panels, about=ABOUT, tables=tables, seed=seed)


# ---------------------------------------------------------------------- sources


def _sources(subject: Subject, what: str | None) -> AnswerSources:
    task = subject.task
    if not task.sources:
        raise TaskMismatchError(
            f"{task.kind} does not name the positions from which its answers can be read: source_attention takes a "
            "task that does, such as reversal"
        )
    if what is not None and what not in task.sources:
        raise UnknownNameError("source", what, task.sources)
    if not subject.cfg.causal:
        raise SubjectError(f"{subject.name} is not causal: it would see the answer")
    what = next(iter(task.sources)) if what is None else what
    by_query = dict(sorted(task.sources[what].items()))
    key = torch.arange(task.n_ctx - 1)
    mask = torch.stack([torch.isin(key, torch.tensor(keys)) for keys in by_query.values()])
    return AnswerSources(what, by_query, mask, key <= torch.tensor(list(by_query))[:, None])


# ---------------------------------------------------------------------- over all inputs


@dataclass(frozen=True)
class _MeanAttention:
    """Attention over all inputs: the mean pattern, its share on the source, the lowest share of any input; for each
    position the share of inputs whose answer is right there.
    """

    pattern: Float[np.ndarray, "layer head query key"]
    share: Float[np.ndarray, "layer head query"]
    lowest: Float[np.ndarray, "layer head"]
    right: Float[np.ndarray, "query"]


def _mean_attention(subject: Subject, tokens: Tokens, sources: AnswerSources) -> _MeanAttention:
    cfg, queries = subject.cfg, list(sources.queries)
    mask = sources.mask.to(subject.device)
    total = torch.zeros(cfg.n_layers, cfg.n_heads, len(queries), mask.shape[1], dtype=torch.double)
    n_right, lowest = torch.zeros(len(queries)), torch.ones(cfg.n_layers, cfg.n_heads, dtype=torch.double)
    for portion in in_portions(tokens, cfg):
        logits, pattern = patterns(subject, portion, queries)
        total += pattern.sum(dim=0).cpu()
        means = (pattern * mask).sum(dim=-1).mean(dim=-1)  # [batch layer head]
        lowest = torch.minimum(lowest, means.amin(dim=0).cpu())
        n_right += tokens_right(logits[:, queries], _targets(portion, queries)).sum(dim=0).cpu()
    pattern = total / len(tokens)
    share = (pattern * sources.mask).sum(dim=-1)
    return _MeanAttention(pattern.numpy(), share.numpy(), lowest.numpy(), (n_right / len(tokens)).double().numpy())


def _targets(tokens: Tokens, queries: list[int]) -> Int[Tensor, "batch query"]:
    """The right token at each position."""
    return tokens[:, [query + 1 for query in queries]]


# ---------------------------------------------------------------------- facts and claim


def _positions(
    subject: Subject,
    pairs: Tokens,
    sources: AnswerSources,
    mean: _MeanAttention,
    change: Float[np.ndarray, "layer head query"],
    threshold: float,
) -> list[dict[str, Any]]:
    """The facts of each answer position; `share` is that of its best head, `change` the largest of its heads."""
    positions, chance = [], np.asarray(sources.chance)
    for i, (query, heads) in enumerate(zip(sources.queries, candidates(mean.share, chance, threshold), strict=True)):
        share = float(mean.share[(*heads[0], i)])
        positions.append(
            {
                "query": query,
                "sources": list(sources.by_query[query]),
                "heads": [head_name(*head) for head in heads],
                "share": share,
                "chance": float(sources.chance[i]),
                "aligned": share >= threshold,
                "change": float(max(change[(*place, i)] for place in heads)),
                "right": float(mean.right[i]),
                **interchange(subject, pairs, query, heads),
            }
        )
    return positions


def _heads(
    mean: _MeanAttention,
    change: Float[np.ndarray, "side layer head query"],
    parts: Float[np.ndarray, "layer head part"] | None,
    by_position: Float[np.ndarray, "layer head"] | None,
) -> list[dict[str, Any]]:
    heads = []
    for layer, head in np.ndindex(mean.lowest.shape):
        facts = {
            "name": head_name(layer, head),
            "share": float(mean.share[layer, head].mean()),
            "lowest": float(mean.lowest[layer, head]),
            "change": dict(zip(SIDES, change[:, layer, head].mean(axis=-1).tolist(), strict=True)),
        }
        if parts is not None and by_position is not None:
            values = [None if np.isnan(value) else float(value) for value in parts[layer, head]]
            facts["score_parts"] = dict(zip(PARTS, values, strict=True))
            facts["share_by_position"] = float(by_position[layer, head])
        heads.append(facts)
    return heads


def _verdict(positions: Sequence[Mapping[str, Any]], same: float) -> str:
    if not all(position["aligned"] for position in positions) and _causal(positions) != "carried":
        return "not aligned"
    return "by position alone" if all(position["change"] <= same for position in positions) else "by content too"


def _causal(positions: Sequence[Mapping[str, Any]]) -> str:
    if all((position["follows"] or 0.0) >= MOSTLY for position in positions):
        return "carried"
    lost = all(
        position["kept"] is not None and position["kept"] <= 1 - MOSTLY and position["right"] >= MOSTLY
        for position in positions
    )
    return "needed" if lost else "neither"


def _claim(facts: Mapping[str, Any]) -> str:
    covered, positions = facts["covered"], facts["positions"]
    every = "all" if covered["method"] == "exhaustive" else "a random"
    n_aligned = sum(position["aligned"] for position in positions)
    carried = facts["causal"] == "carried"
    heads = list(dict.fromkeys(h for row in positions for h in row["heads"] if row["aligned"] or carried))
    share = np.mean([position["share"] for position in positions])
    claim = f"{n_aligned} of {len(positions)} answer positions have a head on their source" + (
        f" ({', '.join(heads)})" if heads else ""
    )
    claim += (
        f", mean share {share:.2f} where chance is {facts['chance']:.2f}, over {every} {covered['inputs']:,} inputs"
    )
    if facts["verdict"] == "not aligned":
        return f"{claim}: not aligned"
    follows = np.mean([position["follows"] or 0.0 for position in positions])
    change = max(position["change"] for position in positions)
    right = np.mean([position["right"] for position in positions])
    return (
        f"{claim}: {facts['verdict']} (other contents move {change:.2f} of it); {right:.1%} of the answers are right, "
        f"and with another input's output of these heads {follows:.1%} become that input's: {facts['causal']}"
    )


# ---------------------------------------------------------------------- panels


def _panels(
    subject: Subject,
    sources: AnswerSources,
    mean: _MeanAttention,
    change: Float[np.ndarray, "side layer head query"],
    parts: Float[np.ndarray, "layer head part"] | None,
    facts: Mapping[str, Any],
) -> tuple[Panel, ...]:
    covered, positions = facts["covered"], facts["positions"]
    example = subject.task.edge_inputs()[0]
    keys = subject.token_labels(example[:-1])
    queries = tuple(keys[query] for query in sources.queries)
    names = Axis("head", head_names(subject.cfg))
    prompt = subject.task.decode(example[: subject.task.prompt_length].tolist())
    position = Axis("position", queries, f"answer position, as in {prompt}")
    dots = np.where(sources.mask.numpy(), "\u25cf", "").astype(object)
    hidden = np.where(sources.visible.numpy(), mean.pattern, np.nan)
    every = "all" if covered["method"] == "exhaustive" else "a random"
    over_inputs = (
        f"Mean attention over {every} {covered['inputs']:,} inputs at the answer positions. Rows are queries, columns "
        "are keys. A dot marks the source, from which the answer can be read. The labels are those of one input."
    )
    experiments = (
        f"Attention on the source, and whether it depends on position alone. Attention on the source: uniform "
        f"attention gives {facts['chance']:.2f}. Attention that moves: how much of it goes to other keys when queries, "
        f"keys or both come from another input, positions kept; up to {facts['thresholds']['same']:g} counts as "
        "position alone. "
        "Last, the output of the aligned heads replaced by their output on another input: the share of answers right "
        "before, right still, and equal to the other input's answer (`follows`: what these heads carry)."
    )
    split = (
        "Variation of the attention scores by position and content. Queries and keys are each split into their mean "
        "at a position and the "
        "rest, their content. The four shares add up to 1."
    )
    panels = [
        Panel(
            "pattern", (*head_axes(subject.cfg), Axis("query", queries), Axis("key", keys, "key (\u25cf source)")),
            hidden, title="mean attention over the inputs", words=np.broadcast_to(dots, hidden.shape),
            caption=over_inputs, **ATTENTION,
        ),
        _heatmap(
            "share", "attention on the source", (names, position), mean.share.reshape(len(names.labels), -1),
            caption=experiments, **ATTENTION,
        ),
        _heatmap(
            "change", "attention that moves with other contents", (names, Axis("side", SIDES, "contents swapped in")),
            change.mean(axis=-1).reshape(len(SIDES), -1).T, caption=experiments,
            **{**ATTENTION, "zero": "none moves: by position", "one": "all of it moves"},
        ),
        _heatmap(
            "swapped", "output of the aligned heads from another input",
            (Axis("measure", ("right before", "still right", "follows"), "answer"), position),
            np.array([[one[name] for one in positions] for name in ("right", "kept", "follows")], dtype=float),
            caption=experiments, **INPUTS,
        ),
    ]  # fmt: skip
    if parts is not None:
        panels.append(
            _heatmap(
                "score parts", "variation of the scores", (names, Axis("part", PARTS, "of the query, of the key")),
                parts.reshape(-1, len(PARTS)), unit="share of the variation", scale="signed", zero="none of it",
            one="all of it", beside="", caption=split,
            )
        )  # fmt: skip
    return tuple(panels)


def _heatmap(
    name: str, title: str, axes: tuple[Axis, ...], values: Float[np.ndarray, "row column"], **meaning: Any
) -> Panel:
    """A heatmap with its numbers in it, drawn beside the others."""
    return Panel(name, axes, values, title=title, words=numbers(values), **{"beside": "heads", **meaning})


def _table(subject: Subject, positions: Sequence[Mapping[str, Any]]) -> ResultTable:
    labels = subject.token_labels(subject.task.edge_inputs()[0, :-1])
    measures = ("share", "chance", "change", "right", "kept", "follows")
    return ResultTable(
        "Answer positions",
        ("position", "source", "heads", *measures),
        tuple(
            (
                labels[row["query"]],
                ", ".join(labels[key] for key in row["sources"]),
                ", ".join(row["heads"]),
                *(None if row[name] is None else round(row[name], 3) for name in measures),
            )
            for row in positions
        ),
        "The heads with the most attention on the source of each answer position (all that reach the threshold), the "
        "share of the best, that of uniform attention, the change under exchanged contents, the share of inputs "
        "answered right, and, with these heads' output from another input, the share still right and the share that "
        "gives the other input's answer.",
    )


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: applies to causal models of tasks with `sources`."""
    return {} if subject.has_task and subject.task.sources and subject.cfg.causal else None
