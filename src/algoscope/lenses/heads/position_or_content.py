"""Contents exchanged and positions kept: how much attention stays, and which answer a head's output then gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algoscope.lenses.heads.attention_targets import as_shares
from algoscope.networks.attention_kernels import add_ones, softmax_over_keys
from algoscope.subjects.edits import Patch
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Tokens

PARTS = ("position-position", "position-content", "content-position", "content-content")  # of the query, of the key
ABOVE = 0.1  # of the way from chance to all attention: heads that are tested together where none is aligned
SIDES = ("both", "query", "key")  # contents exchanged with another input's


@dataclass(frozen=True)
class AnswerSources:
    """The keys from which the answer can be read at each answer position, by position and as a mask."""

    what: str
    by_query: Mapping[int, tuple[int, ...]]
    mask: Bool[Tensor, "query key"]
    visible: Bool[Tensor, "query key"]

    @property
    def queries(self) -> tuple[int, ...]:
        return tuple(self.by_query)

    @property
    def chance(self) -> Float[np.ndarray, "query"]:
        """The share of the source under uniform attention."""
        share: Float[np.ndarray, "query"] = (self.mask.sum(dim=1).double() / self.visible.sum(dim=1)).numpy()
        return share


def patterns(
    subject: Subject, tokens: Tokens, queries: list[int], edits: Sequence[Patch] = ()
) -> tuple[Float[Tensor, "batch key d_vocab"], Float[Tensor, "batch layer head query key"]]:
    """Logits, and the attention of every head at some positions, as shares in float64."""
    layers = range(subject.cfg.n_layers)
    logits, cache = subject.run(tokens[:, :-1], record=[("pattern", layer) for layer in layers], edits=edits)
    each = (as_shares(cache["pattern", layer][:, :, queries].double(), subject.cfg) for layer in layers)
    return logits, torch.stack(list(each), dim=1)


def pattern_change(
    subject: Subject, tokens: Tokens, queries: Sequence[int]
) -> Float[np.ndarray, "side layer head query"]:
    """The total variation distance, mean over inputs, between each head's attention at some positions and the attention
    with the queries and keys of the previous row, its queries only, and its keys only: `SIDES`.
    """
    chosen = list(queries)
    pattern = patterns(subject, tokens, chosen)[1]
    change = torch.stack([_distance(pattern, pattern.roll(1, dims=0))] * len(SIDES))
    for side, site in (("query", "q"), ("key", "k")):
        for layer in range(subject.cfg.n_layers):
            here = subject.run(tokens[:, :-1], record=[(site, layer)])[1][site, layer]
            edits = [Patch((site, layer), value=here.roll(1, dims=0))]
            moved = patterns(subject, tokens, chosen, edits)[1]
            change[SIDES.index(side), layer] = _distance(pattern, moved)[layer]
    return change.cpu().numpy()


def _distance(
    one: Float[Tensor, "batch layer head query key"], other: Float[Tensor, "batch layer head query key"]
) -> Float[Tensor, "layer head query"]:
    return 0.5 * (one - other).abs().sum(dim=-1).mean(dim=0)


def score_parts(
    subject: Subject, tokens: Tokens, sources: AnswerSources
) -> tuple[Float[np.ndarray, "layer head part"] | None, Float[np.ndarray, "layer head"] | None]:
    """The shares of `PARTS` in the variation of each head's scores over the visible keys (NaN where they do not vary),
    and the attention on the source, mean over the positions, with the first part alone; None and None for models that
    normalise queries and keys or cap scores.

    With q = mean q + rest of q at each position, and k likewise, q k is the sum of four products. A positional bias
    (ALiBi) is in the first. The share of a part is sum(part score) / sum(score score), each less its mean over the
    visible keys of its query.
    """
    if subject.cfg.qk_norm or subject.cfg.attn_scores_soft_cap is not None:
        return None, None
    shares, alone = [], []
    for layer in range(subject.cfg.n_layers):
        parts = _products(subject, tokens, sources, layer)
        visible = sources.visible.to(parts.device)
        score = parts[0].mean(dim=0, keepdim=True).masked_fill(~visible, -torch.inf)
        pattern = as_shares(add_ones(softmax_over_keys(score), subject.cfg.attn_rate, score), subject.cfg)[0]
        alone.append((pattern * sources.mask.to(parts.device)).sum(dim=-1).mean(dim=-1))
        uniform = visible / visible.sum(dim=-1, keepdim=True)
        centred = (parts - (parts * uniform).sum(dim=-1, keepdim=True)) * visible
        score = centred.sum(dim=0)
        shares.append((centred * score).sum(dim=(1, 3, 4)) / (score * score).sum(dim=(0, 2, 3)))
    return torch.stack(shares).mT.cpu().numpy(), torch.stack(alone).cpu().numpy()


def _products(
    subject: Subject, tokens: Tokens, sources: AnswerSources, layer: int
) -> Float[Tensor, "part batch head query key"]:
    """The four products that a layer's scores are the sum of, at the answer positions, in float64."""
    cfg, queries = subject.cfg, list(sources.queries)
    turned = "rot_" if cfg.positions == "rotary" else ""
    sites = [(f"{turned}q", layer), (f"{turned}k", layer), ("attn_scores", layer)]
    cache = subject.run(tokens[:, :-1], record=sites)[1]
    q, k, scores = (cache[site].double() for site in sites)
    k = k.repeat_interleave(cfg.n_heads // cfg.kv_heads, dim=2)
    q = q[:, queries] * (cfg.head_size**-0.5 if cfg.attn_scale is None else cfg.attn_scale)
    (q_place, q_content), (k_place, k_content) = ((x.mean(0, keepdim=True), x - x.mean(0)) for x in (q, k))
    three = [
        torch.einsum("bqhd,bkhd->bhqk", *(x.expand(len(tokens), -1, -1, -1) for x in (left, right)))
        for left, right in ((q_place, k_content), (q_content, k_place), (q_content, k_content))
    ]
    score = scores[:, :, queries].masked_fill(~sources.visible.to(scores.device), 0.0)
    return torch.stack([score - sum(three), *three])


def candidates(
    share: Float[np.ndarray, "layer head query"], chance: Float[np.ndarray, "query"], threshold: float
) -> list[list[tuple[int, int]]]:
    """For each position the heads that are aligned there, best first; where none is, those clearly above chance, which
    may carry the answer together, or the best.
    """
    heads = []
    for values, even in zip(np.moveaxis(share, -1, 0), chance, strict=True):
        order = np.argsort(-values, axis=None, kind="stable").tolist()
        places = [divmod(flat, values.shape[1]) for flat in order]
        aligned = [place for place in places if values[place] >= threshold]
        above = [place for place in places if values[place] >= even + ABOVE * (1 - even)]
        heads.append(aligned or above or places[:1])
    return heads


def interchange(
    subject: Subject, tokens: Tokens, query: int, heads: Sequence[tuple[int, int]]
) -> dict[str, float | None]:
    """The interchange intervention at a position: some heads give, there, the output that they have in the row before.
    Of the rows whose right tokens differ from those of the row before, the share still right (`kept`) and the share
    that gives the right token of the row before (`follows`).
    """
    layers = sorted({layer for layer, _ in heads})
    read = slice(query, query + 1)
    cache = subject.run(tokens[:, :-1], record=[("z", layer) for layer in layers])[1]
    edits = [
        Patch(
            ("z", layer),
            value=cache["z", layer].roll(1, dims=0),
            head=tuple(sorted(head for place, head in heads if place == layer)),
            pos=query,
        )
        for layer in layers
    ]
    answer = subject.run(tokens[:, :-1], edits=edits, at=read)[0][:, 0].argmax(dim=-1)
    right, other = tokens[:, query + 1], tokens[:, query + 1].roll(1)
    apart = right != other
    if not apart.any():
        return {"kept": None, "follows": None}
    return {
        "kept": float((answer == right)[apart].double().mean()),
        "follows": float((answer == other)[apart].double().mean()),
    }
