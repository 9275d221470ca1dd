"""The weights lens: singular values and effective ranks of matrices and circuits, before and after training."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.numbers import in_cells
from algoscope.core.panel import Axis, Panel, View
from algoscope.lenses.inputs.prompts import LARGE, Prompts
from algoscope.lenses.measures import DIRECTIONS, Measure
from algoscope.networks.matrix_rank import counted_rank, entropy_rank, spectrum_of_product, stable_rank
from algoscope.networks.parameters import count_parameters
from algoscope.networks.transformer import Attention, Transformer
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject

OF_A_HEAD = ("W_Q", "W_K", "W_V", "W_O", "QK", "OV")
CIRCUITS = ("QK", "OV")
FEW = 8  # circuits: spectra of more are drawn as a heatmap instead of lines
LISTED = 40  # matrices in the table
WHEN = {"before": "before training", "after": "after training", "change": "change"}
SHARE = Measure("share of the largest singular value", "nothing", "as large as the largest", "unit")
SINGULAR = Measure("singular value", "direction not used")
ABOUT = (
    "A matrix stretches the space by its singular values, one for each direction. Effective rank, the exponential of "
    "the entropy of the singular values, counts the directions in use (n = n directions equally, 1 = one); stable "
    "rank counts only directions with singular values near the largest. QK = W_Q^T W_K gives the attention scores, OV "
    "= W_O W_V the head's output from the attended position; the rank of both is at most d_head. Training that finds "
    "a simple solution usually lowers these ranks."
)


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


@checked_arguments
@measurement
def weights(subject: AnyModel, *, runs_dir: Folder = None) -> Finding:
    """Singular values and ranks of every matrix, compared with step 0 if it is available.

    The matrices are W_E, W_pos, W_U (if not tied to W_E), each layer's W_Q, W_K, W_V, W_O, W_in, W_out (and W_gate),
    for the layer and, in attention, for each head; and each head's circuits: QK, which gives the scores (W_Q^T W_K,
    [d_model d_model]), and OV, which gives the output (W_O W_V). Norms, biases and rotary positions are left out of the
    circuits. Low-rank factors and LoRA updates are multiplied out.

    Effective rank: the exponential of the entropy of the singular values as shares of their sum; n = n directions
    equally, 1 = one direction, 0 = a zero matrix. Stable rank: the squared Frobenius norm over the squared largest
    singular value; it counts only directions about as strong as the strongest.

    Args:
        subject: a model, by name or opened.
        runs_dir: where run folders are looked for; by default the usual place.

    Returns:
        A finding with the panels `effective rank` and `stable rank` [when matrix] of the full matrices (with a step 0,
        `when` ends with the change that training made of each); `effective rank of heads` [when part head]; `spectra`
        [when matrix value], singular values over the largest, 0 = not used, 1 = as large as the largest; `spectra of
        circuits` [circuit when value], the singular values themselves. Fact `matrices` {matrix, layer, head, shape,
        full_rank, after, before, change}; the last three (null where there is none) hold `norm` (Frobenius),
        `effective_rank`, `stable_rank` and `rank` (singular values above rounding).

    Source:
        Roy and Vetterli, The effective rank (2007).

    Example:
        >>> import algoscope as ag
        >>> ag.lenses.weights("planted:reversal")["matrices"][0]["matrix"]
        'W_E'
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    before = subject.before_training()
    models = ({} if before is None else {"before": before.model}) | {"after": subject.model}
    spectra_at = {when: spectra(model) for when, model in models.items()}
    if before is not None:
        spectra_at["change"] = _changes(before.model, subject.model)
    rows = [_row(name, spectra_at) for name in spectra_at["after"]]
    return subject.finding(
        "weights", _claim(rows), {"matrices": rows}, tuple(_panels(spectra_at)), about=ABOUT, tables=[_table(rows)]
    )


def spectra(model: Transformer) -> dict[str, Spectrum]:
    """The singular values of every matrix and circuit of a model, in float64."""
    dtype, precise = model.embed.weight.dtype, copy.deepcopy(model).double()
    whole = {name: _spectrum(name, matrix, dtype) for name, matrix in matrices(precise).items()}
    heads = (head for layer in range(model.cfg.n_layers) for head in _heads(precise.block(layer).attn, layer, dtype))
    return whole | {head.name: head for head in heads}


