"""Attention targets: a set of keys for each query, by name, and how much of a head's attention falls on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.arguments import checked_arguments
from algoscope.core.errors import ConfigError

PORTION = 2**24  # most attention weights held in memory
Pattern = Float[Tensor, "batch head query key"]
Mask = Bool[Tensor, "#batch query key"] | Bool[Tensor, "query key"]
Queries = Bool[Tensor, "#batch query"] | Bool[Tensor, "query"] | slice | None


@checked_arguments
@dataclass(frozen=True, eq=False)
class AttentionTarget:
    """A set of keys for each query that a head may attend to, and measures of how much it does.

    Built-in targets: `previous-token`, `current-token`, `first-token`, `duplicate-token`, `induction`, offsets. A new
    one is used as `ag.lenses.roles(model, targets=[...])` scores every head for it.

    Args:
        name: the name of the role.
        mask: true at the target keys of each query, [batch query key] or [query key]; or a function of the token ids
            [batch key] that returns such a mask.
        queries: the queries that count, all by default: a slice of positions, or true at them [batch query] or [query].

    Example:
        >>> import algoscope as ag, torch
        >>> mask = torch.ones(5, 5).tril(-3).triu(-3).bool()
        >>> three_back = ag.AttentionTarget("three-back", mask, queries=slice(3, 5))
        >>> model = ag.open("planted:induction")
        >>> _, cache = model.run(model.to_tokens("abcab"), record=[("pattern", 1)])
        >>> [round(float(share), 2) for share in three_back.share(cache["pattern", 1])[0]]
        [0.0, 0.22]
    """

    name: str
    mask: Mask | Callable[[Int[Tensor, "batch key"]], Mask]
    queries: Queries = None

    def on(self, tokens: Int[Tensor, "batch key"], queries: slice = slice(None)) -> "AttentionTarget":
        """The same target with its mask computed for these tokens, at these queries only.

        Raises ConfigError for a mask that does not fit the tokens.
        """
        mask = self.mask(tokens) if callable(self.mask) else self.mask.to(tokens.device)
        batch, n = tokens.shape
        if mask.shape[-2:] != (n, n) or (mask.ndim == 3 and mask.shape[0] not in (1, batch)):
            raise ConfigError(
                f"the mask of the target {self.name!r} has the shape {list(mask.shape)}, which does not fit {batch} "
                f"inputs of {n} tokens: give a function of the tokens"
            )
        counted = self._counted(n, tokens.device) & _positions(queries, n, tokens.device)
        return replace(self, mask=mask, queries=counted)

    def share(self, pattern: Pattern) -> Float[Tensor, "batch head"]:
        """The mean share of attention on the target keys over the queries that count: 0 = none, 1 = all; NaN if none
        counts.
        """
        counted = self._counted(pattern.shape[-2], pattern.device)
        total = einsum(pattern, self._on_keys(pattern, counted), "b h q k, b q k -> b h")
        return total / counted.expand(len(pattern), -1).sum(dim=-1)[:, None]

    def share_by_query(self, pattern: Pattern) -> Float[Tensor, "batch head query"]:
        """The share of each query's attention on its target keys, whether the query counts or not."""
        everything = torch.ones(1, pattern.shape[-2], dtype=torch.bool, device=pattern.device)
        return einsum(pattern, self._on_keys(pattern, everything), "b h q k, b q k -> b h q")

    def above_chance(self, pattern: Pattern, causal: bool = True) -> Float[Tensor, "batch head"]:
        """Attention on the target keys beyond that of uniform attention: 0 = as uniform attention, 1 = all attention
        there, negative = less than uniform; NaN if no query has a target key and another key.

        Of the n visible keys of a query, m are target keys. The score is sum(share - m/n) / sum(1 - m/n) over the
        queries that count with 0 < m < n: the mean of (share - chance) / (1 - chance), each query weighted by
        1 - chance, so that queries with few other keys have little weight.
        """
        seen = visible(pattern.shape[-1], causal, pattern.device)
        target = replace(self, mask=self._mask() & seen)
        chance = (target._mask().sum(dim=-1) / seen.sum(dim=-1).to(pattern.dtype))[:, None]  # one for all heads
        counted = self._counted(pattern.shape[-2], pattern.device)[:, None] & (chance > 0) & (chance < 1)
        gain = ((target.share_by_query(pattern) - chance) * counted).sum(dim=-1)
        return (gain / ((1 - chance) * counted).sum(dim=-1)).expand(len(pattern), -1)

    def _mask(self) -> Bool[Tensor, "#batch query key"]:
        assert not callable(self.mask), f"{self.name} depends on tokens: on(tokens) first"
        return self.mask if self.mask.ndim == 3 else self.mask[None]

    def _on_keys(self, pattern: Pattern, queries: Bool[Tensor, "#batch query"]) -> Float[Tensor, "batch query key"]:
        return (self._mask() & queries[..., None]).expand(len(pattern), -1, -1).to(pattern.dtype)

    def _counted(self, n: int, device: torch.device) -> Bool[Tensor, "#batch query"]:
        queries = slice(None) if self.queries is None else self.queries
        chosen = _positions(queries, n, device) if isinstance(queries, slice) else queries.to(device)
        return chosen if chosen.ndim == 2 else chosen[None]


