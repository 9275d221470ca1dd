"""Inputs that begin alike are computed once as far as they are alike.

What a causal model computes at a position depends on the tokens up to it and on nothing later. Over a sorted list of
inputs (all sums, say: 1,000 first operands, 100,000 beginnings up to the tens digit of the second) most beginnings
repeat. `shared_logits` cuts the sequence where the number of different beginnings jumps, runs each segment once for
each different beginning, and hands its keys and values on to every continuation.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.networks.kv_cache import KeyValues
from algoscope.networks.transformer import Transformer

PORTION = 5000  # rows that run at once; fewer keep threads waiting for each other, more leave the processor's cache
WORTH_A_CUT = 4  # a cut is worth its gather when beginnings before it are at least this many times fewer


def plain_logits(
    model: Transformer, tokens: Int[Tensor, "batch pos"], at: slice
) -> Float[Tensor, "batch read d_vocab"]:
    """Logits at the positions `at`, which may not look ahead of themselves: the reference for `shared_logits`.

    A model with a causal mask answers in one forward. One without would see the answer it is asked for, so it reads
    each beginning on its own.
    """
    if model.cfg.causal:
        return model(tokens, at=at)
    places = range(*at.indices(tokens.shape[1]))
    return torch.cat([model(tokens[:, : place + 1], at=slice(place, place + 1)) for place in places], dim=1)


def shared_logits(
    model: Transformer, tokens: Int[Tensor, "batch pos"], at: slice
) -> Float[Tensor, "batch read d_vocab"]:
    """The same numbers as `plain_logits`, with equal beginnings of neighbouring rows computed once."""
    start, stop, _ = at.indices(tokens.shape[1])
    cuts = find_cuts(tokens[:, : start + 1]) if model.cfg.causal else []
    if not cuts:
        return torch.cat([plain_logits(model, portion, at) for portion in tokens.split(PORTION)])
    past, begin = KeyValues(), 0
    parent = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    for cut in cuts:
        first, branch = beginnings(tokens[:, :cut])
        if begin:
            past = past.rows(parent[first])
        model(tokens[first, begin:cut], at=slice(0, 0), past=past)
        parent, begin = branch, cut
    read = slice(start - begin, stop - begin)
    portions = zip(tokens[:, begin:stop].split(PORTION), parent.split(PORTION), strict=True)
    return torch.cat([model(rest, at=read, past=memory_for(past, own)) for rest, own in portions])


def memory_for(past: KeyValues, parent: Int[Tensor, "rows"]) -> KeyValues:
    """The memory of each row's beginning: without a copy where every beginning has the same number of rows."""
    first, last = int(parent[0]), int(parent[-1])
    size = len(parent) // (last - first + 1)
    if torch.equal(parent, torch.arange(first, last + 1, device=parent.device).repeat_interleave(size)):
        return past.families(first, last, size)
    return past.rows(parent)


def beginnings(prefix: Int[Tensor, "batch read"]) -> tuple[Int[Tensor, "different"], Int[Tensor, "batch"]]:
    """Rows at which a new beginning starts, and for every row the number of its beginning (neighbours only)."""
    new = torch.ones(len(prefix), dtype=torch.bool, device=prefix.device)
    new[1:] = (prefix[1:] != prefix[:-1]).any(dim=1)
    return new.nonzero()[:, 0], new.long().cumsum(0) - 1


def find_cuts(prefix: Int[Tensor, "batch read"]) -> list[int]:
    """Positions before which neighbouring rows are so often alike that computing them once is worth a gather."""
    n_rows, n_pos = prefix.shape
    new = (prefix[1:] != prefix[:-1]).long().cumsum(1).bool().sum(0) + 1  # different beginnings up to each position
    different = [*new.tolist(), n_rows]
    cuts = []
    for place in range(1, n_pos + 1):
        here = different[place - 1]
        after = different[place] if place < n_pos else n_rows
        if after >= WORTH_A_CUT * here:
            cuts.append(place)
    return cuts