def matrices(model: Transformer) -> dict[str, Float[Tensor, "out in"]]:
    """The full matrices by name, in the order of the forward pass: [out in], embeddings one row per token."""
    named = {"W_E": model.embed.weight}
    if model.pos_embed is not None:
        named["W_pos"] = model.pos_embed.weight
    for layer in range(model.cfg.n_layers):
        attn, mlp = model.block(layer).attn, model.block(layer).mlp
        modules = {"W_Q": attn.q, "W_K": attn.k, "W_V": attn.v, "W_O": attn.o}
        if mlp is not None and mlp.w_linear is not None:
            modules |= {"W_gate": mlp.w_in, "W_in": mlp.w_linear, "W_out": mlp.w_out}
        elif mlp is not None:
            modules |= {"W_in": mlp.w_in, "W_out": mlp.w_out}
        named |= {f"L{layer} {part}": module.weight for part, module in modules.items()}
    if not model.cfg.tied_head:
        named["W_U"] = model.W_U
    return {name: matrix.detach() for name, matrix in named.items()}


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
    factors = {"W_Q": q, "W_K": k, "W_V": v, "W_O": o}
    values = {part: torch.linalg.svdvals(w).cpu() for part, w in factors.items()}
    values |= {"QK": spectrum_of_product(q.mT, k).cpu(), "OV": spectrum_of_product(o, v).cpu()}
    shapes = {part: (w.shape[1], w.shape[2]) for part, w in factors.items()}
    for head in range(cfg.n_heads):
        for part in OF_A_HEAD:
            shape = shapes.get(part, (cfg.d_model, cfg.d_model))
            yield Spectrum(part, layer, head, shape, values[part][head], dtype)


def _changes(before: Transformer, after: Transformer) -> dict[str, Spectrum]:
    """The change of every full matrix in training."""
    dtype = after.embed.weight.dtype
    first, last = (matrices(copy.deepcopy(model).double()) for model in (before, after))
    return {name: _spectrum(name, matrix - first[name], dtype) for name, matrix in last.items()}


def _row(name: str, spectra_at: Mapping[str, Mapping[str, Spectrum]]) -> dict[str, Any]:
    last = spectra_at["after"][name]
    ranks = {
        when: spectra_at[when][name].facts if name in spectra_at.get(when, {}) else None
        for when in ("before", "change")
    }
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
    changes = []
    for part in CIRCUITS:
        of_heads = [row for row in rows if row["head"] is not None and row["matrix"].endswith(part)]
        means = {
            when: float(np.mean([row[when]["effective_rank"] for row in of_heads]))
            for when in ("before", "after")
            if of_heads[0][when] is not None
        }
        changes.append(
            f"{part} {' to '.join(format(mean, '.1f') for mean in means.values())} of {of_heads[0]['full_rank']}"
        )
    return f"effective rank of the circuits, mean over heads: {', '.join(changes)}"


# ---------------------------------------------------------------------- table and panels


def _table(rows: Sequence[Mapping[str, Any]]) -> ResultTable:
    """The full matrices; of many, those with the smallest share of their full rank."""
    whole = [row for row in rows if row["head"] is None]
    times = [when for when in WHEN if whole[0][when] is not None]
    if len(whole) > LISTED:
        whole = sorted(whole, key=lambda row: row["after"]["effective_rank"] / row["full_rank"])[:LISTED]
    return ResultTable(
        title="Effective rank of each matrix",
        columns=("matrix", "shape", "full rank", *(f"effective rank, {WHEN[when]}" for when in times), "stable rank"),
        rows=tuple(
            (
                row["matrix"],
                " x ".join(map(str, row["shape"])),
                row["full_rank"],
                *(row[when]["effective_rank"] for when in times),
                row["after"]["stable_rank"],
            )
            for row in whole
        ),
        caption="Full rank and effective rank of each matrix; `change` is that of W_after - W_before. Of more than "
        f"{LISTED} matrices, those with the smallest share of their full "
        "rank.",
    )


