"""Planted models: weights set by hand, so that the correct findings of a lens are known in advance.

Every model is a `Transformer` without norms whose heads and neurons are set by what they read and write
(`planted.handwritten`). `shuffled` destroys the mechanism and keeps the values of the weights.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_lowercase

import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.networks.transformer import Transformer
from algoscope.planted.handwritten import (
    SHARP,
    Head,
    Looks,
    Stream,
    blank,
    feed_forward,
    fill,
    plant,
    plant_by_position,
    plant_step,
)
from algoscope.tasks.base import Task
from algoscope.tasks.digits.addition import Addition
from algoscope.tasks.groups.modular import Modular
from algoscope.tasks.strings.reversal import Reversal

LOGIT = 20.0  # logits per unit of difference between the right answer and another
READS = 64  # context of the models that have no task
WEAK = 0.35  # attention of a weak previous-token head to the previous token; the rest is on the first
SOFT = 6.0  # score of a key that a soft induction head matches, others have 0
KEY_FREQUENCIES = (14, 35, 41, 42, 52)  # those of a trained model: Nanda et al., arXiv 2301.05217


@dataclass(frozen=True)
class Mechanism:
    """The mechanism of a planted model. Every head and feed-forward named here is needed; all others add nothing to the
    residual stream.
    """

    heads: Mapping[str, Head] = field(default_factory=dict)
    """(layer, head) of each role."""
    looks: Mapping[str, Looks] = field(default_factory=dict)
    """For roles that attend by position: for each query, the keys that get equal attention."""
    feed_forwards: tuple[int, ...] = ()
    """Layers whose feed-forward is part of the mechanism."""
    readable_after: int | None = None
    """The first layer after which the unembedding of the residual stream gives the right answer; None: none does."""
    frequencies: tuple[int, ...] = ()
    """Frequencies k of the cosines cos(2 pi k n / p) that represent numbers n."""
    accompanying: tuple[int, ...] = ()
    """Frequencies that only compensate for small logits of those in `frequencies`."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A model whose mechanism is known. `task` is None where it runs on any sequence of its vocabulary."""

    name: str
    summary: str
    model: Transformer
    vocabulary: tuple[str, ...]
    task: Task | None
    mechanism: Mechanism


# ---------------------------------------------------------------------- copying


def previous_token() -> Planted:
    """One head that attends one position back and copies the token there; a second head is idle.

    The first position attends to itself.
    """
    stream = Stream(letter=len(ascii_lowercase), place=READS, before=len(ascii_lowercase))
    model = letters_model(stream, n_layers=1, output="before")
    looks = one_back(READS)
    plant_by_position(model, stream, (0, 1), looks, value=stream.read("letter"), out=stream.write("before"))
    return Planted(
        name="previous-token",
        summary="outputs the previous token, by position",
        model=model,
        vocabulary=tuple(ascii_lowercase),
        task=None,
        mechanism=Mechanism(heads={"previous": (0, 1)}, looks={"previous": looks}, readable_after=0),
    )


def induction() -> Planted:
    """An induction circuit of two heads in two layers, with one idle head in each layer. The first writes the previous
    token at every position; the second attends to positions whose previous token is the current one, and copies the
    token there.

    After several occurrences it attends to all of them equally. Where the current token is new it attends equally to
    all positions but the first, and its output is meaningless.
    """
    summary = "outputs the token that followed the current one earlier, by a previous-token and an induction head"
    return inductor("induction", summary, copies=1.0, readable_after=1)


def induction_wrong() -> Planted:
    """`induction` with the same attention, but the second head writes the negative of what it copies."""
    summary = "induction with the output of the induction head negated: wrong wherever induction is right"
    return inductor("induction-wrong", summary, copies=-1.0, readable_after=None)


