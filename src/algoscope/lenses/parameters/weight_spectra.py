"""The weights lens: how many directions every matrix uses, and every head's circuits, before and after training."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Panel, View
from algoscope.lenses.inputs.prompts import LARGE, Prompts
from algoscope.networks.matrix_rank import counted_rank, entropy_rank, spectrum_of_product, stable_rank
from algoscope.networks.parameters import count_parameters
from algoscope.networks.transformer import Attention, Transformer
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject

OF_A_HEAD = ("W_Q", "W_K", "W_V", "W_O", "QK", "OV")
CIRCUITS = ("QK", "OV")
FEW = 8  # circuits: of more, spectra are rows of a heatmap instead of lines


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix, largest first, its shape, and the type its entries were rounded to."""

    part: str
    layer: int | None
    head: int | None
    shape: tuple[int, int]
    singular: Float[Tensor, "value"]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """`W_E`, `L0 W_Q`, `L0H1 QK`."""
        at = "" if self.layer is None else f"L{self.layer}" + ("" if self.head is None else f"H{self.head}")
        return f"{at} {self.part}".strip()

    @property
    def facts(self) -> dict[str, float]:
        """Frobenius norm, effective rank, stable rank, and the rank up to rounding."""
        return {
            "norm": float(self.singular.norm()),
            "effective_rank": float(entropy_rank(self.singular)),
            "stable_rank": float(stable_rank(self.singular)),
            "rank": int(counted_rank(self.singular, max(self.shape), self.dtype)),
        }


def weights(subject: str | Run | Subject, *, runs_dir: str | None = None) -> Finding:
    """Singular values and ranks of every matrix, beside those at step 0 where they are known.

    The matrices are W_E, W_pos, W_U (where it is not W_E), each layer's W_Q, W_K, W_V, W_O, W_in, W_out (and W_gate),
    whole and, of attention, each head's own; and each head's circuits: QK, by which a query reads a key
    (W_Q^T W_K, [d_model d_model]), and OV, what it writes of what it attends to (W_O W_V). Norms, biases and rotary
    positions are left out of the circuits. Weights kept as factors or with an update count as the matrix they make.

    Effective rank: the exponential of the entropy of the singular values as shares of their sum; n = n directions
    alike, 1 = one direction, 0 = a zero matrix (Roy and Vetterli 2007). Stable rank: the squared Frobenius norm over
    the squared largest singular value; it hears only directions about as strong as the strongest.

    - `effective rank` and `stable rank` [when matrix] of the whole matrices; with a step 0, `when` ends with the change
      that training made of each;
    - `effective rank of heads` [when part head];
    - `spectra` [when matrix value]: singular values over the largest, 0 = nothing, 1 = as strong as the strongest;
    - `spectra of circuits` [circuit when value]: the singular values themselves.

    Facts: `matrices` {matrix, layer, head, shape, full_rank, after, before, change}; the last three (null where there
    is none) hold `norm` (Frobenius), `effective_rank`, `stable_rank` and `rank` (singular values above rounding).
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    before = subject.before_training()
    models = ({} if before is None else {"before": before.model}) | {"after": subject.model}
    found = {when: spectra(model) for when, model in models.items()}
    if before is not None:
        found["change"] = _changes(before.model, subject.model)
    rows = [_row(name, found) for name in found["after"]]
    return Finding(
        kind="weights",
        claim=_claim(rows),
        facts={"subject": subject.name, "matrices": rows},
        panels=tuple(_panels(found)),
        provenance={"subject": subject.name, "weights_sha256": subject.weights_sha256},
    )


def spectra(model: Transformer) -> dict[str, Spectrum]:
    """The singular values of every matrix and circuit of a model, in float64."""
    dtype, precise = model.embed.weight.dtype, copy.deepcopy(model).double()
    whole = {name: _spectrum(name, matrix, dtype) for name, matrix in matrices(precise).items()}
    heads = (head for layer in range(model.cfg.n_layers) for head in _heads(precise.block(layer).attn, layer, dtype))
    return whole | {head.name: head for head in heads}


def matrices(model: Transformer) -> dict[str, Float[Tensor, "out in"]]:
    """The whole matrices by name, in the order of the data's path: [out in], embeddings one row a token."""
    found = {"W_E": model.embed.weight}
    if model.pos_embed is not None:
        found["W_pos"] = model.pos_embed.weight
    for layer in range(model.cfg.n_layers):
        attn, mlp = model.block(layer).attn, model.block(layer).mlp
        named = {"W_Q": attn.q, "W_K": attn.k, "W_V": attn.v, "W_O": attn.o}
        if mlp is not None and mlp.w_linear is not None:
            named |= {"W_gate": mlp.w_in, "W_in": mlp.w_linear, "W_out": mlp.w_out}
        elif mlp is not None:
            named |= {"W_in": mlp.w_in, "W_out": mlp.w_out}
        found |= {f"L{layer} {part}": module.weight for part, module in named.items()}
    if model.unembed is not None:
        found["W_U"] = model.unembed.weight
    return {name: matrix.detach() for name, matrix in found.items()}


