"""events -> attention units: which linear maps are the queries, keys, values and outputs of which heads.

What enters the products of attention is compared, entry by entry, with the outputs of linear maps. This finds every
order of a fused matrix, and heads that are modules of their own. Rotary encodings leave position 0 as it is, and scales
do not change directions, so queries and keys are compared at position 0 by direction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from algoscope.formats.own_modules._pattern_fitting import TOLERANCE, PatternFit, fit_pattern
from algoscope.formats.own_modules.linear_maps import LinearMap, data_products, factors, in_order
from algoscope.formats.own_modules.norm_fitting import NormFit, normalised, same
from algoscope.formats.own_modules.rotary_fitting import ROUGH, Rotation, fit_rotation, rotated
from algoscope.formats.own_modules.tracing import Event, Unexplained

ORDERS = ("bp", "pb")


@dataclass(frozen=True, eq=False)
class Columns:
    """Entries of heads as columns of linear maps: head, entry -> (map, column)."""

    maps: tuple[LinearMap, ...]
    which: Tensor
    """[head entry] the index of a map"""
    column: Tensor
    """[head entry] the column of it"""

    def values(self, order: str, batch: int) -> Tensor:
        """[batch pos head entry]"""
        wide = torch.cat([in_order(one.y, order, batch) for one in self.maps], dim=-1)
        return wide[..., self.flat()]

    def flat(self) -> Tensor:
        """The column of each entry in all maps side by side."""
        first = torch.tensor([0, *(one.n_out for one in self.maps)]).cumsum(0)
        return first[self.which] + self.column

    def of_heads(self, heads: Sequence[int]) -> "Columns":
        return Columns(self.maps, self.which[list(heads)], self.column[list(heads)])


@dataclass(frozen=True, eq=False)
class HeadGroup:
    """Heads computed by one product of pattern and values."""

    mix: Event
    values: Columns
    z: Tensor
    """[batch pos head entry]"""
    pattern: Tensor
    """[batch head query key]"""
    order: str
    on_left: bool
    """Whether the pattern is the first factor of the product."""
    queries: Columns | None = None
    keys: Columns | None = None
    norms: tuple[NormFit, NormFit, str] | None = None
    rotation: Rotation | None = None
    fit: PatternFit | None = None


@dataclass(eq=False)
class AttentionUnit:
    """An attention layer: heads, and the map that reads them."""

    groups: list[HeadGroup]
    out: LinearMap
    z_rows: Tensor
    """[head entry] the row of the output map's input that each entry of each head is."""

    @property
    def first(self) -> int:
        return min(one.event.index for one in self.inputs)

    @property
    def inputs(self) -> list[LinearMap]:
        maps = [m for g in self.groups for c in (g.queries, g.keys, g.values) if c is not None for m in c.maps]
        return list(dict.fromkeys(maps))


def attention_units(
    events: Sequence[Event], maps: Sequence[LinearMap], batch: int, eps: Iterable[float], scalars: Iterable[float]
) -> list[AttentionUnit]:
    """The attention layers of a run. Raises Unexplained, naming the part, for one that is none of ours."""
    products = data_products(events)
    groups: dict[LinearMap, list[HeadGroup]] = {}
    rows: dict[LinearMap, list[Tensor]] = {}
    used = set[int]()
    for i, product in enumerate(products):
        if i in used:
            continue
        start = max((out.event.index for out in groups if out.event.index < product.index), default=-1)
        before = [one for one in maps if start < one.event.index < product.index]
        mixed = _mix(product, before, batch)
        if mixed is None:
            continue
        where = f"the attention in {product.path or 'the module'}"
        out, z_rows = _output(mixed, [one for one in maps if one.event.index > product.index], batch, where)
        earlier = [j for j, one in enumerate(products[:i]) if j not in used and one.index > start]
        scores = [j for j in reversed(earlier) if products[j].out.tensor.numel() == mixed.pattern.numel()]
        if not scores:
            raise Unexplained(where, f"{where} has no product of queries and keys", product.index)
        group = _with_scores(mixed, products[scores[0]], before, batch, tuple(eps), tuple(scalars), where)
        used |= {i, scores[0]}
        groups.setdefault(out, []).append(group)
        rows.setdefault(out, []).append(z_rows)
    unused = [one for i, one in enumerate(products) if i not in used]
    if unused:
        path = unused[0].path or "the module"
        raise Unexplained(
            path,
            f"{path} has a product of two activations that is no attention with queries, keys and values by matrices",
            unused[0].index,
        )
    return [AttentionUnit(groups[out], out, torch.cat(rows[out])) for out in groups]