def inductor(name: str, summary: str, copies: float, readable_after: int | None) -> Planted:
    """`induction` with the copied token scaled by `copies`."""
    k = len(ascii_lowercase)
    stream = Stream(letter=k, place=READS, before=k, copied=k)
    model = letters_model(stream, n_layers=2, output="copied")
    looks = one_back(READS)
    plant_by_position(model, stream, (0, 1), looks, value=stream.read("letter"), out=stream.write("before"))
    anywhere, at_first = stream.read("place").sum(dim=0, keepdim=True), stream.read("place")[:1]
    plant(
        model,
        (1, 0),
        query=SHARP * torch.cat([stream.read("letter"), anywhere]),
        key=torch.cat([stream.read("before"), -at_first]),  # the first position has itself as previous token
        value=copies * stream.read("letter"),
        out=stream.write("copied"),
    )
    return Planted(
        name=name,
        summary=summary,
        model=model,
        vocabulary=tuple(ascii_lowercase),
        task=None,
        mechanism=Mechanism(
            heads={"previous": (0, 1), "induction": (1, 0)}, looks={"previous": looks}, readable_after=readable_after
        ),
    )


def induction_weak() -> Planted:
    """An induction circuit spread over three weak heads in each of two layers, and one idle head in each.

    Each head of the first layer attends to the previous token with a third of its attention only, and else to the
    first, and writes what it attends to if that is one of its letters, a third of the alphabet. Each head of the second
    layer matches softly, for every third letter, and copies the token there; for other letters it attends equally to
    all positions but the first. So no head has a conspicuous score, and each induction head reads all three
    previous-token heads. What they write of the first token is the same at every position, so it cancels.
    """
    k = len(ascii_lowercase)
    stream = Stream(letter=k, place=READS, before=k, copied=k)
    model = letters_model(stream, n_layers=2, output="copied", n_heads=4)
    letter, before = stream.read("letter"), stream.read("before")
    place = stream.read("place")
    positions = torch.arange(1, READS)
    attends = torch.zeros(READS, READS)
    attends[positions, positions - 1] = SHARP + math.log(WEAK / (1 - WEAK))
    attends[positions, 0] = SHARP
    anywhere, at_first = place.sum(dim=0, keepdim=True), place[:1]
    roles: dict[str, Head] = {}
    for i, written in enumerate(torch.arange(k).chunk(3)):
        roles |= {f"previous {i}": (0, i), f"induction {i}": (1, i)}
        plant(model, (0, i), query=place, key=attends @ place, value=letter[written], out=before.mT[:, written])
        query, key = torch.cat([SOFT / WEAK * letter[i::3], SHARP * anywhere]), torch.cat([before[i::3], -at_first])
        plant(model, (1, i), query=query, key=key, value=letter, out=stream.write("copied"))
    return Planted(
        name="induction-weak",
        summary="induction by three weak previous-token heads and three weak induction heads",
        model=model,
        vocabulary=tuple(ascii_lowercase),
        task=None,
        mechanism=Mechanism(heads=roles, readable_after=1),
    )


def letters_model(stream: Stream, n_layers: int, output: str, n_heads: int = 2) -> Transformer:
    """Attention-only layers of idle heads over the alphabet; the logits are the subspace `output` of the stream."""
    model = blank(
        stream, d_vocab=len(ascii_lowercase), n_ctx=READS, n_layers=n_layers, n_heads=n_heads, d_head=READS, d_mlp=None
    )
    fill(model, tokens=stream.read("letter"), places=stream.read("place"), unembedding=LOGIT * stream.read(output))
    return model


def one_back(n: int) -> Looks:
    return {query: (query - 1,) for query in range(1, n)}


# ---------------------------------------------------------------------- reversal


def reversal() -> Planted:
    """One head that attends along the anti-diagonal, independent of the tokens, and copies; `<EOS>` depends on the
    position.
    """
    summary = "reverses 5 letters by position alone"
    return reverser("reversal", summary, shift=0, readable_after=0)


