"""layout -> config: fields inferred from the weights, and fields that must be assumed; the source of each is
recorded.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from algoscope.core.errors import CheckpointError
from algoscope.formats._position_buffers import stored_positions
from algoscope.formats.layout_reading import LayoutReading, OpenChoice, divisors
from algoscope.formats.layouts import CHOICES

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
"""Those that answers are tried with."""
CENTRED = 1e-5  # embedding rows of a folded model have a mean below this share of their mean magnitude


@dataclass(frozen=True)
class Inferred:
    """A field of the model's config, its value, and its source: `from ...`, or `assumed: ...` where weights do not
    determine it.
    """

    what: str
    value: Any
    how: str
    others: tuple[Any, ...] = ()
    """Values that the weights allow as well, where nothing says which; answers to a task may."""


@dataclass(frozen=True)
class StatedConfig:
    """Fields from a config file, and the name of that file."""

    fields: Mapping[str, Any]
    by: str
    folded: bool = False
    """Norms have no weights: they were folded into the matrices that read them."""
    left_out: tuple[str, ...] = ()
    """One line for each field of the file that was not used."""


def layout_to_config(
    reading: LayoutReading, stated: StatedConfig, chosen: Mapping[str, Any], n_ctx: int, source: str
) -> tuple[Inferred, ...]:
    """The fields of the model's config, each with its source.

    `stated` fields are used where weights do not determine a field. `chosen` fields were set by the user and are not
    inferred. `n_ctx` is the task's. Raises CheckpointError, naming `source`, for fields that are neither determined nor
    stated, and for weights that contradict the stated config.
    """
    account = _Account(reading, stated, chosen, source)
    _sizes(account)
    _output(account)
    _biases(account)
    _norms(account)
    _positions(account, n_ctx)
    _mask(account)
    _assumed(account)
    return tuple(account.rows.values())


class _Account:
    """The fields inferred so far, and what they are inferred from."""

    def __init__(self, reading: LayoutReading, stated: StatedConfig, chosen: Mapping[str, Any], source: str) -> None:
        self.reading, self.stated, self.chosen, self.source = reading, stated, chosen, source
        self.parts, self.sizes, self.name = reading.parts, reading.sizes, reading.name
        self.rows: dict[str, Inferred] = {}

    def observe(self, what: str, value: Any, how: str) -> None:
        """Add a field that the weights determine. Raises CheckpointError where the stated config differs."""
        if what in self.chosen:
            return
        if what in self.stated.fields and self.stated.fields[what] != value:
            raise CheckpointError(
                f"{self.source}: {self.stated.by} says {what} is {self.stated.fields[what]}, the weights say {value} "
                f"({how}); settle it with --set model.{what}=VALUE"
            )
        self.rows[what] = Inferred(what, value, how)

    def assume(self, what: str, value: Any, option: str, others: Iterable[Any] = ()) -> None:
        """Add a field that weights do not determine: the stated value, else the usual one, and what else it may be."""
        if what in self.chosen:
            return
        if what in self.stated.fields:
            self.rows[what] = Inferred(what, self.stated.fields[what], f"from {self.stated.by}")
        else:
            rest = tuple(one for one in others if one != value)
            self.rows[what] = Inferred(what, value, f"assumed: weights do not show it ({option})", rest)

    def shape(self, what: str, axis: str) -> None:
        """Add a field that is the size of an axis."""
        self.observe(what, self.sizes.of[axis], self.shape_of(axis))

    def shape_of(self, axis: str) -> str:
        return f"from the shape of {self.sizes.known_from[axis]}"

    def zero(self, *parts: str) -> bool:
        """Whether all weights of these parts are zero or absent."""
        return not any(weight.any() for part in parts for weight in self.reading.every(part))


def _sizes(account: _Account) -> None:
    reading, of = account.reading, account.sizes.of
    if "head" not in of:
        (size, name) = account.sizes.joined["head", "d_head"]
        raise OpenChoice(
            "model.n_heads",
            divisors(size),
            f"{account.source}: no shape shows into how many heads the {size} entries of {name} are divided: "
            "--set model.n_heads=N",
        )
    account.shape("d_vocab", "d_vocab")
    account.shape("d_model", "d_model")
    account.observe("n_layers", reading.n_layers, f"blocks 0 to {reading.n_layers - 1}")
    account.shape("n_heads", "head")
    grouped = of["kv_head"] != of["head"]
    how = account.shape_of("kv_head")
    account.observe("n_kv_heads", of["kv_head"] if grouped else None, how if grouped else f"as n_heads, {how}")
    regular = of["d_model"] == of["head"] * of["d_head"]
    how = account.shape_of("d_head")
    account.observe("d_head", None if regular else of["d_head"], f"d_model / n_heads, {how}" if regular else how)
    if "out" in account.parts:
        account.shape("d_mlp", "d_mlp")
        gated = "gate" in account.parts
        account.observe("gated_mlp", gated, f"there is {'a' if gated else 'no'} {account.name('gate')}")
    else:
        account.observe("d_mlp", None, f"there is no {account.name('in')}: attention only")
    norms = "q_norm" in account.parts
    if norms != ("k_norm" in account.parts):
        have, lack = sorted(map(account.name, ("q_norm", "k_norm")), reverse=norms)
        raise CheckpointError(f"{account.source} has {have} but lacks {lack}: norms go together")
    account.observe("qk_norm", norms, f"there is {'a' if norms else 'no'} {account.name('q_norm')}")
    if norms and len(reading.every("q_norm")[0]) == of["head"] * of["d_head"] != of["d_head"]:
        account.observe("qk_norm_over", "all", f"from the shape of {account.name('q_norm')}")


def _output(account: _Account) -> None:
    reading, of = account.reading, account.sizes.of
    biased = not account.zero("unembed.b")
    if "unembed" not in account.parts:
        account.observe("tied_head", True, f"there is no {account.name('unembed')}")
        if biased:
            account.observe("head_bias", True, _about_zeros(account, "unembed.b"))
        return
    (head,), (embed,) = reading.every("unembed"), reading.every("embed")
    tied = head.shape == embed.shape and head.equal(embed)
    account.observe("tied_head", tied, f"{account.name('unembed')} is {'' if tied else 'not '}{account.name('embed')}")
    out, how = of["d_vocab_out"], account.shape_of("d_vocab_out")
    same = out == of["d_vocab"]
    account.observe("d_vocab_out", None if same else out, f"as d_vocab, {how}" if same else how)
    account.observe("head_bias", biased, _about_zeros(account, "unembed.b"))


def _biases(account: _Account) -> None:
    inner = not account.zero("q.b", "k.b", "v.b")
    account.observe("attn_bias", inner, _about_zeros(account, "q.b", "k.b", "v.b"))
    outer = not account.zero("o.b")
    how = _about_zeros(account, "o.b")
    account.observe(
        "attn_out_bias", None if outer == inner else outer, f"as attn_bias; {how}" if outer == inner else how
    )
    if "out" in account.parts:
        account.observe("mlp_bias", not account.zero("gate.b", "in.b", "out.b"), _about_zeros(account, "in.b", "out.b"))


def _about_zeros(account: _Account, *parts: str) -> str:
    names = [account.name(part) for part in parts]
    if not account.parts & set(parts):
        return f"there is no {' or '.join(names)}"
    blocks = " in every block" if account.reading.n_layers > 1 and "blocks" in names[0] else ""
    return f"{', '.join(names)}: {f'all zero{blocks}, left out' if account.zero(*parts) else 'not all zero'}"


def _norms(account: _Account) -> None:
    """The kind of norm, its bias, and where norms stand. Without norm weights, a centred embedding shows a folded
    LayerNorm, since TransformerLens centres it when folding.
    """
    expected = {"ln1"} | ({"ln2"} if "out" in account.parts else set())
    present, final = expected & account.parts, "ln_final" in account.parts
    any_layout = account.reading.layout == "by name"  # in the others norms go together
    if not present and not final and account.stated.fields.get("normalization_type") and not account.stated.folded:
        raise CheckpointError(
            f"{account.source}: {account.stated.by} says there are norms, but it lacks {account.name('ln1')}"
        )
    if (present or final) and (present != expected or not (final or any_layout)):
        have = sorted(map(account.name, present | ({"ln_final"} if final else set())))
        lack = sorted(map(account.name, (expected - present) | (set() if final else {"ln_final"})))
        raise CheckpointError(f"{account.source} has {', '.join(have)} but lacks {', '.join(lack)}: norms go together")
    if present:
        _kind_of_norm(account)
        _places_of_norms(account, final, any_layout)
    elif "normalization_type" in account.stated.fields:
        account.assume("normalization_type", None, "")
    elif _is_centred(*account.reading.every("embed")):
        how = f"no norm has weights, and every row of {account.name('embed')} has mean 0: a LayerNorm was folded"
        account.observe("normalization_type", "LN", how)
    else:
        how = f"there is no {account.name('ln1')}: no norms (--set model.normalization_type=LN if they were folded)"
        account.observe("normalization_type", None, f"assumed: {how}")
    row = account.rows.get("normalization_type")
    if row is None or row.value is not None:
        account.assume("eps", 1e-5, "--set model.eps=X")


def _kind_of_norm(account: _Account) -> None:
    """LayerNorm where a norm has a bias; without one, by the names of a LayerNorm's, else RMSNorm is assumed."""
    if "ln1.b" in account.parts:
        how = f"from {account.name('ln1')} and {account.name('ln1.b')}"
        account.observe("normalization_type", "LN", how)
        return
    if "normalization_type" in account.stated.fields or "normalization_type" in account.chosen:
        account.assume("normalization_type", None, "")
    else:
        usual = "LN" if re.search(r"(^|\.)ln_?[12f]\b", account.name("ln1")) and "gate" not in account.parts else "RMS"
        usual = usual if account.reading.layout == "by name" else "RMS"
        other = "RMS" if usual == "LN" else "LN"
        how = f"assumed: {account.name('ln1')} has no bias (--set model.normalization_type={other}"
        how += " if it subtracts the mean)" if other == "LN" else " if it does not subtract the mean)"
        account.rows["normalization_type"] = Inferred("normalization_type", usual, how, (other,))
    row = account.rows.get("normalization_type")
    if (account.chosen.get("normalization_type") if row is None else row.value) == "LN":
        account.observe("norm_bias", False, f"there is no {account.name('ln1.b')}")