def _mix(product: Event, maps: Sequence[LinearMap], batch: int) -> HeadGroup | None:
    """The product as pattern times values, where its second operand has outputs of a linear map as its columns."""
    left, right = factors(product)
    out = product.out.tensor
    for on_left, pattern, values, z in ((True, left, right, out), (False, right.mT, left.mT, out.mT)):
        if pattern.shape[-1] != pattern.shape[-2]:
            continue
        for heads_first in (False, True):
            v = _by_head(values, batch, heads_first)
            if v is None:
                continue
            for order in ORDERS:
                columns = match(v, maps, order, batch, at_first=False)
                if columns is not None:
                    p, mixed = _by_head(pattern, batch, heads_first), _by_head(z, batch, heads_first)
                    assert p is not None
                    assert mixed is not None
                    return HeadGroup(product, columns, mixed.transpose(1, 2), p, order, on_left)
    return None


def _by_head(x: Tensor, batch: int, heads_first: bool) -> Tensor | None:
    """An operand [batch*head pos entry] as [batch head pos entry]."""
    if x.shape[0] % batch:
        return None
    heads = x.shape[0] // batch
    if heads_first:
        return x.reshape(heads, batch, *x.shape[1:]).transpose(0, 1)
    return x.reshape(batch, heads, *x.shape[1:])


