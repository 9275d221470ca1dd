"""What the parts of a model do, apart from how they are numbered: where heads look, what is lost without each part."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from algoscope.subjects.edits import Edit, Patch
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Tokens

Looks = Float[np.ndarray, "head batch read key"]
Effects = Float[np.ndarray, "head read"]


@dataclass(frozen=True, eq=False)
class Signature:
    """A model on inputs that are the same for all models. Heads stand layer by layer.

    `looks`: attention at the answer positions on each input. `effects`: at each answer position, the share of inputs
    whose answer token changes when the head's output is its mean over the inputs. `feeds`: the same of each layer's
    feed-forward; no rows where there are none.
    """

    n_layers: int
    looks: Looks
    effects: Effects
    feeds: Float[np.ndarray, "layer read"]
    causal: bool

    @property
    def n_heads(self) -> int:
        """In each layer."""
        return len(self.looks) // self.n_layers


@torch.no_grad()
def signature_of(subject: Subject, tokens: Tokens) -> Signature:
    """The signature of a model over whole sequences of its task."""
    read, at, cfg = tokens[:, :-1], subject.task.answer_slice, subject.cfg
    layers, with_feeds = range(cfg.n_layers), cfg.d_mlp is not None
    sites = [(kind, layer) for kind in ("z", *(("mlp_out",) if with_feeds else ())) for layer in layers]
    logits, cache = subject.run(read, record=[*sites, *(("pattern", layer) for layer in layers)])
    looks = torch.cat([cache["pattern", layer][:, :, at] for layer in layers], dim=1).transpose(0, 1)
    edits: list[Edit] = [
        Patch(("z", layer), value=cache["z", layer].mean(dim=0, keepdim=True), head=head)
        for layer in layers
        for head in range(cfg.n_heads)
    ]
    if with_feeds:
        edits += [Patch(("mlp_out", n), value=cache["mlp_out", n].mean(dim=0, keepdim=True)) for n in layers]
    said = logits[:, at].argmax(dim=-1)
    changed: Bool[Tensor, "edit batch read"] = subject.run_each(
        read, edits, at=at, reduce=lambda each: each.argmax(dim=-1) != said
    )
    share = changed.double().mean(dim=1).cpu().numpy()
    n = cfg.n_layers * cfg.n_heads
    return Signature(cfg.n_layers, looks.double().cpu().numpy(), share[:n], share[n:], cfg.causal)


# ---------------------------------------------------------------------- distances


def differences(a: Signature, b: Signature) -> Float[np.ndarray, "head other"]:
    """How differently each head of `a` and each of `b` work: 0 = alike on every input, 1 = nothing in common.

    Half is the mean over the answer positions of the difference of their effects. Half is the mean over them of the
    total variation distance of their attention on the same input, times how much depends on it: the larger effect of
    the two on this answer token or (as attention there can reach no other) a later one. A head that nothing depends on
    may look anywhere.
    """
    found = np.empty((len(a.looks), len(b.looks)))
    for i, j in np.ndindex(found.shape):
        apart = np.abs(a.looks[i] - b.looks[j]).sum(axis=-1).mean(axis=0) / 2
        needed = np.maximum(a.effects[i], b.effects[j])
        reach = np.maximum.accumulate(needed[::-1])[::-1] if a.causal else np.full_like(needed, needed.max())
        found[i, j] = ((apart * reach).mean() + np.abs(a.effects[i] - b.effects[j]).mean()) / 2
    return found


def matched(
    differing: Float[np.ndarray, "head other"], n_layers: int, within_layers: bool = True
) -> Int[np.ndarray, "head"]:
    """For each head of one model the head of the other, so that they differ least in sum; in its own layer, or in any.

    The assignment is optimal (`scipy.optimize.linear_sum_assignment`).
    """
    if not within_layers:
        found: Int[np.ndarray, "head"] = linear_sum_assignment(differing)[1]
        return found
    n = len(differing) // n_layers
    blocks = [slice(layer * n, (layer + 1) * n) for layer in range(n_layers)]
    return np.concatenate([block.start + linear_sum_assignment(differing[block, block])[1] for block in blocks])


def distance(a: Signature, b: Signature, *, within_layers: bool = True) -> float:
    """How differently two models work: the mean over their heads, matched, and feed-forwards, layer by layer, of how
    differently each works (of feed-forwards the mean difference of their effects). 0 = alike, 1 = nothing in common.
    """
    differing = differences(a, b)
    heads = differing[np.arange(len(differing)), matched(differing, a.n_layers, within_layers)]
    return float(np.concatenate([heads, np.abs(a.feeds - b.feeds).mean(axis=1)]).mean())


def distances(signatures: list[Signature], *, within_layers: bool = True) -> Float[np.ndarray, "run other"]:
    """Every pair's distance."""
    found = np.zeros((len(signatures), len(signatures)))
    for i, a in enumerate(signatures):
        for j, b in enumerate(signatures[:i]):
            found[i, j] = found[j, i] = distance(a, b, within_layers=within_layers)
    return found