def _places_of_norms(account: _Account, final: bool, any_layout: bool) -> None:
    """Where norms stand, of which weights show only whether there are two for each half, and a last one."""
    account.observe("final_norm", final, f"there is {'a' if final else 'no'} {account.name('ln_final')}")
    if "ln1_post" in account.parts:
        account.observe("norms", "both", f"there is a {account.name('ln1_post')}")
    elif any_layout:
        places = ("pre", "post", "output")
        usual = "pre" if final else "post"
        if "post_feedforward" in account.name("ln2"):
            usual = "output"
        account.assume("norms", usual, f"--set model.norms={'|'.join(places)}", places)


def _is_centred(embedding: Tensor) -> bool:
    size = embedding.abs().mean()
    return bool(embedding.shape[1] > 1 and size > 0 and embedding.mean(dim=1).abs().max() < CENTRED * size)


def _positions(account: _Account, n_ctx: int) -> None:
    stated = account.stated.fields
    stored = stored_positions(account.reading.buffers, account.source)
    if "pos" in account.parts:
        learned = not account.zero("pos")
        how = f"there is a {account.name('pos')}{'' if learned else ', all zero: left out'}"
        if stated.get("positions") == "alibi" and account.reading.layout != "by name":
            account.assume("positions", None, "")  # TransformerLens keeps this weight but does not use it
        elif stated.get("positions", "learned") in ("learned", "sinusoidal"):  # a table in either case
            if "positions" not in account.chosen:
                account.rows["positions"] = Inferred("positions", "learned" if learned else None, how)
        else:
            account.observe("positions", "learned" if learned else None, how)
        account.shape("n_ctx", "n_ctx")
        return
    if "positions" in stated:
        account.assume("positions", None, "")
    elif stored is None and "positions" not in account.chosen:
        raise OpenChoice(
            "model.positions",
            ("rotary", "alibi", "sinusoidal", None),
            f"{account.source} has no {account.name('pos')}: say how it encodes positions, "
            "--set model.positions=none|rotary|alibi|sinusoidal",
        )
    for what in ("rotary_dim", "rotary_base"):
        if what in stated:
            account.assume(what, None, "")
    if stored is not None and "positions" not in stated:
        for what, value in stored.fields.items():
            account.observe(what, value, f"there is a {stored.name}" if what == "positions" else f"from {stored.name}")
    if stored is not None and stored.pairs is not None:
        account.observe("weights.rotary_pairs", stored.pairs, f"from {stored.name}")
    rows = None if stored is None else stored.n_ctx
    masks = {name: mask.shape[-1] for name, mask in _masks(account).items()}
    if "n_ctx" in stated:
        account.assume("n_ctx", n_ctx, "")
    elif masks or rows:
        name = stored.name if stored is not None and rows else max(masks, key=lambda name: masks[name])
        account.observe("n_ctx", max([*masks.values(), rows or 0]), f"from the shape of {name}")
    elif "n_ctx" not in account.chosen:
        account.rows["n_ctx"] = Inferred("n_ctx", n_ctx, "assumed: the task's (--set model.n_ctx=N)")


