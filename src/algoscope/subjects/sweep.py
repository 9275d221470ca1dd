"""Many edits, one at a time, computed together: only what an edit can change is computed again.

An edit in block l at position p changes nothing before block l and, in a causal model, nothing before position p. So
the base run is computed once, its residual streams and its keys and values are kept, and an edit starts from there.
Edits of one block that start near each other are stacked: one batch whose rows are (input, edit).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.sites import KINDS, Site
from algoscope.networks.transformer import KeyValues, Tap, Transformer
from algoscope.subjects.cache import Recorder
from algoscope.subjects.edits import Edit, Patch

BUCKETS = 4  # edits whose first positions fall into the same quarter of the sequence start together
ROWS = 4096  # at most this many rows of a stack at once, times d_model / 32


def run_each(
    model: Transformer, tokens: Int[Tensor, "batch pos"], edits: Sequence[tuple[Site, Edit]], at: slice
) -> Float[Tensor, "edit batch read d_vocab"]:
    """Logits at the positions `at`, one run for each edit."""
    n_pos = tokens.shape[1]
    base = _Base(model, tokens, at)
    out = torch.empty(len(edits), *base.logits.shape, dtype=base.logits.dtype, device=base.logits.device)
    stacks: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, (site, edit) in enumerate(edits):
        stacks[_block(model, site), _start(edit, n_pos) if model.cfg.causal else 0].append(number)
    most = max(1, ROWS * 32 // (model.cfg.d_model * len(tokens)))
    for (layer, start), members in stacks.items():
        for chunk in torch.tensor(members).split(most):
            numbers = chunk.tolist()
            out[numbers] = base.stacked([edits[number] for number in numbers], layer, start)
    return out


def _block(model: Transformer, site: Site) -> int:
    """The block from which an edit there is felt; -1 for the embedding, before the first."""
    if site.layer is None:
        return -1 if site.kind in ("embed", "pos_embed") else model.cfg.n_layers - 1
    return site.layer


def _start(edit: Edit, n_pos: int) -> int:
    """The first position that the edit can change, rounded down so that neighbours stack."""
    if edit.pos is None:
        return 0
    wanted = (edit.pos,) if isinstance(edit.pos, int) else edit.pos
    first = min((index % n_pos if -n_pos <= index < n_pos else 0) for index in wanted)
    step = max(1, n_pos // BUCKETS)
    return first // step * step


class _Base:
    """The run without an edit, and what is kept of it."""

    def __init__(self, model: Transformer, tokens: Int[Tensor, "batch pos"], at: slice) -> None:
        self.model, self.tokens = model, tokens
        self.n_inputs, self.n_pos = tokens.shape
        self.read = range(*at.indices(self.n_pos))
        streams = Recorder(frozenset(Site("resid_pre", layer) for layer in range(model.cfg.n_layers)))
        self.memory = KeyValues()
        self.logits = model(tokens, at=at, past=self.memory, tap=streams)
        self.streams = [streams.values[Site("resid_pre", layer)] for layer in range(model.cfg.n_layers)]

    def stacked(
        self, edits: Sequence[tuple[Site, Edit]], layer: int, start: int
    ) -> Float[Tensor, "edit batch read d_vocab"]:
        """Rows (input, edit), from block `layer` and position `start` on."""
        n = len(edits)
        unread = sum(place < start for place in self.read)  # no edit reaches these
        logits = self.logits.expand(n, *self.logits.shape).clone()
        if unread == len(self.read):
            return logits
        past = None
        if start:
            past = KeyValues([(k[:, :, :start], v[:, :, :start]) for k, v in self.memory.layers], family=n)
        tap = _RowEdits([(site, suffix(edit, site.kind, start, self.n_pos)) for site, edit in edits])
        at = slice(self.read[unread] - start, self.read[-1] + 1 - start)
        if layer < 0:
            tokens = self.tokens[:, start:].repeat_interleave(n, dim=0)
            found = self.model(tokens, at=at, past=past, tap=tap)
        else:
            x = self.streams[layer][:, start:].repeat_interleave(n, dim=0)
            found = self.model.forward_from(x, layer, at=at, past=past, tap=tap)
        logits[:, :, unread:] = found.unflatten(0, (self.n_inputs, n)).transpose(0, 1)
        return logits


class _RowEdits(Tap):
    """Edit e changes the rows (input, e)."""

    def __init__(self, edits: Sequence[tuple[Site, Edit]]) -> None:
        self.edits = edits
        self.kinds = frozenset(site.kind for site, _ in edits)
        self.layers = frozenset(site.layer for site, _ in edits)

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        here = [e for e, (site, _) in enumerate(self.edits) if site == Site(kind, layer)]
        if not here:
            return value
        rows = value.unflatten(0, (-1, len(self.edits))).clone()
        for e in here:
            rows[:, e] = self.edits[e][1].apply(rows[:, e], kind)
        return rows.flatten(0, 1)


def suffix(edit: Edit, kind: str, start: int, n_pos: int) -> Edit:
    """The same edit where the positions before `start` are not computed."""
    axes = KINDS[kind].shape.split()
    axis = axes.index("query") if "query" in axes else axes.index("pos")
    pos = edit.pos
    if pos is not None:
        wanted = (pos,) if isinstance(pos, int) else pos
        pos = tuple(index - start if index >= 0 else index for index in wanted)
    if not isinstance(edit, Patch):
        return replace(edit, pos=pos)
    value, from_end = edit.value, axis - len(axes)
    if value.ndim >= -from_end and value.shape[from_end] == n_pos:
        value = value.narrow(value.ndim + from_end, start, n_pos - start)
    return replace(edit, pos=pos, value=value)
