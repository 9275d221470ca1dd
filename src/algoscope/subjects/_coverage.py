"""What an edit covers of a site, and how a value fits that."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.errors import EditError

LIMITS: dict[str, tuple[str, ...]] = {
    "pos": ("pos", "query"),
    "key": ("key",),
    "head": ("head", "kv_head"),
    "unit": ("d_model", "d_mlp", "d_head"),
}
"""The axes that each limit of an edit is about."""


@dataclass(frozen=True)
class Coverage:
    """The entries of a site that an edit covers: all indices of an axis, or those of `limits`.

    A value for them is given for the whole site, for the covered indices (`v[:, [1, 3]]` for pos=(1, 3)), or without
    the axes that are limited to a single index (`v[:, 3]` for pos=3); axes of size 1 are repeated. A number or a
    vector along the last axis is repeated along all others, and an edit without limits takes what broadcasts.
    """

    label: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    limits: Mapping[int, tuple[int, ...]]
    single: frozenset[int]  # limited to one index that was given as a number

    @classmethod
    def of(cls, label: str, shape: Sequence[int], axes: tuple[str, ...], limits: Mapping[str, Any]) -> "Coverage":
        """Raises EditError for a limit without a matching axis, and for an index out of range or given twice."""
        indices: dict[int, tuple[int, ...]] = {}
        single = set()
        for limit, chosen in limits.items():
            axis = next((axes.index(name) for name in LIMITS[limit] if name in axes), None)
            if axis is None:
                raise EditError(f"{label}: the site has no axis for {limit}={chosen}; its axes are {axes}")
            indices[axis], is_single = _indices(f"{label}: {limit}", chosen, shape[axis])
            single |= {axis} if is_single else set()
        return cls(label, tuple(shape), axes, indices, frozenset(single))

    @property
    def covered(self) -> tuple[int, ...]:
        """The shape of the covered entries."""
        return tuple(len(self.limits.get(axis, range(size))) for axis, size in enumerate(self.shape))

    @cached_property
    def where(self) -> tuple[slice | Int[Tensor, "..."], ...]:
        """The index of the covered entries, which keeps every axis in its place."""
        lists = [axis for axis, indices in self.limits.items() if len(indices) > 1]
        if len(lists) < 2:
            where: list[slice | Int[Tensor, "..."]] = [slice(None)] * len(self.shape)
            for axis, indices in self.limits.items():
                where[axis] = torch.tensor(indices) if axis in lists else slice(indices[0], indices[0] + 1)
            return tuple(where)
        rows = [self.limits.get(axis, range(size)) for axis, size in enumerate(self.shape)]
        return tuple(torch.tensor(row).view(-1, *[1] * (len(rows) - 1 - axis)) for axis, row in enumerate(rows))

    def is_of_the_site(self, value: Tensor) -> bool:
        """Whether a value that fits has the axes of the whole site."""
        broadcasts = all(n in (1, size) for n, size in zip(value.shape[::-1], self.shape[::-1], strict=False))
        return broadcasts and (value.ndim == len(self.shape) or not self.limits)

    def fitted(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The value for the covered entries, each axis of their size or 1.

        Raises EditError for a value that does not fit, and for one that fits in two ways with different results.
        """
        sizes = self.shape
        if value.shape == sizes and all(len(chosen) < sizes[axis] for axis, chosen in self.limits.items()):
            return _selected(value, self.limits)  # the only way to read it
        readings = list(self._readings(value))
        if not readings:
            raise EditError(f"{self.label}: a value of shape {tuple(value.shape)} does not fit {self._forms}")
        first = readings[0].expand(self.covered) if len(readings) > 1 else readings[0]
        if not all(torch.equal(first, other.expand(self.covered)) for other in readings[1:]):
            raise EditError(
                f"{self.label}: a value of shape {tuple(value.shape)} can be read in two ways; give it for the whole "
                f"site, {self._shape_in_words}, with the indices of a limit in ascending order"
            )
        return readings[0]

    def _readings(self, value: Tensor) -> Iterator[Tensor]:
        """Every way to read a value."""
        n_axes = len(self.shape)
        absent: list[tuple[int, ...]] = list(combinations(sorted(self.single), max(0, n_axes - value.ndim)))
        if value.ndim < 2 or not self.limits:
            absent.append(tuple(range(n_axes - value.ndim)))
        for missing in dict.fromkeys(absent):
            if n_axes - len(missing) != value.ndim:
                continue
            spread = value
            for axis in missing:
                spread = spread.unsqueeze(axis)
            ways = [list(self._ways(axis, size)) for axis, size in enumerate(spread.shape)]
            for way in product(*ways):
                yield _selected(spread, dict(chain(*way)))

    def _ways(self, axis: int, size: int) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        """For an axis of a value, the indices to select of it: none, where it is that of the covered entries."""
        limit = self.limits.get(axis)
        if size == 1 or size == len(self.limits.get(axis, range(self.shape[axis]))):
            yield []
        if limit is not None and size == self.shape[axis] > 1 and limit != tuple(range(size)):
            yield [(axis, limit)]

    @property
    def _shape_in_words(self) -> str:
        return f"{self.shape} [{' '.join(self.axes)}]"

    @property
    def _forms(self) -> str:
        """The forms that a value may have."""
        if not self.limits:
            return self._shape_in_words
        kept = [axis for axis in range(len(self.shape)) if axis not in self.single]
        covered = tuple(self.covered[axis] for axis in kept)
        return (
            f"{self._shape_in_words}; it may also be given only for what the edit covers, "
            f"{covered} [{' '.join(self.axes[axis] for axis in kept)}]"
        )


def _selected(value: Tensor, indices: Mapping[int, tuple[int, ...]]) -> Tensor:
    for axis, chosen in indices.items():
        if len(chosen) == 1:
            value = value.narrow(axis, chosen[0], 1)
        else:
            value = value.index_select(axis, torch.tensor(chosen, device=value.device))
    return value


def _indices(what: str, chosen: Any, size: int) -> tuple[tuple[int, ...], bool]:
    """The indices that a limit names, none negative, and whether it is a single number."""
    if isinstance(chosen, slice):
        numbers, single = list(range(size)[chosen]), False
    else:
        try:
            numbers, single = _whole_numbers(chosen)
        except TypeError:
            raise EditError(
                f"{what}={chosen!r} names no index: give a whole number, several in a tuple, or a slice"
            ) from None
    if not numbers:
        raise EditError(f"{what}={chosen!r} names no index, so the edit would cover nothing; None covers all")
    for number in numbers:
        if not -size <= number < size:
            raise EditError(f"{what} {number} is out of range, the site has {size}")
    numbers = [number % size for number in numbers]
    if len(set(numbers)) < len(numbers):
        raise EditError(f"{what}={chosen!r} names an index twice")
    return tuple(numbers), single


def _whole_numbers(chosen: Any) -> tuple[list[int], bool]:
    """The numbers of an index or of a sequence of them, and whether it is one number. Raises TypeError for others."""
    if hasattr(chosen, "tolist"):  # of NumPy or PyTorch
        chosen = chosen.tolist()
    if isinstance(chosen, bool | str):
        raise TypeError
    if not isinstance(chosen, Sequence):
        return [operator.index(chosen)], True
    if any(isinstance(number, bool) for number in chosen):
        raise TypeError
    return [operator.index(number) for number in chosen], False