def match(x: Tensor, maps: Sequence[LinearMap], order: str, batch: int, at_first: bool) -> Columns | None:
    """The columns of linear maps that the entries of x [batch head pos entry] are; None where one is no column.

    `at_first`: at position 0, up to a factor.
    """
    fitting = tuple(one for one in maps if one.y.shape[0] % batch == 0 and one.y.shape[0] // batch == x.shape[2])
    if not fitting:
        return None
    wide = torch.cat([in_order(one.y, order, batch) for one in fitting], dim=-1)  # [batch pos column]
    if at_first:
        ours, theirs = x[:, :, 0].flatten(1).T, wide[:, 0].T
        ours, theirs = _directions(ours), _directions(theirs)
    else:
        ours, theirs = x.permute(1, 3, 0, 2).flatten(0, 1).flatten(1), wide.permute(2, 0, 1).flatten(1)
    generator = torch.Generator().manual_seed(0)
    onto = torch.randn(ours.shape[1], 2, generator=generator, dtype=torch.float64)
    a, b = ours @ onto, theirs @ onto
    distance, nearest = _nearest(a, b)
    if float(distance.max()) > 1e-9 * float(a.abs().max()):
        return None
    which = torch.cat([torch.full((one.n_out,), i) for i, one in enumerate(fitting)])
    column = torch.cat([torch.arange(one.n_out) for one in fitting])
    shape = x.shape[1], x.shape[3]
    present = which[nearest].unique()
    renumbered = torch.searchsorted(present, which[nearest])
    return Columns(tuple(fitting[i] for i in present), renumbered.reshape(shape), column[nearest].reshape(shape))


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of a, the distance to the nearest row of b and its index; both by their first coordinate sorted."""
    order = b[:, 0].argsort()
    position = torch.searchsorted(b[order, 0].contiguous(), a[:, 0].contiguous())
    around = (position[:, None] + torch.tensor([-1, 0])).clamp(0, len(b) - 1)
    candidates = order[around]  # [row 2]
    distances = (a[:, None] - b[candidates]).abs().sum(-1)
    best = distances.argmin(dim=1)
    return distances.gather(1, best[:, None])[:, 0], candidates.gather(1, best[:, None])[:, 0]


def _directions(x: Tensor) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return unit * unit[:, :1].sign()


def _output(group: HeadGroup, maps: Sequence[LinearMap], batch: int, where: str) -> tuple[LinearMap, Tensor]:
    """The linear map that reads the outputs of heads, and the row of its input that each entry is."""
    z = group.z  # [batch pos head entry]
    generator = torch.Generator().manual_seed(0)
    onto = torch.randn(z.shape[0] * z.shape[1], 2, generator=generator, dtype=torch.float64)
    ours = z.flatten(0, 1).flatten(1).T @ onto
    for one in maps:
        if one.x.shape[0] != z.shape[0] * z.shape[1]:
            continue
        for order in ORDERS:
            theirs = in_order(one.x, order, batch).flatten(0, 1).T @ onto
            distance, nearest = _nearest(ours, theirs)
            if float(distance.max()) <= 1e-9 * float(ours.abs().max()):
                one.order = order
                return one, nearest.reshape(z.shape[2], z.shape[3])
    raise Unexplained(where, f"{where} has no output matrix that reads its heads", group.mix.index)


def _with_scores(
    group: HeadGroup,
    product: Event,
    maps: Sequence[LinearMap],
    batch: int,
    eps: tuple[float, ...],
    scalars: tuple[float, ...],
    where: str,
) -> HeadGroup:
    """The group with its queries, keys and the pattern that they give."""
    left, right = factors(product)
    problems: list[str] = []
    for q_side, k_side in ((left, right.mT), (right.mT, left)):
        for heads_first in (False, True):
            q, k = _by_head(q_side, batch, heads_first), _by_head(k_side, batch, heads_first)
            if q is None or k is None or q.shape[1] != group.pattern.shape[1] or q.shape[2] != k.shape[2]:
                continue
            for order in dict.fromkeys((group.order, *ORDERS)):
                queries, keys = (_columns(x, maps, order, batch, eps) for x in (q, k))
                if queries is None or keys is None:
                    continue
                done = _fitted(group, order, batch, (q, *queries), (k, *keys), scalars, problems)
                if done is not None:
                    return done
    why = problems[0] if problems else "its queries or keys are no linear map of what it reads"
    raise Unexplained(where, f"{where}: {why}", product.index, product.path)


NormedColumns = tuple[Columns, tuple[str, NormFit] | None]


def _columns(
    x: Tensor, maps: Sequence[LinearMap], order: str, batch: int, eps: tuple[float, ...]
) -> NormedColumns | None:
    """The columns of queries or keys, and the norm between the linear map and the product, where there is one."""
    columns = match(x, maps, order, batch, at_first=True)
    if columns is not None and _constant_factor(x, columns.values(order, batch)):
        return columns, None
    heads, size = x.shape[1], x.shape[3]
    target = x[:, :, 0]  # [batch head entry]
    best: tuple[float, Columns, tuple[str, NormFit]] | None = None
    for one in maps:
        for n_heads in {heads, *(n for n in range(1, heads) if heads % n == 0)}:
            for start in range(0, one.n_out - n_heads * size + 1, size):
                raw = in_order(one.y, order, batch)[:, 0, start : start + n_heads * size]
                for over, value in ((o, e) for o in ("head", "all") for e in dict.fromkeys((*eps, 1e-5, 1e-6))):
                    shaped = raw.unflatten(1, (n_heads, size)) if over == "head" else raw
                    n = normalised(shaped, "RMS", value).reshape(batch, n_heads, size)
                    n = n.repeat_interleave(heads // n_heads, dim=1)
                    weight = (target * n).sum(0) / n.pow(2).sum(0)  # [head entry]
                    error = float((n * weight - target).abs().max() / target.abs().max())
                    alike = over == "all" or same(weight, weight[:1].expand_as(weight))
                    if error < 1e-9 and alike and (best is None or error < best[0]):
                        column = torch.arange(start, start + n_heads * size).reshape(n_heads, size)
                        column = column.repeat_interleave(heads // n_heads, dim=0)
                        whole = Columns((one,), torch.zeros_like(column), column)
                        kept = weight[0] if over == "head" else weight[:: heads // n_heads].flatten()
                        best = error, whole, (over, NormFit("RMS", value, kept))
    return None if best is None else (best[1], best[2])


def _constant_factor(x: Tensor, raw: Tensor) -> bool:
    """Whether x [batch head pos entry] is one number times raw [batch pos head entry] at position 0."""
    ours, theirs = x[:, :, 0], raw[:, 0]
    factor = float((ours * theirs).sum() / theirs.pow(2).sum())
    return same(ours, factor * theirs)


def _fitted(
    group: HeadGroup,
    order: str,
    batch: int,
    query_side: tuple[Tensor, Columns, tuple[str, NormFit] | None],
    key_side: tuple[Tensor, Columns, tuple[str, NormFit] | None],
    scalars: tuple[float, ...],
    problems: list[str],
) -> HeadGroup | None:
    """The group with these queries and keys, where they give its pattern; else why not, added to `problems`."""
    sides, rotations = [], []
    for x, columns, norm in (query_side, key_side):
        raw = columns.values(order, batch).transpose(1, 2)  # [batch head pos entry]
        if norm is not None:
            over, of_norm = norm
            assert of_norm.weight is not None
            flat = raw if over == "head" else _distinct(raw, of_norm.weight).transpose(1, 2).flatten(2)
            n = normalised(flat, "RMS", of_norm.eps) * of_norm.weight
            raw = n if over == "head" else _repeated(n, raw)
        first = raw[:, :, 0]
        factor = float((x[:, :, 0] * first).sum() / first.pow(2).sum())
        if not same(x, factor * raw):
            rotation = fit_rotation(factor * raw.flatten(0, 1), x.flatten(0, 1)) if x.shape[2] > 1 else None
            if rotation is None:
                problems.append("its queries or keys depend on positions in a way that is no rotary encoding")
                return None
            rotations.append(rotation)
        sides.append(raw)
    if len(rotations) == 1 or (rotations and rotations[0].entries != rotations[1].entries):
        problems.append("its queries and keys are not rotated alike")
        return None
    rotation = rotations[0] if rotations else None
    q, k = (side if rotation is None else rotated(side, rotation) for side in sides)
    rounded = rotation is not None and rotation.is_rounded
    fit = fit_pattern(q @ k.mT, group.pattern, q.shape[-1], scalars, ROUGH if rounded else TOLERANCE)
    if isinstance(fit, str):
        problems.append(fit)
        return None
    (_, queries, q_norm), (_, keys, k_norm) = query_side, key_side
    if (q_norm is None) != (k_norm is None):
        problems.append("only one of its queries and keys has a norm")
        return None
    norms = None if q_norm is None or k_norm is None else (q_norm[1], k_norm[1], q_norm[0])
    return replace(group, order=order, queries=queries, keys=keys, norms=norms, rotation=rotation, fit=fit)


def _distinct(raw: Tensor, weight: Tensor) -> Tensor:
    """The heads that a norm over all of them is taken over: with grouped keys, each once."""
    n_heads = weight.numel() // raw.shape[-1]
    return raw[:, :: raw.shape[1] // n_heads]


def _repeated(n: Tensor, like: Tensor) -> Tensor:
    """Normalised heads [batch pos head*entry] as [batch head pos entry], each repeated as in `like`."""
    heads = n.unflatten(-1, (-1, like.shape[-1])).transpose(1, 2)
    return heads.repeat_interleave(like.shape[1] // heads.shape[1], dim=1)
