"""Shared-prefix evaluation: a prefix that several inputs share is computed once.

In a causal model, activations at a position depend only on the tokens up to it. In a sorted list of
inputs most prefixes repeat: all 1,000,000 three-digit sums have 1,000 first operands, and 100,000 prefixes up to the
tens digit of the second. `shared_logits` splits the sequence where the number of distinct prefixes jumps, runs each
segment once per distinct prefix, and passes its key-value cache to all continuations.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.networks.kv_cache import KeyValueCache
from algoscope.networks.logits_only import Network

PORTION = 5000  # rows per forward pass; fewer have a thread overhead, more exceed the processor's cache
WORTH_A_CUT = 4  # split where this reduces the number of rows at least by this factor


def plain_logits(model: Network, tokens: Int[Tensor, "batch pos"], at: slice) -> Float[Tensor, "batch read d_vocab"]:
    """Logits at the positions `at`, each from the tokens up to it alone: the reference for `shared_logits`.

    With a causal mask this takes one forward pass. Without one the model would attend to the answer, so each prefix is
    run separately.
    """
    if model.cfg.causal:
        return model(tokens, at=at)
    positions = range(*at.indices(tokens.shape[1]))
    return torch.cat([model(tokens[:, : pos + 1], at=slice(pos, pos + 1)) for pos in positions], dim=1)


def shared_logits(model: Network, tokens: Int[Tensor, "batch pos"], at: slice) -> Float[Tensor, "batch read d_vocab"]:
    """The same numbers as `plain_logits`, with equal prefixes of neighbouring rows computed once."""
    start, stop, _ = at.indices(tokens.shape[1])
    cuts = find_cuts(tokens[:, : start + 1]) if model.cfg.causal else []
    if not cuts:
        return torch.cat([plain_logits(model, portion, at) for portion in tokens.split(PORTION)])
    cache, begin = KeyValueCache(), 0
    prefix_of_row = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    for cut in cuts:
        first_rows, prefix_of_row_at_cut = distinct_prefixes(tokens[:, :cut])
        if begin:
            cache = cache.rows(prefix_of_row[first_rows])
        model(tokens[first_rows, begin:cut], at=slice(0, 0), cache=cache)
        prefix_of_row, begin = prefix_of_row_at_cut, cut
    read = slice(start - begin, stop - begin)
    portions = zip(tokens[:, begin:stop].split(PORTION), prefix_of_row.split(PORTION), strict=True)
    return torch.cat([model(rest, at=read, cache=cache_for(cache, prefixes)) for rest, prefixes in portions])


def cache_for(cache: KeyValueCache, prefix_of_row: Int[Tensor, "rows"]) -> KeyValueCache:
    """The cache of each row's prefix; not copied where every prefix has the same number of rows."""
    first, last = int(prefix_of_row[0]), int(prefix_of_row[-1])
    size = len(prefix_of_row) // (last - first + 1)
    every = torch.arange(first, last + 1, device=prefix_of_row.device)
    if torch.equal(prefix_of_row, every.repeat_interleave(size)):
        return cache.shared(first, last, size)
    return cache.rows(prefix_of_row)


def distinct_prefixes(
    prefix: Int[Tensor, "batch read"],
) -> tuple[Int[Tensor, "different"], Int[Tensor, "batch"]]:
    """The first row of each distinct prefix (among neighbours), and for every row the index of its prefix."""
    new = torch.ones(len(prefix), dtype=torch.bool, device=prefix.device)
    new[1:] = (prefix[1:] != prefix[:-1]).any(dim=1)
    return new.nonzero()[:, 0], new.long().cumsum(0) - 1


def find_cuts(prefix: Int[Tensor, "batch read"]) -> list[int]:
    """Positions at which to split: enough neighbouring rows share the prefix before them. The last position is read, so
    it is not in the cache, even where whole prefixes recur.
    """
    new = (prefix[1:] != prefix[:-1]).long().cumsum(1).bool().sum(0) + 1  # distinct prefixes up to each position
    n_distinct = new.tolist()
    return [cut for cut in range(1, len(n_distinct)) if n_distinct[cut] >= WORTH_A_CUT * n_distinct[cut - 1]]