def visible(n: int, causal: bool, device: torch.device | None = None) -> Bool[Tensor, "query key"]:
    """The keys that each query can see."""
    everything = torch.ones(n, n, dtype=torch.bool, device=device)
    return everything.tril() if causal else everything


def as_shares(pattern: Pattern, cfg: ModelConfig) -> Pattern:
    """The attention pattern as shares of what each query attends to in all: with an attention rate below 1 the rows do
    not sum to one, and are divided by their sum.
    """
    return pattern if cfg.attn_rate == 1 else pattern / pattern.sum(dim=-1, keepdim=True)


def in_portions(tokens: Int[Tensor, "batch key"], cfg: ModelConfig) -> tuple[Int[Tensor, "some key"], ...]:
    """The inputs, a few at a time, so that the attention of all heads fits into memory."""
    return tokens.split(max(1, PORTION // (cfg.n_layers * cfg.n_heads * tokens.shape[1] ** 2)))


def _positions(chosen: slice, n: int, device: torch.device) -> Bool[Tensor, "query"]:
    at = torch.zeros(n, dtype=torch.bool, device=device)
    at[chosen] = True
    return at


# ---------------------------------------------------------------------- built-in targets


def offset(distance: int, name: str | None = None) -> AttentionTarget:
    """The key `distance` positions before the query; negative: after it."""
    return AttentionTarget(name or f"offset {distance}", lambda tokens: (_back(tokens) == distance)[None])


def _back(tokens: Int[Tensor, "batch key"]) -> Int[Tensor, "query key"]:
    """The distance from each query back to each key."""
    position = torch.arange(tokens.shape[1], device=tokens.device)
    return position[:, None] - position


def _same(tokens: Int[Tensor, "batch key"]) -> Bool[Tensor, "batch query key"]:
    return tokens[:, :, None] == tokens[:, None, :]


def _first(tokens: Int[Tensor, "batch key"]) -> Bool[Tensor, "1 query key"]:
    n = tokens.shape[1]
    return (torch.arange(n, device=tokens.device) == 0).expand(1, n, n)


def _after_an_occurrence(tokens: Int[Tensor, "batch key"]) -> Bool[Tensor, "batch query key"]:
    return F.pad(_same(tokens)[:, :, :-1], (1, 0)) & (_back(tokens) != -1)


PREVIOUS_TOKEN = offset(1, "previous-token")
CURRENT_TOKEN = offset(0, "current-token")
FIRST_TOKEN = AttentionTarget("first-token", _first)
DUPLICATE_TOKEN = AttentionTarget("duplicate-token", lambda tokens: _same(tokens) & (_back(tokens) != 0))
INDUCTION = AttentionTarget("induction", _after_an_occurrence)
