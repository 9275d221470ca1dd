"""events -> linear maps: products of a value with a weight, and their biases, as rows times a matrix.

A matrix product of PyTorch has its operands in one of a few arrangements; `einsum` and `@` end in the same few. Each is
read as x [row in] @ W.T [in out] + b, with where its weight and bias come from, so that the same matrices can be taken
from another run of the module.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from algoscope.formats.own_modules.tracing import Event, Value


class Places:
    """Weights of a run by their place, the index of an event and the position of an argument: as the module has them,
    or in float64, made when they are asked for, since all at once would not fit.
    """

    def __init__(self, values: Mapping[tuple[int, int], Value], stored: bool) -> None:
        self.values, self.stored = values, stored

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        value = self.values[place]
        return value.raw if self.stored else value.tensor


@dataclass(frozen=True)
class Weight:
    """A weight as the module uses it: an argument of an event, and how to bring it into our arrangement."""

    event: int
    arg: int
    arrange: Callable[[Tensor], Tensor]

    @property
    def place(self) -> tuple[int, int]:
        return self.event, self.arg

    def of(self, places: Places) -> Tensor:
        return self.arrange(places[self.place])


@dataclass(eq=False)
class LinearMap:
    """x [row in] -> y [row out]. The rows are positions of inputs, in an order that `order` says once it is known."""

    event: Event
    x: Tensor
    y: Tensor
    weight: Weight
    """[out in]"""
    bias: Weight | None = None
    """[out]"""
    order: str = ""
    """`bp` where positions are the inner axis of the rows, `pb` where inputs are."""
    turned: bool = False
    """Whether the product has positions as columns."""
    out: Value | None = None
    """The output of the product, or of the sum over heads that completes it."""
    last: int = 0
    """The event after which y is complete, with its bias."""
    path: str = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.event.path
        self.last = max(self.last, self.event.index)
        self.out = self.out or self.event.out

    @property
    def n_in(self) -> int:
        return self.x.shape[-1]

    @property
    def n_out(self) -> int:
        return self.y.shape[-1]


def in_order(rows: Tensor, order: str, batch: int) -> Tensor:
    """Rows [batch*pos n] or [pos*batch n] as [batch pos n]."""
    if order == "bp":
        return rows.reshape(batch, -1, rows.shape[-1])
    return rows.reshape(-1, batch, rows.shape[-1]).transpose(0, 1)


def linear_maps(events: Sequence[Event], batch: int) -> list[LinearMap]:
    """Every product of a value with a weight, in the order of the run."""
    maps = []
    for event in events:
        operands = [(i, arg) for i, arg in enumerate(event.args) if isinstance(arg, Value)]
        if event.op == "mm":
            (i, left), (j, right) = operands
            found = _of_matrices(event, i, left, j, right)
        elif event.op == "addmm":
            (k, bias), (i, left), (j, right) = operands
            found = None if bias.is_data else _of_matrices(event, i, left, j, right)
            if found is not None:
                found.bias = Weight(event.index, k, _flat_bias)
        elif event.op == "bmm":
            (i, left), (j, right) = operands
            found = _of_batches(event, i, left, j, right, batch, events)
        elif event.op == "convolution":
            found = _of_convolution(event)
        else:
            continue
        if found is not None:
            maps.append(found)
    for one in maps:
        if one.bias is None:
            _add_bias(one, events)
    return maps


def data_products(events: Sequence[Event]) -> list[Event]:
    """Products of two values that both depend on the tokens, as attention has."""
    return [event for event in events if event.op in ("bmm", "baddbmm") and len(_factors(event)) == 2]


def _factors(event: Event) -> list[Value]:
    values = [arg for arg in event.args if isinstance(arg, Value)][-2:]
    return [value for value in values if value.is_data]


def factors(event: Event) -> tuple[Tensor, Tensor]:
    """The two operands of a product of values."""
    left, right = _factors(event)
    return left.tensor, right.tensor


def _of_matrices(event: Event, i: int, left: Value, j: int, right: Value) -> LinearMap | None:
    out = event.out.tensor
    if left.is_data and not right.is_data:
        return LinearMap(event, left.tensor, out, Weight(event.index, j, _transposed))
    if right.is_data and not left.is_data:  # W @ x, with positions as columns
        return LinearMap(event, right.tensor.T, out.T, Weight(event.index, i, _as_it_is), turned=True)
    return None


def _of_batches(
    event: Event, i: int, left: Value, j: int, right: Value, batch: int, events: Sequence[Event]
) -> LinearMap | None:
    """A product for each head, or for each input, with a weight that may differ from head to head."""
    out = event.out.tensor
    if left.is_data and not right.is_data:
        x, w, y, arg, turn, turned = left.tensor, right.tensor, out, j, _turned, False
    elif right.is_data and not left.is_data:
        x, w, y, arg, turn, turned = right.tensor.mT, left.tensor, out.mT, i, _as_it_is, True
    else:
        return None
    # x [part row in], y [part row out], w [part ...]
    parts = w.shape[0]
    for size in (parts, batch, 1):  # `@` repeats the weight over inputs, or over positions
        if parts % size == 0 and _repeats(w, size):
            inner = parts // size
            rows, n_in, n_out = x.shape[1], x.shape[2], y.shape[2]
            x4 = x.reshape(size, inner, rows, n_in).transpose(1, 2).reshape(size * rows, inner, n_in)
            y4 = y.reshape(size, inner, rows, n_out).transpose(1, 2).reshape(size * rows, inner, n_out)
            break
    else:
        return None
    if inner == 1 or bool((x4 == x4[:, :1]).all()):  # one input for every head: their outputs side by side
        weight = Weight(event.index, arg, lambda t: turn(t)[:inner].flatten(0, 1))
        return LinearMap(event, x4[:, 0], y4.flatten(1), weight, turned=turned)
    weight = Weight(event.index, arg, lambda t: torch.cat(list(turn(t)[:inner]), dim=1))
    total = y4.sum(1)  # the outputs of heads, which the module sums
    for other in events:
        if other.op != "sum" or other.index < event.index or other.out.raw.numel() != total.numel():
            continue
        if torch.allclose(other.out.tensor.reshape(total.shape), total, rtol=1e-12, atol=1e-12):
            return LinearMap(event, x4.flatten(1), total, weight, out=other.out, last=other.index)
    return None


def _of_convolution(event: Event) -> LinearMap | None:
    """A convolution over single positions: x [batch in pos] -> y [batch out pos]."""
    value, weight, bias = event.args[:3]
    if not isinstance(value, Value) or not isinstance(weight, Value) or not value.is_data or weight.is_data:
        return None
    if value.tensor.ndim != 3 or weight.tensor.shape[-1] != 1 or weight.tensor.shape[1] != value.tensor.shape[1]:
        return None
    x, y = (t.transpose(1, 2).flatten(0, 1) for t in (value.tensor, event.out.tensor))
    has_bias = isinstance(bias, Value)
    return LinearMap(
        event, x, y, Weight(event.index, 1, _without_last),
        Weight(event.index, 2, _as_it_is) if has_bias else None, turned=True,
    )  # fmt: skip


def _repeats(w: Tensor, size: int) -> bool:
    blocks = w.reshape(size, -1)
    return bool((blocks == blocks[:1]).all())


def _add_bias(one: LinearMap, events: Sequence[Event]) -> None:
    """The bias that is added to the output of a map, directly or to a view of it."""
    out = one.out
    for event in events:
        if event.index <= one.last or event.op != "add" or len(event.args) < 2:
            continue
        first, second = event.args[:2]
        if out is None or not (isinstance(first, Value) and isinstance(second, Value)):
            continue
        (value, j, bias) = (first, 1, second) if first.is_data else (second, 0, first)
        if bias.is_data or not value.is_data or value.place != out.place or bias.tensor.numel() != one.n_out:
            continue
        columns = _columns_of(out, value, one)
        plain = value.tensor + bias.tensor.double()
        if columns is None or not torch.equal(event.out.tensor, plain):
            continue

        def arrange(t: Tensor, columns: Tensor = columns, n_out: int = one.n_out) -> Tensor:
            result = torch.empty(n_out, dtype=t.dtype)
            result[columns.flatten()] = t.expand(columns.shape).flatten()
            return result

        one.bias, one.last = Weight(event.index, j, arrange), event.index
        one.y = one.y + arrange(bias.tensor.double())
        return


def _columns_of(out: Value, view: Value, one: LinearMap) -> Tensor | None:
    """For each entry of a view of a map's output, the column of y that it is."""
    size, stride, offset = out.layout
    if out.tensor.numel() != view.tensor.numel():
        return None
    if one.event.op == "bmm" and out is one.event.out:
        entries = size[1] if one.turned else size[2]
        head = torch.arange(size[0]) % (one.n_out // entries)
        entry = torch.arange(entries)
        number = head[:, None, None] * entries + (entry[:, None] if one.turned else entry)
    else:
        number = torch.arange(one.n_out)
        number = number[:, None] if one.turned else number
    storage = torch.zeros(1 + offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)), dtype=torch.long)
    storage.as_strided(size, stride, offset).copy_(number.expand(size))
    return storage.as_strided(*view.layout)


def _as_it_is(t: Tensor) -> Tensor:
    return t


def _transposed(t: Tensor) -> Tensor:
    return t.T


def _turned(t: Tensor) -> Tensor:
    return t.mT


def _without_last(t: Tensor) -> Tensor:
    return t[..., 0]


def _flat_bias(t: Tensor) -> Tensor:
    return t.reshape(-1)
