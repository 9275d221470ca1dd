"""events -> the token embedding, and every value that is a multiple of it plus position embeddings."""

from dataclasses import dataclass

from torch import Tensor

from algoscope.formats.own_modules.linear_maps import Weight, in_order, linear_maps
from algoscope.formats.own_modules.norm_fitting import CLOSE, same
from algoscope.formats.own_modules.tracing import EMBEDDINGS, Event, Unexplained, Value, is_one_hot

ORDERS = ("bp", "pb")
PRODUCTS = ("mm", "addmm", "bmm")


@dataclass(frozen=True, eq=False)
class Embedding:
    """The stream before the first block: scale * row of the token + row of the position."""

    event: Event
    weight: Weight
    """[d_vocab d_model]"""
    scale: float
    positions: Tensor | None
    """[pos d_model]; None where nothing is added."""
    stream: Tensor
    """[batch pos d_model]"""
    last: int
    """The event that completes it."""

    @property
    def d_model(self) -> int:
        return self.stream.shape[-1]


@dataclass(frozen=True, eq=False)
class Run:
    """A recorded run on noise: events, and what the module returned."""

    events: list[Event]
    scalars: tuple[float, ...]
    output: Tensor
    tokens: Tensor

    @property
    def batch(self) -> int:
        return self.tokens.shape[0]

    def streams(self, d_model: int, after: int, before: int) -> list[tuple[int, Tensor]]:
        """Every value [batch pos d_model] that a range of events computed, with the event."""
        n = self.tokens.numel() * d_model
        found = []
        for event in self.events:
            if after <= event.index < before:
                for value in event.outs:
                    if value.raw.numel() == n and value.raw.shape[-1] == d_model and value.raw.is_floating_point():
                        found += [(event.index, one) for one in self.ways(value.raw)]
        return found

    def embedding_rows(self, event: Event) -> int:
        """The number of tokens, of the embedding that an event looks up."""
        weight, _ = embedding_weight(self, event)
        value = event.args[weight.arg]
        assert isinstance(value, Value)
        return int(weight.arrange(value.raw).shape[0])

    def ways(self, value: Tensor) -> list[Tensor]:
        """A value as [batch pos d_model], in each order that its rows may have."""
        batch, n = self.tokens.shape
        rows = value.reshape(-1, value.shape[-1])
        shape = value.shape[:-1]
        orders = ["bp"] if shape == (batch, n) else ["pb"] if shape == (n, batch) else list(ORDERS)
        return [in_order(rows, order, batch) for order in orders]


def embedding_event(run: Run) -> Event:
    """The event that looks up the embeddings of the tokens, or multiplies one-hot rows of them."""
    n = run.tokens.numel()
    for event in run.events:
        weights = [arg for arg in event.args if isinstance(arg, Value) and not arg.is_data and arg.raw.ndim >= 2]
        if len(event.data) != 1 or not weights or not event.outs:
            continue
        if event.op in EMBEDDINGS and event.data[0].raw.numel() == n and event.out.raw.numel() > n:
            return event
        if event.op in PRODUCTS and is_one_hot(event.data[0].raw, run.tokens):
            return event
    raise Unexplained("embedding", "the module looks up no embedding of its tokens")


def embedding_weight(run: Run, event: Event) -> tuple[Weight, Tensor]:
    """The token embedding of an event, and its output [batch pos d_model]."""
    if event.op in PRODUCTS:
        (one,) = linear_maps([event], run.batch)
        product = one.weight
        weight = Weight(event.index, product.arg, lambda t: product.arrange(t).T)
        return weight, in_order(one.y, "bp", run.batch)
    arg = next(i for i, arg in enumerate(event.args) if isinstance(arg, Value) and not arg.is_data)
    if event.out.raw.shape[-1] == event.args[arg].raw.shape[-1]:
        return Weight(event.index, arg, _as_it_is), run.ways(event.out.raw)[0]
    return Weight(event.index, arg, _transposed), run.ways(event.out.raw.movedim(0, -1))[0]  # a column for each token


def _as_it_is(t: Tensor) -> Tensor:
    return t


def _transposed(t: Tensor) -> Tensor:
    return t.T


def embeddings(run: Run, event: Event, before: int) -> list[Embedding]:
    """Every value before the first part that is scale * token embedding + position embedding, the latest first."""
    weight, e = embedding_weight(run, event)
    found = []
    values = [(event.index, e), *run.streams(e.shape[-1], event.index, before)]
    for index, value in values:
        scale = _scale(e, value)
        if scale is None:
            continue
        rest = (value - scale * e).mean(dim=0)
        positions = None if float(rest.abs().max()) <= CLOSE * float(value.abs().max()) else rest
        found.append(Embedding(event, weight, scale, positions, value, index))
    return found[::-1]


def _scale(e: Tensor, value: Tensor) -> float | None:
    """The number s for which value - s * e is the same for every input; None where there is none."""
    de, dv = e - e.mean(dim=0), value - value.mean(dim=0)
    scale = float((de * dv).sum() / de.pow(2).sum())
    if abs(scale - 1) < 1e-12:
        scale = 1.0
    return scale if scale and same(scale * de, dv) else None