def reversal_wrong() -> Planted:
    """The head attends as in `reversal`, but its OV circuit writes the next letter of the alphabet."""
    summary = "attends as reversal does, but writes the next letter of the alphabet: wrong on every input"
    return reverser("reversal-wrong", summary, shift=1, readable_after=None)


def reverser(name: str, summary: str, shift: int, readable_after: int | None) -> Planted:
    """`reversal` with each copied letter shifted by `shift` in the alphabet, cyclically."""
    task = Reversal()
    k, n = len(task.alphabet), task.length
    stream = Stream(letter=k, place=task.n_ctx, copied=k)
    model = blank(stream, d_vocab=task.d_vocab, n_ctx=task.n_ctx, n_layers=1, n_heads=1, d_head=task.n_ctx, d_mlp=None)
    last = stream.read("place")[2 * n : 2 * n + 1]
    fill(
        model,
        tokens=stream.read("letter"),
        places=stream.read("place"),
        unembedding=LOGIT * torch.cat([stream.read("copied"), 0 * last, last]),
    )
    looks = {query: (2 * n - 1 - query,) for query in range(n, 2 * n)} | {2 * n: (n,)}
    moved = stream.read("letter").roll(shift, dims=0)
    plant_by_position(model, stream, (0, 0), looks, value=moved, out=stream.write("copied"))
    return Planted(
        name=name,
        summary=summary,
        model=model,
        vocabulary=task.vocabulary,
        task=task,
        mechanism=Mechanism(heads={"reversal": (0, 0)}, looks={"reversal": looks}, readable_after=readable_after),
    )


# ---------------------------------------------------------------------- arithmetic


def clock() -> Planted:
    """Numbers are angles: two heads copy the cosines and sines of a and b to `=`, the feed-forward multiplies them, and
    the logit of c is the sum over frequencies of cos(w (a + b - c)), largest at c = a + b.

        cos(wa + wb) = cos wa cos wb - sin wa sin wb        sin(wa + wb) = sin wa cos wb + cos wa sin wb
        x y = relu(x) y + relu(-x) (-y)

    Source of the algorithm: Nanda et al., arXiv 2301.05217.
    """
    task = Modular(p=113, operation="+")
    n = len(KEY_FREQUENCIES)
    stream = Stream(wave=2 * n, place=task.n_ctx, first=2 * n, second=2 * n, total=2 * n)
    model = blank(
        stream,
        d_vocab=task.d_vocab,
        n_ctx=task.n_ctx,
        n_layers=1,
        n_heads=2,
        d_head=2 * n,
        d_mlp=8 * n,
        gated_mlp=True,
        mlp_bias=False,
    )
    wave = waves(task.p, KEY_FREQUENCIES)
    size = torch.linspace(1, 0.6, n).repeat(2)  # different sizes give each circle its own principal components
    fill(
        model,
        tokens=(size * wave) @ stream.read("wave"),
        places=stream.read("place"),
        unembedding=LOGIT * wave @ stream.read("total"),
    )
    roles: dict[str, Head] = {"first": (0, 0), "second": (0, 1)}
    looks: dict[str, Looks] = {"first": {3: (0,)}, "second": {3: (2,)}}
    for role, head in roles.items():
        value = stream.read("wave") / size[:, None]
        plant_by_position(model, stream, head, looks[role], value=value, out=stream.write(role))
    cos, sin = slice(0, n), slice(n, 2 * n)
    x, y, total = stream.read("first"), stream.read("second"), stream.write("total")
    left = torch.cat([x[cos], x[sin], x[sin], x[cos]])
    right = torch.cat([y[cos], y[sin], y[cos], y[sin]])
    product = torch.cat([total[:, cos], -total[:, cos], total[:, sin], total[:, sin]], dim=1)
    mlp = feed_forward(model, 0)
    assert mlp.w_linear is not None
    mlp.w_in.weight.copy_(torch.cat([left, -left]))
    mlp.w_linear.weight.copy_(torch.cat([right, -right]))
    mlp.w_out.weight.copy_(torch.cat([product, product], dim=1))
    return Planted(
        name="clock",
        summary="adds modulo 113 by the cosines of five frequencies",
        model=model,
        vocabulary=task.vocabulary,
        task=task,
        mechanism=Mechanism(
            heads=roles, looks=looks, feed_forwards=(0,), readable_after=0, frequencies=KEY_FREQUENCIES
        ),
    )


