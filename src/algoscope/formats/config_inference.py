"""What weights tell of the model they belong to, and what has to be assumed; every answer says where it comes from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.errors import CheckpointError
from algoscope.formats.layout_reading import Reading
from algoscope.networks.transformer import Transformer

CENTRED = 1e-5  # rows of a folded model's embedding have a mean below this share of their size


@dataclass(frozen=True)
class Inferred:
    """A field of the model's config, its value, and how it was found: `from ...`, or `assumed: ...` where weights do
    not show it.
    """

    what: str
    value: Any
    how: str


@dataclass(frozen=True)
class Said:
    """What is known beside the weights: fields of the model's config, and who says so."""

    fields: Mapping[str, Any]
    by: str
    folded: bool = False
    """Norms have no weights of their own: they were folded into the matrices that read them."""


def infer(reading: Reading, said: Said, asked: Mapping[str, Any], n_ctx: int, source: str) -> tuple[Inferred, ...]:
    """The fields of the model's config, each with how it was found.

    `said` stands in for what weights do not show. `asked` are the fields that the user has set: they are not inferred,
    and what depends on them alone is not missed. `n_ctx` is the task's. Raises CheckpointError, naming `source`, for
    what neither the weights nor anybody tells, and for weights that contradict what is said.
    """
    found = _Account(reading, said, asked, source)
    _sizes(found)
    _output(found)
    _biases(found)
    _norms(found)
    _positions(found, n_ctx)
    _mask(found)
    gated = "gate" in reading.parts
    found.assume("act_fn", "silu" if gated else _activation(reading.layout), "--act NAME")
    found.assume("attn_scale", None, "1/sqrt(d_head) is usual, --set model.attn_scale=X")
    found.assume("parallel", False, "--set model.parallel=true")
    return tuple(found.rows.values())


class _Account:
    """The answers so far, by field."""

    def __init__(self, reading: Reading, said: Said, asked: Mapping[str, Any], source: str) -> None:
        self.reading, self.said, self.asked, self.source = reading, said, asked, source
        self.parts, self.sizes, self.name = reading.parts, reading.sizes, reading.name
        self.rows: dict[str, Inferred] = {}

    def tell(self, what: str, value: Any, how: str) -> None:
        """A field that the weights show. Raises CheckpointError where something else is said of it."""
        if what in self.asked:
            return
        if what in self.said.fields and self.said.fields[what] != value:
            raise CheckpointError(
                f"{self.source}: {self.said.by} says {what} is {self.said.fields[what]}, the weights say {value} "
                f"({how}); settle it with --set model.{what}=VALUE"
            )
        self.rows[what] = Inferred(what, value, how)

    def assume(self, what: str, value: Any, option: str) -> None:
        """A field that weights do not show: as it is said, else as it usually is."""
        if what in self.asked:
            return
        if what in self.said.fields:
            self.rows[what] = Inferred(what, self.said.fields[what], f"from {self.said.by}")
        else:
            self.rows[what] = Inferred(what, value, f"assumed: weights do not show it ({option})")

    def shape(self, what: str, axis: str) -> None:
        """A field that is the size of an axis."""
        self.tell(what, self.sizes.of[axis], self.shape_of(axis))

    def shape_of(self, axis: str) -> str:
        return f"from the shape of {self.sizes.told_by[axis]}"

    def zero(self, *parts: str) -> bool:
        """Are all weights of these parts zero, or absent?"""
        return not any(weight.any() for part in parts for weight in self.reading.every(part))


def _sizes(found: _Account) -> None:
    reading, of = found.reading, found.sizes.of
    if "head" not in of:
        (size, name) = found.sizes.joined["head", "d_head"]
        raise CheckpointError(
            f"{found.source}: into how many heads the {size} entries of {name} are divided, no shape tells: "
            "--set model.n_heads=N"
        )
    found.shape("d_vocab", "d_vocab")
    found.shape("d_model", "d_model")
    found.tell("n_layers", reading.n_layers, f"blocks 0 to {reading.n_layers - 1}")
    found.shape("n_heads", "head")
    grouped = of["kv_head"] != of["head"]
    how = found.shape_of("kv_head")
    found.tell("n_kv_heads", of["kv_head"] if grouped else None, how if grouped else f"as n_heads, {how}")
    regular = of["d_model"] == of["head"] * of["d_head"]
    how = found.shape_of("d_head")
    found.tell("d_head", None if regular else of["d_head"], f"d_model / n_heads, {how}" if regular else how)
    if "out" in found.parts:
        found.shape("d_mlp", "d_mlp")
        gated = "gate" in found.parts
        found.tell("gated_mlp", gated, f"there is {'a' if gated else 'no'} {found.name('gate')}")
    else:
        found.tell("d_mlp", None, f"there is no {found.name('in')}: attention only")
    norms = "q_norm" in found.parts
    if norms != ("k_norm" in found.parts):
        have, lack = sorted(map(found.name, ("q_norm", "k_norm")), reverse=norms)
        raise CheckpointError(f"{found.source} has {have} but lacks {lack}: norms go together")
    found.tell("qk_norm", norms, f"there is {'a' if norms else 'no'} {found.name('q_norm')}")


