"""Weight matrices indexed by group elements, whose spectra are sparse in a model with key frequencies."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from algoscope.lenses.modular_arithmetic.group_characters import Components
from algoscope.lenses.modular_arithmetic.logit_spectrum import gini
from algoscope.lenses.modular_arithmetic.operand_pairs import Pairs
from algoscope.networks.lora import whole
from algoscope.networks.transformer import Attention, FeedForward, Transformer
from algoscope.subjects.subject import Subject

Matrix = Float[np.ndarray, "n width"]


@dataclass(frozen=True, eq=False)
class Weights:
    """`matrices` by name, rows in the order of the group's elements, in float64:

    - `W_E`: the embedding of each element as first operand;
    - `W_U`: the unembedding of each element as answer;
    - `W_L` = W_out W_U, by answer [n d_mlp]: the direct effect of the last MLP's neurons on the logits;
    - `L0H0` = W_E W_V W_O W_in of each head of the first layer [n d_mlp]: the path to its neurons from an operand that
    the head attends to (for a gated MLP both factors, side by side).

    `neurons_to_logits` is W_L with every column of the logits [d_mlp d_vocab]. `left_out` gives the reason for each
    missing matrix.
    """

    matrices: Mapping[str, Matrix]
    neurons_to_logits: Float[Tensor, "d_mlp d_vocab"] | None
    left_out: Mapping[str, str]


def weights_of(subject: Subject, pairs: Pairs) -> Weights:
    """Those of the matrices that are defined for a subject."""
    first = torch.from_numpy(pairs.structure.first).to(subject.device)
    model, cfg = subject.model, subject.cfg
    matrices = {"W_E": _array(subject.token_embedding()[first]), "W_U": _array(model.W_U[pairs.answer])}
    left_out = {}
    if cfg.d_mlp is None:
        left_out["W_L"] = left_out["neuron input"] = "the model has no MLP"
    elif cfg.normalization_type is not None:
        left_out["W_L"] = "the final norm is between neurons and logits"
        left_out["neuron input"] = "norms are between embedding and neurons"
    elif cfg.parallel:
        left_out["neuron input"] = "attention and MLP run in parallel"
    neurons_to_logits = None
    if "W_L" not in left_out:
        neurons_to_logits = _mlp(model, cfg.n_layers - 1).w_out.weight.double().mT @ model.W_U.double().mT
        matrices["W_L"] = _array(neurons_to_logits[:, pairs.answer].mT)
    if "neuron input" not in left_out:
        matrices |= {f"L0H{head}": values for head, values in enumerate(_neuron_input(model, matrices["W_E"]))}
    return Weights(matrices, neurons_to_logits, left_out)


def _neuron_input(model: Transformer, embedding: Float[np.ndarray, "n d_model"]) -> list[Float[np.ndarray, "n d_mlp"]]:
    attn, mlp = model.block(0).attn, _mlp(model, 0)
    assert isinstance(attn, Attention)
    per_head = {"d_head": attn.d_head}
    w_v = rearrange(attn.v.weight.double(), "(head d_head) d_model -> head d_model d_head", **per_head)
    w_v = w_v.repeat_interleave(model.cfg.n_heads // model.cfg.kv_heads, dim=0)
    w_o = rearrange(attn.o.weight.double(), "d_model (head d_head) -> head d_head d_model", **per_head)
    w_in = torch.cat([part.weight.double() for part in (mlp.w_in, mlp.w_linear) if part is not None])
    rows = torch.from_numpy(embedding).to(w_v)
    return [_array(head) for head in rows @ w_v @ w_o @ w_in.mT]


def _mlp(model: Transformer, layer: int) -> FeedForward:
    mlp = model.block(layer).mlp
    assert isinstance(mlp, FeedForward)
    return mlp


def _array(values: Tensor) -> Matrix:
    return values.detach().double().cpu().numpy()


def sum_of_squares(subject: Subject) -> float:
    """The sum of squares of all weights."""
    return float(sum(weight.double().pow(2).sum() for weight in whole(subject.model).parameters()))


def ginis(weights: Weights, components: Components) -> dict[str, float]:
    """The Gini coefficient of the norms along the rows of the Fourier basis, of W_E and W_L, the constant included."""
    return {name: gini(components.norms(weights.matrices[name])) for name in ("W_E", "W_L") if name in weights.matrices}


def beyond(matrix: Matrix, components: Components, labels: tuple[int | str, ...]) -> float:
    """The part of a matrix outside the directions of some components, as a share of its Frobenius norm; squared, it is
    a share of its energy. The constant row, which shifts all logits equally, is left out of both. 0 = nothing else; NaN
    for a matrix without any other row.
    """
    varying = matrix - matrix.mean(axis=0)
    rows = components.rows_of(labels)
    size = np.linalg.norm(varying)
    return float(np.linalg.norm(varying - rows.T @ (rows @ varying)) / size) if size > 0 else float("nan")