def _masks(account: _Account) -> dict[str, Tensor]:
    """The stored attention masks [query key]."""
    buffers = account.reading.buffers.items()
    squares = {n: v for n, v in buffers if v.ndim >= 2 and 1 < v.shape[-1] == v.shape[-2] and "rotary" not in n}
    return {n: v.reshape(v.shape[-2:]) for n, v in squares.items() if v.numel() == v.shape[-1] ** 2}


def _mask(account: _Account) -> None:
    masks = _masks(account)
    if "causal" in account.stated.fields or not masks:
        account.assume("causal", True, "--no-causal", (False,) if _may_be_open(account) else ())
        return
    if "causal" in account.chosen:
        return
    name, mask = next(iter(masks.items()))
    marked = mask.bool()
    ahead = bool(marked.triu(1).any())
    if ahead and not marked.all() and marked.tril().any():
        raise CheckpointError(
            f"{account.source}: {name} is neither causal nor open: algoscope has no such attention mask"
        )
    is_open = bool(marked.all())
    how = "shows later positions" if is_open else "hides later positions (--no-causal where the code does not use it)"
    others = (False,) if not is_open and _may_be_open(account) else ()
    account.observe("causal", not is_open, f"{name} {how}")
    account.rows["causal"] = replace(account.rows["causal"], others=others)


