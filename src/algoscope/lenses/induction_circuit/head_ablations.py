"""Causal tests of induction heads: runs with heads ablated, and with single paths between two heads ablated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.lenses.heads.attention_targets import as_shares
from algoscope.lenses.induction_circuit.head_scores import ATTENTION, Rows, attention_scores, portions
from algoscope.lenses.interventions.replacements import others
from algoscope.lenses.parameters.qk_ov_circuits import Head
from algoscope.networks.evaluation import cross_entropy
from algoscope.subjects.edits import Edit, Patch, Zero
from algoscope.subjects.subject import Subject

ENTRIES = ("q", "k")
Nats = Float[Tensor, "batch pos"]


# ---------------------------------------------------------------------- losses


LEAST_GAIN = 0.1  # nats: a smaller gain counts as none
ERRORS = 2.0  # standard errors by which a gain must differ from zero


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropy in nats of undetermined predictions (`first`), and of those that a previous occurrence of the
    token determines (`later`); `uniform` is the loss of a uniform guess among the tokens, `error`
    the standard error over the rows of the gain.
    """

    first: float
    later: float
    uniform: float = math.inf
    error: float = 0.0

    @classmethod
    def of(cls, nats: Nats, rows: Rows) -> "Losses":
        determined, uniform = rows.determined.to(nats.device), math.log(max(rows.n_tokens, 2))
        first, later = float(nats[~determined].mean()), float(nats[determined].mean())
        counts = [determined] if first > uniform else [~determined, determined]
        by_row = [(nats * those).sum(dim=1) / those.sum(dim=1).clamp(min=1) for those in counts]
        error = math.sqrt(sum(float(each.var()) for each in by_row) / len(nats)) if len(nats) > 1 else math.inf
        return cls(first, later, uniform, error)

    @property
    def gain(self) -> float:
        """Nats by which determined predictions are better than the others."""
        return self.first - self.later

    @property
    def baseline(self) -> float:
        """The loss from which a gain counts: that of undetermined predictions, or of a uniform guess if that is less. A
        model that is confidently wrong where it cannot know gains nothing by that.
        """
        return min(self.first, self.uniform)

    @property
    def gains(self) -> bool:
        """Whether determined predictions are better than the baseline, by more than noise."""
        return self.baseline - self.later >= max(LEAST_GAIN, ERRORS * self.error)

    def share_lost(self, without: "Losses") -> float | None:
        """The share of the gain that is lost under an ablation, 0 = none (or less than none) to 1 = all; None where
        there is no gain to lose.
        """
        if not self.gains:
            return None
        return min(max((without.later - self.later) / (self.baseline - self.later), 0.0), 1.0)


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
        each = [attention_scores(as_shares(cache["pattern", layer], subject.cfg), these) for layer in layers]
        nats.append(nats_of(logits, these).cpu())
        for name in ATTENTION:
            by_name[name].append(torch.stack([scores[name] for scores in each], dim=1).cpu())
    return {name: torch.cat(values).double().mean(dim=0) for name, values in by_name.items()}, torch.cat(nats)


# ---------------------------------------------------------------------- runs with heads ablated


@dataclass(frozen=True, eq=False)
class Replacements:
    """Replacements of a head's output: `z` of every layer on the rows, for its mean over the other
    rows, or that of another row.
    """

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
            # without the row itself, a share of which would remain where there are few
            total = z.sum(dim=0, keepdim=True, dtype=torch.promote_types(z.dtype, torch.float32))
            return Patch(("z", layer), value=((total - z[part]) / (len(z) - 1)).to(z.dtype), head=number)
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
    """The mean induction score of a receiver when its queries or its keys read what senders write on another row."""

    senders: tuple[Head, ...]
    receiver: Head
    entry: str
    attention: float


def path_effects(
    subject: Subject,
    rows: Rows,
    replacements: Replacements,
    receivers: Sequence[Head],
    groups: Sequence[tuple[Head, ...]],
    kind: str,
) -> list[PathEffect]:
    """For each group of senders, and for each receiver's queries and keys: one run with the senders replaced, which
    gives that entry, and one run in which the receiver's entry is patched with it.

    All paths from the senders to the entry count: directly through the residual stream, and through components in
    between. Where keys and values are shared by a group of heads, the change reaches the whole group.
    """
    shared = subject.cfg.n_heads // subject.cfg.kv_heads
    sites = [(entry, layer) for layer in sorted({layer for layer, _ in receivers}) for entry in ENTRIES]
    induction: dict[tuple[tuple[Head, ...], Head, str], list[Tensor]] = {}
    for part in portions(subject, rows):
        these = rows.portion(part)
        for group in groups:
            edits = [replacements.edit(sender, kind, part) for sender in group]
            _, cache = subject.run(these.read, record=sites, edits=edits, at=slice(0, 0))
            for layer, head in receivers:
                for entry in ENTRIES:
                    place = head if entry == "q" else head // shared
                    path = Patch((entry, layer), value=cache[entry, layer], head=place)
                    _, after = subject.run(these.read, record=[("pattern", layer)], edits=[path], at=slice(0, 0))
                    pattern = as_shares(after["pattern", layer][:, head : head + 1], subject.cfg)
                    scores = attention_scores(pattern, these)["induction"]
                    induction.setdefault((group, (layer, head), entry), []).append(scores)
    return [
        PathEffect(group, receiver, entry, float(torch.cat(values).mean()))
        for (group, receiver, entry), values in induction.items()
    ]
