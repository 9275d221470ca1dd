"""Setting weights by hand: named subspaces of the residual stream, and heads and neurons that read and write them.

The models have no norms, so vectors are read from the stream as they were written. Nothing here is trained.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.networks.transformer import Attention, FeedForward, Transformer

SHARP = 40.0  # score of attended keys, others have 0: e^-40 is negligible in float32

Head = tuple[int, int]
"""(layer, head)"""
Looks = Mapping[int, tuple[int, ...]]
"""For each query position, the key positions that get equal attention."""


class Stream:
    """The residual stream as named subspaces, each a range of its entries."""

    def __init__(self, **sizes: int) -> None:
        self.size = sum(sizes.values())
        unit_vectors = torch.eye(self.size).split(list(sizes.values()))
        self._rows = dict(zip(sizes, unit_vectors, strict=True))

    def read(self, name: str) -> Float[Tensor, "subspace d_model"]:
        """The matrix that projects the stream to a subspace; its rows are unit vectors."""
        return self._rows[name]

    def write(self, name: str) -> Float[Tensor, "d_model subspace"]:
        """The matrix that writes a subspace into the stream."""
        return self._rows[name].mT


def blank(stream: Stream, **fields: Any) -> Transformer:
    """A model whose weights are all 0. `fields` are those of its ModelConfig."""
    cfg = ModelConfig(d_model=stream.size, normalization_type=None, tied_head=False, attn_scale=1.0, **fields)
    model = Transformer(cfg).requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    return model


def fill(
    model: Transformer,
    *,
    tokens: Float[Tensor, "token d_model"],
    places: Float[Tensor, "pos d_model"],
    unembedding: Float[Tensor, "answer d_model"],
) -> None:
    """Set the embeddings and the unembedding; tokens beyond the given rows have embedding 0 and logit 0."""
    assert model.pos_embed is not None
    model.embed.weight[: len(tokens)] = tokens
    model.pos_embed.weight.copy_(places)
    model.W_U[: len(unembedding)] = unembedding


def plant(
    model: Transformer,
    head: Head,
    *,
    query: Float[Tensor, "match d_model"],
    key: Float[Tensor, "match d_model"],
    value: Float[Tensor, "moved d_model"],
    out: Float[Tensor, "d_model moved"],
) -> None:
    """Set the weights of one head: its score is query(x) . key(y), its output out(value(y)) of attended positions y."""
    layer, number = head
    attn = model.blocks[layer].attn
    assert isinstance(attn, Attention)
    begin = number * attn.d_head
    attn.q.weight[begin : begin + len(query)] = query
    attn.k.weight[begin : begin + len(key)] = key
    attn.v.weight[begin : begin + len(value)] = value
    attn.o.weight[:, begin : begin + len(value)] = out


def plant_by_position(
    model: Transformer,
    stream: Stream,
    head: Head,
    looks: Looks,
    *,
    value: Float[Tensor, "moved d_model"],
    out: Float[Tensor, "d_model moved"],
) -> None:
    """Set the weights of a head that attends by position: equally to the keys that `looks` gives for the query.

    A query that is not in `looks` attends equally to all positions up to it.
    """
    place = stream.read("place")
    attends = torch.zeros(len(place), len(place))
    for query, keys in looks.items():
        attends[query, list(keys)] = 1
    plant(model, head, query=SHARP * place, key=attends @ place, value=value, out=out)


def plant_step(
    model: Transformer,
    layer: int,
    x: Float[Tensor, "1 d_model"],
    threshold: int,
    out: Float[Tensor, "d_model 1"],
) -> None:
    """Set a feed-forward of two ReLU neurons that adds `out` where the integer `x` is at least the threshold."""
    mlp = feed_forward(model, layer)
    mlp.w_in.weight.copy_(torch.cat([x, x]))
    mlp.w_in.bias.copy_(torch.tensor([1.0 - threshold, -threshold]))
    mlp.w_out.weight.copy_(torch.cat([out, -out], dim=1))


def feed_forward(model: Transformer, layer: int) -> FeedForward:
    mlp = model.blocks[layer].mlp
    assert isinstance(mlp, FeedForward)
    return mlp
