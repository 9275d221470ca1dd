"""events -> structure: the embedding, the blocks with their norms, the head, and how they add up.

The residual stream is followed from the embedding to the head. At each step the input of the next part is compared with
the norms of what the stream would be if norms stood before the parts, after the sums, at the outputs, or at both ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from algoscope.formats.own_modules.attention_fitting import ORDERS, AttentionUnit, attention_units
from algoscope.formats.own_modules.embedding_reading import Embedding, Run, embedding_event, embeddings
from algoscope.formats.own_modules.feed_forward_fitting import FeedForwardUnit, feed_forward_units
from algoscope.formats.own_modules.linear_maps import LinearMap, in_order, linear_maps
from algoscope.formats.own_modules.norm_fitting import IDENTITY, LARGEST_EPS, NormFit, fit_norm, same
from algoscope.formats.own_modules.rotary_fitting import Rotation
from algoscope.formats.own_modules.tracing import Event, Unexplained

PLACES = ("pre", "post", "output", "both")


@dataclass(eq=False)
class Part:
    """Attention or feed-forward in its place, the norms around it, and what it adds to the stream: its output, times
    `factor` [d_model], plus `added` [d_model].
    """

    unit: AttentionUnit | FeedForwardUnit
    norm: NormFit = IDENTITY
    norm_after: NormFit = IDENTITY
    factor: Tensor | None = None
    added: Tensor | None = None
    name: str = ""


@dataclass(eq=False)
class Structure:
    """The whole module as our transformer has it."""

    embedding: Embedding
    parts: list[Part]
    norms: str
    parallel: bool
    final_norm: NormFit
    head: LinearMap
    maps: list[LinearMap]
    events: list[Event]
    output: Tensor

    @property
    def n_positions(self) -> int:
        """The length of the inputs of the run that was read."""
        return int(self.embedding.stream.shape[1])

    @property
    def attention(self) -> list[AttentionUnit]:
        """The attention layers."""
        return [part.unit for part in self.parts if isinstance(part.unit, AttentionUnit)]

    @property
    def rotations(self) -> list[Rotation]:
        """The rotary encodings of all heads."""
        return [g.rotation for unit in self.attention for g in unit.groups if g.rotation is not None]

    def head_values(self, run: "Run") -> tuple[Tensor, Tensor]:
        """The output of the last matrix and what the module returns, [batch pos column] or of the last position."""
        batch, n = run.tokens.shape
        shown = run.output.reshape(batch, -1, run.output.shape[-1])
        if self.head.order == "last":
            return self.head.y, shown[:, -1]
        y = in_order(self.head.y, self.head.order, batch)
        return (y, shown) if shown.shape[1] == n else (y[:, -1], shown[:, -1])


def read_structure(run: Run) -> Structure:
    """The structure of a module from a recorded run. Raises Unexplained, naming the part, for what is not ours."""
    embed_event = embedding_event(run)
    maps = [one for one in linear_maps(run.events, run.batch) if one.event is not embed_event]
    if not maps:
        raise Unexplained("head", "the module has no linear map after its embedding", embed_event.index)
    eps = tuple(s for s in run.scalars if s <= LARGEST_EPS)
    units = attention_units(run.events, maps, run.batch, eps, run.scalars)
    taken = {one for unit in units for one in (*unit.inputs, unit.out)}
    head = _head(run, [one for one in maps if one not in taken])
    free = [one for one in maps if one not in taken and one.event.index < head.event.index]
    every: list[AttentionUnit | FeedForwardUnit] = [*units, *feed_forward_units(free)]
    parts = [Part(unit) for unit in sorted(every, key=lambda unit: unit.first)]
    if not units:
        raise Unexplained("block 0", "the module has no attention", head.event.index)
    _name(parts)
    return _follow(run, embeddings(run, embed_event, parts[0].unit.first), parts, head, maps, eps)


def _head(run: Run, maps: Sequence[LinearMap]) -> LinearMap:
    """The last linear map, which gives the logits."""
    if not maps:
        raise Unexplained("head", "no linear map gives the logits", run.events[-1].index)
    width = run.output.shape[-1]
    wide = [one for one in maps if one.n_out >= width]
    return (wide or list(maps))[-1]


def _name(parts: Sequence[Part]) -> None:
    layer = -1
    for part in parts:
        if isinstance(part.unit, AttentionUnit):
            layer += 1
            part.name = f"block {layer} attention"
        else:
            part.name = f"block {max(layer, 0)} feed-forward"


def _follow(
    run: Run, embeddings: list[Embedding], parts: list[Part], head: LinearMap, maps: list[LinearMap],
    eps: tuple[float, ...],
) -> Structure:  # fmt: skip
    """The structure under the first assumption on where norms stand that explains the whole run."""
    problems: list[Unexplained] = []
    for embedding in embeddings:
        for parallel in (False, True):
            for norms in PLACES:
                if parallel and norms != "pre":
                    continue
                try:
                    return _Follower(run, norms, parallel, eps).follow(embedding, parts, head, maps)
                except Unexplained as problem:
                    problems.append(problem)
    if not problems:
        name = parts[0].name
        raise Unexplained("embedding", f"what enters {name} is no sum of token and position embeddings", 0)
    raise max(problems, key=lambda problem: problem.event)


class _Follower:
    """Follows the stream under one assumption on where norms stand."""

    def __init__(self, run: Run, norms: str, parallel: bool, eps: tuple[float, ...]) -> None:
        self.run, self.norms, self.parallel, self.eps = run, norms, parallel, eps

    def follow(self, embedding: Embedding, parts: list[Part], head: LinearMap, maps: list[LinearMap]) -> Structure:
        stream, previous = embedding.stream, None
        done: list[Part] = []
        pending: Part | None = None  # a part whose norm after the sum is still to be found
        base = stream
        for part in parts:
            inputs = part.unit.inputs
            if self.parallel and isinstance(part.unit, FeedForwardUnit) and previous is not None:
                norm = self._norm(base, inputs, part.name)
            else:
                stream, norm = self._step(stream, pending, inputs, part.name)
                base = stream
            part = Part(part.unit, norm, name=part.name)
            self._same_input(part)
            part.unit.out.order = part.unit.out.order or inputs[0].order
            if self.parallel:
                stream = stream + self._output(part)
                pending = None
            else:
                pending = part
            previous = part
            done.append(part)
        stream, final = self._step(stream, pending, [head], "the head", is_head=True)
        return Structure(
            embedding, done, self.norms, self.parallel, final, head, maps, self.run.events, self.run.output
        )

    def _output(self, part: Part) -> Tensor:
        out = part.unit.out
        return in_order(out.y, out.order or "bp", self.run.batch)

    def _step(
        self, stream: Tensor, pending: Part | None, inputs: Sequence[LinearMap], name: str, is_head: bool = False
    ) -> tuple[Tensor, NormFit]:
        """The stream after the pending part, and the norm through which the next part reads it."""
        if pending is None:
            if self.norms in ("post", "output") and not is_head:
                return stream, self._norm(stream, inputs, name, allowed=False)
            return stream, self._norm(stream, inputs, name)
        out = self._output(pending)
        if self.norms == "pre":
            for factor, added, total in self._sums(stream, out, pending, inputs[0]):
                norm = self._try(total, inputs, is_head)
                if norm is not None:
                    pending.factor, pending.added = factor, added
                    return total, norm
            raise self._lost(pending, inputs, name)
        if self.norms == "post":
            return self._post(stream + out, pending, inputs, name, is_head)
        for _, value in self._between(pending, inputs):
            fit = fit_norm(_rows(out), _rows(value), self.eps)
            if fit is None or fit.kind == "none":
                continue
            norm = self._try(stream + value, inputs, is_head)
            if norm is not None and (self.norms == "both" or is_head or norm.kind == "none"):
                pending.norm_after = fit
                return stream + value, norm
        raise self._lost(pending, inputs, name)

    def _post(
        self, total: Tensor, pending: Part, inputs: Sequence[LinearMap], name: str, is_head: bool
    ) -> tuple[Tensor, NormFit]:
        for _, value in self._between(pending, inputs):
            fit = fit_norm(_rows(total), _rows(value), self.eps)
            if fit is None or fit.kind == "none":
                continue
            norm = self._try(value, inputs, is_head)
            if norm is not None and (is_head or norm.kind == "none"):
                pending.norm_after = fit
                return value, norm
        raise self._lost(pending, inputs, name)

    def _sums(
        self, stream: Tensor, out: Tensor, pending: Part, reader: LinearMap
    ) -> list[tuple[Tensor | None, Tensor | None, Tensor]]:
        """The stream with a part's output added; also where each entry of it is scaled, or has a bias added, on the
        way. With the factor and the bias of each entry.
        """
        sums: list[tuple[Tensor | None, Tensor | None, Tensor]] = [(None, None, stream + out)]
        o, o_centre = out - out.mean(dim=(0, 1)), out.mean(dim=(0, 1))
        for _, value in self._between(pending, [reader]):
            change = value - stream
            factor = (o * change).sum(dim=(0, 1)) / o.pow(2).sum(dim=(0, 1)).clamp(min=1e-300)
            added = change.mean(dim=(0, 1)) - factor * o_centre
            if float(factor.abs().min()) < 1e-6 or not same(value, stream + factor * out + added):
                continue
            plain = bool((factor - 1).abs().max() < 1e-9)
            without = bool(added.abs().max() < 1e-9 * value.abs().max())
            if not (plain and without):
                sums.append((None if plain else factor, None if without else added, value))
        return sums

    def _between(self, pending: Part, inputs: Sequence[LinearMap]) -> list[tuple[int, Tensor]]:
        before = min(one.event.index for one in inputs)
        d_model = pending.unit.out.n_out
        return self.run.streams(d_model, pending.unit.out.event.index, before)

    def _norm(self, stream: Tensor, inputs: Sequence[LinearMap], name: str, allowed: bool = True) -> NormFit:
        norm = self._try(stream, inputs)
        if norm is None or (norm.kind != "none" and not allowed):
            raise self._lost(None, inputs, name)
        return norm

    def _try(self, stream: Tensor, inputs: Sequence[LinearMap], is_head: bool = False) -> NormFit | None:
        """The norm through which a linear map reads the stream, which says in which order its rows are."""
        one = inputs[0]
        batch, n = self.run.tokens.shape
        if one.n_in != stream.shape[-1]:
            return None
        if is_head and one.x.shape[0] == batch and n > 1:  # logits of the last position only
            fit = fit_norm(stream[:, -1], one.x, self.eps)
            if fit is not None:
                one.order = "last"
            return fit
        if one.x.shape[0] != batch * n:
            return None
        for order in (one.order,) if one.order else ORDERS:
            fit = fit_norm(_rows(stream), _rows(in_order(one.x, order, batch)), self.eps)
            if fit is not None:
                for other in inputs:
                    other.order = order
                return fit
        return None

    def _same_input(self, part: Part) -> None:
        one, *others = part.unit.inputs
        for other in others:
            if other.x.shape != one.x.shape or not same(other.x, one.x):
                raise Unexplained(
                    part.name, f"{part.name}: {other.path} does not read what {one.path} reads", other.last
                )

    def _lost(self, pending: Part | None, inputs: Sequence[LinearMap], name: str) -> Unexplained:
        after = f"after {pending.name}" if pending else "after the embedding"
        before = inputs[0].event.index
        start = pending.unit.out.last if pending else 0
        paths = [event.path for event in self.run.events if start < event.index < before and event.path]
        between = [path for path in dict.fromkeys(paths) if path not in (inputs[0].path,)]
        where = f" ({', '.join(between[:4])} {'is' if len(between) == 1 else 'are'} between)" if between else ""
        message = f"what {name} reads ({inputs[0].path or 'a matrix'}) is no norm of the residual stream {after}{where}"
        return Unexplained(name, message, before)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
