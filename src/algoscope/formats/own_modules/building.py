"""structure -> config and weights: our transformer, whose weights are taken from a run of the module.

The same plan takes the weights from a run with the module's own values and from one with random values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from algoscope.formats.own_modules._head_order import Heads, padded
from algoscope.formats.own_modules.attention_fitting import AttentionUnit
from algoscope.formats.own_modules.feed_forward_fitting import FeedForwardUnit, Rows
from algoscope.formats.own_modules.linear_maps import LinearMap, Places, Weight, in_order
from algoscope.formats.own_modules.norm_fitting import NormFit, find_vector
from algoscope.formats.own_modules.outputs import Output
from algoscope.formats.own_modules.structure import Part, Structure
from algoscope.formats.own_modules.tracing import Event, Unexplained, Value

Make = Callable[[Places], Tensor]
Place = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Check:
    """A site of ours, and columns of linear maps of the module that have its value."""

    part: str
    kind: str
    layer: int
    maps: tuple[LinearMap, ...]
    side: Literal["x", "y"]
    columns: Tensor

    def value(self, maps: Mapping[int, LinearMap], batch: int) -> Tensor | None:
        """The value [batch pos column] in another run, from its linear maps by the number of their event."""
        of_run = [(maps.get(one.event.index), one.order) for one in self.maps]
        sides = [in_order(getattr(one, self.side), order or "bp", batch) for one, order in of_run if one]
        if sum(side.shape[-1] for side in sides) <= int(self.columns.max()):  # a run of one token has other events
            return None
        return padded(torch.cat(sides, dim=-1).mT.transpose(0, 1), self.columns).transpose(0, 1).mT


@dataclass
class Plan:
    """Fields of our config, and how to make each weight from those of the module."""

    fields: dict[str, Any] = field(default_factory=dict)
    makes: dict[str, Make] = field(default_factory=dict)
    sources: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    """Where in a run the weights are of which each is made."""
    checks: list[Check] = field(default_factory=list)

    @property
    def places(self) -> set[Place]:
        return {place for places in self.sources.values() for place in places}

    def add(self, name: str, make: Make, *sources: Weight | None) -> None:
        """A weight of ours, and what it is made of."""
        self.makes[name] = make
        self.sources[name] = tuple(source.place for source in sources if source is not None)

    def cut_head(self, head: LinearMap, output: Output) -> None:
        """Give ours a head of its own with the columns that the module returns, scaled as it scales them."""
        n = output.n_logits
        self.fields |= {"tied_head": False, "d_vocab_out": None if n == self.fields["d_vocab"] else n}
        for name, weight in (("unembed.weight", head.weight), ("unembed.bias", head.bias)):
            if weight is not None:
                self.add(name, partial(_cut, weight, n, output.factor), weight)


def structure_to_plan(structure: Structure) -> Plan:
    """The config and weights of our transformer. Raises Unexplained for what it cannot hold."""
    return _Builder(structure).plan()


class _Builder:
    """Collects fields and weights; a field has one value for the whole model."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.made = Plan()
        self.windows: list[int | None] = []
        self.fields, self.checks, self.add = self.made.fields, self.made.checks, self.made.add

    def plan(self) -> Plan:
        structure = self.structure
        layers = self._layers()
        self.fields |= {"d_model": structure.embedding.d_model, "n_layers": len(layers), "parallel": structure.parallel}
        self.fields |= {"norms": structure.norms, "embed_scale": structure.embedding.scale}
        if layers[0][1] is None:
            self.fields["d_mlp"] = None
        self._embedding()
        for layer, (attention, forward) in enumerate(layers):
            self._attention(layer, attention)
            if forward is not None:
                self._feed_forward(layer, forward)
        self.fields["windows"] = tuple(self.windows) if any(self.windows) else None
        self._norms(layers)
        self._head()
        return self.made

    # ------------------------------------------------------------------ pieces

    def _set(self, part: str, field: str, value: Any) -> None:
        """Give a field its value. Raises Unexplained where another part of the module needs another one."""
        known = self.fields.setdefault(field, value)
        if not _equal(known, value):
            raise Unexplained(part, f"{part} has {field} {value}, another part of the module {known}: ours has one")

    def _layers(self) -> list[tuple[Part, Part | None]]:
        layers: list[tuple[Part, Part | None]] = []
        for part in self.structure.parts:
            if isinstance(part.unit, AttentionUnit):
                layers.append((part, None))
            elif not layers or layers[-1][1] is not None:
                path = part.unit.out.path or part.name
                raise Unexplained(
                    part.name, f"{path} is a feed-forward that follows no attention: our blocks have one of each"
                )
            else:
                layers[-1] = (layers[-1][0], part)
        for layer, (_, forward) in enumerate(layers):
            if (forward is None) != (layers[0][1] is None):
                without = layer if forward is None else 0
                raise Unexplained(
                    f"block {without}", f"block {without} has no feed-forward, others have: our blocks are alike"
                )
        return layers

    def _embedding(self) -> None:
        embedding = self.structure.embedding
        self.add("embed.weight", embedding.weight.of, embedding.weight)
        self.embed_value = _argument(embedding.event, embedding.weight.arg)
        self.fields["d_vocab"] = embedding.weight.arrange(self.embed_value.raw).shape[0]

    def _attention(self, layer: int, part: Part) -> None:
        unit, name = part.unit, f"blocks.{layer}.attn"
        assert isinstance(unit, AttentionUnit)
        groups = unit.groups
        fits = [group.fit for group in groups]
        if any(fit != fits[0] for fit in fits):
            raise Unexplained(part.name, f"{part.name}: its heads have different scales, masks or biases")
        heads = Heads(groups, unit.z_rows)
        fit, rotation, norms = fits[0], groups[0].rotation, groups[0].norms
        assert fit is not None
        self._set(part.name, "n_heads", len(heads.order))
        self._set(part.name, "n_kv_heads", heads.n_kv)
        self._set(part.name, "d_head", heads.size)
        self._set(part.name, "attn_scale", fit.scale)
        self._set(part.name, "causal", fit.causal)
        self.windows.append(fit.window)
        self._set(part.name, "softmax_plus_one", fit.plus_one)
        self._set(part.name, "attn_rate", fit.rate)
        self._set(part.name, "attn_scores_soft_cap", fit.soft_cap)
        positions = "rotary" if rotation else "alibi" if fit.alibi else None
        self._set(part.name, "positions", positions)
        entries: tuple[int, ...] | None = None
        if rotation is not None:
            entries = rotation.entries
            self._set(part.name, "rotary_dim", rotation.size)
            self._set(part.name, "rotary_magnitude", rotation.magnitude)
            if rotation.base is not None:
                self._set(part.name, "rotary_base", rotation.base)
            else:
                self._set(part.name, "rotary_frequencies", rotation.frequencies)
        self._set(part.name, "qk_norm", norms is not None)
        maps, columns = heads.columns("v", None)
        self.checks += [
            Check(f"what {part.name} reads", "v", layer, tuple(maps), "y", columns),
            Check(part.name, "z", layer, (unit.out,), "x", heads.rows.flatten()),
        ]
        self._qkv(name, heads, entries)
        if norms is not None:
            self._set(part.name, "qk_norm_over", norms[2])
            for letter, norm in zip("qk", norms[:2], strict=True):
                order = heads.order if letter == "q" else heads.kv_order
                self._set(part.name, "eps", norm.eps)
                assert norm.weight is not None
                self._qk_norm(f"{name}.{letter}_norm.weight", norm, norms[2], order, entries, heads)
        covered = heads.rows[heads.rows >= 0]
        if len(covered.unique()) != unit.out.n_in:
            path = unit.out.path or part.name
            raise Unexplained(part.name, f"{path} reads more than the heads of its attention")
        self._matrix(f"{name}.o", unit.out, None, heads.rows, part)

    def _qkv(self, name: str, heads: Heads, entries: tuple[int, ...] | None) -> None:
        for letter in "qkv":
            columns = heads.columns(letter, entries if letter != "v" else None)
            maps, chosen = columns

            def weight(places: Places, maps: Sequence[LinearMap] = maps, chosen: Tensor = chosen) -> Tensor:
                return padded(torch.cat([one.weight.of(places) for one in maps]), chosen)

            def bias(places: Places, maps: Sequence[LinearMap] = maps, chosen: Tensor = chosen) -> Tensor:
                return padded(torch.cat([_bias_of(one, places) for one in maps]), chosen)

            self.add(f"{name}.{letter}.weight", weight, *(one.weight for one in maps))
            if any(one.bias for one in maps):
                self.fields["attn_bias"] = True
                self.add(f"{name}.{letter}.bias", bias, *(one.bias for one in maps))

    def _qk_norm(
        self,
        name: str,
        norm: NormFit,
        over: str,
        order: Sequence[int],
        entries: tuple[int, ...] | None,
        heads: Heads,
    ) -> None:
        assert norm.weight is not None
        vector, source = self._vector(name, norm.weight)
        within = torch.tensor(entries if entries is not None else range(heads.qk_size))
        if over == "all":
            within = torch.cat([head * heads.qk_size + within for head in order])
        self.add(name, lambda places: vector(places)[within], source)

    def _feed_forward(self, layer: int, part: Part) -> None:
        unit, name = part.unit, f"blocks.{layer}.mlp"
        assert isinstance(unit, FeedForwardUnit)
        read = Check(f"what {part.name} reads", "pre", layer, (unit.w_in.one,), "y", unit.w_in.index)
        self.checks += [read, Check(part.name, "post", layer, (unit.out,), "x", torch.arange(unit.out.n_in))]
        self._set(part.name, "d_mlp", unit.out.n_in)
        self._set(part.name, "act_fn", unit.act_fn)
        self._set(part.name, "gated_mlp", unit.w_linear is not None)
        self._rows(f"{name}.w_in", unit.w_in)
        if unit.w_linear is not None:
            self._rows(f"{name}.w_linear", unit.w_linear)
        self._matrix(f"{name}.w_out", unit.out, None, None, part)

    def _rows(self, name: str, rows: Rows) -> None:
        self._matrix(name, rows.one, rows.index if len(rows.index) != rows.one.n_out else None, None, None)

    def _matrix(
        self, name: str, one: LinearMap, rows: Tensor | None, columns: Tensor | None, part: Part | None
    ) -> None:
        """A matrix with its bias: some rows, some columns; of what a part adds to the stream, with factor and bias."""
        factor, of_factor, added, of_added = None, None, None, None
        if part is not None and part.factor is not None:
            factor, of_factor = self._vector(part.name, part.factor)
        if part is not None and part.added is not None:
            added, of_added = self._vector(part.name, part.added)

        def weight(places: Places) -> Tensor:
            whole = one.weight.of(places)
            whole = whole if rows is None else whole[rows]
            whole = whole if columns is None else padded(whole.T, columns.flatten()).T
            return whole if factor is None else whole * factor(places)[:, None]

        def bias(places: Places) -> Tensor:
            whole = _bias_of(one, places)
            whole = whole if rows is None else whole[rows]
            whole = whole if factor is None else whole * factor(places)
            return whole if added is None else whole + added(places)

        self.add(f"{name}.weight", weight, one.weight, of_factor)
        if one.bias is not None or added is not None:
            self.add(f"{name}.bias", bias, one.bias, of_factor, of_added)
            self.fields["mlp_bias" if ".mlp." in name else "attn_out_bias"] = True

    # ------------------------------------------------------------------ norms

    def _norms(self, layers: Sequence[tuple[Part, Part | None]]) -> None:
        named: list[tuple[str, str, NormFit]] = []
        for layer, pair in enumerate(layers):
            for number, part in zip((1, 2), pair, strict=True):
                if part is None:
                    continue
                inner, after = f"blocks.{layer}.ln{number}", f"blocks.{layer}.ln{number}_post"
                if self.structure.norms in ("pre", "both"):
                    named.append((inner, part.name, part.norm))
                if self.structure.norms in ("post", "output"):
                    named.append((inner, part.name, part.norm_after))
                if self.structure.norms == "both":
                    named.append((after, part.name, part.norm_after))
        kinds = {norm.kind for _, _, norm in named}
        final = self.structure.final_norm
        if len(kinds | ({final.kind} - {"none"})) > 1:
            where = next(part for _, part, norm in named if norm.kind != named[-1][2].kind or norm.kind != final.kind)
            listed = ", ".join(sorted({*kinds, final.kind})).replace("none", "no norm")
            raise Unexplained(where, f"{where}: the module mixes {listed}, and our norms are all of one kind")
        kind = kinds.pop()
        self.fields["normalization_type"] = None if kind == "none" else kind
        if kind == "none":
            self.fields["norms"] = "pre"
            return
        self.fields["final_norm"] = final.kind != "none"
        if final.kind != "none":
            named.append(("ln_final", "the final norm", final))
        self.fields["norm_bias"] = kind == "LN" and any(norm.bias is not None for _, _, norm in named)
        for name, where, norm in named:
            self._set(where, "eps", norm.eps)
            assert norm.weight is not None
            self.add(f"{name}.weight", *self._vector(where, norm.weight))
            if norm.bias is not None:
                if kind == "RMS":
                    raise Unexplained(where, f"{where}: its RMSNorm has a bias, which ours has not")
                self.add(f"{name}.bias", *self._vector(where, norm.bias))

    def _vector(self, part: str, values: Tensor) -> tuple[Make, Weight | None]:
        vector = find_vector(values, self.structure.events)
        if vector is None:
            raise Unexplained(part, f"{part}: a factor or bias of it is no weight of the module")
        weight, factor, n = vector.weight, vector.factor, values.numel()
        if weight is None:
            return lambda places: torch.full((n,), factor, dtype=torch.float64), None
        return lambda places: weight.of(places) if factor == 1.0 else weight.of(places) * factor, weight

    # ------------------------------------------------------------------ head

    def _head(self) -> None:
        head, embedding = self.structure.head, self.structure.embedding
        value = _argument(head.event, head.weight.arg)
        one_storage = value.raw.untyped_storage()._cdata == self.embed_value.raw.untyped_storage()._cdata
        shape = embedding.weight.arrange(self.embed_value.raw).shape
        tied = one_storage and head.weight.arrange(value.raw).shape == shape
        self.fields |= {"tied_head": tied, "head_bias": head.bias is not None}
        if head.n_out != self.fields["d_vocab"]:
            self.fields["d_vocab_out"] = head.n_out
        if not tied:
            self.add("unembed.weight", head.weight.of, head.weight)
        if head.bias is not None:
            self.add("unembed.bias", head.bias.of, head.bias)


def _cut(weight: Weight, n: int, factor: float, places: Places) -> Tensor:
    """The first n rows of a weight, times a factor."""
    return weight.of(places)[:n] if factor == 1.0 else weight.of(places)[:n] * factor


def _equal(one: Any, other: Any) -> bool:
    """Whether two values of a field are the same; numbers that were measured, up to rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(map(_equal, one, other))
    return bool(one == other)


def _bias_of(one: LinearMap, places: Places) -> Tensor:
    if one.bias is None:
        return torch.zeros(one.n_out, dtype=torch.float64)
    return one.bias.of(places)


def _argument(event: Event, i: int) -> Value:
    value = event.args[i]
    assert isinstance(value, Value)
    return value
