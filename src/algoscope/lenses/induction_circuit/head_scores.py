"""Attention and output scores of heads on repeated blocks of tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.errors import ConfigError, SubjectError
from algoscope.data import seeded
from algoscope.lenses.heads.attention_targets import (
    CURRENT_TOKEN,
    DUPLICATE_TOKEN,
    FIRST_TOKEN,
    INDUCTION,
    PREVIOUS_TOKEN,
    AttentionTarget,
    as_shares,
)
from algoscope.lenses.heads.head_panels import head_name
from algoscope.lenses.inputs.repeated_tokens import distinct_blocks, usable_tokens
from algoscope.lenses.parameters.qk_ov_circuits import Circuits, Head
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Tokens
from algoscope.tasks.strings.copying import Copying

LONGEST = 50  # tokens of a block by default
SHORTEST = 2
LENGTHS = 16  # different lengths of blocks, at most
FEW = 64  # vocabulary up to which all tokens are candidates for copying
PORTION = 2**24  # most numbers of one run held in memory
ATTENTION = ("induction", "diagonal", "previous-token", "duplicate-token", "current-token", "first-token")
WRITING = ("copying", "eigenvalues", "top1")


@dataclass(frozen=True, eq=False)
class Rows:
    """Sequences of a repeated block of different tokens: `start` tokens that all rows share, then
    row i's block of `period[i]` tokens, repeated and cut. The model reads all but the last token.

    A position is `determined` where its token has occurred before: the token after it is the same again. Blocks are
    drawn from `n_tokens` different tokens.
    """

    tokens: Tokens
    start: int
    period: Int[Tensor, "batch"]
    candidates: Int[Tensor, "batch some"]
    n_tokens: int
    trained: bool
    meaning: str

    @property
    def read(self) -> Tokens:
        return self.tokens[:, :-1]

    @property
    def determined(self) -> Bool[Tensor, "batch pos"]:
        place = torch.arange(self.tokens.shape[1] - 1, device=self.tokens.device)
        return place >= self.start + self.period[:, None]

    def portion(self, rows: slice) -> "Rows":
        """Some of the rows."""
        cut = (self.period[rows], self.candidates[rows], self.n_tokens, self.trained, self.meaning)
        return Rows(self.tokens[rows], self.start, *cut)


# ---------------------------------------------------------------------- rows


def repeated_rows(
    subject: Subject,
    n_inputs: int,
    length: int | None = None,
    copies: int | None = None,
    first: str | None = None,
    seed: int = 0,
) -> Rows:
    """Random rows for a subject.

    `length`: tokens of a block; None: for the copying task the lengths of its patterns, as many rows of each; else up
    to 16 lengths, from half of the longest that fits, or of 50, to that: with a single length, attention by distance
    and by content cannot be distinguished, and the positional part of heads' outputs is the same on every row.
    `copies`: how often the longest block is read; None: twice, and in the copying task to the end of a sequence.
    `first`: a text before the blocks; None: the tokens that the tokenizer prepends, such as BOS. A model with a task
    reads no more positions than its task has.

    Raises ConfigError for blocks that do not fit and for fewer than two rows, SubjectError where no block of two fits.
    """
    if n_inputs < 2:
        raise ConfigError(
            f"induction needs 2 inputs or more, as resampling takes outputs from another row, not {n_inputs}"
        )
    start = subject.text.encode(first or "")
    copying = subject.task if subject.has_task and isinstance(subject.task, Copying) else None
    room = (subject.task.n_ctx - 1 if subject.has_task else subject.cfg.n_ctx) - len(start)
    usable = usable_tokens(subject, start)
    lengths, n_read = _sizes(subject, copying, room, len(usable), n_inputs, length, copies)
    generator = seeded(torch.device("cpu"), seed)
    blocks = distinct_blocks(usable, n_inputs, max(lengths), generator)
    period = torch.tensor(lengths).repeat(-(-n_inputs // len(lengths)))[:n_inputs]
    body = blocks.gather(1, torch.arange(n_read + 1) % period[:, None])
    tokens = torch.cat([torch.tensor(start, dtype=torch.long).expand(n_inputs, -1), body], dim=1)
    sizes = " or ".join(map(str, lengths)) if len(lengths) < 4 else f"{lengths[0]} to {lengths[-1]}"
    return Rows(
        tokens=tokens.to(subject.device),
        start=len(start),
        period=period.to(subject.device),
        candidates=(usable.expand(n_inputs, -1) if len(usable) <= FEW else blocks).to(subject.device),
        n_tokens=len(usable),
        trained=copying is not None and set(lengths) <= set(copying.lengths),
        meaning=f"{n_inputs:,} rows of random tokens in blocks of {sizes}, read over {n_read} positions",
    )


def _sizes(
    subject: Subject,
    copying: Copying | None,
    room: int,
    n_usable: int,
    n_inputs: int,
    length: int | None,
    copies: int | None,
) -> tuple[list[int], int]:
    """The lengths of blocks, and the positions over which they are read."""
    longest = min(room // max(copies or 2, 2), n_usable)
    if longest < SHORTEST:
        raise SubjectError(
            f"{subject.name} has room for {room} tokens and {n_usable} different ones: too few to repeat a block of two"
        )
    if copies is not None and copies < 2:
        raise ConfigError(f"{copies} copies are no repetition: give 2 or more")
    if length is not None and not SHORTEST <= length <= longest:
        raise ConfigError(f"a block of {length} tokens does not fit {subject.name}: give a length from 2 to {longest}")
    if copying is None:
        most = min(longest, LONGEST)
        spread = torch.linspace(max(SHORTEST, most / 2), most, min(LENGTHS, n_inputs)).round().int()
        lengths = [length] if length else sorted(set(spread.tolist()))
    else:
        lengths = [length] if length else [n for n in copying.lengths if SHORTEST <= n <= longest]
        if not lengths:
            raise SubjectError(f"{subject.name} has no pattern of {SHORTEST} to {longest} different letters")
    filled = room if copying and copies is None else (copies or 2) * max(lengths)
    return lengths, filled


# ---------------------------------------------------------------------- attention


def attention_scores(
    pattern: Float[Tensor, "batch head query key"], rows: Rows
) -> dict[str, Float[Tensor, "batch head"]]:
    """Six scores of every head on each row, all of them mean attention: 0 = none, 1 = all.

        induction        determined queries q     every k with token[k - 1] = token[q], k <= q diagonal         all q >=
        period - 1      k = q - (period - 1): the usual raw diagonal, whose entries before the second copy cannot be
        induction previous-token   all q >= 1               k = q - 1 duplicate-token  determined queries q     every k
        < q with token[k] = token[q] current-token    all q                    k = q first-token      all q
        k = 0

    With the usual first token, then T tokens twice, all of them read, `induction` averages T queries, and `diagonal`
    T + 2 entries of which T can be right (T + 1 without a first token), as TransformerLens and ARENA do. Prefix
    matching over several copies (Olsson et al., arXiv 2209.11895) is `induction`.
    """
    position, last = torch.arange(rows.read.shape[1], device=rows.tokens.device), rows.period[:, None] - 1
    targets = (
        replace(INDUCTION, queries=rows.determined),
        AttentionTarget("diagonal", position[:, None] - position == last[:, :, None], queries=position >= last),
        replace(PREVIOUS_TOKEN, queries=slice(1, None)),
        replace(DUPLICATE_TOKEN, queries=rows.determined),
        CURRENT_TOKEN,
        FIRST_TOKEN,
    )
    return {target.name: target.on(rows.read).share(pattern) for target in targets}


def chances(rows: Rows) -> dict[str, float]:
    """The same scores of uniform attention over the visible positions."""
    n = rows.read.shape[1]
    even = torch.ones(n, n, device=rows.tokens.device, dtype=torch.double).tril()
    pattern = (even / even.sum(dim=1, keepdim=True)).expand(len(rows.tokens), 1, n, n)
    return {name: float(score.mean()) for name, score in attention_scores(pattern, rows).items()}


# ---------------------------------------------------------------------- writing


def raised(
    v: Float[Tensor, "batch pos head d_head"],
    out: Float[Tensor, "head d_head d_model"],
    unembedding: Float[Tensor, "token d_model"],
    rows: Rows,
) -> tuple[Float[Tensor, "head"], Float[Tensor, "head"]]:
    """The logits raised by every head when it attends to a position, summed over the positions of the blocks: those of
    the token at that position, and those of all candidates.

    A head attending to one position alone writes `out(v)`. Its logits among the row's candidates are centred, and
    negative values count as zero. Every position is one example, whether or not the head attends to it.
    """
    directions = unembedding[rows.candidates]  # [batch some d_model]
    written = einsum(v, out, "batch pos head d_head, head d_head d_model -> batch head pos d_model")
    logits = einsum(written, directions, "batch head pos d_model, batch some d_model -> batch head pos some")
    up = (logits - logits.mean(dim=-1, keepdim=True)).relu()[:, :, rows.start :]
    itself = rows.read[:, rows.start :, None] == rows.candidates[:, None, :]
    return (up * itself[:, None]).sum(dim=(0, 2, 3)), up.sum(dim=(0, 2, 3))


# ---------------------------------------------------------------------- heads


@dataclass(frozen=True)
class HeadScores:
    """The measures of one head: attention scores (means over the rows, and their spread), and copying scores."""

    head: Head
    attention: Mapping[str, float]
    spread: Mapping[str, float]
    writes: Mapping[str, float]

    def document(self) -> dict[str, Any]:
        return {
            "layer": self.head[0],
            "head": self.head[1],
            "name": head_name(*self.head),
            **self.attention,
            **{name: None if np.isnan(value) else value for name, value in self.writes.items()},
            "spread": dict(self.spread),
        }


def portions(subject: Subject, rows: Rows) -> Iterator[slice]:
    """Batches of rows whose attention and logits fit into memory."""
    n, cfg = rows.read.shape[1], subject.cfg
    size = max(1, PORTION // (n * max(cfg.d_vocab, n * cfg.n_layers * cfg.n_heads)))
    yield from (slice(i, i + size) for i in range(0, len(rows.tokens), size))


def head_scores(subject: Subject, circuits: Circuits, rows: Rows) -> list[HeadScores]:
    """The scores of every head over the rows, layer by layer."""
    cfg, layers = subject.cfg, range(subject.cfg.n_layers)
    each: dict[int, list[dict[str, Tensor]]] = {layer: [] for layer in layers}
    up = torch.zeros(2, cfg.n_layers, cfg.n_heads, dtype=torch.double)
    for part in portions(subject, rows):
        these = rows.portion(part)
        _, cache = subject.run(these.read, record=[("pattern", layer) for layer in layers], at=slice(0, 0))
        _, values = circuits.subject.run(these.read, record=[("v", layer) for layer in layers], at=slice(0, 0))
        for layer in layers:
            each[layer].append(attention_scores(as_shares(cache["pattern", layer], cfg), these))
            v = values["v", layer].repeat_interleave(cfg.n_heads // cfg.kv_heads, dim=2)
            out = circuits.layer(layer).W_O.mT.to(v.dtype)
            up[:, layer] += torch.stack(raised(v, out, circuits.model.W_U.detach(), these)).cpu()
    heads = []
    for layer in layers:
        scores = {name: torch.cat([one[name] for one in each[layer]]).double() for name in ATTENTION}
        eigenvalues, top1 = circuits.copying_eigenvalues(layer), circuits.copying_top1(layer)
        for head in range(cfg.n_heads):
            writes = (2 * up[0, layer, head] / up[1, layer, head] - 1, eigenvalues[head], top1[head])
            heads.append(
                HeadScores(
                    head=(layer, head),
                    attention={name: float(score[:, head].mean()) for name, score in scores.items()},
                    spread={name: float(score[:, head].std()) for name, score in scores.items()},
                    writes=dict(zip(WRITING, map(float, writes), strict=True)),
                )
            )
    return heads
