"""Profiles of a model's components (attention and ablation effects), matched across permutations of heads."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from algoscope.lenses.heads.attention_targets import as_shares
from algoscope.subjects.edits import Edit, Patch
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Tokens

Attention = Float[np.ndarray, "head batch read key"]
Effects = Float[np.ndarray, "head read"]


@dataclass(frozen=True, eq=False)
class Profile:
    """Behaviour of a model on inputs that are the same for all models. Heads are ordered by layer.

    `attention`: of every head from the answer positions, on each input. `effects`: the share of inputs whose answer
    token changes under mean ablation of the head, by answer position. `mlps`: the same for each layer's MLP; no rows
    without MLPs.
    """

    n_layers: int
    attention: Attention
    effects: Effects
    mlps: Float[np.ndarray, "layer read"]
    causal: bool

    @property
    def n_heads(self) -> int:
        """In each layer."""
        return len(self.attention) // self.n_layers


@torch.no_grad()
def profile_of(subject: Subject, tokens: Tokens) -> Profile:
    """The profile of a model over whole sequences of its task."""
    read, at, cfg = tokens[:, :-1], subject.task.answer_slice, subject.cfg
    layers, has_mlps = range(cfg.n_layers), cfg.d_mlp is not None
    sites = [(kind, layer) for kind in ("z", *(("mlp_out",) if has_mlps else ())) for layer in layers]
    logits, cache = subject.run(read, record=[*sites, *(("pattern", layer) for layer in layers)])
    patterns = [as_shares(cache["pattern", layer][:, :, at], cfg) for layer in layers]
    attention = torch.cat(patterns, dim=1).transpose(0, 1)
    edits: list[Edit] = [
        Patch(("z", layer), value=cache["z", layer].mean(dim=0, keepdim=True), head=head)
        for layer in layers
        for head in range(cfg.n_heads)
    ]
    if has_mlps:
        edits += [Patch(("mlp_out", n), value=cache["mlp_out", n].mean(dim=0, keepdim=True)) for n in layers]
    predicted = logits[:, at].argmax(dim=-1)
    changed: Bool[Tensor, "edit batch read"] = subject.run_each(
        read, edits, at=at, reduce=lambda each: each.argmax(dim=-1) != predicted
    )
    share = changed.double().mean(dim=1).cpu().numpy()
    n = cfg.n_layers * cfg.n_heads
    return Profile(cfg.n_layers, attention.double().cpu().numpy(), share[:n], share[n:], cfg.causal)


# ---------------------------------------------------------------------- distances


def differences(a: Profile, b: Profile) -> Float[np.ndarray, "head other"]:
    """The distance between each head of `a` and each of `b`: 0 = identical on every input, 1 = nothing in common.

    Half is the mean over the answer positions of the difference of their effects. The other half is the mean over them
    of the total variation distance of their attention on the same input, weighted by the larger of the two heads'
    effects on this answer token or a later one, the only ones that attention there can affect. So the attention of a
    head without effect does not count.
    """
    differing = np.empty((len(a.attention), len(b.attention)))
    for i, j in np.ndindex(differing.shape):
        apart = np.abs(a.attention[i] - b.attention[j]).sum(axis=-1).mean(axis=0) / 2
        needed = np.maximum(a.effects[i], b.effects[j])
        reach = np.maximum.accumulate(needed[::-1])[::-1] if a.causal else np.full_like(needed, needed.max())
        differing[i, j] = ((apart * reach).mean() + np.abs(a.effects[i] - b.effects[j]).mean()) / 2
    return differing


def matched(
    differing: Float[np.ndarray, "head other"], n_layers: int, within_layers: bool = True
) -> Int[np.ndarray, "head"]:
    """The matching of heads of two models with the smallest summed distance; within layers, or across all.

    The assignment is optimal (`scipy.optimize.linear_sum_assignment`).
    """
    if not within_layers:
        columns: Int[np.ndarray, "head"] = linear_sum_assignment(differing)[1]
        return columns
    n = len(differing) // n_layers
    blocks = [slice(layer * n, (layer + 1) * n) for layer in range(n_layers)]
    return np.concatenate([block.start + linear_sum_assignment(differing[block, block])[1] for block in blocks])


def distance(a: Profile, b: Profile, *, within_layers: bool = True) -> float:
    """The distance of two models: the mean over matched heads and MLPs of their distances (for MLPs, the mean
    difference of their effects). 0 = identical, 1 = nothing in common.
    """
    differing = differences(a, b)
    heads = differing[np.arange(len(differing)), matched(differing, a.n_layers, within_layers)]
    return float(np.concatenate([heads, np.abs(a.mlps - b.mlps).mean(axis=1)]).mean())


def distances(profiles: list[Profile], *, within_layers: bool = True) -> Float[np.ndarray, "run other"]:
    """Every pair's distance."""
    apart = np.zeros((len(profiles), len(profiles)))
    for i, a in enumerate(profiles):
        for j, b in enumerate(profiles[:i]):
            apart[i, j] = apart[j, i] = distance(a, b, within_layers=within_layers)
    return apart
