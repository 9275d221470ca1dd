"""Edits: what stands in place of an activation while a model runs. Frozen values; the model itself is never changed.

    subject.run(tokens, edits=[Zero(("z", 0), head=0), Patch(("resid_mid", 1), clean_value, pos=7)])

Every edit names a site and may be limited to positions, keys, heads or units of it; without a limit it covers the site.
Edits at one site compose in the order given.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.errors import EditError
from algoscope.core.sites import KINDS, Key, Site
from algoscope.subjects.cache import Recorder

Indices = int | tuple[int, ...] | None
Value = Float[Tensor, "..."]


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """One change at one site. `pos` limits it to positions (of the query, in a pattern), `key` to attended positions,
    `head` to heads, `unit` to entries of the last axis; negative indices count from the end.
    """

    site: Key
    _: KW_ONLY
    pos: Indices = None
    key: Indices = None
    head: Indices = None
    unit: Indices = None

    LIMITS: ClassVar[dict[str, tuple[str, ...]]] = {
        "pos": ("pos", "query"),
        "key": ("key",),
        "head": ("head", "kv_head"),
        "unit": ("d_model", "d_mlp", "d_head"),
    }

    @abstractmethod
    def new(self, old: Value) -> Value:
        """What the site would hold if the edit covered it; may broadcast against `old`."""

    def apply(self, old: Value, kind: str) -> Value:
        """`old` with the edit made. Raises EditError for a limit that the site has not, an index outside it, and a
        value of the wrong shape. A score that the causal mask hides stays hidden.
        """
        self.check(old.shape, kind)
        return self.write(old.clone(), kind)

    def write(self, value: Value, kind: str) -> Value:
        """The edit made in place: `apply` for a value that nobody else holds, at a site that was checked."""
        where = self.where(value.shape, kind)
        new = self.new(value).to(value.dtype).expand_as(value)
        if kind == "attn_scores":
            new = torch.where(value.isneginf(), value, new)
        value[where] = new[where].to(value.device)
        return value

    def where(self, shape: Sequence[int], kind: str) -> tuple[slice | Int[Tensor, "..."], ...]:
        """The index of what the edit covers at a site of this shape; lists of places mean all their combinations."""
        axes = KINDS[kind].axes
        where: list[slice | Int[Tensor, "..."]] = [slice(None)] * len(shape)
        lists: dict[int, tuple[int, ...]] = {}
        for limit, names in self.LIMITS.items():
            chosen = getattr(self, limit)
            if chosen is None:
                continue
            axis = next((axes.index(name) for name in names if name in axes), None)
            if axis is None:
                raise EditError(f"{self._said()}: the site has no axis for {limit}={chosen}; its axes are {axes}")
            size = shape[axis]
            outside = [i for i in ((chosen,) if isinstance(chosen, int) else chosen) if not -size <= i < size]
            if outside:
                raise EditError(f"{self._said()}: {limit} {outside[0]} is outside the {size} that the site has")
            if isinstance(chosen, int):
                where[axis] = slice(chosen % size, chosen % size + 1)
            else:
                lists[axis] = chosen
        for i, (axis, places) in enumerate(lists.items()):
            where[axis] = torch.tensor(places).view(-1, *[1] * (len(lists) - 1 - i))
        return tuple(where)

    def check(self, shape: Sequence[int], kind: str) -> None:
        """Raises what `apply` would raise at a site of this shape, without a value."""
        self.where(shape, kind)

    def _fit(self, new: Sequence[int], old: Sequence[int]) -> None:
        fits = len(new) <= len(old) and all(n in (1, o) for n, o in zip(reversed(new), reversed(old), strict=False))
        if not fits:
            raise EditError(f"{self._said()}: a value of shape {tuple(new)} does not fit {tuple(old)}")

    def _said(self) -> str:
        return f"{type(self).__name__} at {self.site}"


@dataclass(frozen=True, eq=False)
class Zero(Edit):
    """Zeros."""

    def new(self, old: Value) -> Value:
        return torch.zeros_like(old)


@dataclass(frozen=True, eq=False, kw_only=True)
class Patch(Edit):
    """A value from elsewhere: the site's activation in another run, or anything that broadcasts against it."""

    value: Value

    def new(self, old: Value) -> Value:
        return self.value

    def check(self, shape: Sequence[int], kind: str) -> None:
        super().check(shape, kind)
        self._fit(self._shape, shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        """What has to fit the site."""
        return tuple(self.value.shape)


@dataclass(frozen=True, eq=False)
class Mean(Patch):
    """The mean over the inputs of `value` [batch ...], position by position; these need not be those of the run."""

    def new(self, old: Value) -> Value:
        return self.value.mean(dim=0, keepdim=True)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (1, *self.value.shape[1:])


@dataclass(frozen=True, eq=False, kw_only=True)
class Resample(Patch):
    """The rows of `value` [batch ...] in an order drawn from `seed`: each input gets another's activation."""

    seed: int = 0

    def new(self, old: Value) -> Value:
        order = torch.randperm(len(self.value), generator=torch.Generator().manual_seed(self.seed))
        return self.value[order.to(old.device)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Patch):
    """`value` (a direction, say [d_model]) times `scale`, added to what is there."""

    scale: float = 1.0

    def new(self, old: Value) -> Value:
        return old + self.scale * self.value


@dataclass(frozen=True, eq=False, kw_only=True)
class Rotate(Patch):
    """Within the subspace that the orthonormal columns of `basis` span, the component of `value`; outside it, what was
    there. Source: distributed interchange, Geiger and others, arXiv 2303.02536.
    """

    basis: Float[Tensor, "d_model rank"]

    def new(self, old: Value) -> Value:
        return old + (self.value - old) @ self.basis @ self.basis.mT

    def check(self, shape: Sequence[int], kind: str) -> None:
        super().check(shape, kind)
        if len(self.basis) != shape[-1]:
            raise EditError(f"{self._said()}: a basis of {len(self.basis)} rows does not fit {shape[-1]} units")


def some(edits: Sequence[Edit]) -> Sequence[Edit]:
    """The edits. Raises EditError where there are none, which would leave nothing to run."""
    if not edits:
        raise EditError("no edits: run_each makes one run for each edit, so give one or more (run makes one without)")
    return edits


class Editor(Recorder):
    """A listener that makes edits, and keeps what then passes at some sites."""

    def __init__(self, edits: Sequence[tuple[Site, Edit]], sites: frozenset[Site] = frozenset()) -> None:
        super().__init__(sites)
        self.edits = edits
        self.kinds |= {site.kind for site, _ in edits}
        self.layers = frozenset(site.layer for site in [*sites, *(site for site, _ in edits)])

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        for site, edit in self.edits:
            if site == Site(kind, layer):
                value = edit.apply(value, kind)
        return super().__call__(kind, layer, value)