def _panels(spectra_at: Mapping[str, Mapping[str, Spectrum]]) -> Iterator[Panel]:
    whole = [name for name, spectrum in spectra_at["after"].items() if spectrum.head is None]
    matrix = Axis("matrix", tuple(whole))
    for what, counts in (("effective rank", "equally used"), ("stable rank", "as large as the largest")):
        key = what.replace(" ", "_")
        yield replace(DIRECTIONS, unit=f"directions ({counts})").panel(
            what,
            [Axis("when", tuple(WHEN[when] for when in spectra_at)), matrix],
            np.array([[each[name].facts[key] for name in whole] for each in spectra_at.values()]),
            caption=f"{what.capitalize()} of each weight matrix; before and after training, and of the change in "
            f"training, if the weights at step 0 are available. 0 = a zero matrix, 1 = one direction.",
            view="bars",
        )
    models = {when: each for when, each in spectra_at.items() if when != "change"}
    when = Axis("when", tuple(WHEN[when] for when in models))
    yield _of_heads(models, when)
    yield SHARE.panel(
        "spectra",
        [when, matrix, _places(max(len(spectra_at["after"][name].singular) for name in whole))],
        np.stack([_padded([_shares(each[name].singular) for name in whole]) for each in models.values()]),
        caption="Singular values of each matrix, largest first, divided by the largest: 1 = the largest, 0 = not "
        "used. Grey: the matrix has no more singular values.",
        title="singular values over the largest",
    )
    yield _of_circuits(models, when)


def _of_heads(models: Mapping[str, Mapping[str, Spectrum]], when: Axis) -> Panel:
    last = models["after"]
    heads = list(dict.fromkeys(s.name.split()[0] for s in last.values() if s.head is not None))
    values = np.array(
        [
            [[each[f"{head} {part}"].facts["effective_rank"] for head in heads] for part in OF_A_HEAD]
            for each in models.values()
        ]
    )
    return DIRECTIONS.panel(
        "effective rank of heads",
        [when, Axis("part", OF_A_HEAD), Axis("head", tuple(heads))],
        values,
        caption="Effective rank of the matrices of each head and of its circuits. QK gives the attention scores, OV "
        "the output; as products their rank is at most d_head.",
        words=in_cells(values, 1),
        span=(0.0, float(max(len(spectrum.singular) for spectrum in last.values() if spectrum.head is not None))),
    )


def _of_circuits(models: Mapping[str, Mapping[str, Spectrum]], when: Axis) -> Panel:
    """Lines, a facet for each circuit; of many circuits, a heatmap each before and after."""
    names = [name for name, s in models["after"].items() if s.part in CIRCUITS]
    size = max(len(models["after"][name].singular) for name in names)
    values = np.stack([_padded([each[name].singular for name in names]) for each in models.values()])
    view: View = "lines" if len(names) <= FEW else "heatmap"
    circuit = Axis("circuit", tuple(names))
    return SINGULAR.panel(
        "spectra of circuits",
        [circuit, when, _places(size)] if view == "lines" else [when, circuit, _places(size)],
        values.swapaxes(0, 1) if view == "lines" else values,
        caption="Singular values of the QK and OV circuit of each head, largest first. A steep fall means that the "
        "head reads or writes few directions.",
        title="singular values",
        view=view,
    )


def _places(n: int) -> Axis:
    return Axis("value", tuple(range(1, n + 1)), "singular value, largest first")


def _shares(singular: Float[Tensor, "value"]) -> Float[Tensor, "value"]:
    return singular / singular.max() if singular.max() > 0 else singular


def _padded(spectra: Sequence[Float[Tensor, "_"]]) -> Float[np.ndarray, "matrix value"]:
    """Rows of equal length, padded with NaN."""
    values = np.full((len(spectra), max(map(len, spectra))), np.nan)
    for row, singular in zip(values, spectra, strict=True):
        row[: len(singular)] = singular.numpy()
    return values


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: every matrix of a model that is not large."""
    return {} if sum(count_parameters(subject.cfg).values()) < LARGE else None
