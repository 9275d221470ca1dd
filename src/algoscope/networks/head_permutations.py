"""Copies of a model with permuted heads and neurons, which compute the same function."""

import copy

import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.networks.transformer import Attention, FeedForward, Transformer


@torch.no_grad()
def permuted(model: Transformer, seed: int) -> Transformer:
    """A copy with the heads and the neurons of each layer in a random order, drawn from `seed`.

    Query heads that share keys and values stay together. With ALiBi, heads have different slopes and are not permuted.
    """
    generator, other = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    for layer in range(model.cfg.n_layers):
        block = other.block(layer)
        if isinstance(block.attn, Attention) and model.cfg.positions != "alibi":
            _permute_heads(block.attn, generator)
        if isinstance(block.mlp, FeedForward):
            _permute_neurons(block.mlp, generator)
    return other


def _permute_heads(attn: Attention, generator: torch.Generator) -> None:
    n_groups = attn.cfg.kv_heads
    size = attn.cfg.n_heads // n_groups
    groups = torch.randperm(n_groups, generator=generator)
    heads = torch.cat([group * size + torch.randperm(size, generator=generator) for group in groups])
    query_rows, key_rows = _rows(heads, attn.d_head), _rows(groups, attn.d_head)
    for linear, order in ((attn.q, query_rows), (attn.k, key_rows), (attn.v, key_rows)):
        linear.weight.copy_(linear.weight[order])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias[order])
    attn.o.weight.copy_(attn.o.weight[:, query_rows])
    if attn.cfg.qk_norm_over == "all":  # a norm over all heads has a weight for every entry of each
        for norm, order in ((attn.q_norm, query_rows), (attn.k_norm, key_rows)):
            if norm is not None:
                norm.weight.copy_(norm.weight[order])


def _rows(heads: Int[Tensor, "some"], d_head: int) -> Int[Tensor, "row"]:
    """The rows of these heads in a matrix that has the rows of all heads, head by head."""
    return (heads[:, None] * d_head + torch.arange(d_head)).flatten()


def _permute_neurons(mlp: FeedForward, generator: torch.Generator) -> None:
    order = torch.randperm(len(mlp.w_in.weight), generator=generator)
    for linear in (mlp.w_in, mlp.w_linear):
        if linear is not None:
            linear.weight.copy_(linear.weight[order])
            if linear.bias is not None:
                linear.bias.copy_(linear.bias[order])
    mlp.w_out.weight.copy_(mlp.w_out.weight[:, order])