def waves(p: int, frequencies: Sequence[int]) -> Float[Tensor, "p wave"]:
    """cos(2 pi k n / p) of every number n for each of the frequencies k, followed by the sines."""
    phase = torch.outer(torch.arange(p), torch.tensor(frequencies)) % p
    angle = phase.double() * (2 * math.pi / p)
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()


def carry_adder() -> Planted:
    """Column addition with an explicit carry, one column for each digit of the sum, units first.

    Head `column` copies the sum a + b of the column to be written, head `below` the sum t of the column below it. With
    s, the digit just written there (0 at `=`), that column had a carry exactly if t - s is 9 or 10, not 0 or -1:

        layer 0:  u = a + b + [t - s >= 9]        [x >= m] = relu(x - m + 1) - relu(x - m) for integer x
        layer 1:  v = u - 10 [u >= 10]
        logit of digit d:  2 d v - d^2 = v^2 - (d - v)^2, largest at d = v

    The two heads of layer 1 are idle; `<EOS>` depends on the position.
    """
    task = Addition(n_digits=3)
    n, equals = task.n_digits, task.prompt_length - 1
    stream = Stream(digit=1, place=task.n_ctx, column=1, below=1, one=1)
    model = blank(stream, d_vocab=task.d_vocab, n_ctx=task.n_ctx, n_layers=2, n_heads=2, d_head=task.n_ctx, d_mlp=2)
    value = torch.arange(10.0)[:, None]
    one, column = stream.read("one"), stream.read("column")
    ends = 2 * stream.read("place")[task.n_ctx - 2 : task.n_ctx - 1]
    digits = 2 * value @ column - value**2 @ one
    fill(
        model,
        tokens=value @ stream.read("digit"),
        places=stream.read("place") + one,
        unembedding=LOGIT * torch.cat([digits, -one, -one, ends - one, -one]),
    )
    both = [(n - 1 - place, 2 * n - place) for place in range(n)]  # the two digits of each column, units first
    nothing = (n,)  # the plus sign has value 0
    roles: dict[str, Head] = {"column": (0, 0), "below": (0, 1)}
    looks: dict[str, Looks] = {
        "column": dict(enumerate([*both, nothing, nothing], start=equals)),
        "below": dict(enumerate([nothing, *both, nothing], start=equals)),
    }
    for role, head in roles.items():
        sums = 2 * stream.read("digit")  # attention gives the mean of two digits
        plant_by_position(model, stream, head, looks[role], value=sums, out=stream.write(role))
    plant_step(model, 0, stream.read("below") - stream.read("digit"), 9, stream.write("column"))
    plant_step(model, 1, column, 10, -10 * stream.write("column"))
    return Planted(
        name="carry-adder",
        summary="adds 3-digit numbers column by column with an explicit carry",
        model=model,
        vocabulary=task.vocabulary,
        task=task,
        mechanism=Mechanism(heads=roles, looks=looks, feed_forwards=(0, 1), readable_after=1),
    )


# ---------------------------------------------------------------------- destroyed


def shuffled(planted: Planted, seed: int) -> Planted:
    """A copy whose weights are permuted within each tensor: the same values, the mechanism gone."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(planted.model)
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return replace(
        planted,
        name=f"{planted.name}-shuffled-{seed}",
        summary=f"the weights of {planted.name} in another order within each tensor",
        model=model,
        mechanism=Mechanism(),
    )
