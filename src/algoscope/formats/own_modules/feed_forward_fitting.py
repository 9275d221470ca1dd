"""linear maps -> feed-forward layers: which map reads the activation of which others."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from algoscope.formats.own_modules.linear_maps import LinearMap
from algoscope.formats.own_modules.norm_fitting import same
from algoscope.formats.own_modules.tracing import Unexplained
from algoscope.networks._activations import ACTIVATIONS


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a linear map: its outputs from one on."""

    one: LinearMap
    index: Tensor

    @property
    def values(self) -> Tensor:
        return self.one.y[:, self.index]


@dataclass(frozen=True, eq=False)
class FeedForwardUnit:
    """A feed-forward layer: x -> out(act(w_in x) * w_linear x), the product only where it is gated."""

    w_in: Rows
    w_linear: Rows | None
    act_fn: str
    out: LinearMap

    @property
    def inputs(self) -> list[LinearMap]:
        maps = [self.w_in.one] + ([self.w_linear.one] if self.w_linear else [])
        return list(dict.fromkeys(maps))

    @property
    def first(self) -> int:
        return min(one.event.index for one in self.inputs)


def feed_forward_units(maps: Sequence[LinearMap]) -> list[FeedForwardUnit]:
    """The feed-forward layers among linear maps that belong to no attention. What is left has no place: see `left`."""
    units: list[FeedForwardUnit] = []
    free: list[LinearMap] = []
    for one in maps:
        unit = next((found for found in (_unit(before, one) for before in _choices(free)) if found), None)
        if unit is None:
            free.append(one)
        else:
            units.append(unit)
            free = [other for other in free if other not in unit.inputs]
    if free:
        raise _unplaced(free[0], maps)
    return units


def _choices(free: Sequence[LinearMap]) -> list[tuple[LinearMap, ...]]:
    last = list(free[-3:])
    pairs = [(a, b) for a in last for b in last if a is not b]
    return [*((one,) for one in reversed(last)), *reversed(pairs)]


def _unit(before: tuple[LinearMap, ...], out: LinearMap) -> FeedForwardUnit | None:
    width = out.n_in
    pairs: list[tuple[Rows, Rows | None]] = []
    if len(before) == 1 and before[0].n_out == width:
        pairs = [(Rows(before[0], torch.arange(width)), None)]
    elif len(before) == 1 and before[0].n_out == 2 * width:
        halves = torch.arange(width), torch.arange(width, 2 * width)
        turns = torch.arange(0, 2 * width, 2), torch.arange(1, 2 * width, 2)
        pairs = [(Rows(before[0], a), Rows(before[0], b)) for x, y in (halves, turns) for a, b in ((x, y), (y, x))]
    elif len(before) == 2 and before[0].n_out == before[1].n_out == width:
        pairs = [(Rows(before[0], torch.arange(width)), Rows(before[1], torch.arange(width)))]
    for gate, linear in pairs:
        if gate.values.shape != out.x.shape:
            continue
        for name, act in ACTIVATIONS.items():
            post = act(gate.values)
            if same(post if linear is None else post * linear.values, out.x):
                return FeedForwardUnit(gate, linear, name, out)
    return None


def _unplaced(one: LinearMap, maps: Sequence[LinearMap]) -> Unexplained:
    later = [
        other for other in maps if other.event.index > one.event.index and other.n_in in (one.n_out, one.n_out / 2)
    ]
    known = ", ".join(ACTIVATIONS)
    path = one.path or "a matrix of the module"
    if later:
        message = (
            f"{path} is read by {later[0].path or 'another matrix'} through an activation that is none of ours: {known}"
        )
    else:
        message = f"{path} is part of no attention and no feed-forward of two matrices, or three when gated"
    return Unexplained(path, message, one.event.index)
