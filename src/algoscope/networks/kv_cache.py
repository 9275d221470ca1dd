"""The key-value cache: keys and values of the tokens already processed, so that none is computed twice."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.networks.attention_kernels import join_keys, multiply_shared
from algoscope.networks.taps import precise

KeysValues = tuple[Float[Tensor, "prefix kv_head cached d_head"], Float[Tensor, "prefix kv_head cached d_head"]]


@dataclass(frozen=True)
class AttendedKeys:
    """The keys and values that the queries of one layer attend to: those of the cache, then those of the new tokens.

    Groups of query heads may share a key-value head. Each row of the cache serves `rows_per_prefix` neighbouring rows
    of the new tokens.
    """

    keys: Float[Tensor, "batch kv_head pos d_head"]
    values: Float[Tensor, "batch kv_head pos d_head"]
    cached: KeysValues | None = None
    rows_per_prefix: int = 1

    def scores(self, queries: Float[Tensor, "batch head query d_head"]) -> Float[Tensor, "batch head query key"]:
        """The product of every query with every key, before scaling and masking; of half precision in float32."""
        n_heads, queries = queries.shape[1], queries.to(precise(queries.dtype))
        new = queries @ _for_heads(self.keys, n_heads).mT
        if self.cached is None:
            return new
        return join_keys(multiply_shared(queries, _for_heads(self.cached[0], n_heads).mT, self.rows_per_prefix), new)

    def mix(self, pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query d_head"]:
        """The mean of the values, weighted by the attention pattern."""
        n_heads, pattern = pattern.shape[1], pattern.to(precise(pattern.dtype))
        n_cached = pattern.shape[-1] - self.values.shape[2]
        mixed = pattern[..., n_cached:] @ _for_heads(self.values, n_heads)
        if self.cached is not None:
            cached_values = _for_heads(self.cached[1], n_heads)
            mixed += multiply_shared(pattern[..., :n_cached], cached_values, self.rows_per_prefix)
        return mixed.to(self.values.dtype)


def _for_heads(x: Float[Tensor, "any kv_head pos d_head"], n_heads: int) -> Float[Tensor, "any head pos d_head"]:
    """Keys or values, repeated for each query head of their group, in the type of products."""
    x, group = x.to(precise(x.dtype)), n_heads // x.shape[1]
    return x if group == 1 else x.repeat_interleave(group, dim=1)


class KeyValueCache:
    """The keys and values of every layer for the tokens already processed.

    Each cached row serves `rows_per_prefix` neighbouring rows of the tokens that follow, which share that prefix.
    """

    def __init__(self, layers: list[KeysValues] | None = None, rows_per_prefix: int = 1) -> None:
        self.layers, self.rows_per_prefix = layers or [], rows_per_prefix

    def length(self, layer: int) -> int:
        """Cached positions of a layer; during a forward pass, earlier layers can have more than later ones."""
        return self.layers[layer][0].shape[2] if layer < len(self.layers) else 0

    def extend(
        self,
        layer: int,
        keys: Float[Tensor, "batch kv_head pos d_head"],
        values: Float[Tensor, "batch kv_head pos d_head"],
    ) -> AttendedKeys:
        """Add the keys and values of new tokens to one layer, and return all that those tokens attend to.

        A cache that several rows share is not extended, since their new tokens differ.
        """
        if layer >= len(self.layers):
            self.layers.append((keys, values))
            return AttendedKeys(keys, values)
        cached = self.layers[layer]
        if self.rows_per_prefix == 1:
            self.layers[layer] = (torch.cat([cached[0], keys], dim=2), torch.cat([cached[1], values], dim=2))
        return AttendedKeys(keys, values, cached, self.rows_per_prefix)

    def rows(self, index: Int[Tensor, "rows"]) -> "KeyValueCache":
        """A copy with the rows `index`, repeated as listed."""
        return KeyValueCache([(keys[index], values[index]) for keys, values in self.layers])

    def shared(self, first: int, last: int, rows_per_prefix: int) -> "KeyValueCache":
        """The rows `first` to `last`, each shared by `rows_per_prefix` rows; nothing is copied."""
        layers = [(keys[first : last + 1], values[first : last + 1]) for keys, values in self.layers]
        return KeyValueCache(layers, rows_per_prefix)
