"""The weights that a frequency can be read from: one row an element of the group, or one column an answer."""

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
    - `W_L` = W_out W_U, by answer [n d_mlp]: what the last feed-forward's neurons say to the logits directly;
    - `L0H0` = W_E W_V W_O W_in of each head of the first layer [n d_mlp]: what reaches its neurons of an operand
      that the head looks at (of a gated feed-forward both factors, side by side).

    `said` is W_L with every column of the logits [d_mlp d_vocab]. `left_out` says why something is not there.
    """

    matrices: Mapping[str, Matrix]
    said: Float[Tensor, "d_mlp d_vocab"] | None
    left_out: Mapping[str, str]


def weights_of(subject: Subject, pairs: Pairs) -> Weights:
    """What is defined of these for a subject."""
    first = torch.from_numpy(pairs.structure.first).to(subject.device)
    found = {"W_E": _array(subject.token_embedding()[first])}
    model, cfg = subject.model, subject.cfg
    found["W_U"] = _array(model.W_U[pairs.answer])
    missing = {}
    if cfg.d_mlp is None:
        missing["W_L"] = missing["neuron input"] = "the model has no feed-forward"
    elif cfg.normalization_type is not None:
        missing["W_L"] = "the final norm stands between neurons and logits"
        missing["neuron input"] = "norms stand between embedding and neurons"
    elif cfg.parallel:
        missing["neuron input"] = "attention and feed-forward read the same stream"
    said = None
    if "W_L" not in missing:
        said = _mlp(model, cfg.n_layers - 1).w_out.weight.double().mT @ model.W_U.double().mT
        found["W_L"] = _array(said[:, pairs.answer].mT)
    if "neuron input" not in missing:
        found |= {f"L0H{head}": values for head, values in enumerate(_neuron_input(model, found["W_E"]))}
    return Weights(found, said, missing)


def _neuron_input(model: Transformer, embedding: Float[np.ndarray, "n d_model"]) -> list[Float[np.ndarray, "n d_mlp"]]:
    attn, mlp = model.block(0).attn, _mlp(model, 0)
    assert isinstance(attn, Attention)
    per_head = {"d_head": attn.d_head}
    w_v = rearrange(attn.v.weight.double(), "(head d_head) d_model -> head d_model d_head", **per_head)
    w_v = w_v.repeat_interleave(model.cfg.n_heads // model.cfg.kv_heads, dim=0)
    w_o = rearrange(attn.o.weight.double(), "d_model (head d_head) -> head d_head d_model", **per_head)
    w_in = torch.cat([part.weight.double() for part in (mlp.w_in, mlp.w_linear) if part is not None])
    rows = torch.from_numpy(embedding).to(w_v)
    return [_array(one) for one in rows @ w_v @ w_o @ w_in.mT]


def _mlp(model: Transformer, layer: int) -> FeedForward:
    mlp = model.block(layer).mlp
    assert isinstance(mlp, FeedForward)
    return mlp


def _array(values: Tensor) -> Matrix:
    return values.detach().double().cpu().numpy()


def sum_of_squares(subject: Subject) -> float:
    """Of all weights together."""
    return float(sum(weight.double().pow(2).sum() for weight in whole(subject.model).parameters()))


def ginis(weights: Weights, components: Components) -> dict[str, float]:
    """The Gini coefficient of the norms along the rows of the Fourier basis, of W_E and W_L, the constant included."""
    return {name: gini(components.norms(weights.matrices[name])) for name in ("W_E", "W_L") if name in weights.matrices}


def beyond(matrix: Matrix, components: Components, labels: tuple[int | str, ...]) -> float:
    """What a matrix has beside the directions of some components, as a share of its Frobenius norm; squared, it is a
    share of its energy. The constant row, which moves all logits alike, is left out of both. 0 = nothing else; NaN
    where there is nothing.
    """
    varying = matrix - matrix.mean(axis=0)
    rows = components.rows_of(labels)
    size = np.linalg.norm(varying)
    return float(np.linalg.norm(varying - rows.T @ (rows @ varying)) / size) if size > 0 else float("nan")