def _spectrum(name: str, matrix: Float[Tensor, "out in"], dtype: torch.dtype) -> Spectrum:
    at, _, part = name.rpartition(" ")
    layer = int(at[1:]) if at else None
    shape = (matrix.shape[0], matrix.shape[1])
    return Spectrum(part, layer, None, shape, torch.linalg.svdvals(matrix).cpu(), dtype)


def _heads(attn: Attention, layer: int, dtype: torch.dtype) -> Iterator[Spectrum]:
    """The matrices and circuits of every query head; keys and values are those of its group."""
    cfg = attn.cfg
    q, k, v, o = (module.weight.detach() for module in (attn.q, attn.k, attn.v, attn.o))
    q, k, v = (rearrange(w, "(head d_head) d_model -> head d_head d_model", d_head=attn.d_head) for w in (q, k, v))
    k, v = (w.repeat_interleave(cfg.n_heads // cfg.kv_heads, dim=0) for w in (k, v))
    o = rearrange(o, "d_model (head d_head) -> head d_model d_head", d_head=attn.d_head)
    own = {"W_Q": q, "W_K": k, "W_V": v, "W_O": o}
    values = {part: torch.linalg.svdvals(w).cpu() for part, w in own.items()}
    values |= {"QK": spectrum_of_product(q.mT, k).cpu(), "OV": spectrum_of_product(o, v).cpu()}
    shapes = {part: (w.shape[1], w.shape[2]) for part, w in own.items()}
    for head in range(cfg.n_heads):
        for part in OF_A_HEAD:
            shape = shapes.get(part, (cfg.d_model, cfg.d_model))
            yield Spectrum(part, layer, head, shape, values[part][head], dtype)


def _changes(before: Transformer, after: Transformer) -> dict[str, Spectrum]:
    """What training added to every whole matrix."""
    dtype = after.embed.weight.dtype
    first, last = (matrices(copy.deepcopy(model).double()) for model in (before, after))
    return {name: _spectrum(name, matrix - first[name], dtype) for name, matrix in last.items()}


def _row(name: str, found: Mapping[str, Mapping[str, Spectrum]]) -> dict[str, Any]:
    last = found["after"][name]
    ranks = {when: found[when][name].facts if name in found.get(when, {}) else None for when in ("before", "change")}
    return {
        "matrix": name,
        "layer": last.layer,
        "head": last.head,
        "shape": list(last.shape),
        "full_rank": len(last.singular),
        "after": last.facts,
        **ranks,
    }


def _claim(rows: Sequence[Mapping[str, Any]]) -> str:
    """The mean effective rank of the circuits, before and after."""
    said = []
    for part in CIRCUITS:
        own = [row for row in rows if row["head"] is not None and row["matrix"].endswith(part)]
        means = {
            when: float(np.mean([row[when]["effective_rank"] for row in own]))
            for when in ("before", "after")
            if own[0][when] is not None
        }
        said.append(f"{part} {' to '.join(format(mean, '.1f') for mean in means.values())} of {own[0]['full_rank']}")
    return f"effective rank of the circuits, mean over heads: {', '.join(said)}"


# ---------------------------------------------------------------------- panels


def _panels(found: Mapping[str, Mapping[str, Spectrum]]) -> Iterator[Panel]:
    whole = [name for name, spectrum in found["after"].items() if spectrum.head is None]
    named = {"before": "before training", "after": "after training", "change": "the change"}
    matrix = Axis("matrix", tuple(whole))
    for what, hears in (("effective rank", "directions alike"), ("stable rank", "as strong as the strongest")):
        key = what.replace(" ", "_")
        yield Panel(
            name=what,
            axes=(Axis("when", tuple(named[when] for when in found)), matrix),
            values=np.array([[own[name].facts[key] for name in whole] for own in found.values()]),
            unit=f"directions ({hears})",
            zero="a zero matrix",
            one="one direction",
            view="bars",
        )
    models = {when: own for when, own in found.items() if when != "change"}
    when = Axis("when", tuple(named[when] for when in models))
    yield _of_heads(models, when)
    yield Panel(
        name="spectra",
        title="singular values over the largest",
        axes=(when, matrix, _places(max(len(found["after"][name].singular) for name in whole))),
        values=np.stack([_padded([_shares(own[name].singular) for name in whole]) for own in models.values()]),
        unit="share of the largest singular value",
        zero="nothing",
        one="as strong as the strongest",
        scale="unit",
    )
    yield _of_circuits(models, when)


def _of_heads(models: Mapping[str, Mapping[str, Spectrum]], when: Axis) -> Panel:
    last = models["after"]
    heads = list(dict.fromkeys(s.name.split()[0] for s in last.values() if s.head is not None))
    values = [[[own[f"{head} {part}"].facts["effective_rank"] for head in heads] for part in OF_A_HEAD]
              for own in models.values()]  # fmt: skip
    return Panel(
        name="effective rank of heads",
        axes=(when, Axis("part", OF_A_HEAD), Axis("head", tuple(heads))),
        values=np.array(values),
        unit="directions",
        zero="a zero matrix",
        one="one direction",
        words=np.vectorize("{:.1f}".format, otypes=[object])(np.array(values)),
        span=(0.0, float(max(len(spectrum.singular) for spectrum in last.values() if spectrum.head is not None))),
    )


def _of_circuits(models: Mapping[str, Mapping[str, Spectrum]], when: Axis) -> Panel:
    """Lines, a facet for each circuit; of many circuits, a heatmap each before and after."""
    names = [name for name, s in models["after"].items() if s.part in CIRCUITS]
    size = max(len(models["after"][name].singular) for name in names)
    values = np.stack([_padded([own[name].singular for name in names]) for own in models.values()])
    view: View = "lines" if len(names) <= FEW else "heatmap"
    circuit = Axis("circuit", tuple(names))
    return Panel(
        name="spectra of circuits",
        title="singular values",
        axes=(circuit, when, _places(size)) if view == "lines" else (when, circuit, _places(size)),
        values=values.swapaxes(0, 1) if view == "lines" else values,
        unit="singular value",
        zero="nothing passes",
        view=view,
    )


def _places(n: int) -> Axis:
    return Axis("value", tuple(range(1, n + 1)), "singular value, largest first")


def _shares(singular: Float[Tensor, "value"]) -> Float[Tensor, "value"]:
    return singular / singular.max() if singular.max() > 0 else singular


def _padded(spectra: Sequence[Float[Tensor, "_"]]) -> Float[np.ndarray, "matrix value"]:
    """As rows of one length; what a smaller matrix has not is NaN."""
    values = np.full((len(spectra), max(map(len, spectra))), np.nan)
    for row, singular in zip(values, spectra, strict=True):
        row[: len(singular)] = singular.numpy()
    return values


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """What a report asks: every matrix of a model that is not large."""
    return {} if sum(count_parameters(subject.cfg).values()) < LARGE else None
