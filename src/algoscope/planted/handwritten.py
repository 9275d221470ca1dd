"""Writing weights by hand: the residual stream as named subspaces, and heads and neurons as what they read and write.

The models have no norms, so what is written into the stream is what is read from it. Nothing here is trained.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.networks.transformer import Attention, FeedForward, Transformer

SHARP = 40.0  # score of the keys that a head attends to, where all others have 0: e^-40 is lost in float32

Head = tuple[int, int]
"""(layer, head)"""
Looks = Mapping[int, tuple[int, ...]]
"""For positions of the query, the positions among which it divides its attention equally."""


class Stream:
    """The residual stream as named subspaces, each a range of its entries."""

    def __init__(self, **sizes: int) -> None:
        self.size = sum(sizes.values())
        unit_vectors = torch.eye(self.size).split(list(sizes.values()))
        self._rows = dict(zip(sizes, unit_vectors, strict=True))

    def read(self, name: str) -> Float[Tensor, "subspace d_model"]:
        """The map from the stream to a subspace of it; its rows are the unit vectors of the subspace."""
        return self._rows[name]

    def write(self, name: str) -> Float[Tensor, "d_model subspace"]:
        """The map that writes a subspace into the stream."""
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
    """Set the embeddings and the unembedding; tokens beyond the rows given embed as 0, or have the logit 0."""
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
    """Write one head: its score is query(x) . key(y), and it adds out(value(y)) of what it attends to."""
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
    """Write a head that divides its attention equally among the keys that `looks` gives for the query's position.

    A query that is not in `looks` attends equally to all positions before it.
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
    """Write a feed-forward of two ReLU neurons that adds `out` where the whole number `x` reaches the threshold."""
    mlp = feed_forward(model, layer)
    mlp.w_in.weight.copy_(torch.cat([x, x]))
    mlp.w_in.bias.copy_(torch.tensor([1.0 - threshold, -threshold]))
    mlp.w_out.weight.copy_(torch.cat([out, -out], dim=1))


def feed_forward(model: Transformer, layer: int) -> FeedForward:
    mlp = model.blocks[layer].mlp
    assert isinstance(mlp, FeedForward)
    return mlp