def _may_be_open(account: _Account) -> bool:
    """Whether the names are those of models published without a mask (arXiv 2306.17844)."""
    return account.reading.layout == "grokking" and not account.parts & {"ln1", "ln_final"}


def _assumed(account: _Account) -> None:
    """What no weight shows, at its usual value; and the choices of reading."""
    gated, by_name = "gate" in account.parts, account.reading.layout == "by name"
    usual = "silu" if gated else _activation(account)
    account.assume("act_fn", usual, "--act NAME", ACTIVATIONS if "out" in account.parts else ())
    account.assume("attn_scale", None, "1/sqrt(d_head) is usual, --set model.attn_scale=X", (1.0,) if by_name else ())
    if account.reading.one_norm:
        account.observe("parallel", True, f"{account.name('ln1')} is the only norm of a block: both halves read it")
    else:
        account.assume(
            "parallel", False, "--set model.parallel=true", (True,) if by_name and "out" in account.parts else ()
        )
    if "attn_rate" in account.stated.fields or _may_be_open(account):
        rates = 0.0, 0.25, 0.5, 0.75
        account.assume("attn_rate", 1.0, "--set model.attn_rate=X, of models whose pattern is not plain softmax", rates)
    for what in ("embed_scale", "attn_scores_soft_cap", "output_logits_soft_cap"):
        if what in account.stated.fields:
            account.assume(what, None, "")
        elif what == "embed_scale" and by_name:
            root = math.sqrt(account.sizes.of["d_model"])
            account.assume(what, 1.0, "--set model.embed_scale=X", (root,))
    positions = account.rows.get("positions")
    rotary = "rotary" in (account.chosen.get("positions"), positions and positions.value)
    if rotary and "rotary_base" not in account.rows and "rotary_frequencies" not in account.rows:
        account.assume("rotary_base", 10_000.0, "--set model.rotary_base=X")
        account.assume("rotary_dim", None, "all entries of a head, --set model.rotary_dim=N")
    for what, value in account.reading.choices.items():
        name, values = f"weights.{what}", CHOICES[what]
        if name not in account.rows and (what != "rotary_pairs" or rotary):
            account.assume(name, value, f"--set {name}={'|'.join(values)}", values)


def _activation(account: _Account) -> str:
    if account.reading.layout == "transformerlens-gpt2":
        return "gelu_tanh"
    return "gelu" if account.reading.layout == "by name" and "c_fc" in account.name("in") else "relu"
