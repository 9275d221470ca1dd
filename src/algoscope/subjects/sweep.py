"""Sweeps: many edits, one run each, in one batch. Only what an edit can change is recomputed.

The base run (without edits) is computed once and cached. Each edit adds rows to the batch at its site: an edited
residual stream before its block, an edited head between the two halves of a block. These rows go through the remaining
blocks, together with the rows of edits in later blocks. In a causal model nothing changes before the first edited
position, so the batch starts there and attends to the cached keys and values of the base run. A patch changes only
positions at which its value differs from the base run, so the shared prefix of two prompts is not recomputed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.sites import KINDS, Site
from algoscope.networks.kv_cache import KeyValueCache
from algoscope.networks.taps import NO_TAP, Tap
from algoscope.networks.transformer import EVERYWHERE, AttentionContext, Transformer
from algoscope.subjects._coverage import Coverage
from algoscope.subjects.cache import Recorder
from algoscope.subjects.edits import Edit, Patch

Located = tuple[Site, Edit]
Logits = Float[Tensor, "edit batch read d_vocab"]
Rows = Float[Tensor, "batch _edit _pos d_model"]

FULL = 512  # tokens in a stack below which edits with other start positions are added to it
BUDGET = 2**25  # bytes of activations in one stack
FEED_FORWARD = ("ln2_scale", "ln2_normalized", "ln2_post_scale", "ln2_post_normalized", "pre", "pre_linear", "post")
NORM_OF_SUM = ("ln1_scale", "ln1_normalized", "resid_mid")
ENTERING, IN_ATTENTION, BETWEEN, IN_FEED_FORWARD, AT_THE_END = range(5)
STAGE = {  # the stage at which the rows of an edit are added; other sites: in attention
    **dict.fromkeys(("embed", "pos_embed", "resid_pre", "mlp_out", "resid_post"), ENTERING),
    **dict.fromkeys(("z", "result", "attn_out", "resid_mid"), BETWEEN),
    **dict.fromkeys(FEED_FORWARD, IN_FEED_FORWARD),
    **dict.fromkeys(("ln_final_scale", "ln_final_normalized"), AT_THE_END),
}
NEEDED = {  # activations of the base run needed for an edit there, beside the streams between blocks
    "embed": ("pos_embed",),
    "pos_embed": ("embed",),
    "mlp_out": ("resid_mid", "attn_out"),
    "result": ("z",),
    **dict.fromkeys((*FEED_FORWARD, *NORM_OF_SUM), ("attn_out",)),
}


def run_each(
    model: Transformer,
    tokens: Int[Tensor, "batch pos"],
    edits: Sequence[Located],
    at: slice,
    among: Int[Tensor, "some"] | None = None,
    reduce: Callable[[Logits], Tensor] | None = None,
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> Tensor:
    """Logits [edit batch read d_vocab] at the positions `at`, one run per edit; for the tokens `among` only.

    With `reduce`, its results for the logits of some edits [edit ...], so that all logits are never in memory at once.
    `mask` is false at padding. Where memory runs out, stacks are halved.
    """
    base = _Base(model, tokens, edits, at, among, mask)
    kept: dict[int, Tensor] = {}
    waiting = list(_stacks(base, edits))
    while waiting:
        start, numbers = waiting.pop()
        try:
            logits = base.climb([edits[number] for number in numbers], start)
            values = logits if reduce is None else reduce(logits)
        except RuntimeError as error:
            if not _out_of_memory(error) or len(numbers) == 1:
                raise
            half = len(numbers) // 2
            waiting += [(start, numbers[:half]), (start, numbers[half:])]
            continue
        kept |= zip(numbers, values, strict=True)
    return torch.stack([kept[number] for number in range(len(edits))])


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _stacks(base: "_Base", edits: Sequence[Located]) -> Iterator[tuple[int, list[int]]]:
    """(start position, indices of edits): neighbouring start positions share a stack until it is full; earlier blocks
    first.
    """
    by_start: dict[int, list[int]] = defaultdict(list)
    differing, shape_of = cache(base.differing), cache(base.shape_of)  # many edits share one value, or one site
    for number, (site, edit) in enumerate(edits):
        edit.check(shape_of(site), site.kind)
        by_start[_first_change(base, site, edit.coverage(shape_of(site), site.kind), edit, differing)].append(number)
    group: list[int] = []
    lowest = min(by_start)
    for start in sorted(by_start, reverse=True):
        group += by_start[start]
        if 0 < len(group) * base.n_inputs * (base.end - start) < FULL and lowest < start:
            continue
        group.sort(key=lambda number: _joins_at(base.model, edits[number][0]))
        size = max(1, BUDGET // max(1, base.bytes_of_an_edit(base.end - start)))
        yield from ((start, group[i : i + size]) for i in range(0, len(group), size))
        group = []


def _joins_at(model: Transformer, site: Site) -> tuple[int, int]:
    """The block and stage at which the rows of an edit at a site are added."""
    stage = STAGE.get(site.kind, IN_ATTENTION)
    if model.cfg.norms == "post" and site.kind in NORM_OF_SUM:  # computed from the sum, in the second half
        stage = IN_FEED_FORWARD
    if site.layer is None:
        return (0, ENTERING) if stage == ENTERING else (model.cfg.n_layers, AT_THE_END)
    return site.layer + (site.kind in ("mlp_out", "resid_post")), stage


def _first_change(
    base: "_Base", site: Site, coverage: Coverage, edit: Edit, differing: Callable[[Site, Tensor], list[bool]]
) -> int:
    """A position before which the edit changes nothing; `end` where it changes no logits that are read."""
    if not base.model.cfg.causal:
        return 0
    changed: Sequence[int] = coverage.limits.get(_axis_of_positions(site.kind), range(base.n_pos))
    if type(edit) is Patch and coverage.is_of_the_site(edit.given):  # subclasses insert something else
        differs = differing(site, edit.given)
        changed = [pos for pos in changed if differs[pos]]
    return min([*changed, base.end])


def _axis_of_positions(kind: str) -> int:
    axes = KINDS[kind].axes
    return axes.index("query" if "query" in axes else "pos")


class _Base:
    """The run without edits, its cached activations, and the computation of edited runs from it."""

    def __init__(
        self,
        model: Transformer,
        tokens: Int[Tensor, "batch pos"],
        edits: Sequence[Located],
        at: slice,
        among: Int[Tensor, "some"] | None,
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        self.model, self.among, self.mask = model, among, mask
        self.n_inputs, self.n_pos = tokens.shape
        self.read = range(*at.indices(self.n_pos))
        self.end = self.read[-1] + 1 if model.cfg.causal and self.read else self.n_pos  # later positions have no effect
        layers = range(model.cfg.n_layers)
        wanted = {Site("resid_pre", layer) for layer in layers} | {Site("resid_post", layers[-1])}
        for site, _ in edits:
            wanted |= {site, *(Site(kind, site.layer) for kind in NEEDED.get(site.kind, ()))}
        recorder = Recorder(frozenset(wanted))
        self.cache = KeyValueCache()
        model(tokens, at=slice(0, 0), cache=self.cache, tap=recorder, mask=mask)
        self.values = recorder.values

    def shape_of(self, site: Site) -> tuple[int, ...]:
        return self.model.shape_of(site, self.n_inputs, self.n_pos)

    def differing(self, site: Site, value: Tensor) -> list[bool]:
        """For each position whether this value, which fits the site, differs from the base run."""
        old = self.values[site]
        changed = (value.to(old) != old).movedim(_axis_of_positions(site.kind), 0)
        return changed.flatten(1).any(dim=1).tolist()

    def bytes_of_an_edit(self, n_pos: int) -> int:
        """Estimate of the peak memory of one edit in a stack, in bytes."""
        cfg = self.model.cfg
        widths = 6 * cfg.d_model + 3 * cfg.n_heads * cfg.head_size + 3 * (cfg.d_mlp or 0)
        scores = 2 * cfg.n_heads * self.n_pos
        logits = len(self.read) * (cfg.d_vocab if self.among is None else len(self.among))
        return self.n_inputs * (n_pos * (widths + scores) + 2 * logits) * self.model.embed.weight.element_size()

    def climb(self, edits: Sequence[Located], start: int) -> Logits:
        """Logits of edits that change nothing before the position `start`, sorted by where their rows are added."""
        reached = [pos for pos in self.read if pos >= start]
        unread = len(self.read) - len(reached)  # positions before `start`
        if not reached:
            return self._unchanged(unread)[:, None].expand(-1, len(edits), -1, -1).transpose(0, 1)
        last = self.model.cfg.n_layers
        at = slice(reached[0] - start, reached[-1] + 1 - start, self.read.step)
        plain = self._context(start) if self.mask is None else None
        joining: dict[tuple[int, int], list[Located]] = defaultdict(list)
        for site, edit in edits:
            joining[_joins_at(self.model, site)].append((site, edit))
        x: Rows | None = None
        for i in range(min(joining)[0], last):
            block, rows_at = self.model.block(i), at if i == last - 1 else EVERYWHERE
            x = _join(x, self._entering(joining[i, ENTERING], start))
            halves: list[tuple[Rows, Rows]] = []
            if x is not None:
                context = plain or self._context(start, x.shape[1])
                pair = block.attend(x.flatten(0, 1), replace(context, cache=self._cache(start, x.shape[1])), rows_at)
                halves.append((self._rows(pair[0]), self._rows(pair[1])))
            if joining[i, IN_ATTENTION]:
                halves.append(self._in_attention(joining[i, IN_ATTENTION], i, start, rows_at))
            if joining[i, BETWEEN]:
                halves.append(self._between(joining[i, BETWEEN], i, start, rows_at))
            if halves:
                stream, out = (torch.cat(part, dim=1).flatten(0, 1) for part in zip(*halves, strict=True))
                x = self._rows(block.feed(stream, out))
            if joining[i, IN_FEED_FORWARD]:
                x = _join(x, self._in_feed_forward(joining[i, IN_FEED_FORWARD], i, start, rows_at))
        return self._logits(x, joining, start, at, unread)

    def _logits(
        self, x: Rows | None, joining: dict[tuple[int, int], list[Located]], start: int, at: slice, unread: int
    ) -> Logits:
        """The logits after the last block; the first `unread` positions are those of the base run."""
        last, model = self.model.cfg.n_layers, self.model
        final = self.values[Site("resid_post", last - 1)]
        entering = self._entering(joining[last, ENTERING], start)
        x = _join(x, None if entering is None else entering[:, :, at])
        parts: list[Tensor] = []
        if x is not None:
            parts.append(self._rows(model.to_logits(x.flatten(0, 1), among=self.among)))
        if joining[last, AT_THE_END]:
            tap = _RowEdits(joining[last, AT_THE_END], self.n_inputs)
            ends = model.to_logits(
                tap.spread(final), tap, slice(start + at.start, start + at.stop, at.step), self.among
            )
            parts.append(self._rows(ends))
        reached = torch.cat(parts, dim=1)
        if unread:
            before = self._unchanged(unread)[:, None].expand(-1, reached.shape[1], -1, -1)
            reached = torch.cat([before, reached], dim=2)
        return reached.transpose(0, 1)

    def _unchanged(self, n: int) -> Float[Tensor, "batch read d_vocab"]:
        """Logits of the base run at the first `n` positions that are read."""
        final = self.values[Site("resid_post", self.model.cfg.n_layers - 1)]
        return self.model.to_logits(final[:, list(self.read[:n])], among=self.among)

    # ------------------------------------------------------------------ rows of edits by stage

    def _entering(self, edits: Sequence[Located], start: int) -> Rows | None:
        """Rows of edits to the residual stream between two blocks."""
        rows = None
        for site, members in _by_site(edits):
            edited = _written(self.values[site], members, site.kind)
            if site.kind in ("embed", "pos_embed"):
                other = self.values.get(Site("pos_embed" if site.kind == "embed" else "embed"))
                edited = edited if other is None else edited + other[:, None]
            elif site.kind == "mlp_out" and site.layer is not None:
                stream = self._mid(site.layer)[:, None] + edited
                edited = self.model.block(site.layer).normalised("sum", 2, stream)
            rows = _join(rows, edited[:, :, start : self.end])
        return rows

    def _mid(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        if self.model.cfg.parallel:
            return self.values[Site("resid_pre", layer)] + self.values[Site("attn_out", layer)]
        return self.values[Site("resid_mid", layer)]

    def _between(self, edits: Sequence[Located], layer: int, start: int, at: slice) -> tuple[Rows, Rows]:
        """`resid_pre` and the output of attention, for edits to one of them."""
        streams, outs = [], []
        block = self.model.block(layer)
        for site, members in _by_site(edits):
            edited = _written(self.values[site], members, site.kind)[:, :, start : self.end][:, :, at]
            stream = self._repeated(Site("resid_pre", layer), len(members), start, at)
            if site.kind == "z":
                out = self._rows(block.attn.out(edited.flatten(0, 1), NO_TAP))
                out = block.normalised("output", 1, out)
            elif site.kind == "result":
                plain = block.attn.out(self.values[Site("z", layer)], NO_TAP)[:, start : self.end][:, at]
                old = self._repeated(site, len(members), start, at)
                out = block.attn.sum_of_heads(edited, old, plain[:, None].expand_as(edited[..., 0, :]))
                out = block.normalised("output", 1, out)
            elif site.kind == "attn_out":
                out = edited
            else:
                stream, out = edited, torch.zeros_like(edited)
            streams.append(stream)
            outs.append(out)
        return torch.cat(streams, dim=1), torch.cat(outs, dim=1)

    def _repeated(self, site: Site, n_edits: int, start: int, at: slice) -> Float[Tensor, "batch edit *rest"]:
        """The value of the base run at the positions that are computed, once per edit."""
        value = self.values[site][:, start : self.end][:, at]
        return value[:, None].expand(-1, n_edits, *[-1] * (value.ndim - 1))

    def _in_attention(self, edits: Sequence[Located], layer: int, start: int, at: slice) -> tuple[Rows, Rows]:
        tap = _RowEdits(edits, self.n_inputs)
        x = tap.spread(self.values[Site("resid_pre", layer)])
        context = replace(self._context(0, len(edits), self.n_pos), tap=tap)
        pair = self.model.block(layer).attend(x, context)
        stream, out = (self._rows(half)[:, :, start : self.end][:, :, at] for half in pair)
        return stream, out

    def _in_feed_forward(self, edits: Sequence[Located], layer: int, start: int, at: slice) -> Rows:
        tap = _RowEdits(edits, self.n_inputs)
        stream, out = (tap.spread(self.values[Site(kind, layer)]) for kind in ("resid_pre", "attn_out"))
        return self._rows(self.model.block(layer).feed(stream, out, tap))[:, :, start : self.end][:, :, at]

    def _context(self, start: int, n_edits: int = 1, end: int | None = None) -> AttentionContext:
        """What attention reads beside the stream, for the positions that are computed, each input once per edit."""
        end = self.end if end is None else end
        mask = None if self.mask is None else self.mask[:, :end].repeat_interleave(n_edits, dim=0)
        return self.model.attention_context(end - start, start, mask)

    def _cache(self, start: int, n_edits: int) -> KeyValueCache | None:
        """Keys and values of the base run at the positions before `start`."""
        if not start:
            return None
        return KeyValueCache([(k[:, :, :start], v[:, :, :start]) for k, v in self.cache.layers], n_edits)

    def _rows(self, x: Float[Tensor, "rows *rest"]) -> Float[Tensor, "batch edit *rest"]:
        return x.unflatten(0, (self.n_inputs, -1))


class _RowEdits(Tap):
    """A tap that applies edit e to the rows (input, e)."""

    def __init__(self, edits: Sequence[Located], n_inputs: int) -> None:
        self.edits, self.n_inputs = edits, n_inputs
        self.kinds = frozenset(site.kind for site, _ in edits)
        self.layers = frozenset(site.layer for site, _ in edits)

    def spread(self, x: Float[Tensor, "batch *rest"]) -> Float[Tensor, "rows *rest"]:
        """Repeat each input once per edit."""
        return x.repeat_interleave(len(self.edits), dim=0)

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        here = [e for e, (site, _) in enumerate(self.edits) if site == Site(kind, layer)]
        if not here:
            return value
        rows = value.unflatten(0, (self.n_inputs, -1)).clone()
        for e in here:
            self.edits[e][1].write(rows[:, e], kind)
        return rows.flatten(0, 1)


def _by_site(edits: Sequence[Located]) -> Iterator[tuple[Site, list[Edit]]]:
    """Group neighbouring edits by site, in the given order."""
    for site, members in groupby(edits, key=lambda located: located[0]):
        yield site, [edit for _, edit in members]


def _written(
    value: Float[Tensor, "batch *rest"], edits: Sequence[Edit], kind: str
) -> Float[Tensor, "batch edit *rest"]:
    """The value once per edit, with that edit applied."""
    rows = value[:, None].repeat(1, len(edits), *[1] * (value.ndim - 1))
    for e, edit in enumerate(edits):
        edit.write(rows[:, e], kind)
    return rows


def _join(
    old: Float[Tensor, "batch old *rest"] | None, new: Float[Tensor, "batch new *rest"] | None
) -> Float[Tensor, "batch both *rest"] | None:
    if old is None or new is None:
        return new if old is None else old
    return torch.cat([old, new], dim=1)