def _output(found: _Account) -> None:
    reading, of = found.reading, found.sizes.of
    if "unembed" not in found.parts:
        found.tell("tied_head", True, f"there is no {found.name('unembed')}")
        return
    (head,), (embed,) = reading.every("unembed"), reading.every("embed")
    biased = not found.zero("unembed.b")
    tied = head.shape == embed.shape and head.equal(embed) and not biased
    found.tell("tied_head", tied, f"{found.name('unembed')} is {'' if tied else 'not '}{found.name('embed')}")
    out, how = of["d_vocab_out"], found.shape_of("d_vocab_out")
    same = out == of["d_vocab"]
    found.tell("d_vocab_out", None if same else out, f"as d_vocab, {how}" if same else how)
    found.tell("head_bias", biased, _about_zeros(found, "unembed.b"))


def _biases(found: _Account) -> None:
    inner = not found.zero("q.b", "k.b", "v.b")
    found.tell("attn_bias", inner, _about_zeros(found, "q.b", "k.b", "v.b"))
    outer = not found.zero("o.b")
    how = _about_zeros(found, "o.b")
    found.tell("attn_out_bias", None if outer == inner else outer, f"as attn_bias; {how}" if outer == inner else how)
    if "out" in found.parts:
        found.tell("mlp_bias", not found.zero("gate.b", "in.b", "out.b"), _about_zeros(found, "in.b", "out.b"))


def _about_zeros(found: _Account, *parts: str) -> str:
    names = [found.name(part) for part in parts]
    if not found.parts & set(parts):
        return f"there is no {' or '.join(names)}"
    blocks = " in every block" if found.reading.n_layers > 1 and "blocks" in names[0] else ""
    return f"{', '.join(names)}: {f'all zero{blocks}, left out' if found.zero(*parts) else 'not all zero'}"


def _norms(found: _Account) -> None:
    """Which norm, by its weights: only LayerNorm has a bias. Where there are none, whether the embedding was centred,
    as TransformerLens leaves it when it folds a LayerNorm.
    """
    expected = {"ln1", "ln_final"} | ({"ln2"} if "out" in found.parts else set())
    there = expected & found.parts
    if not there and found.said.fields.get("normalization_type") and not found.said.folded:
        raise CheckpointError(f"{found.source}: {found.said.by} says there are norms, but it lacks {found.name('ln1')}")
    if there and there != expected:
        have, lack = (sorted(map(found.name, some)) for some in (there, expected - there))
        raise CheckpointError(f"{found.source} has {', '.join(have)} but lacks {', '.join(lack)}: norms go together")
    if there:
        biased = "ln1.b" in found.parts
        how = f"from {found.name('ln1')} and {found.name('ln1.b')}"
        alone = f"assumed: {found.name('ln1')} has no bias (--set model.normalization_type=LN if it takes off the mean)"
        if not biased and "normalization_type" in found.said.fields:
            found.assume("normalization_type", None, "")
        else:
            found.tell("normalization_type", "LN" if biased else "RMS", how if biased else alone)
    elif "normalization_type" in found.said.fields:
        found.assume("normalization_type", None, "")
    elif _is_centred(*found.reading.every("embed")):
        how = f"no norm has weights, and every row of {found.name('embed')} has mean 0: a LayerNorm was folded"
        found.tell("normalization_type", "LN", how)
    else:
        how = f"there is no {found.name('ln1')}: no norms (--set model.normalization_type=LN if they were folded)"
        found.tell("normalization_type", None, f"assumed: {how}")
    row = found.rows.get("normalization_type")
    if row is None or row.value is not None:
        found.assume("eps", 1e-5, "--set model.eps=X")


def _is_centred(embedding: Tensor) -> bool:
    size = embedding.abs().mean()
    return bool(embedding.shape[1] > 1 and size > 0 and embedding.mean(dim=1).abs().max() < CENTRED * size)


def _positions(found: _Account, n_ctx: int) -> None:
    buffers = found.reading.buffers
    turning = next((name for name in buffers if name.endswith("rotary_sin")), None)
    if "pos" in found.parts:
        learned = not found.zero("pos")
        how = f"there is a {found.name('pos')}{'' if learned else ', all zero: left out'}"
        if found.said.fields.get("positions") == "alibi":  # it keeps such a weight and does not use it
            found.assume("positions", None, "")
        elif "positions" not in found.asked:
            found.rows["positions"] = Inferred("positions", "learned" if learned else None, how)
        found.shape("n_ctx", "n_ctx")
        return
    if "positions" in found.said.fields:
        for what in ("positions", "rotary_dim", "rotary_base"):
            if what in found.said.fields:
                found.assume(what, None, "")
    elif turning is not None:
        found.tell("positions", "rotary", f"there is a {turning}")
        for what, value in _rotary(found, turning).items():
            found.tell(what, value, f"from {turning}")
    elif "positions" not in found.asked:
        raise CheckpointError(
            f"{found.source} has no {found.name('pos')}: say what tells positions apart, "
            "--set model.positions=none|rotary|alibi|sinusoidal"
        )
    masks = [value.shape[-1] for name, value in buffers.items() if name.endswith("mask") and value.numel() > 1]
    if "n_ctx" in found.said.fields:
        found.assume("n_ctx", n_ctx, "")
    elif masks or turning:
        told = max([*masks, *([len(buffers[turning])] if turning else [])])
        found.tell("n_ctx", told, f"from the shape of {turning or 'the stored mask'}")
    elif "n_ctx" not in found.asked:
        found.rows["n_ctx"] = Inferred("n_ctx", n_ctx, "assumed: the task's (--set model.n_ctx=N)")


