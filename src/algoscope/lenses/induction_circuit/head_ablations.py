"""Causal tests of induction heads: runs with heads ablated, and with single paths between two heads ablated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.lenses.induction_circuit.head_scores import ATTENTION, Rows, attention_scores, portions
from algoscope.lenses.interventions.replacements import others
from algoscope.lenses.parameters.qk_ov_circuits import Head
from algoscope.networks.evaluation import cross_entropy
from algoscope.subjects.edits import Edit, Patch, Zero
from algoscope.subjects.subject import Subject

ENTRIES = ("q", "k")
Nats = Float[Tensor, "batch pos"]


# ---------------------------------------------------------------------- losses


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropy in nats of undetermined predictions (`first`), and of those that a previous occurrence of the
    token determines (`later`).
    """

    first: float
    later: float

    @classmethod
    def of(cls, nats: Nats, rows: Rows) -> "Losses":
        determined = rows.determined
        return cls(float(nats[~determined].mean()), float(nats[determined].mean()))

    @property
    def gain(self) -> float:
        """The gain: nats by which determined predictions are better than the others."""
        return self.first - self.later

    def share_lost(self, without: "Losses", n_candidates: int) -> float:
        """The share of the gain that is lost under an ablation: 0 = none, 1 = all. If the ablated loss exceeds that of
        a uniform guess among the candidates, the latter is used.
        """
        gain = min(self.first, math.log(n_candidates)) - self.later
        return (without.later - self.later) / gain if gain > 0 else 0.0


def nats_of(logits: Float[Tensor, "*edit batch pos d_vocab"], rows: Rows) -> Float[Tensor, "*edit batch pos"]:
    """The cross-entropy of every prediction, in float64."""
    targets = rows.tokens[:, 1:].expand(logits.shape[:-1])
    return cross_entropy(logits, targets).double()


def scores_and_nats(subject: Subject, rows: Rows) -> tuple[dict[str, Float[Tensor, "layer head"]], Nats]:
    """The attention scores of every head, means over the rows, and the cross-entropy of every prediction."""
    layers = range(subject.cfg.n_layers)
    by_name: dict[str, list[Tensor]] = {name: [] for name in ATTENTION}
    nats = []
    for part in portions(subject, rows):
        these = rows.portion(part)
        logits, cache = subject.run(these.read, record=[("pattern", layer) for layer in layers])
        each = [attention_scores(cache["pattern", layer], these) for layer in layers]
        nats.append(nats_of(logits, these).cpu())
        for name in ATTENTION:
            by_name[name].append(torch.stack([scores[name] for scores in each], dim=1).cpu())
    return {name: torch.cat(values).double().mean(dim=0) for name, values in by_name.items()}, torch.cat(nats)


# ---------------------------------------------------------------------- runs with heads ablated


@dataclass(frozen=True, eq=False)
class Replacements:
    """Replacements of a head's output: `z` of every layer on the rows, for its mean, or that of another row."""

    z: Mapping[int, Float[Tensor, "batch pos head d_head"]]
    seed: int

    @classmethod
    def recorded(cls, subject: Subject, rows: Rows, seed: int) -> "Replacements":
        layers = range(subject.cfg.n_layers)
        z: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for part in portions(subject, rows):
            _, cache = subject.run(rows.read[part], record=[("z", layer) for layer in layers], at=slice(0, 0))
            for layer in layers:
                z[layer].append(cache["z", layer])
        return cls({layer: torch.cat(values) for layer, values in z.items()}, seed)

    def edit(self, head: Head, kind: str, part: slice) -> Edit:
        """The edit that ablates one head on a stretch of the rows."""
        layer, number = head
        z = self.z[layer]
        if kind == "zero":
            return Zero(("z", layer), head=number)
        if kind == "mean":
            return Patch(("z", layer), value=z.mean(dim=0, keepdim=True), head=number)
        another = others(len(z), len(z), self.seed).to(z.device)
        return Patch(("z", layer), value=z[another[part]], head=number)


def nats_without(
    subject: Subject, rows: Rows, replacements: Replacements, groups: Mapping[str, Sequence[Head]], kind: str
) -> dict[str, Nats]:
    """The cross-entropy of every prediction without all heads of a group, for each group by its name."""
    nats_of_group: dict[str, list[Tensor]] = {name: [] for name in groups}
    for part in portions(subject, rows):
        these = rows.portion(part)
        edits = {name: [replacements.edit(head, kind, part) for head in group] for name, group in groups.items()}
        alone = {name: group[0] for name, group in edits.items() if len(group) == 1}
        each = subject.run_each(these.read, list(alone.values()), reduce=partial(nats_of, rows=these))
        nats = dict(zip(alone, each, strict=True))
        for name, group in edits.items():
            one = nats[name] if name in nats else nats_of(subject.run(these.read, edits=group)[0], these)
            nats_of_group[name].append(one.cpu())
    return {name: torch.cat(values) for name, values in nats_of_group.items()}


# ---------------------------------------------------------------------- paths between heads


@dataclass(frozen=True)
class PathEffect:
    """The mean induction score of a receiver when its queries or its keys read what a sender writes on another row."""

    sender: Head
    entry: str
    attention: float


def path_effects(
    subject: Subject, rows: Rows, replacements: Replacements, receiver: Head, senders: Sequence[Head], kind: str
) -> list[PathEffect]:
    """For each sender, and for the receiver's queries and keys: one run with the sender replaced, which gives that
    entry, and one run in which the receiver's entry is patched with it.

    All paths from the sender to the entry count: directly through the residual stream, and through components in
    between. Where keys and values are shared by a group of heads, the change reaches the whole group.
    """
    layer, head = receiver
    group = subject.cfg.n_heads // subject.cfg.kv_heads
    induction: dict[tuple[Head, str], list[Tensor]] = {}
    for part in portions(subject, rows):
        these = rows.portion(part)
        for sender in senders:
            sites, edits = [(entry, layer) for entry in ENTRIES], [replacements.edit(sender, kind, part)]
            _, cache = subject.run(these.read, record=sites, edits=edits, at=slice(0, 0))
            for entry in ENTRIES:
                place = head if entry == "q" else head // group
                path = Patch((entry, layer), value=cache[entry, layer], head=place)
                _, after = subject.run(these.read, record=[("pattern", layer)], edits=[path], at=slice(0, 0))
                pattern = after["pattern", layer][:, head : head + 1]
                induction.setdefault((sender, entry), []).append(attention_scores(pattern, these)["induction"])
    return [PathEffect(sender, entry, float(torch.cat(values).mean())) for (sender, entry), values in induction.items()]
