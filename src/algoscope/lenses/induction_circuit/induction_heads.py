"""Induction: does the model continue repeated tokens, and by which heads?

The rows are repeated blocks of random tokens; a prediction is determined where its token has occurred before. Facts:

- `heads`: of each head six attention scores (see `attention_scores`; `chance` has those of uniform attention) and their
  `spread` (standard deviation over the rows); `copying`: 2 s - 1, with s the share that the token at a position has of
  all logits raised by attending there (1 = all, -1 = none); from the weights `eigenvalues` and `top1` (`Circuits`).
- `losses` in nats: `first` where nothing determines the prediction, `later` where a previous occurrence does, their
  difference `gain`; `baseline`, from which gains are counted: `first`, or a uniform guess among the tokens where that
  is better, and `counted_gain` below it; for a copying task the `floor`. `ablations`: the losses without heads, in
  three ways.
- `heard`: the induction score of the `receiver`, the strongest head that passes the test of paths, else the strongest,
  when its queries or keys read what earlier heads write on another row. `pair`: that head and the earlier one that
  matters most to it, all `earlier_heads` that it takes to lose half of its score above chance, and all
  `induction_heads` that lose as much by them.
- `composition`: the pairs of heads furthest above `chance` (Gaussian matrices). `by_length`: other lengths of block.
- `mechanism`, by the `rules`, whose outcomes are in `evidence` (a value of null: it cannot be told): "induction pair"
  where keys read previous-token heads; "pointer pair" where queries read from duplicate-token heads at which position
  their token was; both want every rule to hold, and none asks how much attention there is. Else "induction-like
  attention only" where a head reaches the threshold or hears, and "none" where none does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.core.arguments import Count, Folder, Seed, checked_arguments
from algoscope.core.errors import SubjectError
from algoscope.core.finding import Finding
from algoscope.data import seeded
from algoscope.lenses.heads.head_panels import head_name, head_names
from algoscope.lenses.induction_circuit._induction_panels import panels_of, tables_of
from algoscope.lenses.induction_circuit._pair_search import (
    INDUCTION_HEADS,
    MANY,
    NOTHING,
    ROUTES,
    RULES,
    Route,
    Search,
    evidence_of,
    mechanism_of,
)
from algoscope.lenses.induction_circuit.head_ablations import (
    Losses,
    PathEffect,
    Replacements,
    nats_without,
    scores_and_nats,
)
from algoscope.lenses.induction_circuit.head_scores import (
    HeadScores,
    Rows,
    chances,
    head_scores,
    repeated_rows,
)
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.interventions.replacements import KINDS
from algoscope.lenses.parameters.qk_ov_circuits import ENTRIES, Circuits, Head
from algoscope.lenses.residual_parts import is_sum
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.strings.copying import Copying

CONTROLS = 12  # random control heads
TRIED = 8  # of a larger model, rows used for ablations
SHOWN = 10  # pairs of heads with reported composition scores
ABOUT = (
    "Blocks of random tokens are repeated: where a token occurs again, the token after its previous occurrence "
    "follows again. An induction head attends to that token. It can find its position in two ways: its keys read the "
    "output of a previous-token head (K-composition), which holds the preceding token: an induction pair. Or its "
    "queries read the output of a duplicate-token head, which holds the position of the same token: a pointer pair. "
    "Attention alone proves neither, so the heads are ablated and the paths between them "
    "cut."
)


@checked_arguments
@measurement
def induction(
    subject: AnyModel,
    *,
    n_inputs: Count = 64,
    length: Count | None = None,
    copies: Count | None = None,
    first: str | None = None,
    threshold: float = 0.4,
    seed: Seed = 0,
    runs_dir: Folder = None,
) -> Finding:
    """Find induction heads and test their effect: score every head on repeated random tokens, and ablate heads and
    paths.

    Args:
        subject: a causal model, by name or opened.
        n_inputs: rows of repeated random tokens, 2 at least.
        length: tokens of a block; by default those of a copying task's patterns, else several lengths up to 50.
        copies: how often the longest block is read, 2 at least; by default twice, in a copying task to the end.
        first: a text before the blocks; by default the tokens that the tokenizer prepends, such as BOS.
        threshold: the attention score (0 = none of the attention, 1 = all) from which attention alone is called
            induction-like; pairs are found by causal tests, whatever their scores.
        seed: seed of the rows, of replacement rows, and of control heads in a large model.
        runs_dir: where runs live.
    Returns:
        A finding with panels `attention` and `writing` [head score], `loss by position` [ablated position] (nats), loss
        increases by ablation, and for few tokens the circuits token by token. Facts as at the head of this module.
    Raises:
        SubjectError: for a model that is not causal, has no room for a block of two, or normalises the stream after
            each sum.
        ConfigError: for fewer than two rows, or blocks that do not fit.
    Source:
        Olsson et al., arXiv 2209.11895; Elhage et al., A Mathematical Framework for Transformer Circuits (2021).

    Example:
        >>> import algoscope as ag
        >>> finding = ag.lenses.induction("planted:induction", n_inputs=8)
        >>> finding["mechanism"], finding["pair"]["earlier"], finding["pair"]["induction"]
        ('induction pair', 'L0H1', 'L1H0')
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    if not subject.cfg.causal:
        raise SubjectError(f"{subject.name} is not causal: it would see the answer")
    rows = repeated_rows(subject, n_inputs, length, copies, first, seed)
    circuits = Circuits(subject, seed)
    heads, chance = head_scores(subject, circuits, rows), chances(rows)
    tried = rows if len(heads) <= MANY else rows.portion(slice(None, None, n_inputs // TRIED + 1))
    replacements = Replacements.recorded(subject, tried, seed)
    scores, baseline = scores_and_nats(subject, tried)
    induction_scores, by_chance = scores["induction"], chances(tried)["induction"]
    search = Search(subject, heads, chance, n_inputs, tried, replacements, induction_scores, by_chance)
    route, effects = search.run()
    groups = _groups(heads, route, threshold, seed)
    nats = {kind: {NOTHING: baseline, **nats_without(subject, tried, replacements, groups, kind)} for kind in KINDS}
    losses = {kind: {name: Losses.of(each, tried) for name, each in nats[kind].items()} for kind in KINDS}
    evidence = evidence_of(route, losses["mean"], search)
    composition = circuits.composition()
    facts: dict[str, Any] = {
        "mechanism": mechanism_of(heads, evidence, route, threshold),
        "evidence": evidence,
        "rules": RULES,
        "threshold": threshold,
        "losses": _loss_facts(subject, tried, losses["mean"][NOTHING]),
        "pair": _pair(circuits, route, losses, composition, rows) if evidence["hears"]["holds"] else None,
        "heads": [head.document() for head in heads],
        "chance": chance,
        "receiver": route.receiver.document()["name"] if route else None,
        "heard": _path_facts(effects, induction_scores),
        "ablations": _ablations(groups, losses),
        "composition": _composition_facts(circuits, composition),
        "kinds": KINDS | {"mean": "its mean over the other rows, by position"},
        "inputs": _input_facts(rows, first or "", seed) | {"tried": len(tried.tokens)},
        "by_length": _by_length(subject, route, n_inputs, seed),
    }
    lines = {name: nats["mean"][name] for name in (NOTHING, *groups) if name == NOTHING or name.endswith(" heads")}
    panels = panels_of(circuits, tried, facts, composition, lines)
    return subject.finding("induction", _claim(facts), facts, panels, about=ABOUT, tables=tables_of(facts), seed=seed)


# ---------------------------------------------------------------------- heads in question


def _path_facts(effects: Sequence[PathEffect], before: Float[Tensor, "layer head"]) -> list[dict[str, Any]]:
    return [
        {
            "sender": " + ".join(head_name(*sender) for sender in one.senders),
            "entry": one.entry,
            "before": float(before[one.receiver]),
            "induction": one.attention,
        }
        for one in effects
    ]


def _groups(heads: Sequence[HeadScores], route: Route | None, threshold: float, seed: int) -> dict[str, list[Head]]:
    """What is ablated, by name: each head by itself, all induction heads beyond the first layer, and all earlier heads
    that they read: those that the tests of paths name, and those that reach the threshold.
    """
    hearing, read = set[Head](), set[Head]()
    if route and route.hears:
        hearing, read = set(route.inducing), {one.head for one in route.senders}
    inducing = sorted(
        hearing | {one.head for one in heads if one.head[0] > 0 and one.attention["induction"] >= threshold}
    )
    earlier = sorted(
        read
        | {
            one.head
            for one in heads
            if route and one.head[0] < route.receiver.head[0] and one.attention[route.role] >= threshold
        }
    )
    alone = [one.head for one in heads]
    if len(alone) > MANY:
        candidates = {*inducing, *earlier} | ({route.receiver.head, route.senders[0].head} if route else set())
        others = [head for head in alone if head not in candidates]
        order = torch.randperm(len(others), generator=seeded(torch.device("cpu"), seed, 1)).tolist()
        alone = sorted([*candidates, *(others[i] for i in order[:CONTROLS])])
    together = {INDUCTION_HEADS: inducing} | ({f"{route.role} heads": earlier} if route else {})
    return {head_name(*head): [head] for head in alone} | {name: group for name, group in together.items() if group}


# ---------------------------------------------------------------------- facts and claim


def _loss_facts(subject: Subject, rows: Rows, baseline: Losses) -> dict[str, Any]:
    floor = None
    if subject.has_task and isinstance(subject.task, Copying) and not rows.start:
        least = Losses.of(subject.task.surprisal(rows.tokens).cpu(), rows)
        floor = {"first": least.first, "later": least.later} if rows.trained else None
    counted = {"baseline": baseline.baseline, "counted_gain": baseline.baseline - baseline.later}
    return {"first": baseline.first, "later": baseline.later, "gain": baseline.gain, **counted, "floor": floor}


def _pair(
    circuits: Circuits,
    route: Route | None,
    losses: Mapping[str, Mapping[str, Losses]],
    composition: Float[np.ndarray, "entry sender receiver"],
    rows: Rows,
) -> dict[str, Any] | None:
    if route is None:
        return None
    sender, receiver, n_heads = route.senders[0].head, route.receiver.head, circuits.cfg.n_heads
    place = (sender[0] * n_heads + sender[1], receiver[0] * n_heads + receiver[1])
    score = composition[(ENTRIES.index(route.entry.upper()), *place)]
    mean, deviation = circuits.chance
    shortest = int(rows.period.min())
    return {
        "induction": head_name(*receiver),
        "earlier": head_name(*sender),
        "entry": route.entry,
        "role": route.role,
        "earlier_heads": [head_name(*head) for head in sorted(one.head for one in route.senders)],
        "induction_heads": [head_name(*head) for head in route.inducing],
        "share_lost": route.share_lost,
        "composition": float(score),
        "above_chance": float((score - mean) / deviation),
        "matching": circuits.matching_top1(sender, receiver),
        "pointing": circuits.pointing_top1(sender, receiver, rows.read.shape[1], shortest),
        "gain_lost": {
            kind: {
                name: by_group[NOTHING].share_lost(by_group[name])
                for name in (head_name(*sender), head_name(*receiver))
            }
            for kind, by_group in losses.items()
        },
    }


def _ablations(
    groups: Mapping[str, Sequence[Head]], losses: Mapping[str, Mapping[str, Losses]]
) -> list[dict[str, Any]]:
    return [
        {
            "without": name,
            "heads": [head_name(*head) for head in group],
            "kind": kind,
            "first": by_group[name].first,
            "later": by_group[name].later,
            "first_increase": by_group[name].first - by_group[NOTHING].first,
            "later_increase": by_group[name].later - by_group[NOTHING].later,
        }
        for kind, by_group in losses.items()
        for name, group in groups.items()
    ]


def _composition_facts(circuits: Circuits, scores: Float[np.ndarray, "entry sender receiver"]) -> dict[str, Any]:
    mean, deviation = circuits.chance
    names = head_names(circuits.cfg)
    order = np.argsort(-np.nan_to_num(scores.ravel(), nan=-1.0))[: min(SHOWN, int(np.isfinite(scores).sum()))]
    pairs = []
    for entry, sender, receiver in zip(*np.unravel_index(order, scores.shape), strict=True):
        score = float(scores[entry, sender, receiver])
        place = {"sender": names[sender], "receiver": names[receiver]}
        pairs.append({"entry": ENTRIES[entry], **place, "score": score, "above_chance": (score - mean) / deviation})
    return {"chance": {"mean": mean, "standard_deviation": deviation}, "largest": pairs}


def _input_facts(rows: Rows, first: str, seed: int) -> dict[str, Any]:
    determined = rows.determined.sum(dim=1)
    return {
        "n": len(rows.tokens),
        "meaning": rows.meaning,
        "lengths": sorted(set(rows.period.tolist())),
        "read": rows.read.shape[1],
        "before_the_blocks": rows.start,
        "first": first,
        "determined": [int(determined.min()), int(determined.max())],
        "candidates": rows.candidates.shape[1],
        "trained": rows.trained,
        "seed": seed,
    }


def _by_length(subject: Subject, route: Route | None, n_inputs: int, seed: int) -> list[dict[str, Any]]:
    """Of a model that copies patterns: its scores and losses with blocks of each length that it was trained on, of one
    letter less and of up to two more.
    """
    if route is None or not (subject.has_task and isinstance(subject.task, Copying)):
        return []
    task, by_length = subject.task, []
    for length in range(max(2, task.shortest - 1), min(task.longest + 2, task.n_symbols, (task.n_ctx - 1) // 2) + 1):
        these = repeated_rows(subject, n_inputs, length, seed=seed)
        scores, nats = scores_and_nats(subject, these)
        baseline = Losses.of(nats, these)
        by_length.append(
            {
                "length": length,
                "trained": these.trained,
                "induction": float(scores["induction"][route.receiver.head]),
                "earlier": float(scores[route.role][route.senders[0].head]),
                "chance": chances(these)["induction"],
                "first": baseline.first,
                "later": baseline.later,
            }
        )
    return by_length


def _claim(facts: Mapping[str, Any]) -> str:
    losses, pair, rows = facts["losses"], facts["pair"], facts["inputs"]["meaning"]
    best = max(facts["heads"], key=lambda head: head["induction"])
    gain = (
        f"a previous occurrence gains {losses['counted_gain']:.3g} nats a token "
        f"({losses['baseline']:.3g}{_guess(losses)} to {losses['later']:.3g})"
    )
    if facts["mechanism"] not in (mechanism for _, mechanism in ROUTES.values()):
        mechanism = "no induction head" if facts["mechanism"] == "none" else facts["mechanism"]
        most = f"{best['name']} attends most to the token after the previous occurrence ({best['induction']:.2f})"
        return f"{mechanism}: {most}; {gain}, over {rows}"
    part = "keys" if pair["entry"] == "k" else "queries"
    lost = facts["evidence"]["needs induction heads"]["value"]
    inducing, earlier = pair["induction_heads"], pair["earlier_heads"]
    several = len(inducing) > 1
    return (
        f"{facts['mechanism']}: {listed(inducing)} attend{'' if several else 's'} to the token after the previous "
        f"occurrence, {'their' if several else 'its'} {part} read the {pair['role']} head{'s'[: len(earlier) - 1]} "
        f"{listed(earlier)}; {gain}, {lost:.0%} of it lost without the induction heads, over {rows}"
    )


def _guess(losses: Mapping[str, Any]) -> str:
    return ", a uniform guess," if losses["baseline"] < losses["first"] else ""


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: applies to causal models of the copying task whose stream is a sum."""
    copies = subject.has_task and isinstance(subject.task, Copying)
    return {} if copies and subject.cfg.causal and is_sum(subject) else None