def _rotary(found: _Account, turning: str) -> dict[str, Any]:
    """Entries of each head that turn, and by what base, from the stored sines of the first step."""
    sines = found.reading.buffers[turning].double()
    half = sines.shape[-1] // 2
    if len(sines) < 2 or half < 2:
        return {"rotary_dim": sines.shape[-1]}
    if not torch.allclose(sines[1, :half], sines[1, half:]):
        raise CheckpointError(f"{found.source}: {turning} turns neighbouring entries of a head; ours turns its halves")
    angle = sines[1, :half].asin()  # from 1 radian downwards
    base = float(angle[-1].clamp(min=1e-12)) ** (-half / (half - 1))
    base = float(round(base)) if math.isclose(base, round(base), rel_tol=1e-4) else base
    if torch.allclose(angle, base ** (-torch.arange(half).double() / half), rtol=1e-5, atol=1e-7):
        return {"rotary_dim": 2 * half, "rotary_base": base}
    return {"rotary_dim": 2 * half, "rotary_frequencies": tuple(angle.tolist())}


def _mask(found: _Account) -> None:
    masks = {n: v for n, v in found.reading.buffers.items() if n.endswith("mask") and v.ndim == 2 and v.numel() > 1}
    if "causal" in found.said.fields or not masks:
        found.assume("causal", True, "--no-causal")
        return
    if "causal" in found.asked:
        return
    name, mask = next(iter(masks.items()))
    ahead = mask.bool().triu(1).any()
    if ahead and not mask.bool().all():
        raise CheckpointError(f"{found.source}: {name} is neither causal nor open: no model of ours masks like this")
    how = "shows later positions" if ahead else "hides later positions (--no-causal where the code does not use it)"
    found.tell("causal", not ahead, f"{name} {how}")


def _activation(layout: str) -> str:
    return "gelu_tanh" if layout == "transformerlens-gpt2" else "relu"


# ---------------------------------------------------------------------- weights that fit a config


def settle(reading: Reading, cfg: ModelConfig) -> dict[str, Tensor]:
    """The weights that a model of this config has: what is missing and adds nothing (biases of 0, norm weights of 1) is
    put in, what is there and adds nothing (biases and positions of 0, a second copy of a tied embedding) is left out.

    Whatever else does not fit is left as it is.
    """
    with torch.device("meta"):
        expected = Transformer(cfg).state_dict()
    given = dict(reading.weights)
    dtype = given["embed.weight"].dtype
    for name, value in expected.items():
        if name not in given and name.endswith(".bias"):
            given[name] = torch.zeros(value.shape, dtype=dtype)
        elif name not in given and ("ln" in name or "norm" in name):
            given[name] = torch.ones(value.shape, dtype=dtype)
    for name in set(given) - set(expected):
        silent = (name.endswith("bias") or name == "pos_embed.weight") and not given[name].any()
        again = name == "unembed.weight" and given[name].equal(given["embed.weight"])
        unused = name == "pos_embed.weight" and cfg.positions == "alibi"
        if silent or again or unused:
            del given[name]
    return {name: given[name] for name in [*expected, *sorted(set(given) - set(expected))] if name in given}


def bias_after_product(reading: Reading) -> Reading:
    """A gated feed-forward of TransformerLens adds b_in after the product, ours before it: it goes through the output
    matrix into the output's bias instead.
    """
    if reading.names.name != "transformerlens" or not {"gate", "in.b"} <= reading.parts:
        return reading
    moved, lines = dict(reading.weights), reading.left_out
    if any(bias.any() for bias in reading.every("in.b")):
        lines += (f"{reading.name('in.b')}, which went through {reading.name('out')} into {reading.name('out.b')}",)
    for layer in range(reading.n_layers):
        at = f"blocks.{layer}.mlp"
        after = moved.pop(f"{at}.w_linear.bias")
        out = moved[f"{at}.w_out.weight"]
        moved[f"{at}.w_out.bias"] = moved.get(f"{at}.w_out.bias", torch.zeros_like(out[:, 0])) + out @ after
    return replace(reading, weights=moved, parts=reading.parts - {"in.b"} | {"out.b"}, left_out=lines)
